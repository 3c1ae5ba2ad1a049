"""Bytes to upright RGB: formats, modes, orientation, damage, limits."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dino_extract.images.containers import ImageError
from dino_extract.images.decode import decode_image, plain_jpeg_size, read_image_size, to_rgb
from dino_extract.status import Status


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    """The image as a file of the given format."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def gradient(height: int = 40, width: int = 60) -> Image.Image:
    """A small colourful image without symmetry."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 4, y * 6, (x + y) * 2], axis=2).astype(np.uint8))


def with_orientation(orientation: int, image_format: str = "JPEG") -> bytes:
    """The same image as a file with this EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(gradient(), image_format, exif=exif)


@pytest.mark.parametrize(
    "image_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "TGA", "PPM", "JPEG2000", "QOI", "PCX", "SGI", "ICO"]
)
def test_usual_formats_are_read(image_format: str) -> None:
    """Every usual raster format gives the pixels that Pillow's own convert gives."""
    data = encode(gradient(), image_format)

    pixels = decode_image(data)

    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int, image_format: str) -> None:
    """All eight EXIF orientations come out as Pillow's exif_transpose turns them."""
    data = with_orientation(orientation, image_format)

    pixels = decode_image(data)

    assert np.array_equal(pixels, np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_from_header_is_upright(orientation: int, image_format: str) -> None:
    """The size read from the header is that of the decoded, upright image."""
    data = with_orientation(orientation, image_format)

    assert read_image_size(data) == decode_image(data).shape[:2]


def test_size_of_png_with_late_exif_is_upright() -> None:
    """The size of a PNG with its EXIF block behind the pixels is that of the decoded image."""
    data = encode(gradient(), "PNG")
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    chunk = b"eXIf" + tiff
    late = data[:-12] + struct.pack(">I", len(tiff)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[-12:]

    assert read_image_size(late) == decode_image(late).shape[:2] == (60, 40)


@pytest.mark.parametrize("damage", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_is_ignored(damage: bytes) -> None:
    """A photograph with a broken EXIF block is read as if it had none."""
    plain = encode(gradient(), "JPEG")
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(damage) + 2) + damage + plain[2:]

    assert np.array_equal(decode_image(data), decode_image(plain))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpeg_is_refused(share: float, progressive: bool) -> None:
    """A cut JPEG is an error and never an image with a grey rest."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    data = encode(noise, "JPEG", progressive=progressive)

    with pytest.raises(ImageError, match=r"^decode: ") as caught:
        decode_image(data[: int(len(data) * share)])

    assert caught.value.status == Status.UNREADABLE


@pytest.mark.parametrize("mode", ["eXIf", "IDAT"])
def test_truncated_png_is_refused(mode: str) -> None:
    """A cut PNG is an error, also if its EXIF block would be behind the pixels."""
    data = with_orientation(6, "PNG") if mode == "eXIf" else encode(gradient(), "PNG")

    with pytest.raises(ImageError, match="decode: OSError"):
        decode_image(data[:-40])


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", b"\xff\xd8\xff", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"]
)
def test_other_files_are_refused_with_the_same_words_every_time(data: bytes) -> None:
    """Files that are not images, and formats that run programs, are refused by a text without a memory address."""
    with pytest.raises(ImageError) as caught:
        decode_image(data)

    assert str(caught.value) == "decode: not an image in a known format"


def heic(**options: object) -> bytes:
    """The gradient as a HEIC photograph, almost without loss."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif, which writes HEIC, is not installed")
    pytest.importorskip("pi_heif", reason="the extra `heic` is not installed")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(gradient()).save(buffer, quality=100, chroma=444, **options)
    return buffer.getvalue()


def test_heic_is_read() -> None:
    """A HEIC photograph gives its source image, except for the loss by compression."""
    pixels = decode_image(heic())

    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels.astype(int) - np.asarray(gradient())).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_upright(orientation: int) -> None:
    """An image is turned once, by the transform in its header or by EXIF, and never twice."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = heic(exif=exif.tobytes())
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(with_orientation(orientation)))).convert("RGB"))

    pixels = decode_image(data)

    assert pixels.shape[:2] == want.shape[:2] == read_image_size(data)
    assert np.abs(pixels.astype(int) - want).mean() < 6


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_cut_heic_is_refused(share: float) -> None:
    """A cut HEIC photograph is an error."""
    data = heic()
    with pytest.raises(ImageError) as caught:
        decode_image(data[: int(share * len(data))])
    assert caught.value.status == Status.UNREADABLE


def test_heic_without_its_reader_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a reader, the error names the format and the package to install."""
    monkeypatch.setitem(sys.modules, "pi_heif", None)

    with pytest.raises(ImageError, match="a HEIC photograph, which `pip install pi-heif` makes readable"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(100))


def test_16_bit_png_is_scaled_and_not_clipped() -> None:
    """A 16-bit grey v becomes round(v * 255 / 65535)."""
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    data = encode(Image.fromarray(values), "PNG")

    pixels = decode_image(data)

    assert np.array_equal(pixels[..., 0], np.floor(values * (255 / 65535) + 0.5))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_16_bit_tiff_with_white_as_zero_is_inverted() -> None:
    """A 16-bit TIFF that says 0 is white comes out the right way round."""
    values = np.array([[0, 65535]], np.uint16)
    data = encode(Image.fromarray(values), "TIFF", tiffinfo={262: 0})

    assert decode_image(data)[0, :, 0].tolist() == [255, 0]


