"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real photographs and odd files that are not part of the repository; skips the test where it is absent."""
    folder = Path(os.environ.get("DINO_EXTRACT_TEST_DATA", REPOSITORY.parent / "shared"))
    if not (folder / "images").is_dir():
        pytest.skip(f"no test photographs at `{folder}` (set DINO_EXTRACT_TEST_DATA)")
    return folder
