"""From upright RGB to model pixels: sizes, policies, and agreement with the official evaluation transform."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision import transforms

from dino_extract.errors import ConfigError
from dino_extract.images.decode import decode_image
from dino_extract.images.preprocess import EXACT_PIXELS, MAX_ASPECT, Preprocess, parse_size, preprocess


def official(image: Image.Image, size: int = 224) -> np.ndarray[Any, Any]:
    """The evaluation transform of the official repository up to ToTensor, by torchvision."""
    resize = transforms.Resize(round(size * 256 / 224), transforms.InterpolationMode.BICUBIC)
    return np.asarray(transforms.CenterCrop(size)(resize(image.convert("RGB"))))


def difference(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> int:
    """Largest difference in grey levels."""
    return int(np.abs(ours.astype(int) - theirs).max())


def photographs(shared_dir: Path, step: int) -> list[bytes]:
    """Every `step`-th file of the trashnet photographs."""
    with tarfile.open(shared_dir / "images" / "trashnet.tar") as archive:
        members = [member for member in archive if member.isfile()][::step]
        return [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """An image as smooth as a photograph: noise enlarged eight times."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def test_sampled_photographs_match_the_official_transform(shared_dir: Path) -> None:
    """Real photographs have the same bits as torchvision's resize and crop give."""
    worst = max(
        difference(preprocess(decode_image(data), Preprocess()), official(Image.open(io.BytesIO(data))))
        for data in photographs(shared_dir, 12)
    )

    assert worst == 0


