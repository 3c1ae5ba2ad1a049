"""Image files as the input of a backbone."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_extract.backbone import Backbone
from dino_extract.config import SizePolicy
from dino_extract.errors import SourceError
from dino_extract.images.containers import ImageError, ImageRef
from dino_extract.images.pixels import prepare_image
from dino_extract.images.preprocess import Preprocess, parse_size
from dino_extract.images.reading import read_image_bytes
from dino_extract.names import printable

SIDE_PX = 448  # of the shorter side: 32 patches of 14 pixels, twice the resolution that the models were released for


@dataclass(frozen=True, eq=False)
class InputImage:
    """An image file and the pixels that a backbone takes of it.

    Args:
        path: the file.
        picture: RGB, upright, with sides that are divisible by the patch size.
    """

    path: str
    picture: Image.Image

    def pixels(self, backbone: Backbone) -> Tensor:
        """(1, 3, H, W) float32, normalised as the backbone was trained."""
        values = torch.from_numpy(np.array(self.picture, np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (backbone.mean, backbone.std))
        return ((values - mean) / std).unsqueeze(0)


def input_image(
    path: str | os.PathLike[str], backbone: Backbone, *, size: int | str = SIDE_PX, policy: SizePolicy | None = None
) -> InputImage:
    """Read one image file.

    Args:
        path: the file.
        backbone: its patch size must divide the sides.
        size: pixels of the shorter side, or `HEIGHTxWIDTH`.
        policy: as `--preprocess` of `embed`; by default `native` for the shorter side, and `squash` for `HEIGHTxWIDTH`.

    Raises:
        SourceError: the file cannot be read, or is not an image.
        ConfigError: the patch size does not divide the size.
    """
    name = os.fspath(path)
    require_files(name)
    height, width = parse_size(size)
    options = Preprocess(
        policy=policy or ("native" if height == width else "squash"), height=height, width=width, patch=backbone.patch_size
    )
    try:
        image = prepare_image(read_image_bytes(ImageRef(os.fsencode(name), os.fsencode(name))), options)
    except ImageError as error:
        raise SourceError(f"`{printable(name)}` cannot be used: {error.message}") from error
    return InputImage(name, image.pixels)


def require_files(*paths: str | os.PathLike[str]) -> None:
    """Check that image files exist, before a model is loaded or downloaded for them.

    Raises:
        SourceError: one does not exist.
    """
    for path in paths:
        if not os.path.lexists(path):
            raise SourceError(f"there is no file `{printable(os.fspath(path))}`")
