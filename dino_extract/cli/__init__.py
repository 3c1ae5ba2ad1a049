"""The command line: each command reads its arguments, makes one call and prints.

Only the standard library is imported here, because `main` handles signals from its first line on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from io import TextIOWrapper
from types import FrameType
from typing import Any

from dino_extract.errors import DinoExtractError, DinoExtractWarning, ExitCode
from dino_extract.names import quoted

# Limits of the machine, which may be reached anywhere. Every other OSError is either explained where it occurs or a bug of ours.
MACHINE_IS_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last two are sent by schedulers before time is up
CONTINUE = "make room (`ulimit -n`, disk, memory); what was finished is kept, and the same command continues"


class Signalled(BaseException):
    """SIGINT, SIGTERM or SIGUSR1 arrived; a BaseException, so that no handler of errors catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_last_signal: list[Signalled] = []  # at most one: the signal that has been received


def raise_lost_signal() -> None:
    """Raise the signal that has been received once more; nothing if there is none.

    C code that calls Python may drop any exception, that of a signal too. Work that goes on afterwards ends here.
    """
    if _last_signal:
        raise _last_signal[0]


def main() -> None:
    """Run the command line and exit with a code from `ExitCode`."""
    _last_signal.clear()
    for number in STOPPING:
        signal.signal(number, _stop_in_order)
    _open_closed_streams()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a name that is not UTF-8 is printed in its own bytes
    try:
        _run()
    except DinoExtractError as error:
        _tell("error", error.message, error.hint)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in MACHINE_IS_FULL:
            raise
        _tell("error", f"{(error.strerror or 'the machine is full').lower()}{f': `{error.filename}`' if error.filename else ''}", CONTINUE)
        sys.exit(ExitCode.ERROR)
    except Signalled as signalled:
        sys.exit(ExitCode.INTERRUPTED if signalled.number == signal.SIGINT else ExitCode.TRY_AGAIN)


def _run() -> None:
    usual_hook = sys.unraisablehook

    def raise_again(lost: sys.UnraisableHookArgs) -> None:
        """Repeat a signal that arrived inside a finalizer, where Python drops every exception."""
        if isinstance(lost.exc_value, Signalled):
            signal.signal(lost.exc_value.number, _unwind)
            threading.Timer(0.01, os.kill, (os.getpid(), lost.exc_value.number)).start()
        else:
            usual_hook(lost)

    sys.unraisablehook = raise_again
    usual_warning = warnings.showwarning

    def show_warning(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        """Print our own warnings without the line of code that they come from."""
        if issubclass(category, DinoExtractWarning):
            _tell("warning", str(message), None)
        else:
            usual_warning(message, category, filename, lineno, file, line)

    warnings.showwarning = show_warning
    try:
        from dino_extract.cli.app import app  # takes so long that people press Ctrl-C

        app(prog_name="dino-extract")
    finally:
        sys.unraisablehook, warnings.showwarning = usual_hook, usual_warning
        for number in STOPPING:  # only printing is left, so a signal may end the process at once
            signal.signal(number, signal.SIG_DFL)


def _open_closed_streams() -> None:
    """Replace closed standard streams (`<&-`) by /dev/null. Otherwise the next opened file gets their number and their text."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - for as long as the process runs
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _stop_in_order(number: int, frame: FrameType | None) -> None:
    """First signal: say how to continue, and unwind, so that stores commit and children end. Second signal: stop at once."""
    # Every long command continues where it stopped, so the same words are the way on. They are written past `sys.stderr`, which may be
    # in the middle of a write, and in place of a progress bar, which may be in the middle of its line.
    command = " ".join(map(quoted, ["dino-extract", *sys.argv[1:]]))
    clear = "\r\x1b[K" if sys.stderr.isatty() else ""
    text = f"{clear}interrupted: what was finished is kept\n\nhint: to continue, run `{command}`\n"
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), os.fsencode(text))
    _unwind(number, frame)


def _unwind(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    _last_signal[:] = [Signalled(number)]
    raise _last_signal[0]


def _tell(kind: str, message: str, hint: str | None) -> None:
    print(f"{kind}: {message}", file=sys.stderr)
    if hint:
        print("", *(f"hint: {line}" for line in hint.splitlines()), sep="\n", file=sys.stderr)
