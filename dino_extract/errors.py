"""Every error that dino-extract raises for its users, and the exit code that each ends a command with.

DinoExtractError                  the user can act on it: one sentence, and a hint
SourceError                     images cannot be found or listed
DecodeError                     an image cannot be decoded
ImageError                    ... with the stage that failed (images/manifest.py)
WeightsError                    a checkpoint of a model is missing, damaged, or does not fit
UnreachableError              a server does not answer (weights/cache.py)
StoreError                      an HDF5 file cannot be written, read or continued
StoreBusyError                another process is writing it
DamagedHeaderError            its header is damaged (store/header.py)
ConfigError                     invalid option values or combinations
FinetuneError                   a training run cannot go on
CheckpointError               a checkpoint of the run cannot be read or written
RunBusyError                  another process is training into the folder
PreemptedError                a signal stopped the run; it can be continued
DivergedError                 a loss, gradient or embedding is NaN or infinite
CollapsedError                the embeddings have become too similar
GpuMemoryError                a step needs more memory than the GPU has
UsageError                      the command line is wrong (cli/usage.py)

DinoExtractWarning                the user should know it; the work goes on
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends, for scripts and schedulers."""

    DONE = 0  # everything that was asked for was done
    ERROR = 1  # a problem with the user's files or machine; the message says how to solve it
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


class DinoExtractWarning(UserWarning):
    """A warning for the user; the work goes on."""


class SourceError(DinoExtractError):
    """A folder, list or archive of images cannot be used."""


class DecodeError(DinoExtractError):
    """One image cannot be turned into pixels."""


class WeightsError(DinoExtractError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class StoreError(DinoExtractError):
    """An HDF5 file cannot be written, read, or continued."""


class StoreBusyError(StoreError):
    """Another process is writing the same HDF5 file."""

    exit_code = ExitCode.TRY_AGAIN


class ConfigError(DinoExtractError):
    """Invalid option values or combinations, or options this machine does not support."""


class FinetuneError(DinoExtractError):
    """A training run cannot go on."""


class CheckpointError(FinetuneError):
    """A checkpoint of a run cannot be read or written, or belongs to another kind of run."""


class RunBusyError(FinetuneError):
    """Another process is training into the same folder."""

    exit_code = ExitCode.TRY_AGAIN


class PreemptedError(FinetuneError):
    """SIGTERM or SIGUSR1 stopped the run; it is saved and can be continued."""

    exit_code = ExitCode.TRY_AGAIN


class DivergedError(FinetuneError):
    """A loss, a gradient or an embedding is NaN or infinite."""


class CollapsedError(FinetuneError):
    """The embeddings of different images have become too similar."""


class GpuMemoryError(FinetuneError):
    """A step needs more memory than the GPU has."""
