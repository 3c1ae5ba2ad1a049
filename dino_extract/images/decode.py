"""From the bytes of a file to one upright RGB image. docs/images.md describes how each kind of image is read.

Pillow decodes everything. A leaner JPEG decoder (simplejpeg) was measured and saves 7-9 % of decoding and resizing together, because
most of the time is resizing. That is not worth a second decoder, which would treat damaged files differently.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffTags, UnidentifiedImageError

from dino_extract.config import MAX_PIXELS, AlphaPolicy
from dino_extract.images.containers import ImageError
from dino_extract.status import Status

# The usual raster formats. Left out are formats that run other programs (EPS, PDF), that are not images (HDF5, GRIB, BUFR, FITS, MPEG),
# and that are so rare that few people but attackers know their decoders (FPX, MIC, SPIDER, WMF, ICNS, ...). MPO opens as JPEG.
FORMATS = tuple("JPEG PNG WEBP TIFF BMP DIB GIF AVIF JPEG2000 TGA PPM PSD ICO DDS QOI PCX SGI IM".split())  # noqa: SIM905
MAX_ERROR_CHARS = 200

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange height and width
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")
_PNG_EXIF_CHUNKS = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # EXIF, and texts that may hold EXIF or XMP
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
assert TiffTags.lookup(_PHOTOMETRIC).name == "PhotometricInterpretation", "tag number"


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, alpha: AlphaPolicy = "drop", reduce_to: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """The upright image in a file as (H, W, 3) uint8 RGB, 0..255. If there are several frames or pages, the first one.

    Only one thread may call this at a time, because it sets Pillow's limits, which are process-wide.

    Args:
        data: the whole file.
        max_pixels: images with more are refused by their header, before memory is taken.
        alpha: transparency is dropped as `Image.convert("RGB")` does, or laid over white or black.
        reduce_to: (height, width) of the later resize. A JPEG may then be decoded at 1/2, 1/4 or 1/8, never below twice this size.

    Raises:
        ImageError: not an image, damaged, too large, or out of memory.
    """
    image, _ = open_upright(data, max_pixels=max_pixels, alpha=alpha, reduce_to=reduce_to)
    return np.asarray(image)


def open_upright(
    data: bytes, *, max_pixels: int = MAX_PIXELS, alpha: AlphaPolicy = "drop", reduce_to: tuple[int, int] | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """The image, RGB and upright, and the (height, width) that it has in full resolution.

    Arguments and errors as in `decode_image`.
    """
    with _pillow_limits(data, max_pixels):
        image = _open(data, max_pixels)
        height, width = image.height, image.width
        if reduce_to is not None and image.format == "JPEG":
            least = reduce_to[::-1] if _orientation(image) in _SIDEWAYS else reduce_to
            image.draft(image.mode, (2 * least[1], 2 * least[0]))
        turned, orientation = _upright(image, alpha)
        return turned, (width, height) if orientation in _SIDEWAYS else (height, width)


def upright(image: Image.Image, *, alpha: AlphaPolicy = "drop") -> Image.Image:
    """A Pillow image that other code has opened or made, RGB and upright.

    Raises:
        ImageError: it cannot be read.
    """
    with _pillow_limits(b"", image.width * image.height):
        return _upright(image, alpha)[0]


def _upright(image: Image.Image, alpha: AlphaPolicy) -> tuple[Image.Image, int]:
    """The image, RGB and upright, and the orientation that it had."""
    image.load()
    orientation = _orientation(image)  # only after loading: Pillow turns TIFF itself, and PNG may have its EXIF block behind the pixels
    rgb = to_rgb(image, alpha)
    return rgb.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else rgb, orientation


def read_image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """The upright (height, width) of an image from its header (a PNG that may hold EXIF is decoded: it can come last).

    Raises:
        ImageError: not an image, or more than `max_pixels`.
    """
    with _pillow_limits(data, max_pixels):
        image = _open(data, max_pixels)
        if image.format == "TIFF":  # Pillow gives the size of a TIFF upright
            return image.height, image.width
        if image.format == "PNG" and any(mark in data for mark in _PNG_EXIF_CHUNKS):
            image.load()  # the chunk may be behind the pixels; a damaged PNG must fail here and not pass for one without EXIF
        elif image.format == "PNG":
            return image.height, image.width
        return (image.width, image.height) if _orientation(image) in _SIDEWAYS else (image.height, image.width)


def plain_jpeg_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int] | None:
    """The (height, width) of a JPEG that every decoder reads in the same way: whole, baseline, upright, YCbCr or grey. Else None.

    Raises:
        ImageError: not an image, or more than `max_pixels`.
    """
    if not (data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9")):
        return None
    with _pillow_limits(data, max_pixels):
        image: Any = _open(data, max_pixels)
        components = [layer[0] for layer in image.layer] if image.format == "JPEG" else []
        is_ycc = components == [1, 2, 3] and image.info.get("adobe_transform", 1) == 1
        is_plain = (is_ycc or len(components) == 1) and "progressive" not in image.info and _orientation(image) == 1
        return (image.height, image.width) if is_plain else None


@contextmanager
def _pillow_limits(data: bytes, max_pixels: int) -> Iterator[None]:
    """Run Pillow with our pixel limit and without warnings. Every error of it becomes an ImageError."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2  # Pillow refuses at twice this, inside its decoders (frames, tiles) too
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(Status.TOO_LARGE, f"decode: more than {max_pixels:,} pixels") from error
    except MemoryError as error:
        raise ImageError(Status.CRASHED, "decode: out of memory") from error
    except UnidentifiedImageError as error:
        is_unread = _is_heic(data) and not _reads_heic()
        text = "a HEIC photograph, which `pip install pi-heif` makes readable" if is_unread else "not an image in a known format"
        raise ImageError(Status.UNREADABLE, f"decode: {text}") from error
    except Exception as error:  # damaged files make Pillow's decoders raise any kind of error
        text = " ".join(f"decode: {type(error).__name__}: {error}".split())
        raise ImageError(Status.UNREADABLE, text[:MAX_ERROR_CHARS]) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _open(data: bytes, max_pixels: int) -> Image.Image:
    formats = (*FORMATS, "HEIF") if _is_heic(data) and _reads_heic() else FORMATS
    image = Image.open(io.BytesIO(data), formats=formats)
    if image.width * image.height > max_pixels:
        raise ImageError(Status.TOO_LARGE, f"decode: {image.width} x {image.height} is more than {max_pixels:,} pixels")
    return image


