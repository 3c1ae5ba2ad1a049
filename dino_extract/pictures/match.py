"""Which patch of one image shows the same as which patch of another: mutual nearest neighbours, on the foreground, drawn as lines.

Dimension key: h w patch grid, N = h * w patches, M matches, D width of a token.

Source: DINOv2 (arXiv 2304.07193) Sec. 7.5 "Patch matching": foreground by the first principal component, matches by the distance of
patch tokens, non-maximum suppression. Here mutual nearest neighbours stand for the assignment problem: a patch without a counterpart
stays without one.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from dino_extract.analysis.vectors.stored import as_array
from dino_extract.errors import ConfigError, StoreError
from dino_extract.pictures.pca import fit_pca_colours

_GAP_PX = 24
_LINE_WIDTH = 2


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of patches, the most similar first.

    Args:
        places_a: (M, 2) int64 row and column in the first grid.
        places_b: (M, 2) int64 row and column in the second.
        similarity: (M,) float32 cosine.
        grid_a: (h, w) of the first image.
        grid_b: (h, w) of the second.
    """

    places_a: NDArray[np.int64]
    places_b: NDArray[np.int64]
    similarity: NDArray[np.float32]
    grid_a: tuple[int, int]
    grid_b: tuple[int, int]

    def __len__(self) -> int:
        return len(self.similarity)

    def first(self, count: int, *, spacing: int = 1) -> Matches:
        """The best matches that lie at least `spacing` patches from every better one, in both images; at most `count`."""
        kept: list[int] = []
        for one in range(len(self)):
            if len(kept) == count:
                break
            far = all(
                np.abs(places[kept] - places[one]).max(axis=1, initial=0).min(initial=spacing) >= spacing
                for places in (self.places_a, self.places_b)
            )
            if far:
                kept.append(one)
        return Matches(self.places_a[kept], self.places_b[kept], self.similarity[kept], self.grid_a, self.grid_b)

    def picture(self, image_a: Image.Image, image_b: Image.Image) -> Image.Image:
        """Both images side by side, with a line from each patch to its match."""
        image_b = image_b.resize((round(image_b.width * image_a.height / image_b.height), image_a.height))
        sheet = Image.new("RGB", (image_a.width + _GAP_PX + image_b.width, image_a.height), "white")
        sheet.paste(image_a, (0, 0))
        sheet.paste(image_b, (image_a.width + _GAP_PX, 0))
        draw = ImageDraw.Draw(sheet)
        starts = _centres(self.places_a, self.grid_a, image_a.size)
        ends = _centres(self.places_b, self.grid_b, image_b.size)
        ends[:, 0] += image_a.width + _GAP_PX
        for (x0, y0), (x1, y1) in zip(starts.tolist(), ends.tolist(), strict=True):
            # The colour says where in the first image a line begins, so that lines that cross can be told apart.
            red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(0.8 * y0 / sheet.height, 0.85, 1))
            draw.line((x0, y0, x1, y1), (red, green, blue), _LINE_WIDTH)
            for x, y in ((x0, y0), (x1, y1)):
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), (red, green, blue), "black")
        return sheet


def match_patches(
    patches_a: NDArray[Any] | Tensor, patches_b: NDArray[Any] | Tensor, *, foreground_only: bool = True, min_similarity: float = 0.0
) -> Matches:
    """Patches of two images that are each other's nearest neighbour by cosine, best first.

    Args:
        patches_a: (h, w, D) patch tokens of one image.
        patches_b: (h', w', D) of the other, by the same model.
        foreground_only: leave out what the first principal component of both images together takes for background.
        min_similarity: leave out pairs below this cosine.

    Raises:
        ConfigError: tokens of different widths, or not on a grid.
        StoreError: values that are not finite, or no foreground in one of the images.
    """
    patches_a, patches_b = as_array(patches_a), as_array(patches_b)
    for patches in (patches_a, patches_b):
        if patches.ndim != 3:
            raise ConfigError(f"patch tokens must have shape (h, w, D), got {patches.shape}")
    if patches_a.shape[-1] != patches_b.shape[-1]:
        raise ConfigError(f"the images have tokens of width {patches_a.shape[-1]} and {patches_b.shape[-1]}: embed both with one model")
    grids = [(int(each.shape[0]), int(each.shape[1])) for each in (patches_a, patches_b)]
    wanted = [np.arange(h * w) for h, w in grids]
    if foreground_only:
        colours = fit_pca_colours([patches_a, patches_b])
        wanted = [np.flatnonzero(colours.foreground(each)) for each in (patches_a, patches_b)]
        if not all(map(len, wanted)):
            raise StoreError("one of the images has no foreground in common with the other", hint="try `--keep-background`")
    unit_a, unit_b = (
        torch.nn.functional.normalize(torch.from_numpy(each.reshape(-1, each.shape[-1])[rows].astype(np.float32)), dim=1)
        for each, rows in zip((patches_a, patches_b), wanted, strict=True)
    )
    similarity = unit_a @ unit_b.T
    if not torch.isfinite(similarity).all():
        raise StoreError("the patch tokens hold values that are not finite")
    best_b, best_a = similarity.argmax(dim=1), similarity.argmax(dim=0)
    mutual = torch.nonzero(best_a[best_b] == torch.arange(len(best_b))).flatten()
    cosine = similarity[mutual, best_b[mutual]]
    mutual = mutual[cosine >= min_similarity]
    cosine = cosine[cosine >= min_similarity]
    order = cosine.argsort(descending=True, stable=True)
    rows_a, rows_b = wanted[0][mutual[order].numpy()], wanted[1][best_b[mutual[order]].numpy()]
    places = [np.stack(np.divmod(rows, grid[1]), axis=1) for rows, grid in zip((rows_a, rows_b), grids, strict=True)]
    return Matches(places[0], places[1], cosine[order].numpy(), grids[0], grids[1])


def _centres(places: NDArray[np.int64], grid: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float64]:
    """(M, 2) x and y in pixels of the middles of patches of an image of `size` (width, height)."""
    return (places[:, ::-1] + 0.5) * [size[0] / grid[1], size[1] / grid[0]]
