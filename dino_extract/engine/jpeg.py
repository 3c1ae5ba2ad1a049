"""JPEGs decoded on the device of the model, by torchcodec: on a GPU by its decoding engines, which leaves the CPU free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dino_extract.errors import ConfigError
from dino_extract.images.containers import ImageError
from dino_extract.images.decode import decode_image
from dino_extract.images.preprocess import Jpeg


def require_decoder() -> None:
    """Fail where torchcodec is not there, too old, or not made for this torch.

    Raises:
        ConfigError: says what is missing.
    """
    try:
        from torchcodec.decoders import decode_jpeg  # noqa: F401 - an extra
    except (ImportError, OSError, RuntimeError) as error:
        lines = str(error).strip().splitlines()
        raise ConfigError(
            f"`decode=device` needs torchcodec: {lines[0] if lines else error!r}",
            hint="`pip install -U 'torchcodec>=0.16'`, which needs torch 2.11, or leave `decode` out",
        ) from error


def decode_jpegs(jpegs: Sequence[Jpeg], device: torch.device) -> list[Tensor]:
    """The pictures on the device, (H, W, 3) uint8 RGB each; one that cannot be decoded is black and says why in its `error`."""
    if not jpegs:
        return []
    try:
        return decode_together(jpegs, device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # one of them is damaged, and the message does not name it
        return [_decode_alone(jpeg, device) for jpeg in jpegs]


def decode_together(jpegs: Sequence[Jpeg], device: torch.device) -> list[Tensor]:
    """All images in one call, (H, W, 3) uint8 RGB each; a damaged one fails all.

    Raises:
        RuntimeError: one of them cannot be decoded, or has another size than its header says.
    """
    from torchcodec.decoders import decode_jpeg

    pictures = decode_jpeg([torch.from_numpy(jpeg.content) for jpeg in jpegs], mode="RGB", device=device)
    for jpeg, picture in zip(jpegs, pictures, strict=True):
        if tuple(picture.shape) != (3, *jpeg.size):
            raise RuntimeError(f"decoded to {tuple(picture.shape)}, expected {(3, *jpeg.size)}")
    return [picture.permute(1, 2, 0) for picture in pictures]


def _decode_alone(jpeg: Jpeg, device: torch.device) -> Tensor:
    """One picture, by Pillow if the device cannot: of its kind, or because it is damaged."""
    try:
        return decode_together([jpeg], device)[0]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        try:
            picture = decode_image(jpeg.content.tobytes())
        except ImageError as error:
            jpeg.error = error.message
        else:
            if picture.shape[:2] == jpeg.size:
                return torch.from_numpy(picture.copy()).to(device)
            (height, width), (said_height, said_width) = picture.shape[:2], jpeg.size
            jpeg.error = f"decode: the picture is {width} x {height}, its header said {said_width} x {said_height}"
        return torch.zeros(*jpeg.size, 3, dtype=torch.uint8, device=device)