def test_dark_16_bit_pgm_stays_dark() -> None:
    """A 16-bit PGM is 16 bits deep however small its values are."""
    data = b"P5\n2 1\n65535\n" + struct.pack(">HH", 0, 257)

    assert decode_image(data)[0, :, 1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 1e6, 2e6], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([0.0, float("inf"), 1.0], [0, 255, 255]),
    ],
)
def test_float_image_is_scaled_from_the_range_it_lies_in(values: list[float], expected: list[int]) -> None:
    """Floats are read as 0..1, 0..255, 0..65535 or stretched, by the first range that holds them all; NaN is black."""
    data = encode(Image.fromarray(np.array([values], np.float32)), "TIFF")

    assert decode_image(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"), [([0, 1, 255], [0, 1, 255]), ([0, 257, 65535], [0, 1, 255]), ([-100, 0, 100], [0, 128, 255])]
)
def test_integer_image_is_scaled_from_the_range_it_lies_in(values: list[int], expected: list[int]) -> None:
    """32-bit integers are read as 0..255, 0..65535 or stretched, by the first range that holds them all."""
    data = encode(Image.fromarray(np.array([values], np.int32)), "TIFF")

    assert decode_image(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(("alpha", "expected"), [("drop", (200, 0, 0)), ("white", (255, 255, 255)), ("black", (0, 0, 0))])
@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_pixel_follows_the_alpha_policy(mode: str, alpha: str, expected: tuple[int, int, int]) -> None:
    """A transparent red pixel is red if alpha is dropped, else the background. Palettes behave in the same way."""
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    if mode == "P":
        data = encode(image.convert("RGB").quantize(2), "PNG", transparency=bytes([0, 0]))
    else:
        data = encode(image, "PNG")

    assert tuple(decode_image(data, alpha=alpha)[0, 0]) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes_are_converted_as_pillow_does(mode: str) -> None:
    """Bilevel, grey, palette, CMYK, YCbCr and LAB images are converted as Pillow's convert does."""
    source = gradient() if mode != "LAB" else gradient().convert("RGB")
    image = Image.frombytes("LAB", source.size, source.tobytes()) if mode == "LAB" else source.convert(mode)
    data = encode(image, "TIFF")

    assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_premultiplied_grey_with_alpha_is_read() -> None:
    """Grey with premultiplied alpha, which Pillow alone cannot turn into RGB, keeps its own grey."""
    image = Image.new("LA", (3, 3), (100, 255)).convert("La")

    assert to_rgb(image).getpixel((1, 1)) == (100, 100, 100)


def test_first_frame_of_an_animation_counts() -> None:
    """An animated GIF is its first frame."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])

    assert tuple(decode_image(data)[0, 0]) == (255, 0, 0)


@pytest.mark.parametrize(("limit", "is_refused"), [(2400, False), (2399, True), (1000, True)])
def test_too_many_pixels_are_refused(limit: int, is_refused: bool) -> None:
    """An image of exactly the limit is read, one pixel more is TOO_LARGE."""
    data = encode(gradient(40, 60), "PNG")

    if not is_refused:
        assert decode_image(data, max_pixels=limit).size == 7200
        return
    with pytest.raises(ImageError, match=f"{limit:,} pixels") as caught:
        decode_image(data, max_pixels=limit)
    assert caught.value.status == Status.TOO_LARGE


def test_bomb_is_refused_from_its_header() -> None:
    """A PNG of 4 gigapixels in 100 bytes is refused without memory for its pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + struct.pack(">I", 64)
        + b"IDAT"
        + bytes(68)
    )

    with pytest.raises(ImageError) as caught:
        decode_image(data)

    assert caught.value.status == Status.TOO_LARGE


def test_pillow_is_left_as_it_was() -> None:
    """The process-wide pixel limit of Pillow is put back after decoding."""
    before = Image.MAX_IMAGE_PIXELS

    decode_image(encode(gradient(), "PNG"), max_pixels=5000)

    assert before == Image.MAX_IMAGE_PIXELS


def test_reduced_decoding_stays_above_twice_the_size() -> None:
    """`reduce_to` shrinks a large JPEG by a power of two, not below twice the size asked for, and keeps it upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(gradient(800, 1200), "JPEG", exif=exif)

    assert decode_image(data, reduce_to=(100, 60)).shape == (300, 200, 3)
    assert decode_image(data, reduce_to=(700, 500)).shape == (1200, 800, 3)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encode(gradient(), "JPEG"), (40, 60)),
        (encode(gradient(), "JPEG", subsampling=0), (40, 60)),
        (encode(gradient().convert("L"), "JPEG"), (40, 60)),
        (with_orientation(1), (40, 60)),
        (with_orientation(6), None),
        (encode(gradient(), "JPEG", progressive=True), None),
        (encode(gradient(), "JPEG", keep_rgb=True), None),
        (encode(gradient().convert("CMYK"), "JPEG"), None),
        (encode(gradient(), "JPEG")[:-2], None),
        (encode(gradient(), "JPEG") + b"more", None),
        (encode(gradient(), "PNG"), None),
        (b"\xff\xd8\xff\xd9"[:3], None),
    ],
    ids=["colour", "full-chroma", "grey", "upright", "turned", "progressive", "rgb", "cmyk", "cut", "longer", "png", "none"],
)
def test_only_plain_jpegs_may_go_to_another_decoder(data: bytes, size: tuple[int, int] | None) -> None:
    """Only a whole, baseline, upright JPEG in YCbCr or grey is left to another decoder."""
    assert plain_jpeg_size(data) == size


def test_a_plain_jpeg_has_the_same_limits_and_errors() -> None:
    """Too many pixels, and a file that only begins like a JPEG, fail as in `decode_image`."""
    with pytest.raises(ImageError, match="60 x 40 is more than 2,399 pixels"):
        plain_jpeg_size(encode(gradient(), "JPEG"), max_pixels=2399)
    with pytest.raises(ImageError, match="not an image in a known format"):
        plain_jpeg_size(b"\xff\xd8 and \xff\xd9")