@pytest.mark.slow
def test_all_photographs_match_the_official_transform(shared_dir: Path) -> None:
    """All 2,527 photographs have the same bits as torchvision's resize and crop give, at two sizes."""
    for data in photographs(shared_dir, 1):
        image = decode_image(data)
        for size in (224, 98):
            assert difference(preprocess(image, Preprocess(height=size, width=size)), official(Image.open(io.BytesIO(data)), size)) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photograph_matches_the_official_transform_of_the_upright_one(orientation: int) -> None:
    """With every EXIF orientation the pixels are those of the official transform of the upright image."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(smooth(300, 420)).save(buffer, "JPEG", exif=exif)

    ours = preprocess(decode_image(buffer.getvalue()), Preprocess())

    assert difference(ours, official(ImageOps.exif_transpose(Image.open(buffer)))) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(30, 700), st.floats(0.2, 5.0), st.sampled_from([56, 112, 224, 336]), st.integers(0, 9))
def test_any_shape_matches_the_official_transform(short: int, aspect: float, size: int, seed: int) -> None:
    """For any height, width and size the bits are the same, up to a million pixels."""
    aspect = min(aspect, EXACT_PIXELS / short**2)
    image = smooth(max(int(short * aspect), 8), short, seed)

    ours = preprocess(image, Preprocess(height=size, width=size))

    assert difference(ours, official(Image.fromarray(image), size)) == 0


@settings(max_examples=20, deadline=None)
@given(st.integers(1100, 2200), st.floats(0.5, 2.0), st.sampled_from([56, 224, 518]), st.integers(0, 9))
def test_large_images_match_the_official_transform_to_a_grey_level(height: int, aspect: float, size: int, seed: int) -> None:
    """Above a million pixels nearly all values are the same, and the others differ by one."""
    image = smooth(height, max(int(height * aspect), EXACT_PIXELS // height + 1), seed)

    ours = preprocess(image, Preprocess(height=size, width=size))

    theirs = official(Image.fromarray(image), size)
    assert difference(ours, theirs) <= 1
    assert (ours != theirs).mean() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (13, 7), (1, 100_000), (100_000, 1)])
def test_tiny_and_extreme_images_are_enlarged(shape: tuple[int, int]) -> None:
    """One pixel and a line of 100,000 pixels become a full image of their own colour."""
    image = np.full((*shape, 3), (10, 20, 30), np.uint8)

    pixels = preprocess(image, Preprocess())

    assert pixels.shape == (224, 224, 3)
    assert np.unique(pixels.reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]


@pytest.mark.parametrize(("shape", "size"), [((300, 400), (224, 336)), ((400, 300), (224, 336)), ((224, 336), (224, 336))])
def test_rectangular_crop_covers_the_same_share(shape: tuple[int, int], size: tuple[int, int]) -> None:
    """A rectangular crop keeps the aspect ratio: a square stays square, centred."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    image = np.stack([255.0 * x / width, 255.0 * y / height, x * 0.0], axis=2).astype(np.uint8)

    pixels = preprocess(image, Preprocess(height=size[0], width=size[1])).astype(float)

    pixels_per_step = [
        np.polyfit(np.arange(side), profile / 255 * full, 1)[0]
        for side, profile, full in (
            (size[1], pixels[size[0] // 2, :, 0], width),
            (size[0], pixels[:, size[1] // 2, 1], height),
        )
    ]
    assert pixels_per_step[0] == pytest.approx(pixels_per_step[1], rel=0.02)
    assert pixels[size[0] // 2, size[1] // 2, :2] == pytest.approx([127, 127], abs=2)


def test_squash_keeps_the_corners() -> None:
    """`squash` shows the whole image, corners included."""
    image = np.zeros((100, 400, 3), np.uint8)
    image[:10, :40] = image[-10:, -40:] = 255

    pixels = preprocess(image, Preprocess(policy="squash"))

    assert pixels[0, 0].tolist() == pixels[-1, -1].tolist() == [255, 255, 255]


def test_pad_centres_the_image_on_the_mean_colour() -> None:
    """`pad` keeps the aspect ratio and fills the border with the colour that the model sees as zero."""
    image = np.full((100, 200, 3), 255, np.uint8)

    pixels = preprocess(image, Preprocess(policy="pad"))

    assert (pixels[56:168] == 255).all()
    assert pixels[:56].reshape(-1, 3).tolist() == pixels[168:].reshape(-1, 3).tolist() == [[124, 116, 104]] * (56 * 224)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((480, 640), (16, 21)),
        ((640, 480), (21, 16)),
        ((100, 100), (16, 16)),
        ((10, 1000), (16, 128)),
        ((231, 224), (17, 16)),
        ((230, 224), (16, 16)),
    ],
)
def test_native_grid(shape: tuple[int, int], grid: tuple[int, int]) -> None:
    """`native` rounds the longer side to whole patches, half upwards, and stops at eight times the shorter."""
    options = Preprocess(policy="native")

    assert options.native_grid(*shape) == grid
    assert preprocess(np.zeros((*shape, 3), np.uint8), options).shape == (grid[0] * 14, grid[1] * 14, 3)


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_native_grid_is_symmetric_and_bounded(height: int, width: int) -> None:
    """Turning an image turns its grid, and no image has more than eight squares of patches."""
    options = Preprocess(policy="native", height=112, width=112)

    assert options.native_grid(height, width) == options.native_grid(width, height)[::-1]
    assert min(options.native_grid(height, width)) == 8
    assert max(options.native_grid(height, width)) <= 8 * MAX_ASPECT


def test_size_that_is_not_a_multiple_names_the_nearest() -> None:
    """A size that is not a multiple of the patch size is an error that names the nearest sizes."""
    with pytest.raises(ConfigError, match="image size 225 is not a multiple of the patch size 14") as caught:
        Preprocess(height=225, width=224)

    assert caught.value.hint == "the nearest sizes are `--size 224` and `--size 238`"


def test_native_takes_one_number() -> None:
    """`native` with a rectangle is an error."""
    with pytest.raises(ConfigError, match="must be one number"):
        Preprocess(policy="native", height=224, width=336)


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), (224, (224, 224)), ("224x336", (224, 336)), ("224X336", (224, 336))])
def test_size_is_height_by_width(text: str | int, size: tuple[int, int]) -> None:
    """A size is one number, as text or as a number, or height x width."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "224x", "a", "1x2x3", "-14", "22.4"])
def test_size_that_is_not_a_number_is_refused(text: str) -> None:
    """Any other text is an error that shows it."""
    with pytest.raises(ConfigError, match=f"got `{text}`"):
        parse_size(text)


def test_record_reads_back() -> None:
    """The record goes through JSON and gives the same preprocessing again."""
    options = Preprocess(policy="pad", height=98, width=112, alpha="white", mean=(0.5, 0.5, 0.5))

    assert Preprocess.from_record(json.loads(json.dumps(options.as_record()))) == options


def test_grid_of_fixed_sizes() -> None:
    """The patch grid is the size divided by the patch size. `native` has no common grid."""
    assert Preprocess(height=224, width=336).grid == (16, 24)
    assert Preprocess(policy="native").grid is None
