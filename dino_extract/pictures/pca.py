"""Patch tokens as colours: the first principal component finds the foreground, three more of the foreground are the colours.

Dimension key: h w patch grid, N patches, D width of a token.

Source: DINOv2 (arXiv 2304.07193) Sec. 7.4 (PCA of patch features): a first PCA over the patches of all images, thresholded, separates
the object from the background; the first three components of a second PCA over the remaining patches are the colours. Two differences:
the first component is that of the variation within images, because between images of different scenes the strongest component tells
scenes apart, and not objects from backgrounds; and its sign, which is arbitrary, makes the side that is rarer on the border of the
images than inside the foreground.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dino_extract.analysis.vectors.covariance import moments, principal_axes
from dino_extract.analysis.vectors.stored import StoreSource
from dino_extract.errors import ConfigError, StoreError
from dino_extract.files import check_target, replace_atomically, writing
from dino_extract.names import printable
from dino_extract.options import as_list
from dino_extract.pictures.layout import fit_within, image_grid, numbered_png, side_by_side, write_picture
from dino_extract.pictures.source_images import choose_positions, patches_of_image, preprocessed_image, preprocessing_of
from dino_extract.store import Store, open_store

Floats = NDArray[np.float64]

GRID_FILE = "grid.png"
COMPONENTS_FILE = "components.safetensors"
MAX_ON_GRID = 64  # images on the grid picture; more are too small to see
_NUM_BINS = 4096
_RANGE_SIGMA = 8.0  # histograms of scores reach this many standard deviations to both sides
_CLIPPED = 0.01  # share of foreground patches at each end whose colour is saturated
_GRID_CELL_PX = 224


class PatchRows(Protocol):
    """Patch tokens of several images: `rows[i]` is (h, w, D), h and w may differ; a list, `Rows` or `RaggedRows`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class _Unpadded:
    """Patch tokens of images without those of the padding, which is not a part of any scene."""

    rows: PatchRows
    parts: list[tuple[slice, slice]]  # of each grid, where the image is

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> NDArray[Any]:
        return self.rows[index][self.parts[index]]


@dataclass(frozen=True, eq=False)
class PcaColours:
    """Directions that turn patch tokens into colours; saved, they give new images the same colours.

    Args:
        center: (D,) mean of all patches.
        foreground_axis: (D,) unit vector; a patch whose score along it exceeds `threshold` is foreground.
        threshold: in the units of the tokens; -inf where everything is foreground.
        colour_center: (D,) mean of the foreground patches.
        colour_axes: (3, D) three unit vectors, strongest first.
        low: (3,) score that is colour 0.
        high: (3,) score that is colour 255.
        explained: (4,) shares of variance: of the first component in the variation within images, then of the three in the foreground.
        made_with: the model and the dataset of the tokens.
    """

    center: Floats
    foreground_axis: Floats
    threshold: float
    colour_center: Floats
    colour_axes: Floats
    low: Floats
    high: Floats
    explained: Floats
    made_with: dict[str, str] = field(default_factory=dict)

    def foreground(self, patches_hwD: NDArray[Any]) -> NDArray[np.bool_]:
        """(h, w) bool, True where a patch belongs to the foreground."""
        scores: Floats = (patches_hwD.astype(np.float64) - self.center) @ self.foreground_axis
        is_foreground: NDArray[np.bool_] = scores > self.threshold
        return is_foreground

    def rgb(self, patches_hwD: NDArray[Any]) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB of one image, black where it is background."""
        scores = (patches_hwD.astype(np.float64) - self.colour_center) @ self.colour_axes.T
        unit = np.clip((scores - self.low) / np.maximum(self.high - self.low, 1e-12), 0, 1)
        unit[~self.foreground(patches_hwD)] = 0
        rgb: NDArray[np.uint8] = np.round(unit * 255).astype(np.uint8)
        return rgb

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the directions as safetensors.

        Raises:
            ConfigError: the file exists or cannot be written.
        """
        tensors = {name: np.ascontiguousarray(np.asarray(getattr(self, name), np.float64)) for name in _TENSORS}
        with replace_atomically(path, "file", overwrite=overwrite, also=(SafetensorError,)) as draft:
            save_file(tensors, draft, metadata=self.made_with)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PcaColours:
        """Read what `save` wrote.

        Raises:
            ConfigError: no such file, or another kind of file.
        """
        hint = f"`dino-extract pca` writes `{COMPONENTS_FILE}`"
        if not os.path.isfile(path):
            raise ConfigError(f"there is no file `{os.fspath(path)}` of PCA components", hint=hint)
        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
                made_with = dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"`{os.fspath(path)}` holds no PCA components", hint=hint) from error
        return cls(**{**tensors, "threshold": tensors["threshold"].item()}, made_with=made_with)


