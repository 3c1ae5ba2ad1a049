"""Batched crops equal Pillow's and torchvision's, crop by crop."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dino_extract.config import IMAGENET_MEAN, IMAGENET_STD
from dino_extract.finetuning import augment
from dino_extract.finetuning.augment import blur, cut_crops, jitter_colours, make_crops, resize_weights
from dino_extract.finetuning.config import CropConfig
from dino_extract.finetuning.crops import CropParams, draw_crops
from tests.fake_gpu import CUDA, Traffic

SIDE = 96


def picture(seed: int = 0) -> NDArray[np.uint8]:
    """A smooth colourful square with some noise, (96, 96, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(coarse) + rng.integers(-20, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)


def batch_of(*pictures: NDArray[np.uint8]) -> Tensor:
    """Pictures as the (B, 3, S, S) uint8 batch that crops are cut from."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def unchanged(count: int) -> CropParams:
    """Parameters of crops (count,) that show the whole image as it is."""
    return CropParams(
        box=np.tile(np.float32([0, 0, 1, 1]), (count, 1)),
        flip=np.zeros(count, bool),
        jitter=np.tile(np.float32([1, 1, 1, 0]), (count, 1)),
        order=np.tile(np.arange(4), (count, 1)),
        grayscale=np.zeros(count, bool),
        sigma=np.zeros(count, np.float32),
        solarize=np.zeros(count, bool),
    )


def of_batch(*images: CropParams) -> CropParams:
    """The parameters (n, ...) of some images as those of a batch."""
    return CropParams(*(np.stack([getattr(image, entry.name) for image in images]) for entry in fields(CropParams)))


@pytest.mark.parametrize("side_px", [42, 98])
def test_cut_and_flip_equal_pillow(side_px: int) -> None:
    """A box cut, resized and mirrored is within rounding of Pillow's crop, bicubic resize and mirror."""
    image = picture()
    boxes = [(3, 10, 80, 60), (0, 0, 96, 96), (50, 60, 30, 31)]  # top, left, height, width
    params = replace(unchanged(3), box=np.float32(boxes) / SIDE, flip=np.array([True, False, True]))

    got = cut_crops(batch_of(image), of_batch(params), side_px)

    for crop, (top, left, height, width), flip in zip(got, boxes, params.flip, strict=True):
        want = Image.fromarray(image).crop((left, top, left + width, top + height)).resize((side_px, side_px), Image.Resampling.BICUBIC)
        want = want.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else want
        difference = np.abs(crop.permute(1, 2, 0).numpy() * 255 - np.asarray(want, np.float32))
        assert difference.max() < 3  # Pillow rounds and clips after each of two passes
        assert difference.mean() < 0.4


@pytest.mark.parametrize(
    ("kind", "factor", "operation"),
    [
        (0, 1.3, "adjust_brightness"),
        (1, 0.7, "adjust_contrast"),
        (2, 1.2, "adjust_saturation"),
        (3, 0.08, "adjust_hue"),
        (3, -0.1, "adjust_hue"),
    ],
)
def test_each_jitter_equals_torchvision(kind: int, factor: float, operation: str) -> None:
    """Brightness, contrast, saturation and hue equal torchvision's on the same float crops."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    crops = batch_of(picture(1)).float() / 255
    params = unchanged(1)
    params.jitter[0, kind] = factor

    got = jitter_colours(crops.clone(), params)

    torch.testing.assert_close(got, getattr(functional, operation)(crops, factor), rtol=0, atol=2e-3)


def test_the_four_jitters_follow_the_order_of_each_crop() -> None:
    """Two crops with the same factors in opposite orders equal torchvision's operations in those orders."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    operations = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation, functional.adjust_hue]
    crops = batch_of(picture(2), picture(2)).float() / 255
    params = replace(unchanged(2), order=np.array([[0, 1, 2, 3], [3, 2, 1, 0]]), jitter=np.float32([[1.4, 0.6, 1.2, 0.1]] * 2))

    got = jitter_colours(crops.clone(), params)

    for row in range(2):
        want = crops[row]
        for kind in params.order[row]:
            want = operations[kind](want, float(params.jitter[row, kind]))
        torch.testing.assert_close(got[row], want, rtol=0, atol=2e-3)


def test_blur_equals_torchvision() -> None:
    """Each crop is blurred with its own sigma as torchvision's kernel of 9 does, and a sigma of 0 leaves it alone."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    crops = batch_of(picture(3), picture(4), picture(5)).float() / 255
    sigma = np.float32([0.1, 0, 2.0])

    got = blur(crops.clone(), sigma)

    for row in (0, 2):
        torch.testing.assert_close(got[row], functional.gaussian_blur(crops[row], [9, 9], [float(sigma[row])] * 2), rtol=0, atol=1e-5)
    assert torch.equal(got[1], crops[1])


def test_grayscale_solarize_and_normalisation_are_the_official_ones() -> None:
    """A grey and inverted crop equals Pillow's grey, inverted from 128 on, and normalised with the ImageNet statistics."""
    image = picture(6)
    params = replace(unchanged(1), grayscale=np.array([True]), solarize=np.array([True]))

    got = make_crops(batch_of(image), of_batch(params), SIDE)

    gray = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    want = np.where(gray >= 128, 255 - gray, gray)[..., None] / 255
    shown = got[0].permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN
    away = (np.abs(shown - want) > 1.1 / 255).any(axis=-1)
    assert away.mean() < 0.01  # Pillow rounds grey before the threshold: values of 127.5 fall on the other side


def test_crops_of_a_batch_lie_crop_by_crop() -> None:
    """Row k * B + b of the result is crop k of image b."""
    dark, light = np.zeros((SIDE, SIDE, 3), np.uint8), np.full((SIDE, SIDE, 3), 255, np.uint8)

    got = make_crops(batch_of(dark, light), of_batch(unchanged(3), unchanged(3)), 14)

    assert (got.mean(dim=(1, 2, 3)) > 0).tolist() == [False, True] * 3


def test_all_crops_of_a_real_draw_are_finite() -> None:
    """Random crops of narrow images have finite pixels in the range that normalisation gives."""
    config = CropConfig(global_crops_size=28, local_crops_size=14)
    _, local = draw_crops([np.random.default_rng(0)] * 3, np.array([(20, 900), (900, 20), (3, 3)], np.int32), config)

    got = make_crops(batch_of(picture(), picture(), picture()), local, 14)

    assert got.isfinite().all()
    assert got.abs().max() < 3


def test_a_gpu_is_given_random_numbers_and_asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Crops on a GPU take their parameters from pinned memory, and nothing comes back to the host."""
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)  # needs a driver
    monkeypatch.setattr(augment, "constant_on", cache(augment.constant_on.__wrapped__))  # which later tests must not find
    config = CropConfig(global_crops_size=28, local_crops_size=14)
    sizes, rngs = np.full((8, 2), SIDE, np.int32), [np.random.default_rng(number) for number in range(8)]
    images = batch_of(*(picture(number) for number in range(8)))

    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu = images.to(CUDA)
        with Traffic() as traffic:
            crops = [make_crops(on_gpu, params, 28) for params in draw_crops(rngs, sizes, config)]

    assert [each.device.type for each in crops] == ["cuda", "cuda"]
    assert traffic.seen == ["aten::_to_copy"] * (len(pinned) + 3)  # mean, standard deviation and hues once


@pytest.mark.parametrize(("start", "length"), [(10.6, 0.3), (10.4, 0.05), (10.0, 0.4), (47.9, 0.1), (0.0, 0.2), (47.99999, 0.00001)])
def test_a_box_between_two_pixel_centres_shows_the_pixel_it_lies_in(start: float, length: float) -> None:
    """A box narrower than a pixel gives every output pixel all of the one pixel in which it lies."""
    weights = resize_weights(torch.tensor([[start]]), torch.tensor([[length]]), 48, 6)

    want = torch.zeros(48)
    want[int(start)] = 1
    assert torch.equal(weights, want.expand(1, 1, 6, 48))


@pytest.mark.parametrize("size", [(1, 1200), (1200, 1), (1, 1)])
def test_crops_of_a_line_of_pixels_are_finite(size: tuple[int, int]) -> None:
    """Random crops of an image one pixel high or wide, many times longer than it is decoded to, have finite pixels."""
    config, rng = CropConfig(global_crops_size=28, local_crops_size=14), np.random.default_rng(0)

    for _ in range(20):
        for params in draw_crops([rng], np.array([size], np.int32), config):
            assert make_crops(batch_of(picture()), params, 14).isfinite().all()
