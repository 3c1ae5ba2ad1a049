"""The result of one image: the code in `/status` for its row."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The result of one image. A row that is not `OK` holds NaN, and its `/error` holds the reason.

    The numbers are part of the file format, so a number never gets another meaning.
    """

    PENDING = 0  # not embedded yet
    OK = 1  # the row holds the embedding
    UNREADABLE = 2  # not an image, damaged, or of a kind that is not read
    TOO_LARGE = 3  # more pixels or bytes than the limits allow
    CRASHED = 4  # the decoder crashed, ran out of memory or out of time
    NON_FINITE = 5  # the model gave infinity or NaN
    VANISHED = 6  # the file was listed, and deleted or replaced before it was read