def _is_heic(data: bytes) -> bool:
    """Whether a file begins as HEIC. Some kinds of AVIF begin in the same way."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS


def _reads_heic() -> bool:
    """Whether Pillow can read HEIC. Registers the reader if it is installed."""
    try:
        importlib.import_module("pi_heif").register_heif_opener()  # an optional extra, loaded for the first such image only
    except ImportError:
        return False
    return True


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation 1..8, or 1 if there is none. A PNG must be loaded before, because reading its EXIF decodes it."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block does not tell the orientation, and its parser raises any kind of error
        return 1
    return value if value in _TRANSPOSE else 1


def to_rgb(image: Image.Image, alpha: AlphaPolicy = "drop") -> Image.Image:
    """Any loaded Pillow image as 8-bit RGB. Deep greys are scaled and not clipped, and transparency follows `alpha`."""
    if image.mode.startswith("I;16"):
        return _scale_16_bit(image)
    if image.mode in ("I", "F"):
        return _scale_32_bit(image)
    if image.mode in ("La", "RGBa"):  # premultiplied: Pillow converts these to their plain form only
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if alpha != "drop" and image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, alpha), layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """Black at 0 and white at the largest value of the format: 65535, or less in a TIFF that states 9 to 15 bits."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    white = 2 ** (bits if 8 < bits <= 16 else 16) - 1
    grey_of = np.minimum((np.arange(65536) * 255 + white // 2) // white, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow inverts this for 8 bits but not for 16
        grey_of = 255 - grey_of
    return Image.fromarray(grey_of[np.asarray(image)]).convert("RGB")


def _scale_32_bit(image: Image.Image) -> Image.Image:
    """Black and white at the ends of the first range that holds all values: 0..1 (floats), 0..255, 0..65535, else their own extremes."""
    values = np.asarray(image)
    low, high = _finite_range(values)
    if image.format in ("PPM", "PNG") and image.mode == "I":  # 16 bits by definition, however dark the image is
        low, high = 0.0, 65535.0
    elif low >= 0:
        low, high = next(((0.0, top) for top in (1.0, 255.0, 65535.0) if high <= top and (top > 1 or image.mode == "F")), (low, high))
    grey = np.empty(values.shape, np.uint8)
    span = high - low or 1.0
    for row, line in enumerate(values):  # line by line: a float64 copy of the whole image would not fit the memory limit
        scaled = np.nan_to_num((line.astype(np.float64) - low) * 255 / span, nan=0.0, posinf=255.0, neginf=0.0)
        grey[row] = np.clip(np.floor(scaled + 0.5), 0, 255)
    return Image.fromarray(grey).convert("RGB")


def _finite_range(values: NDArray[Any]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
