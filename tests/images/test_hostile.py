"""594 odd and broken files in one run: no crash, no hang, and every good image has exactly its own pixels."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dino_extract.images.finding import find_images
from dino_extract.images.loader import DecodedBatch, Loader, scan_image_sizes
from dino_extract.images.manifest import Manifest
from dino_extract.images.preprocess import Preprocess
from dino_extract.status import Status

# Read here although the recorded outcome, which tries every frame and Pillow's own convert, is a failure: two whose first page is
# sound and a later one is not, and two grey ones with premultiplied alpha, for which Pillow has no conversion to RGB.
READ_ALL_THE_SAME = {
    "go-fuzz-corpus/0075_4bbf83bc566f75140382c30e287cc0743ff49a79-2",
    "pillow/0496_psd-oob-write-overflow.psd",
    "image-tiff/0196_minisblack-2c-8b-alpha.tiff",
    "image-tiff/0251_subsubifds.tif",
}
if find_spec("pi_heif"):  # the recorded run had no reader for these
    READ_ALL_THE_SAME |= {"pillow_heif/0567_zPug_3.heic", "pillow_heif/0570_truncated.heic"}  # the latter lacks only what is no picture


@pytest.fixture(scope="module")
def manifest(shared_dir: Path) -> Manifest:
    """The archive of odd files."""
    return find_images([str(shared_dir / "hostile" / "hostile.tar")])


@pytest.fixture(scope="module")
def batches(manifest: Manifest) -> list[DecodedBatch]:
    """All of them through the loader."""
    with Loader(manifest, range(len(manifest)), Preprocess(), batch=32, workers=2) as loader:
        return list(loader)


def test_every_file_gets_a_status(batches: list[DecodedBatch]) -> None:
    """594 rows are OK or failed with a text. None crashed, hung or is pending."""
    status = np.concatenate([batch.status for batch in batches])
    errors = [error for batch in batches for error in batch.errors]

    assert len(status) == 594
    assert set(status.tolist()) == {Status.OK, Status.UNREADABLE, Status.TOO_LARGE}
    assert all((code == Status.OK) == (error == "") for code, error in zip(status, errors, strict=True))


def test_outcomes_agree_with_pillow(manifest: Manifest, batches: list[DecodedBatch], shared_dir: Path) -> None:
    """The same files are read as in the recorded Pillow run, and a few known others."""
    recorded = json.loads((shared_dir / "hostile" / "outcomes_pillow13.json").read_text())
    status = np.concatenate([batch.status for batch in batches])

    readable = {key.decode() for key, code in zip(manifest.keys, status, strict=True) if code == Status.OK}

    assert readable == {key for key, outcome in recorded.items() if outcome["outcome"] == "decodes"} | READ_ALL_THE_SAME


def test_pixels_are_those_of_loading_alone(manifest: Manifest, batches: list[DecodedBatch]) -> None:
    """The pixels of an image do not depend on the hundreds that the same decoder has read before."""
    rows = np.arange(len(manifest))[::-1]
    with Loader(manifest, rows, Preprocess(), batch=1, workers=1) as loader:
        alone = np.concatenate([batch.pixels for batch in loader])[::-1]

    assert np.array_equal(np.concatenate([batch.pixels for batch in batches]), alone)


def test_error_texts_are_the_same_every_time(manifest: Manifest, batches: list[DecodedBatch]) -> None:
    """Error texts hold no memory address and no temporary name, and fit one line."""
    with Loader(manifest, range(len(manifest)), Preprocess(), batch=100, workers=1) as loader:
        again = [error for batch in loader for error in batch.errors]

    assert again == [error for batch in batches for error in batch.errors]
    assert all(error.isprintable() and " object at 0x" not in error and len(error) <= 200 for error in again)


def test_header_sizes_are_those_of_the_decoded_images(manifest: Manifest, batches: list[DecodedBatch]) -> None:
    """For every image that decodes, the size read from the header is the size it has."""
    is_ok = np.concatenate([batch.status for batch in batches]) == Status.OK

    sizes = scan_image_sizes(manifest, Preprocess(), workers=2)

    assert np.array_equal(sizes[is_ok], np.concatenate([batch.image_size for batch in batches])[is_ok])
