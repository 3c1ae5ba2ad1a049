"""The command line: each command reads its arguments, makes one call and prints."""

from __future__ import annotations

import errno
import shlex
import signal
import sys
from io import TextIOWrapper
from types import FrameType

import typer

from dino_extract import __version__
from dino_extract.cli import (
    attention,
    benchmark,
    cluster,
    dedup,
    doctor,
    embed,
    export,
    finetune,
    inspect,
    knn,
    linear,
    linear_dense,
    match,
    pca,
    report,
    search,
    weights,
)
from dino_extract.errors import DinoExtractError, ExitCode

# The machine's limits, which may be hit anywhere; every other OSError is either explained where it occurs or a mistake of ours.
MACHINE_IS_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
CONTINUE = "make room (`ulimit -n`, disk, memory); what was finished is kept, and the same command continues"

NUMBERS = "After embedding: answers"
PICTURES = "After embedding: pictures and files"

app = typer.Typer(
    name="dino-extract",
    help="DINOv2 embeddings of image folders in crash-safe HDF5.",
    epilog="Start with `dino-extract embed photos/`, then `dino-extract info photos.h5`. Exit codes: 0 done, 1 error, 2 usage, "
    "3 finished with failed images, 75 run again later, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("embed", epilog=embed.EXAMPLES)(embed.embed)
app.command("info")(inspect.info)
app.command("verify")(inspect.verify)
app.command("finetune")(finetune.finetune)
app.add_typer(weights.app, name="weights")
app.command("doctor")(doctor.doctor)
app.command("benchmark", epilog=benchmark.EXAMPLES)(benchmark.benchmark)
app.command("knn", rich_help_panel=NUMBERS, epilog=knn.EXAMPLES)(knn.knn)
app.command("linear", rich_help_panel=NUMBERS, epilog=linear.EXAMPLES)(linear.linear)
app.command("classify", rich_help_panel=NUMBERS)(linear.classify)
app.command("linear-dense", rich_help_panel=NUMBERS, epilog=linear_dense.EXAMPLES)(linear_dense.linear_dense)
app.command("search", rich_help_panel=NUMBERS, epilog=search.EXAMPLES)(search.search)
app.command("dedup", rich_help_panel=NUMBERS, epilog=dedup.EXAMPLES)(dedup.dedup)
app.command("cluster", rich_help_panel=NUMBERS, epilog=cluster.EXAMPLES)(cluster.cluster)
app.command("curate", rich_help_panel=NUMBERS)(cluster.curate)
app.command("pca", rich_help_panel=PICTURES)(pca.pca)
app.command("match", rich_help_panel=PICTURES)(match.match)
app.command("attention", rich_help_panel=PICTURES)(attention.attention)
app.command("report", rich_help_panel=PICTURES)(report.report)
app.command("export", rich_help_panel=PICTURES)(export.export)


class Signalled(BaseException):
    """SIGINT, SIGTERM or SIGUSR1 arrived; a BaseException, so that no handler for errors takes it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dino-extract {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
) -> None:
    pass


def main() -> None:
    """Run the command line and exit with a code from `ExitCode`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the last two are sent by schedulers before time is up
        signal.signal(number, _stop_in_order)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a name that is not UTF-8 goes out in its own bytes
    try:
        app()
    except DinoExtractError as error:
        _say("error", error.message, error.hint)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in MACHINE_IS_FULL:
            raise
        _say("error", f"{(error.strerror or 'the machine is full').lower()}{f': `{error.filename}`' if error.filename else ''}", CONTINUE)
        sys.exit(ExitCode.ERROR)
    except Signalled as signalled:
        # Every long command continues where it stopped, so the same words are the way on.
        _say("interrupted", "what was finished is kept", f"to continue, run `{shlex.join(['dino-extract', *sys.argv[1:]])}`")
        sys.exit(ExitCode.INTERRUPTED if signalled.number == signal.SIGINT else ExitCode.TRY_AGAIN)


def _stop_in_order(number: int, frame: FrameType | None) -> None:
    """First signal: unwind, so that stores commit and children end. Second: stop at once."""
    signal.signal(number, signal.SIG_DFL)
    raise Signalled(number)


def _say(kind: str, message: str, hint: str | None) -> None:
    print(f"{kind}: {message}", file=sys.stderr)
    if hint:
        print(f"\nhint: {hint}", file=sys.stderr)
