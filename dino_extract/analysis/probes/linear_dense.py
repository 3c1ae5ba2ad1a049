"""Train and test a linear head on stored patch tokens: the dense linear protocols of DINOv2 for segmentation and depth.

Dimension key: `B` images, `h w` patch grid, `H W` pixels, `D` width, `K` classes or depth bins.
Source: official dinov2/eval/segmentation (batch normalisation and a 1x1 convolution, logits upsampled bilinearly, AdamW 1e-3) and
eval/depth (256 uniform bins, relu + 0.1 normalised to sum one, depth the weighted mean of the bins, scale-invariant loss).
Differences: no CLS token is added to each patch, there is no augmentation, and the loss is taken at four times the patch grid.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dino_extract.analysis.probes.dense_head import DEPTH_BINS, DenseHead, patch_grids, side_by_side
from dino_extract.analysis.probes.dense_targets import IGNORED, DenseTargets, Task
from dino_extract.analysis.vectors.compatible import require_compatible, require_other_images
from dino_extract.analysis.vectors.stored import StoreSource, opened, rows_where
from dino_extract.errors import ConfigError
from dino_extract.options import Limits, as_list, checked, require_with
from dino_extract.results import Result
from dino_extract.store import Rows, Store

ITERATIONS = 1000
BATCH = 16
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
TRAIN_UPSAMPLING = 4
MAX_CLASSES = 1500  # more than any data set has (LVIS 1,203). Instance numbers or depths would need too much memory
TEST_SHARE = 0.2
_TEST_SCORES = 32 << 20  # scores in memory at a time: 128 MB
_VARIANCE_WEIGHT = 0.85  # of the scale-invariant loss, Eigen et al. 2014 as in AdaBins


@dataclass(frozen=True)
class DenseResult(Result):
    """The result of a dense probe on the test images.

    Args:
        task: segmentation or depth.
        metrics: segmentation: `miou`, `pixel_accuracy`; depth: `rmse`, `abs_rel`, `delta1` (share within a factor of 1.25).
        class_iou: intersection over union of each class of the training and test masks. NaN where a class is neither in the test masks
            nor in the predictions; `miou` leaves it out.
        num_train: number of training images.
        num_test: number of test images.
        without_target: number of images left out because they have no target image.
        head: the trained head.
    """

    task: Task
    metrics: dict[str, float]
    class_iou: tuple[float, ...]
    num_train: int
    num_test: int
    without_target: int
    head: DenseHead
    json_without = ("head",)

    def summary(self) -> str:
        """Number of test images, and the metrics."""
        return f"{self.num_test:,} images, {', '.join(f'{name} {value:.4g}' for name, value in self.metrics.items())}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each class of a segmentation, the metrics of a depth."""
        return [{"class": code, "iou": iou} for code, iou in enumerate(self.class_iou)] or [dict(self.metrics)]


@dataclass(frozen=True, eq=False)
class _Images:
    """Images of a store that have a target."""

    store: Store
    targets: DenseTargets
    parts: list[Rows]  # (n, h, w, D_i) each
    rows: NDArray[np.int64]
    keys: list[str]
    sizes: NDArray[np.int32]

    def patches(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, D, h, w) float32."""
        return torch.from_numpy(side_by_side(self.parts, rows)).permute(0, 3, 1, 2)

    def target(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, H, W) classes or depths."""
        found = [self.targets.read(self.keys[row], (int(self.sizes[row, 0]), int(self.sizes[row, 1]))) for row in rows.tolist()]
        return torch.from_numpy(np.stack(found))

    def batches(self, size: int) -> Iterator[NDArray[np.int64]]:
        """All rows, in order."""
        for first in range(0, len(self.rows), size):
            yield self.rows[first : first + size]