_TENSORS = ("center", "foreground_axis", "threshold", "colour_center", "colour_axes", "low", "high", "explained")


@dataclass(frozen=True, eq=False)
class PcaPictures:
    """Patch tokens of some images of a store as colours.

    Args:
        store: the file; the images are read from where it says they are when a picture is drawn.
        colours: the directions.
        paths: of the images.
        patches: for each image (h, w, 3) uint8 RGB, one pixel for each patch; padding is black.
        foreground: for each image the share of its patches in the foreground, without padding.
    """

    store: Store
    colours: PcaColours
    paths: list[str]
    patches: list[NDArray[np.uint8]]
    foreground: list[float]

    def picture(self, index: int) -> Image.Image:
        """One image as the model saw it, if it can still be read, and next to it its patches in colour."""
        patch_px = int(self.store.attrs.get("patch_size", 14))
        height, width = self.patches[index].shape[:2]
        colours = Image.fromarray(self.patches[index]).resize((width * patch_px, height * patch_px), Image.Resampling.NEAREST)
        image = preprocessed_image(self.store, self.paths[index])
        return colours if image is None else side_by_side([image.resize(colours.size), colours])

    def grid(self) -> Image.Image:
        """The first 64 images on one sheet."""
        shown = range(min(len(self.paths), MAX_ON_GRID))
        tiles = [fit_within(self.picture(index), 2 * _GRID_CELL_PX) for index in shown]
        return image_grid(tiles, [printable(self.paths[index]) for index in shown])

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> list[str]:
        """Write `grid.png`, one PNG for each image, and the components.

        Returns:
            The paths of the files, in this order.

        Raises:
            ConfigError: they exist or cannot be written.
        """
        with writing(folder, "folder"):
            os.makedirs(folder, exist_ok=True)
        names = [GRID_FILE, *(numbered_png(index, len(self.paths), path) for index, path in enumerate(self.paths)), COMPONENTS_FILE]
        written = [os.path.join(folder, name) for name in names]
        for path in written:
            check_target(path, "result", overwrite=overwrite)
        write_picture(self.grid(), written[0], "picture", overwrite=overwrite)
        for index, path in enumerate(written[1:-1]):
            write_picture(self.picture(index), path, "picture", overwrite=overwrite)
        self.colours.save(written[-1], overwrite=overwrite)
        return written


