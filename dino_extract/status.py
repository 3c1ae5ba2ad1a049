"""What became of one image: the code that stands in `/status` beside its row."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The fate of one image; every row that is not `OK` holds NaN and a text in `/error`.

    The numbers are part of the file format: a number is never given another meaning.
    """

    PENDING = 0  # not embedded yet
    OK = 1  # the row holds the embedding
    UNREADABLE = 2  # not an image, damaged, or of a kind we do not read
    TOO_LARGE = 3  # more pixels or bytes than the limits allow
    CRASHED = 4  # the decoder crashed, ran out of memory or out of time
    NON_FINITE = 5  # the model gave infinity or NaN
    VANISHED = 6  # the file was listed, and gone when it was to be read
