"""Resizing on the device of the model: pictures of different sizes at once, to the bits of Pillow's bicubic resize.

Pillow computes in whole numbers: for each axis, first across and then down, a weighted sum of neighbours with 22 bits after the point,
rounded to 8 bits. So does this, on all pictures together: they lie behind each other, pixel after pixel, and each step gathers
one neighbour of every result.

Source: Pillow, src/libImaging/Resample.c, precompute_coeffs and normalize_coeffs_8bpc.

Dimension key: B pictures, P pixels and R rows of all of them, H W sides of the result, T neighbours that count for one result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_extract.engine.jpeg import decode_jpegs
from dino_extract.images.preprocess import DeviceImages, Jpeg

MAX_SUMS = 1 << 24  # of one axis computed together, three channels each: enough to fill a GPU, and about 1 GB with what they need
MAX_SOURCE_PIXELS = 1 << 27  # of pictures resized together: 400 MB, twice that where they are decoded here
_FRACTION_BITS = 22  # Pillow's PRECISION_BITS: 32 less 8 of the pixels less 2 for overshoot
_REACH = 2.0  # of the bicubic filter, in pixels


def to_device(pixels: np.ndarray | DeviceImages, device: torch.device) -> Tensor:
    """Pixels (B, H, W, 3) uint8 on the device, for those in memory or for pictures that are yet to be resized.

    From pinned memory the copy does not wait; the pixels must stay as they are until it is done.
    """
    if isinstance(pixels, DeviceImages):
        return torch.cat([resize(pixels[group], device) for group in groups(pixels)])
    return torch.from_numpy(pixels).to(device, non_blocking=True)


def groups(pictures: DeviceImages) -> Iterator[slice]:
    """Pictures that are resized together, as many as memory should hold, at least one."""
    first = rows = pixels = 0
    for place, (height, width) in enumerate(pictures.sizes()):
        more = max(height, pictures.options.height)
        is_full = (rows + more) * pictures.options.width > MAX_SUMS or pixels + height * width > MAX_SOURCE_PIXELS
        if place > first and is_full:
            yield slice(first, place)
            first, rows, pixels = place, 0, 0
        rows, pixels = rows + more, pixels + height * width
    yield slice(first, len(pictures))


def resize(pictures: DeviceImages, device: torch.device) -> Tensor:
    """The pictures (B, H, W, 3) uint8 as the model sees them, resized on the device."""
    height, width = pictures.options.height, pictures.options.width
    frames = pictures.frames()
    num_rows = int(frames[:, 0, 0].sum())
    taps_y, taps_x = (count_taps(frames[:, axis, 0], frames[:, axis, 1]) for axis in (0, 1))
    pixels_P3 = upload(pictures, device, spare=taps_x)
    frames_B23 = torch.from_numpy(frames).to(device, non_blocking=True)
    heights_B, widths_B = frames_B23[:, 0, 0], frames_B23[:, 1, 0]
    picture_R = torch.repeat_interleave(heights_B, output_size=num_rows)
    first_row_B = heights_B.cumsum(0) - heights_B
    first_pixel_B = (heights_B * widths_B).cumsum(0) - heights_B * widths_B
    row_R = torch.arange(num_rows, device=device) - first_row_B[picture_R]
    first_pixel_R = first_pixel_B[picture_R] + row_R * widths_B[picture_R]

    x_BW, weights_BWT, is_shown_BW = neighbours(frames_B23[:, 1], width, taps_x)
    across_RW3 = weighted_sum(
        pixels_P3, first_pixel_R[:, None] + x_BW[picture_R], (weights_BW[picture_R] for weights_BW in weights_BWT.unbind(2))
    )
    y_BH, weights_BHT, is_shown_BH = neighbours(frames_B23[:, 0], height, taps_y)
    rows_RC = F.pad(across_RW3.flatten(1), (0, 0, 0, taps_y))
    out_BHW3 = weighted_sum(rows_RC, first_row_B[:, None] + y_BH, weights_BHT.unbind(2)).unflatten(2, (width, 3))

    is_outside_BHW = ~(is_shown_BH[:, :, None] & is_shown_BW[:, None, :])
    for channel, value in enumerate(pictures.options.colour_outside):
        out_BHW3[..., channel].masked_fill_(is_outside_BHW, value)
    return out_BHW3


def upload(pictures: DeviceImages, device: torch.device, *, spare: int) -> Tensor:
    """The pixels of all pictures behind each other on the device, (P + spare, 3) uint8; the spare ones may hold anything."""
    sizes = [height * width for height, width in pictures.sizes()]
    decoded = iter(decode_jpegs([image for image in pictures.images if isinstance(image, Jpeg)], device))
    pixels_P3 = torch.empty(sum(sizes) + spare, 3, dtype=torch.uint8, device=device)
    for place, image in zip(pixels_P3.split([*sizes, spare]), pictures.images, strict=False):
        source = next(decoded) if isinstance(image, Jpeg) else torch.from_numpy(image)
        place.view(source.shape).copy_(source, non_blocking=True)
    return pixels_P3


def count_taps(length_B: np.ndarray, full_B: np.ndarray) -> int:
    """Neighbours that a result may have in an axis, over all pictures: more of them where a picture is made smaller."""
    scale = (length_B / np.maximum(full_B, 1)).max(initial=1.0)
    return math.ceil(_REACH * scale) * 2 + 1


def neighbours(axis_B3: Tensor, count: int, taps: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the results of one axis are made of.

    Args:
        axis_B3: int64 length of the picture, length it is resized to, and place of the first result in that; in pixels.
        count: results.
        taps: neighbours of each.

    Returns:
        First neighbour (B, count) int64; weights (B, count, taps) int32 in units of 2^-22; whether the picture is there, (B, count) bool.
    """
    length_B1, full_B1, shift_B1 = axis_B3[:, :, None].unbind(1)
    place = torch.arange(count, device=axis_B3.device) + shift_B1
    is_shown = (place >= 0) & (place < full_B1)
    place = torch.minimum(place, full_B1 - 1).clamp(min=0)
    scale = length_B1.double() / full_B1.clamp(min=1)
    stretch = scale.clamp(min=1)  # the filter is as wide as what becomes one pixel, never narrower than a pixel
    centre = (place + 0.5) * scale
    first = (centre - _REACH * stretch + 0.5).long().clamp(min=0)
    end = torch.minimum((centre + _REACH * stretch + 0.5).long(), length_B1)
    pixel = first[..., None] + torch.arange(taps, device=axis_B3.device)
    weight = bicubic((pixel - centre[..., None] + 0.5) * (1 / stretch)[..., None]) * (pixel < end[..., None])
    weight = weight / weight.sum(dim=2, keepdim=True)
    return first, (weight * 2**_FRACTION_BITS + torch.copysign(torch.full_like(weight, 0.5), weight)).int(), is_shown


def bicubic(x: Tensor) -> Tensor:
    """Pillow's cubic filter, a = -1/2."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))


def weighted_sum(source: Tensor, first: Tensor, weights: Iterable[Tensor]) -> Tensor:
    """For each place the rounded sum of rows of the source from `first` on, one for each of the weights: (..., C) uint8.

    Args:
        source: (S, C) uint8, with a row for every weight behind the last `first`.
        first: (...) int64.
        weights: one (...) int32 after the other, in units of 2^-22.
    """
    total = torch.full((*first.shape, source.shape[1]), 1 << (_FRACTION_BITS - 1), dtype=torch.int32, device=source.device)
    for tap, weight in enumerate(weights):
        total.addcmul_(source[tap:][first], weight[..., None])
    return (total >> _FRACTION_BITS).clamp_(0, 255).to(torch.uint8)