def pca(
    store: StoreSource,
    paths: str | Sequence[str] = (),
    *,
    images: int | None = 16,
    dataset: str = "patch_features",
    components: PcaColours | str | os.PathLike[str] | None = None,
    background: float | None = None,
    flip: bool = False,
    keep_background: bool = False,
) -> PcaPictures:
    """Patch tokens of several images as colours that mean the same in all of them.

    Args:
        store: a file with patch tokens, or its path.
        paths: which images, as one or several paths or shell patterns; none means all.
        images: use at most this many of them, evenly spread; None or 0 for all.
        dataset: the patch tokens, such as `layers/9/patch_features`.
        components: directions of an earlier call, or the file of them, instead of new ones. They decide what is foreground.
        background: patches are background up to this score along the first component, in standard deviations above its mean; None
            finds the gap by Otsu's method.
        flip: take the other side of the first component for the foreground.
        keep_background: colour every patch.

    Raises:
        StoreError: no patch tokens, an unfinished file, or values that are not finite.
        ConfigError: unknown paths, components of another model or dataset, or components together with what they decide.
    """
    if components is not None and (background is not None or flip or keep_background):
        raise ConfigError(
            "`components` decide what is foreground, so `background`, `flip` and `keep_background` cannot be given too",
            hint="give them to the run that makes the components",
        )
    store = store if isinstance(store, Store) else open_store(store)  # stays open, because its images are drawn later
    store.require_complete()
    rows, positions = store[dataset], choose_positions(store, [str(path) for path in as_list(paths)], images)
    preprocess = preprocessing_of(store)
    parts = [patches_of_image(preprocess, size) for size in store.image_size.tolist()]
    made_with = {name: str(store.attrs.get(name, "")) for name in ("model", "weights_sha256")} | {"dataset": dataset}
    if components is None:
        colours = fit_pca_colours(
            _Unpadded(rows, parts), positions, background=background, flip=flip, keep_background=keep_background, made_with=made_with
        )
    else:
        colours = components if isinstance(components, PcaColours) else PcaColours.load(components)
        _check_components(colours, made_with, rows[positions[0]].shape[-1])
    chosen = [store.paths[position] for position in positions]
    pictures, shares = [], []
    for position, path in zip(positions, chosen, strict=True):
        picture, share = _coloured(rows[position], parts[position], colours, f"`{dataset}` of `{printable(path)}`")
        pictures.append(picture)
        shares.append(share)
    return PcaPictures(store, colours, chosen, pictures, shares)


def _coloured(grid: NDArray[Any], part: tuple[slice, slice], colours: PcaColours, name: str) -> tuple[NDArray[np.uint8], float]:
    """The (h, w, 3) uint8 colours of one image, black where it is padded, and its share of foreground patches."""
    patches = _finite(grid[part], name)
    picture = np.zeros((*grid.shape[:2], 3), np.uint8)
    picture[part] = colours.rgb(patches)
    return picture, float(colours.foreground(patches).mean())


def fit_pca_colours(
    rows: PatchRows,
    positions: Sequence[int] | None = None,
    *,
    background: float | None = None,
    flip: bool = False,
    keep_background: bool = False,
    made_with: dict[str, str] | None = None,
) -> PcaColours:
    """Directions fitted on the patches of all given images together; reads them image by image, several times.

    Args:
        rows: (h, w, D) patch tokens of each image.
        positions: which rows; None for all.
        background: as in `pca`.
        flip: as in `pca`.
        keep_background: as in `pca`.
        made_with: recorded in the result.

    Raises:
        StoreError: values that are not finite, patches that are all the same, or fewer than 4 patches in the foreground.
    """
    chosen = range(len(rows)) if positions is None else positions

    def images() -> Iterator[NDArray[np.float32]]:
        for position in chosen:
            yield _finite(rows[position], f"the patch tokens of image {position}").astype(np.float32)

    def tokens() -> Iterator[NDArray[np.float32]]:
        return (patches.reshape(-1, patches.shape[-1]) for patches in images())

    count, center_D, scatter = moments(tokens())
    _, _, within = moments(flat - flat.mean(axis=0) for flat in tokens())
    values, axes = principal_axes(within / count, 1)
    direction_D = axes[0]
    sigma = float(np.sqrt(direction_D @ scatter @ direction_D / count))
    if not sigma > 1e-6 * max(1.0, float(np.linalg.norm(center_D))):
        raise StoreError("all patch tokens are the same, so they have no principal components", hint="give more images, or other ones")
    first_share = values[0] / max(float(np.trace(within / count)), 1e-300)
    if keep_background:
        cut = -np.inf
    else:
        sign, otsu = _foreground_side(images(), center_D, direction_D, sigma)
        if flip:
            sign = -sign
        direction_D, cut = sign * direction_D, sign * otsu if background is None else background * sigma

    def foreground() -> Iterator[NDArray[Any]]:
        return (flat[(flat - center_D) @ direction_D > cut] for flat in tokens())

    colour_center_D, colour_3D, low_3, high_3, shares = _colours(foreground)
    explained = np.concatenate([[first_share], shares])
    return PcaColours(center_D, direction_D, cut, colour_center_D, colour_3D, low_3, high_3, explained, made_with or {})


