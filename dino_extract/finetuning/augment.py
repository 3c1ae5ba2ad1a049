"""Crops cut and changed in batches, on whatever device the images are, each crop with its own parameters.

Resizing and blurring are separable and linear, so each is a pair of small matrices per crop and runs as a matrix product; no image is
touched one by one.

Dimension key: B images, n crops of each, C = 3 channels, S side of a decoded image, P side of a crop in pixels, Q = B * n crops.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.config import IMAGENET_MEAN, IMAGENET_STD
from dino_extract.finetuning.crops import CropParams

LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's conversion to grey
BLUR_RADIUS = 4  # a kernel of 9 taps
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


def make_crops(images: Tensor, params: CropParams, side_px: int) -> Tensor:
    """Normalised crops (n * B, 3, P, P) float32, crop by crop: row k * B + b is crop k of image b.

    Args:
        images: (B, 3, S, S) uint8, RGB, whole images squashed to a square.
        params: of a batch, arrays (B, n, ...).
        side_px: P.
    """
    crops_QCPP = cut_crops(images, params, side_px)
    flat = params.crop_by_crop()
    crops_QCPP = jitter_colours(crops_QCPP, flat)
    crops_QCPP = _where(crops_QCPP, flat.grayscale, lambda some: _gray(some).expand_as(some))
    crops_QCPP = blur(crops_QCPP, flat.sigma)
    crops_QCPP = _where(crops_QCPP, flat.solarize, lambda some: torch.where(some >= 128 / 255, 1 - some, some))
    mean, std = (constant_on(values, crops_QCPP.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (crops_QCPP - mean) / std


def cut_crops(images: Tensor, params: CropParams, side_px: int) -> Tensor:
    """Crops resized and flipped, (n * B, 3, P, P) float32, 0..1, crop by crop.

    The resize is Pillow's: bicubic, antialiased, from the pixels of the box alone.

    Args:
        images: (B, 3, S, S) uint8, RGB.
        params: of a batch, arrays (B, n, ...).
        side_px: P.
    """
    box = _upload(params.box, images.device) * images.shape[-1]
    top, left, height, width = box.unbind(-1)
    rows_BnPS = resize_weights(top, height, images.shape[-1], side_px)
    columns_BnPS = resize_weights(left, width, images.shape[-1], side_px)
    flip = _upload(params.flip, images.device)[..., None, None]
    columns_BnPS = torch.where(flip, columns_BnPS.flip(2), columns_BnPS)
    images_BCSS = images.float() / 255
    # All crops of an image share the product over its rows; (B, 1, n * P, S) @ (B, C, S, S).
    squeezed = (rows_BnPS.flatten(1, 2).unsqueeze(1) @ images_BCSS).unflatten(2, rows_BnPS.shape[1:3])
    crops_BCnPP = squeezed @ columns_BnPS.transpose(2, 3).unsqueeze(1)
    crops: Tensor = crops_BCnPP.permute(2, 0, 1, 3, 4).flatten(0, 1)
    return crops.clamp_(0, 1)  # bicubic overshoots


def resize_weights(start: Tensor, length: Tensor, in_size: int, out_size: int) -> Tensor:
    """The share (..., P, S) that each input pixel has in each output pixel when [start, start + length) is resized to P pixels.

    Args:
        start: (...) float32, in input pixels.
        length: (...) float32, in input pixels.
        in_size: S.
        out_size: P.
    """
    pixels_S = torch.arange(in_size, device=start.device) + 0.5
    outputs_P = torch.arange(out_size, device=start.device) + 0.5
    scale = (length / out_size)[..., None, None]
    centers = start[..., None, None] + outputs_P[:, None] * scale
    offset = ((pixels_S - centers) / scale.clamp(min=1)).abs_()  # a reduction widens the filter, an enlargement does not narrow it
    weights = _bicubic(offset)
    # A box squashed with its image may end inside a pixel: such a pixel belongs to the box with its centre. The pixel in the middle
    # always does: the box of a very narrow image may hold no centre at all.
    middle = ((start + length / 2).floor() + 0.5).clamp(max=in_size - 0.5)
    outside = (pixels_S < torch.minimum(start, middle)[..., None]) | (pixels_S > torch.maximum(start + length, middle)[..., None])
    weights = weights.masked_fill_(outside.unsqueeze(-2), 0)
    total: Tensor = weights.sum(-1, keepdim=True)
    return weights / total


def blur(crops_QCPP: Tensor, sigma_Q: NDArray[np.float32]) -> Tensor:
    """The crops, those with a sigma above 0 blurred by a Gaussian of 9 taps, mirrored at the edges.

    Args:
        crops_QCPP: (Q, 3, P, P) float32, 0..1.
        sigma_Q: (Q,) standard deviations in pixels.
    """

    def blurred(some: Tensor) -> Tensor:
        matrix = _blur_matrix(_upload(sigma_Q[sigma_Q > 0], some.device), some.shape[-1]).unsqueeze(1)
        return matrix @ some @ matrix.transpose(2, 3)

    return _where(crops_QCPP, sigma_Q > 0, blurred)


def jitter_colours(crops_QCPP: Tensor, params: CropParams) -> Tensor:
    """The crops with brightness, contrast, saturation and hue changed, each crop in its own order.

    Args:
        crops_QCPP: (Q, 3, P, P) float32, 0..1.
        params: arrays (Q, ...).
    """
    is_jittered = (params.jitter != (1, 1, 1, 0)).any(axis=1)
    for place in range(4):
        for kind in range(4):
            chosen = is_jittered & (params.order[:, place] == kind)
            factors = _upload(params.jitter[chosen, kind], crops_QCPP.device).view(-1, 1, 1, 1)
            crops_QCPP = _where(crops_QCPP, chosen, partial(_jitter, kind=kind, factor=factors))
    return crops_QCPP


def _jitter(crops: Tensor, kind: int, factor: Tensor) -> Tensor:
    if kind == _BRIGHTNESS:
        return (crops * factor).clamp(0, 1)
    if kind == _CONTRAST:
        gray = _gray(crops).mean(dim=(1, 2, 3), keepdim=True)
        return torch.lerp(gray.expand_as(crops), crops, factor).clamp(0, 1)
    if kind == _SATURATION:
        return torch.lerp(_gray(crops).expand_as(crops), crops, factor).clamp(0, 1)
    return _shift_hue(crops, factor)


def _shift_hue(crops: Tensor, shift: Tensor) -> Tensor:
    """The crops with their hue turned by `shift` of a full circle: RGB to HSV and back.

    Source: Smith 1978, "Color gamut transform pairs".
    """
    red, green, blue = crops.unbind(1)
    value, which = crops.max(dim=1)
    chroma = value - crops.min(dim=1).values
    safe = torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(which == 0, (green - blue) / safe, torch.where(which == 1, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    hue = sextant / 6 + shift.squeeze(1)
    # Each channel is the value less chroma times a trapezoid of the hue, shifted by a third of the circle.
    turn = (hue.unsqueeze(1) * 6 + constant_on((5.0, 3.0, 1.0), crops.device).view(1, 3, 1, 1)).remainder(6)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(turn, 4 - turn).clamp(0, 1)


def _gray(crops: Tensor) -> Tensor:
    red, green, blue = crops.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def _bicubic(distance: Tensor) -> Tensor:
    """The cubic convolution kernel with a = -0.5, zero from 2 on. Source: Keys 1981."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _blur_matrix(sigma_Q: Tensor, size: int) -> Tensor:
    """Matrices (Q, P, P) that blur a row of P pixels, mirrored at its ends without repeating the edge."""
    taps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=sigma_Q.device)
    weights = torch.exp(-0.5 * (taps / sigma_Q[:, None]) ** 2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    source = torch.arange(size, device=sigma_Q.device)[:, None] + taps
    source = (size - 1) - ((size - 1) - source.abs()).abs()
    matrix = sigma_Q.new_zeros(len(sigma_Q), size, size)
    return matrix.scatter_add_(2, source.expand(len(sigma_Q), -1, -1), weights[:, None].expand(-1, size, -1).contiguous())


def _where(crops: Tensor, chosen: NDArray[np.bool_], change: Callable[[Tensor], Tensor]) -> Tensor:
    """The crops with `change` applied to the chosen ones; the choice is known on the host, so a GPU waits for nothing."""
    if not chosen.any():
        return crops
    rows = _upload(np.flatnonzero(chosen), crops.device)
    return crops.index_copy_(0, rows, change(crops[rows]))


def _upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """The values on the device; a GPU reads them from pinned memory, while the host goes on."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@cache
def constant_on(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers on a device, copied there once."""
    return torch.tensor(values, device=device)