def linear_dense(
    train: StoreSource,
    targets: str | os.PathLike[str],
    test: StoreSource | None = None,
    test_targets: str | os.PathLike[str] | None = None,
    *,
    task: Task = "segmentation",
    dataset: str | Sequence[str] = "patch_features",
    depth_scale: float = 1.0,
    max_depth: float = 10.0,
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> DenseResult:
    """Train a linear head on patch tokens and test it, reading a batch of images at a time.

    Args:
        train: store with patch tokens, or path of one.
        targets: folder with a mask or depth image for each image, by its path.
        test: compatible store to test on. By default a fifth of the training images.
        test_targets: folder of the targets of `test`. By default `targets`.
        task: segmentation (mIoU) or depth (RMSE).
        dataset: patch tokens to use, one dataset or several side by side.
        depth_scale: depths in the files are divided by this number.
        max_depth: the largest depth that the head can predict.
        iterations: number of steps of AdamW, with batches of 16.
        seed: seed of everything drawn at random.

    Raises:
        DinoExtractError: there are no patch tokens or no targets, a file is unfinished, files are not compatible, or an option is wrong.
    """
    checked("task", Task, task)
    require_with("test_targets", test_targets, "test", test)
    checked("iterations", int, iterations, Limits(least=1))
    if max_depth <= 0:
        raise ConfigError(f"`max_depth` must be above 0, got {max_depth}")
    names = tuple(as_list(dataset))
    with opened(train) as train_store:
        learn, without = _images(train_store, names, DenseTargets(targets, task, train_store.attrs, depth_scale=depth_scale))
        if test is None:
            order = np.random.default_rng(seed).permutation(learn.rows)
            cut = max(1, round(len(order) * TEST_SHARE))
            if cut == len(order):
                raise ConfigError("a single image with a target cannot both train and test")
            judge, learn = (replace(learn, rows=np.sort(some)) for some in (order[:cut], order[cut:]))
            return _run(learn, judge, names, task, max_depth, iterations, seed, without)
        with opened(test) as test_store:
            require_compatible(train_store, test_store)
            require_other_images(train_store, test_store, test_targets)
            folder = targets if test_targets is None else test_targets
            judge, more = _images(test_store, names, DenseTargets(folder, task, test_store.attrs, depth_scale=depth_scale))
            return _run(learn, judge, names, task, max_depth, iterations, seed, without + more)


def _images(store: Store, datasets: tuple[str, ...], targets: DenseTargets) -> tuple[_Images, int]:
    parts = patch_grids(store, datasets)
    keys = store.paths
    has_target = np.array([targets.path_of(key) is not None for key in keys])
    if not has_target.any():
        raise ConfigError(
            f"no image of `{store.path}` has a target image in `{targets.folder}`",
            hint="`cats/1.jpg` needs `cats/1.png` or `cats/1.npy`",
        )
    return _Images(store, targets, parts, rows_where(has_target), keys, store.image_size), int((~has_target).sum())


def _run(
    learn: _Images, judge: _Images, datasets: tuple[str, ...], task: Task, max_depth: float, iterations: int, seed: int, without: int
) -> DenseResult:
    num_outputs = DEPTH_BINS if task == "depth" else _count_classes(learn)
    # As in mmsegmentation, the mean is over the classes of the data set. A class that only test masks have counts as 0.
    num_classes = 0 if task == "depth" else max(num_outputs, _largest_class(judge) + 1)
    head = _new_head(learn, datasets, task, num_outputs, max_depth, seed)
    _train(head, learn, iterations, seed)
    head = replace(head, weight=head.weight.detach(), bias=head.bias.detach())
    metrics, class_iou = (_test_depth(head, judge), ()) if task == "depth" else _test_segmentation(head, judge, num_classes)
    return DenseResult(task, metrics, class_iou, len(learn.rows), len(judge.rows), without, head)


def _new_head(images: _Images, datasets: tuple[str, ...], task: Task, num_outputs: int, max_depth: float, seed: int) -> DenseHead:
    """A head with random weights, and the statistics of the training tokens."""
    count, sums, squares = 0, torch.tensor(0.0), torch.tensor(0.0)
    for rows in images.batches(BATCH):
        patches_BDhw = images.patches(rows).double()
        count += patches_BDhw.shape[0] * patches_BDhw.shape[2] * patches_BDhw.shape[3]
        sums, squares = sums + patches_BDhw.sum(dim=(0, 2, 3)), squares + (patches_BDhw**2).sum(dim=(0, 2, 3))
    mean_D = (sums / count).float()
    std_D = (squares / count - (sums / count) ** 2).clamp(min=1e-10).sqrt().float()
    generator = torch.Generator().manual_seed(seed)
    weight_KD = (0.01 * torch.randn(num_outputs, len(mean_D), generator=generator)).requires_grad_(True)
    bias_K = torch.zeros(num_outputs, requires_grad=True)
    return DenseHead(task, weight_KD, bias_K, mean_D, std_D, max_depth, datasets, dict(images.store.attrs))


def _count_classes(images: _Images) -> int:
    """The number of classes: one more than the largest class number of the training masks."""
    count = _largest_class(images) + 1
    if count < 2:
        raise ConfigError(f"segmentation needs two classes or more, the masks in `{images.targets.folder}` have {count}")
    return count


def _largest_class(images: _Images) -> int:
    """The largest class number of the masks, or -1 where no pixel has a class."""
    largest = -1
    for rows in images.batches(BATCH):
        target = images.target(rows)
        target = target[target != IGNORED]
        if target.numel():
            if int(target.min()) < 0:
                raise ConfigError(f"masks in `{images.targets.folder}` have negative class numbers")
            largest = max(largest, int(target.max()))
    if largest >= MAX_CLASSES:
        raise ConfigError(
            f"masks in `{images.targets.folder}` have class numbers up to {largest:,}, expected at most {MAX_CLASSES - 1:,}",
            hint="number the classes from 0; `--task depth` is for depths",
        )
    return largest


def _train(head: DenseHead, images: _Images, iterations: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    optimiser = torch.optim.AdamW([head.weight, head.bias], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1e-3, total_iters=iterations)
    order = np.zeros(0, np.int64)
    for _ in range(iterations):
        if len(order) == 0:
            order = rng.permutation(images.rows)
        rows, order = np.sort(order[:BATCH]), order[BATCH:]
        patches_BDhw, target_BHW = images.patches(rows), images.target(rows)
        size = patches_BDhw.shape[2] * TRAIN_UPSAMPLING, patches_BDhw.shape[3] * TRAIN_UPSAMPLING
        target_BHW = functional.interpolate(target_BHW[:, None].float(), size, mode="nearest-exact")[:, 0]
        logits_BKHW = head.logits(patches_BDhw, size)
        if head.task == "depth":
            loss = _scale_invariant_loss(head.depth(logits_BKHW), target_BHW)
        else:
            loss = functional.cross_entropy(logits_BKHW, target_BHW.long(), ignore_index=IGNORED, reduction="sum")
            loss = loss / (target_BHW != IGNORED).sum().clamp(min=1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _scale_invariant_loss(depth_BHW: Tensor, target_BHW: Tensor) -> Tensor:
    """sqrt(mean g^2 - 0.85 (mean g)^2) with g = log depth - log target, over known depths."""
    is_known = target_BHW > 0
    if not is_known.any():
        return depth_BHW.sum() * 0.0
    error = depth_BHW[is_known].log() - target_BHW[is_known].log()
    return ((error**2).mean() - _VARIANCE_WEIGHT * error.mean() ** 2 + 1e-8).sqrt()


def _test_batch(images: _Images, num_outputs: int) -> int:
    """Number of images to test at a time: the scores of one image may need hundreds of megabytes."""
    height, width = images.targets.preprocess.height, images.targets.preprocess.width
    return max(1, min(BATCH, _TEST_SCORES // (num_outputs * height * width)))


@torch.no_grad()
def _test_segmentation(head: DenseHead, images: _Images, num_classes: int) -> tuple[dict[str, float], tuple[float, ...]]:
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for rows in images.batches(_test_batch(images, num_classes)):
        target = images.target(rows)
        predicted = head.logits(images.patches(rows), (target.shape[1], target.shape[2])).argmax(dim=1)
        is_known = target != IGNORED
        true, answer = target[is_known].numpy(), predicted[is_known].numpy()
        pairs = np.bincount(true * num_classes + answer, minlength=num_classes**2)
        confusion += pairs.reshape(num_classes, num_classes)
    right, union = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion)
    iou = np.where(union > 0, right / np.maximum(union, 1), np.nan)
    total = confusion.sum()
    if total == 0:
        raise ConfigError(f"the test masks in `{images.targets.folder}` have no pixel with a class")
    return {"miou": float(np.nanmean(iou)), "pixel_accuracy": float(right.sum() / total)}, tuple(iou.tolist())


@torch.no_grad()
def _test_depth(head: DenseHead, images: _Images) -> dict[str, float]:
    count, squares, relative, close = 0, 0.0, 0.0, 0
    for rows in images.batches(_test_batch(images, DEPTH_BINS)):
        target = images.target(rows)
        depth = head.depth(head.logits(images.patches(rows), (target.shape[1], target.shape[2])))
        is_known = target > 0
        depth, target = depth[is_known].double(), target[is_known].double()
        count += len(target)
        squares += float(((depth - target) ** 2).sum())
        relative += float(((depth - target).abs() / target).sum())
        close += int((torch.maximum(depth / target, target / depth) < 1.25).sum())
    if count == 0:
        raise ConfigError(f"the test depths in `{images.targets.folder}` have no known pixel")
    return {"rmse": (squares / count) ** 0.5, "abs_rel": relative / count, "delta1": close / count}
