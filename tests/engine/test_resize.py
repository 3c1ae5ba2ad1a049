"""Pictures resized beside the model have the bits that Pillow gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from dino_extract.engine import resize
from dino_extract.engine.resize import bicubic, to_device
from dino_extract.images.preprocess import MAX_DEVICE_PIXELS, DeviceImages, Preprocess, preprocess
from tests.fake_gpu import CUDA, Traffic

CPU = torch.device("cpu")
SIZES = [(14, 14), (28, 42), (70, 28), (224, 224), (336, 224)]


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture in which every wrong neighbour and every wrong rounding shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(images: list[np.ndarray], options: Preprocess, is_resized: list[bool] | None = None) -> np.ndarray:
    """What the model would get."""
    return to_device(DeviceImages(images, np.array(is_resized or [False] * len(images)), options), CPU).numpy()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=5),
    st.sampled_from(["crop", "squash", "pad"]),
    st.sampled_from(SIZES),
)
def test_any_pictures_together_have_the_bits_of_pillow(shapes: list[tuple[int, int]], policy: str, size: tuple[int, int]) -> None:
    """Whatever the shapes in a batch, the policy and the size: each picture as `preprocess` makes it with Pillow."""
    options = Preprocess(policy=policy, height=size[0], width=size[1])  # type: ignore[arg-type]
    images = [noise(*shape, seed) for seed, shape in enumerate(shapes) if options.can_resize_later(*shape)]
    assume(images)

    got = resized(images, options)

    np.testing.assert_array_equal(got, [preprocess(image, options) for image in images])


@pytest.mark.parametrize("shape", [(1024, 1024), (4096, 256), (256, 4096), (500, 375), (375, 500), (224, 224), (256, 256), (1, 1)])
def test_common_and_extreme_shapes_at_518(shape: tuple[int, int]) -> None:
    """The largest, the longest, the usual and the smallest pictures have the bits of Pillow at 518 pixels."""
    options = Preprocess(height=518, width=518)
    image = noise(*shape)
    assert options.can_resize_later(*shape)

    np.testing.assert_array_equal(resized([image], options)[0], preprocess(image, options))


def test_resized_and_missing_pictures_stand_in_their_places() -> None:
    """Between others a picture that was resized before comes back as it is, and one that is missing has the colour of nothing."""
    options = Preprocess(height=28, width=42)
    images = [noise(0, 0), noise(90, 120), noise(28, 42), noise(0, 0), noise(50, 60), noise(0, 0)]

    got = resized(images, options, [True, False, True, True, False, False])

    nothing = np.broadcast_to(np.array(options.colour_outside, np.uint8), (28, 42, 3))
    want = [nothing, preprocess(images[1], options), images[2], nothing, preprocess(images[4], options), nothing]
    np.testing.assert_array_equal(got, want)


def test_a_batch_of_missing_pictures_alone_has_its_shape() -> None:
    """Nothing but failed images still makes a batch."""
    assert resized([noise(0, 0)] * 3, Preprocess(height=28, width=42)).shape == (3, 28, 42, 3)


def test_more_pictures_than_a_group_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked through in groups, a batch is the same; each group holds as much as it may, a picture that is too large stands alone."""
    options = Preprocess(height=28, width=28)
    heights = [40, 10, 40, 40, 200, 60, 30]  # below 28 the rows of the result count
    images = [noise(height, 50, number) for number, height in enumerate(heights)]
    want = resized(images, options)

    monkeypatch.setattr(resize, "MAX_SUMS", 28 * (40 + 28 + 40))

    parts = [heights[group] for group in resize.groups(DeviceImages(images, np.zeros(7, bool), options))]
    assert parts == [[40, 10, 40], [40], [200], [60, 30]]
    np.testing.assert_array_equal(resized(images, options), want)


def test_a_gpu_is_given_pixels_and_sizes_and_asked_for_nothing() -> None:
    """Each picture and the sizes of all go up once; the host never waits for a number, and never computes with the GPU's."""
    options = Preprocess(height=28, width=42)
    images = [noise(90, 120), noise(50, 60, 1), noise(0, 0), noise(28, 42, 2)]

    with FakeTensorMode(allow_non_fake_inputs=True), Traffic() as traffic:
        pixels = to_device(DeviceImages(images, np.array([False, False, True, True]), options), CUDA)

    assert (pixels.device.type, pixels.shape, pixels.dtype) == ("cuda", (4, 28, 42, 3), torch.uint8)
    assert sorted(traffic.seen) == ["aten::_to_copy"] + ["aten::copy_"] * 4


def test_a_part_of_the_pictures_is_pictures() -> None:
    """A slice holds its own images and marks."""
    pictures = DeviceImages([noise(5, 5), noise(6, 6), noise(7, 7)], np.array([True, False, True]), Preprocess())

    part = pictures[1:]

    assert [image.shape for image in part.images] == [(6, 6, 3), (7, 7, 3)]
    assert part.is_resized.tolist() == [False, True]


def test_the_filter_is_that_of_pillow() -> None:
    """Pillow's resize of a single bright pixel shows the filter that we use."""
    image = Image.new("F", (9, 1))
    image.putpixel((4, 0), 1.0)

    enlarged = np.asarray(image.resize((9 * 8, 1), Image.Resampling.BICUBIC))[0]

    distance = (torch.arange(72, dtype=torch.float64) + 0.5) / 8 - 4.5
    np.testing.assert_allclose(bicubic(distance), enlarged, atol=1e-6)


def test_pixels_already_in_shape_are_taken_as_they_are() -> None:
    """An array of pixels comes to the device unchanged."""
    pixels = noise(28, 42)[None]

    np.testing.assert_array_equal(to_device(pixels, CPU).numpy(), pixels)


@pytest.mark.parametrize(
    ("policy", "shape", "can_resize_later"),
    [
        ("crop", (480, 640), True),
        ("crop", (1024, MAX_DEVICE_PIXELS // 1024), True),
        ("crop", (1025, MAX_DEVICE_PIXELS // 1024), False),
        ("crop", (10, 1000), False),  # too long
        ("crop", (1000, 300), False),  # Pillow resizes it down first
        ("squash", (500, 333), False),
        ("squash", (333, 500), True),
        ("native", (480, 640), False),
    ],
)
def test_only_small_compact_pictures_wait(policy: str, shape: tuple[int, int], can_resize_later: bool) -> None:
    """What is large, very long, of its own shape, or resized by Pillow in another order is not left to the device."""
    assert Preprocess(policy=policy).can_resize_later(*shape) is can_resize_later  # type: ignore[arg-type]
