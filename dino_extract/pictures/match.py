"""Patches of two images that show the same: mutual nearest neighbours, on the foreground, drawn as lines.

Dimension key: h w patch grid, N = h * w patches, M matches, D width of a token.

Source: DINOv2 (arXiv 2304.07193) Sec. 7.5 "Patch matching": foreground by the first principal component, matches by the distance of
patch tokens, non-maximum suppression. Mutual nearest neighbours take the place of the assignment problem here, so that a patch without
a counterpart gets none.
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from dino_extract.analysis.search import rows_of
from dino_extract.analysis.vectors.stored import StoreSource, as_array, opened
from dino_extract.backbone import Backbone
from dino_extract.errors import ConfigError, StoreError
from dino_extract.pictures.layout import write_picture
from dino_extract.pictures.model_input import SIDE_PX, input_image, require_files
from dino_extract.pictures.pca import fit_pca_colours
from dino_extract.pictures.source_images import patches_of_image, preprocessed_image, preprocessing_of
from dino_extract.store import Store
from dino_extract.weights.loading import load

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
        images: both images as the model saw them, for drawing; None where only patch tokens were given.
    """

    places_a: NDArray[np.int64]
    places_b: NDArray[np.int64]
    similarity: NDArray[np.float32]
    grid_a: tuple[int, int]
    grid_b: tuple[int, int]
    images: tuple[Image.Image, Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.similarity)

    def first(self, top: int, *, spacing: int = 1) -> Matches:
        """The `top` best matches that are at least `spacing` patches from every better one, in both images."""
        kept: list[int] = []
        for one in range(len(self)):
            if len(kept) == top:
                break
            far = all(
                np.abs(places[kept] - places[one]).max(axis=1, initial=0).min(initial=spacing) >= spacing
                for places in (self.places_a, self.places_b)
            )
            if far:
                kept.append(one)
        return replace(self, places_a=self.places_a[kept], places_b=self.places_b[kept], similarity=self.similarity[kept])

    def picture(self) -> Image.Image:
        """Both images side by side, with a line from each patch to its match.

        Raises:
            ConfigError: only patch tokens were given.
        """
        if self.images is None:
            raise ConfigError("there are no images to draw the matches on", hint="`match_patches(a, b, images=(image_a, image_b))`")
        image_a, image_b = self.images
        image_b = image_b.resize((round(image_b.width * image_a.height / image_b.height), image_a.height))
        sheet = Image.new("RGB", (image_a.width + _GAP_PX + image_b.width, image_a.height), "white")
        sheet.paste(image_a, (0, 0))
        sheet.paste(image_b, (image_a.width + _GAP_PX, 0))
        draw = ImageDraw.Draw(sheet)
        starts = _centres(self.places_a, self.grid_a, image_a.size)
        ends = _centres(self.places_b, self.grid_b, image_b.size)
        ends[:, 0] += image_a.width + _GAP_PX
        for (x0, y0), (x1, y1) in zip(starts.tolist(), ends.tolist(), strict=True):
            # The colour says where in the first image a line begins, so that the eye can follow lines that cross.
            red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(0.8 * y0 / sheet.height, 0.85, 1))
            draw.line((x0, y0, x1, y1), (red, green, blue), _LINE_WIDTH)
            for x, y in ((x0, y0), (x1, y1)):
                draw.ellipse((x - 4, y - 4, x + 4, y + 4), (red, green, blue), "black")
        return sheet

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the picture.

        Raises:
            ConfigError: it exists or cannot be written.
        """
        write_picture(self.picture(), path, "picture", overwrite=overwrite)


def match(
    image_a: str | os.PathLike[str],
    image_b: str | os.PathLike[str],
    *,
    store: StoreSource | None = None,
    keep_background: bool = False,
    min_similarity: float = 0.0,
    model: str | None = None,
    weights: str | None = None,
    random_weights: int | None = None,
    offline: bool = False,
    size: int | str = SIDE_PX,
) -> Matches:
    """Match the patches of two images: image files that are embedded now, or images of a store with patch tokens.

    Args:
        image_a: an image file, or with `store` the path of one of its images.
        image_b: the other one.
        store: a file with patch tokens, or its path. No model is needed then.
        keep_background: match all patches, and not those of the foreground alone.
        min_similarity: leave out pairs with a smaller cosine.
        model: as for `embed`.
        weights: as for `embed`.
        random_weights: as for `embed`.
        offline: download nothing.
        size: input of the model: pixels of the shorter side, or `HEIGHTxWIDTH`.

    Raises:
        SourceError: an image file cannot be read.
        ConfigError: a model together with a store, an unknown path, or a size that the patch size does not divide.
        StoreError: no patch tokens, values that are not finite, or no foreground in one of the images.
    """
    paths = [os.fspath(image_a), os.fspath(image_b)]
    if store is None:
        require_files(*paths)
        backbone = load(model, weights=weights, random_weights=random_weights, offline=offline).module
        pairs = [_embedded(path, backbone, size) for path in paths]
    elif (model, weights, random_weights) == (None, None, None):
        with opened(store) as found:
            pairs = _stored(found, paths)
    else:
        raise ConfigError("a file of embeddings has patch tokens already, so no model is used", hint="leave the model or the file out")
    (picture_a, patches_a), (picture_b, patches_b) = pairs
    return match_patches(
        patches_a, patches_b, foreground_only=not keep_background, min_similarity=min_similarity, images=(picture_a, picture_b)
    )


def _stored(store: Store, paths: Sequence[str]) -> list[tuple[Image.Image, NDArray[Any]]]:
    """The images and the patch tokens of rows of a store, without padding; an image that was deleted is grey."""
    preprocess, sizes, pairs = preprocessing_of(store), store.image_size.tolist(), []
    for path, row in zip(paths, rows_of(store, paths).tolist(), strict=True):
        grid, side = store.patch_features[row], preprocess.patch
        image = preprocessed_image(store, path) or Image.new("RGB", (grid.shape[1] * side, grid.shape[0] * side), "grey")
        part = patches_of_image(preprocess, sizes[row])
        top, left, patches = part[0].start * side, part[1].start * side, grid[part]
        pairs.append((image.crop((left, top, left + patches.shape[1] * side, top + patches.shape[0] * side)), patches))
    return pairs


def _embedded(path: str, backbone: Backbone, size: int | str) -> tuple[Image.Image, NDArray[Any]]:
    """An image file as the model sees it, and its patch tokens."""
    image = input_image(path, backbone, size=size)
    with torch.inference_mode():
        patches = backbone(image.pixels(backbone)).patches[0]
    grid = (image.picture.height // backbone.patch_size, image.picture.width // backbone.patch_size)
    return image.picture, patches.unflatten(0, grid).numpy()


def match_patches(
    patches_a: NDArray[Any] | Tensor,
    patches_b: NDArray[Any] | Tensor,
    *,
    foreground_only: bool = True,
    min_similarity: float = 0.0,
    images: tuple[Image.Image, Image.Image] | None = None,
) -> Matches:
    """Patches of two images that are each other's nearest neighbour by cosine, best first.

    Args:
        patches_a: (h, w, D) patch tokens of one image.
        patches_b: (h', w', D) of the other, by the same model.
        foreground_only: leave out the background, as the first principal component of both images together finds it.
        min_similarity: leave out pairs below this cosine.
        images: both images, to draw the matches on.

    Raises:
        ConfigError: tokens of different widths, or not on a grid.
        StoreError: values that are not finite, or no foreground in one of the images.
    """
    fields = [_patch_grid(each) for each in (patches_a, patches_b)]
    if fields[0].shape[-1] != fields[1].shape[-1]:
        raise ConfigError(f"the images have tokens of width {fields[0].shape[-1]} and {fields[1].shape[-1]}: embed both with one model")
    wanted = _foreground(fields) if foreground_only else [np.arange(each.shape[0] * each.shape[1]) for each in fields]
    unit_a, unit_b = (
        torch.nn.functional.normalize(torch.from_numpy(each.reshape(-1, each.shape[-1])[rows].astype(np.float32)), dim=1)
        for each, rows in zip(fields, wanted, strict=True)
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
    grids = [(int(each.shape[0]), int(each.shape[1])) for each in fields]
    places = [np.stack(np.divmod(rows, grid[1]), axis=1) for rows, grid in zip((rows_a, rows_b), grids, strict=True)]
    return Matches(places[0], places[1], cosine[order].numpy(), grids[0], grids[1], images)


def _patch_grid(patches: NDArray[Any] | Tensor) -> NDArray[Any]:
    """Patch tokens as an array of shape (h, w, D)."""
    field = as_array(patches)
    if field.ndim != 3:
        raise ConfigError(f"patch tokens must have shape (h, w, D), got {field.shape}")
    return field


def _foreground(fields: list[NDArray[Any]]) -> list[NDArray[np.int64]]:
    """Numbers of the foreground patches of each image."""
    colours = fit_pca_colours(fields)
    wanted = [np.flatnonzero(colours.foreground(each)) for each in fields]
    if not all(map(len, wanted)):
        raise StoreError("one of the images has no foreground in common with the other", hint="try `keep_background`")
    return wanted


def _centres(places: NDArray[np.int64], grid: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float64]:
    """(M, 2) x and y in pixels of the middles of patches, in an image of `size` (width, height)."""
    return (places[:, ::-1] + 0.5) * [size[0] / grid[1], size[1] / grid[0]]
