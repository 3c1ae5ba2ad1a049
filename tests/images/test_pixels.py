"""From bytes to model pixels in one call."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dino_extract.images.containers import ImageError
from dino_extract.images.decode import decode_image
from dino_extract.images.pixels import pixels_of, prepare_image
from dino_extract.images.preprocess import Preprocess, preprocess


def png(height: int, width: int, channels: int = 3) -> bytes:
    """A PNG of noise, with transparency if it has four channels."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def test_pixels_follow_every_option() -> None:
    """The pixels are those of decoding and then preprocessing with the same options, from bytes and from a Pillow image."""
    options = Preprocess(policy="pad", height=28, width=42, alpha="white")
    content = png(60, 90, 4)

    want = preprocess(decode_image(content, alpha="white"), options)

    assert np.array_equal(pixels_of(content, options), want)
    assert np.array_equal(pixels_of(Image.open(io.BytesIO(content)), options), want)


@pytest.mark.parametrize(("shape", "is_resized"), [((60, 60), False), ((40, 1000), True)])
def test_only_images_that_the_device_can_resize_are_left(shape: tuple[int, int], is_resized: bool) -> None:
    """Without resizing, a compact image comes as decoded. An image that the device cannot resize is resized at once."""
    image = prepare_image(png(*shape), Preprocess(height=28, width=28), resizes=False)

    assert (image.is_resized, image.size) == (is_resized, shape)
    assert (image.pixels.height, image.pixels.width) == ((28, 28) if is_resized else shape)


def test_limits_hold() -> None:
    """An image with more pixels than allowed is an error."""
    with pytest.raises(ImageError, match="more than 99 pixels"):
        pixels_of(png(10, 10), Preprocess(max_pixels=99))


def test_fast_decoding_keeps_the_size_of_the_original() -> None:
    """`fast_decode` decodes a large JPEG at a part of its size, and still gives the full size of the original."""
    buffer = io.BytesIO()
    Image.effect_noise((800, 640), 50).convert("RGB").save(buffer, "JPEG")

    image = prepare_image(buffer.getvalue(), Preprocess(height=28, width=28, fast_decode=True), resizes=False)

    assert image.size == (640, 800)
    assert image.pixels.size == (100, 80)