def _colours(foreground: Callable[[], Iterator[NDArray[Any]]]) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Mean, three directions, the range of their scores, and their shares of the variance, of foreground patches (n, D)."""
    num_patches, center_D, scatter = moments(foreground())
    if num_patches < 4:
        message = f"only {num_patches} patches are foreground, too few for three components"
        raise StoreError(message, hint="`keep_background` takes every patch")
    values, colour_3D = principal_axes(scatter / num_patches, 3)
    sigma_3 = np.sqrt(values)
    counts = np.zeros((3, _NUM_BINS), np.int64)
    for flat in foreground():
        scores = (flat - center_D) @ colour_3D.T
        counts += np.stack([_histogram(scores[:, each], float(sigma_3[each])) for each in range(3)])
    below = counts.cumsum(axis=1) / num_patches
    low = np.array([_edge(int(np.argmax(below[each] > _CLIPPED)), sigma_3[each]) for each in range(3)])
    high = np.array([_edge(int(np.argmax(below[each] >= 1 - _CLIPPED)) + 1, sigma_3[each]) for each in range(3)])
    return center_D, colour_3D, low, high, values / max(float(np.trace(scatter / num_patches)), 1e-300)


def _foreground_side(images: Iterator[NDArray[np.float32]], center_D: Floats, direction_D: Floats, sigma: float) -> tuple[float, float]:
    """The sign of the first component that makes the foreground positive, and the score that separates the two sides."""
    border, inside = np.zeros(_NUM_BINS, np.int64), np.zeros(_NUM_BINS, np.int64)
    for patches in images:
        scores = (patches.astype(np.float64) - center_D) @ direction_D
        inner = scores[1:-1, 1:-1].ravel()
        inside += _histogram(inner, sigma)
        border += _histogram(scores.ravel(), sigma) - _histogram(inner, sigma)
    split = _otsu(border + inside)
    above_border = border[split:].sum() / max(border.sum(), 1)
    above_inside = inside[split:].sum() / max(inside.sum(), 1)
    return (1.0 if above_inside >= above_border else -1.0), _edge(split, sigma)


def _otsu(counts: NDArray[np.int64]) -> int:
    """The bin at which a histogram falls into two parts with the largest variance between them (Otsu 1979)."""
    weights, middles = counts.astype(np.float64), np.arange(len(counts)) + 0.5
    below, sum_below = np.cumsum(weights)[:-1], np.cumsum(weights * middles)[:-1]
    above = weights.sum() - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sum_below / below - ((weights * middles).sum() - sum_below) / above) ** 2
    between = np.nan_to_num(between, nan=0.0, posinf=0.0)
    best = np.flatnonzero(between >= between.max() * (1 - 1e-12))
    return int(best[len(best) // 2]) + 1  # an empty gap is cut in its middle


def _histogram(scores: Floats, sigma: float) -> NDArray[np.int64]:
    unit = (scores / max(sigma, 1e-300) / _RANGE_SIGMA + 1) / 2
    bins = np.clip(unit * _NUM_BINS, 0, _NUM_BINS - 1).astype(np.int64)
    return np.bincount(bins, minlength=_NUM_BINS)


def _edge(index: int, sigma: float) -> float:
    """The score at the lower edge of a bin."""
    return float((index / _NUM_BINS * 2 - 1) * _RANGE_SIGMA * sigma)


def _finite(patches: NDArray[Any], name: str) -> NDArray[Any]:
    if not np.isfinite(patches).all():
        raise StoreError(f"{name} hold values that are not finite", hint="embed again with `--store-dtype float32`, or leave the image out")
    return patches


def _check_components(components: PcaColours, made_with: dict[str, str], width: int) -> None:
    different = [
        f"{key} `{components.made_with.get(key, '')}` instead of `{value}`"
        for key, value in made_with.items()
        if components.made_with.get(key, "") != value
    ]
    if len(components.center) != width:
        different.append(f"width {len(components.center)} instead of {width}")
    if different:
        raise ConfigError(f"the components are of other tokens: {', '.join(different)}", hint="leave out `components` to fit new ones")
