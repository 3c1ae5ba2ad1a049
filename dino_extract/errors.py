"""Everything that dino-extract tells its users about what went wrong, and the exit code each error ends with."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends, for scripts and schedulers."""

    DONE = 0  # everything asked for was done
    ERROR = 1  # the user's files or machine stand in the way; the message says how
    USAGE = 2  # wrong command line
    FAILURES = 3  # finished, but some images could not be embedded
    TRY_AGAIN = 75  # nothing is wrong with the command: run it again later (EX_TEMPFAIL)
    INTERRUPTED = 130  # Ctrl-C: 128 + SIGINT


class DinoExtractError(Exception):
    """An error the user can act on: one sentence, and a hint that says what to type next.

    Args:
        message: subject, expectation, what came; lower-case start, no full stop.
        hint: what to do next, usually a command in backticks.
    """

    exit_code = ExitCode.ERROR

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SourceError(DinoExtractError):
    """A folder, list or archive of images cannot be used."""


class DecodeError(DinoExtractError):
    """One image cannot be turned into pixels."""


class WeightsError(DinoExtractError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class DinoExtractWarning(UserWarning):
    """Something the user should know of that does not stop the work."""


class StoreError(DinoExtractError):
    """An HDF5 file cannot be written, read, or continued."""


class StoreBusyError(StoreError):
    """Another process is writing the same HDF5 file."""

    exit_code = ExitCode.TRY_AGAIN


class ConfigError(DinoExtractError):
    """Options that contradict each other or this machine."""
