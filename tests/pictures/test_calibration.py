"""Altered copies of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dino_extract as dx
from dino_extract.errors import StoreError
from dino_extract.pictures.calibration import ALTERATIONS, altered_vectors


@pytest.mark.parametrize("kind", list(ALTERATIONS))
@pytest.mark.parametrize("size", [(1, 1), (70_000, 3)])
def test_every_picture_can_be_altered(kind: str, size: tuple[int, int]) -> None:
    """One pixel, or a side longer than JPEG allows: each copy is still a picture in RGB."""
    copy = ALTERATIONS[kind][1](Image.new("RGB", size, "red"))

    assert copy.mode == "RGB"
    assert min(copy.size) >= 1


@pytest.fixture
def album(tmp_path: Path) -> str:
    """A file of three half transparent pictures, embedded on white by an untrained model."""
    rng = np.random.default_rng(0)
    for number in range(3):
        (tmp_path / "photos").mkdir(exist_ok=True)
        pixels = Image.fromarray(rng.integers(0, 256, (4, 5, 4), dtype=np.uint8)).resize((60, 50), Image.Resampling.BICUBIC)
        pixels.save(tmp_path / "photos" / f"{number}.png")
    path = tmp_path / "photos.h5"
    dx.embed(tmp_path / "photos", path, model="tiny", random_weights=0, size="28", alpha="white", workers=1)
    return str(path)


def test_copies_are_embedded_as_the_file_was(album: str, tmp_path: Path) -> None:
    """The vector of each copy is that of the same copy saved as a picture and embedded like the file."""
    with dx.open(album) as store:
        rows, found = altered_vectors(store, np.array([0, 2]))

    assert rows.tolist() == [0, 2]
    for kind, (_, alter) in ALTERATIONS.items():
        for row, vector in zip(rows.tolist(), found[kind], strict=True):
            picture = Image.open(tmp_path / "photos" / f"{row}.png")
            on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
            alter(on_white).save(tmp_path / "copy.png")
            np.testing.assert_allclose(vector, dx.embed_like(album, tmp_path / "copy.png")[1][0], atol=2e-3)


def test_images_that_have_changed_are_left_out(album: str, tmp_path: Path) -> None:
    """Changed and deleted images are not altered, and if all were deleted an error says so."""
    (tmp_path / "photos" / "1.png").write_bytes((tmp_path / "photos" / "0.png").read_bytes())
    with dx.open(album) as store:
        rows, found = altered_vectors(store, np.arange(3))
        for each in (tmp_path / "photos").iterdir():
            each.unlink()

        with pytest.raises(StoreError, match="none of the 3 images drawn is still at"):
            altered_vectors(store, np.arange(3))

    assert rows.tolist() == [0, 2]
    assert {len(block) for block in found.values()} == {2}
