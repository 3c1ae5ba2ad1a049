"""Rows embedded again: what is compared, and what cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from dino_extract.embedding.pipeline import embed
from dino_extract.embedding.verification import verify
from dino_extract.errors import StoreError
from tests.sample_images import save_pictures

OPTIONS = {"model": "tiny", "random_weights": 0, "dtype": "float32", "workers": 1}


@pytest.mark.parametrize("pixels", [{"size": "28"}, {"size": "28", "preprocess": "native", "tokens": "patch"}])
def test_an_edited_image_is_missing_and_no_bad_row(tmp_path: Path, pixels: dict[str, str]) -> None:
    """An image that was replaced since, by one of another shape too, is counted as missing; the others are compared."""
    save_pictures(tmp_path / "photos", range(4))
    embed(tmp_path / "photos", tmp_path / "x.h5", **OPTIONS, **pixels)
    Image.new("RGB", (400, 50), "red").save(tmp_path / "photos" / "odd" / "0003.png")

    result = verify(str(tmp_path / "x.h5"))

    assert result.is_good
    assert result.recomputed is not None
    assert (result.recomputed.rows, result.recomputed.missing) == (3, 1)
    for path in (tmp_path / "photos").glob("*/*.png"):
        os.utime(path, (1, 1))
    with pytest.raises(StoreError, match=r"none of the 4 images drawn is still at `.*photos` with its size and time"):
        verify(str(tmp_path / "x.h5"))


def test_a_file_of_failures_has_nothing_to_compare(tmp_path: Path) -> None:
    """Where no image could be embedded, the checksums are all there is to verify."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"not an image")
    embed(tmp_path / "photos", tmp_path / "x.h5", size="28", **OPTIONS)

    result = verify(str(tmp_path / "x.h5"))

    assert result.is_good
    assert result.recomputed is None


def test_a_folder_whose_name_is_no_text_is_found_again(tmp_path: Path) -> None:
    """Images below a folder whose name is not UTF-8 can be embedded again."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/w\xff"))
    save_pictures(folder, range(2))
    embed(folder, tmp_path / "x.h5", size="28", **OPTIONS)

    result = verify(str(tmp_path / "x.h5"))

    assert result.recomputed is not None
    assert (result.recomputed.rows, result.recomputed.missing) == (2, 0)
