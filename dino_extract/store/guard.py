"""Reads the attributes of a damaged file in a process of its own: HDF5 2.0 can loop for ever, or crash, over texts of a wrong length."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

# The clock runs from when everything is imported: attributes are read in milliseconds then, however many rows there are.
READER_PROGRAM = """
import signal, sys
limit_s, path, *sys.path = sys.argv[1:]
from dino_extract.store.header import connect
signal.alarm(int(limit_s))
with connect(path) as file:
    dict(file.attrs)
"""


def how_reader_ended(path: str, limit_s: int) -> str | None:
    """How a process that read the attributes ended: a text if it hung or was killed, None if it exited, even with an error."""
    command = [sys.executable, "-I", "-c", READER_PROGRAM, str(limit_s), path, *(os.path.abspath(entry) for entry in sys.path)]
    code = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode
    if code == -signal.SIGALRM:
        return f"did not come back within {limit_s} s"
    return f"died of signal {-code}" if code < 0 else None
