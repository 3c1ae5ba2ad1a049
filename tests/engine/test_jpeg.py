"""JPEGs decoded beside the model: on a CPU the bits of Pillow, and a damaged one costs itself alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dino_extract.engine import jpeg as jpeg_module
from dino_extract.engine.jpeg import decode_jpegs
from dino_extract.engine.resize import to_device
from dino_extract.images.preprocess import DeviceImages, Jpeg, Preprocess, preprocess

pytest.importorskip("torchcodec.decoders", reason="the extra `gpu-decode` is not installed")
CPU = torch.device("cpu")


def encoded(height: int, width: int, seed: int = 0, image_format: str = "JPEG", **options: object) -> Jpeg:
    """A noisy picture as a file."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((width, height)).save(buffer, image_format, **options)
    return Jpeg(np.frombuffer(buffer.getvalue(), np.uint8).copy(), (height, width))


def by_pillow(jpeg: Jpeg) -> np.ndarray:
    """What Pillow decodes it to."""
    return np.asarray(Image.open(io.BytesIO(jpeg.content.tobytes())).convert("RGB"))


def test_pictures_have_the_bits_of_pillow() -> None:
    """Of every chroma subsampling and of odd sizes, in their order."""
    jpegs = [encoded(20 + 7 * number, 61, number, subsampling=number % 3) for number in range(6)]

    for jpeg, picture in zip(jpegs, decode_jpegs(jpegs, CPU), strict=True):
        np.testing.assert_array_equal(picture.numpy(), by_pillow(jpeg))
        assert not jpeg.error


def test_a_damaged_one_costs_itself_alone() -> None:
    """Beside one that no decoder reads, and one that says another size than its header did, the others are what they are."""
    jpegs = [encoded(30, 40, number) for number in range(4)]
    jpegs[1] = Jpeg(jpegs[1].content[:200], (30, 40))
    jpegs[2] = Jpeg(jpegs[2].content, (30, 50))

    pictures = decode_jpegs(jpegs, CPU)

    assert [bool(jpeg.error) for jpeg in jpegs] == [False, True, True, False]
    assert jpegs[1].error.startswith("decode: ")
    assert jpegs[2].error == "decode: the picture is 40 x 30, its header said 50 x 30"
    assert [picture.shape for picture in pictures] == [(30, 40, 3), (30, 40, 3), (30, 50, 3), (30, 40, 3)]
    for number in (0, 3):
        np.testing.assert_array_equal(pictures[number].numpy(), by_pillow(jpegs[number]))


def test_what_the_device_cannot_decode_is_decoded_by_pillow() -> None:
    """A kind of picture that the device refuses is no failure."""
    jpegs = [encoded(30, 40), encoded(30, 40, 1, "PNG")]

    pictures = decode_jpegs(jpegs, CPU)

    np.testing.assert_array_equal(pictures[1].numpy(), by_pillow(jpegs[1]))
    assert not jpegs[1].error


def test_want_of_memory_is_told_to_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine halves its batch then; it is no fault of an image."""

    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(jpeg_module, "decode_together", fails)
    jpeg = encoded(30, 40)

    with pytest.raises(torch.OutOfMemoryError):
        decode_jpegs([jpeg], CPU)
    assert not jpeg.error


def test_they_are_resized_among_decoded_and_missing_pictures() -> None:
    """Each picture of a mixed batch comes out as Pillow decodes and resizes it, in its place."""
    options = Preprocess(height=28, width=42)
    jpegs = [encoded(90, 120), encoded(64, 50, 1)]
    decoded = np.random.default_rng(2).integers(0, 256, (70, 60, 3), dtype=np.uint8)
    ready = np.random.default_rng(3).integers(0, 256, (28, 42, 3), dtype=np.uint8)
    images = [jpegs[0], decoded, ready, np.zeros((0, 0, 3), np.uint8), jpegs[1]]

    got = to_device(DeviceImages(images, np.array([False, False, True, False, False]), options), CPU).numpy()

    nothing = np.broadcast_to(np.array(options.colour_outside, np.uint8), (28, 42, 3))
    want = [
        preprocess(by_pillow(jpegs[0]), options),
        preprocess(decoded, options),
        ready,
        nothing,
        preprocess(by_pillow(jpegs[1]), options),
    ]
    np.testing.assert_array_equal(got, want)


def test_large_ones_are_worked_through_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more pixels lie on the device at a time than the limit says, unless a single picture has more."""
    monkeypatch.setattr("dino_extract.engine.resize.MAX_SOURCE_PIXELS", 5000)
    sizes: list[int] = []
    decode = jpeg_module.decode_jpegs
    monkeypatch.setattr("dino_extract.engine.resize.decode_jpegs", lambda jpegs, device: sizes.append(len(jpegs)) or decode(jpegs, device))
    options = Preprocess(height=28, width=28)
    jpegs = [encoded(*shape, shape[0]) for shape in ((40, 50), (41, 50), (42, 50), (80, 70), (43, 50))]

    got = to_device(DeviceImages(jpegs, np.zeros(5, bool), options), CPU).numpy()

    assert sizes == [2, 1, 1, 1]
    np.testing.assert_array_equal(got, [preprocess(by_pillow(jpeg), options) for jpeg in jpegs])
