"""Single images as a backbone sees them, for pictures of what it makes of them."""

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
from dino_extract.images.preprocess import Preprocess
from dino_extract.images.reading import read_image_bytes
from dino_extract.names import printable


@dataclass(frozen=True, eq=False)
class SeenImage:
    """An image file and the pixels that a backbone sees of it.

    Args:
        path: the file.
        picture: RGB, upright, sides divisible by the patch size.
    """

    path: str
    picture: Image.Image

    def pixels(self, backbone: Backbone) -> Tensor:
        """(1, 3, H, W) float32, normalised as the backbone was trained."""
        values = torch.from_numpy(np.array(self.picture, np.float32) / 255).permute(2, 0, 1)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (backbone.mean, backbone.std))
        return ((values - mean) / std).unsqueeze(0)


def see(path: str | os.PathLike[str], backbone: Backbone, *, size: int = 448, policy: SizePolicy = "native") -> SeenImage:
    """Read one image file.

    Args:
        path: the file.
        backbone: whose patch size the sides are made to fit.
        size: pixels; of the shorter side where the policy is `native`.
        policy: as `--preprocess` of `embed`.

    Raises:
        SourceError: the file cannot be read, or is no image.
        ConfigError: a size that is no multiple of the patch size.
    """
    name = os.fspath(path)
    require_there(name)
    options = Preprocess(policy=policy, height=size, width=size, patch=backbone.patch_size)
    try:
        image = prepare_image(read_image_bytes(ImageRef(os.fsencode(name), os.fsencode(name))), options)
    except ImageError as error:
        raise SourceError(f"`{printable(name)}` cannot be used: {error.message}") from error
    return SeenImage(name, image.pixels)


def require_there(*paths: str) -> None:
    """Check that image files are there, before a model is loaded or even downloaded for them.

    Raises:
        SourceError: one is not.
    """
    for path in paths:
        if not os.path.lexists(path):
            raise SourceError(f"there is no file `{printable(path)}`")
