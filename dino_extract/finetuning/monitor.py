"""Figures that show whether a run learns or collapses: embeddings now against those of the start, with labels or without.

Dimension key: N images, D embedding width, k neighbours, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dino_extract.backbone import DinoVisionTransformer
from dino_extract.errors import ConfigError, DivergedError
from dino_extract.finetuning.losses import koleo_loss
from dino_extract.images.loader import Loader
from dino_extract.images.manifest import Manifest
from dino_extract.images.preprocess import Preprocess
from dino_extract.status import Status

KNN_K, KNN_TEMPERATURE = 20, 0.07  # the official evaluation's
OVERLAP_K = 10
_LIST_FAILURES = "`dino-extract embed` on the same images lists why"
BAD_EVALUATIONS = 2  # in a row, before a run counts as collapsed: one may be chance


@dataclass(frozen=True)
class Labelled:
    """Images with classes, in two parts: neighbours come from the `train` rows.

    Args:
        manifest: the images.
        train_rows: (N,) rows.
        test_rows: (Q,) rows.
        labels: class number of each row of the manifest.
    """

    manifest: Manifest
    train_rows: NDArray[np.int64]
    test_rows: NDArray[np.int64]
    labels: NDArray[np.int64]


@dataclass
class History:
    """The evaluations of a run, and what they show.

    Args:
        criterion: the figure that decides which evaluation is best: kNN accuracy where there are labels, else the effective rank.
        collapse_ratio: an evaluation below this share of the best one is bad.
        evaluations: figures, from the first step to the last.
    """

    criterion: str
    collapse_ratio: float
    evaluations: list[dict[str, float]] = field(default_factory=list)

    @property
    def is_collapsed(self) -> bool:
        """Whether the last two evaluations are both far below the best one."""
        values = [figures[self.criterion] for figures in self.evaluations]
        last = values[-BAD_EVALUATIONS:]
        return len(values) > BAD_EVALUATIONS and all(value < self.collapse_ratio * max(values) for value in last)

    def has(self, step: int) -> bool:
        """Whether there was an evaluation after `step` steps."""
        return any(figures["step"] == step for figures in self.evaluations)

    def is_best_at(self, step: int) -> bool:
        """Whether the last evaluation was after `step` steps and is the best one."""
        if not self.evaluations or self.evaluations[-1]["step"] != step:
            return False
        *before, last = (figures[self.criterion] for figures in self.evaluations)
        return all(value < last for value in before)


class Monitor:
    """Evaluates a backbone from time to time and keeps the figures.

    Args:
        start: the backbone at the start of the run, whose neighbourhoods are the reference.
        manifest: training images.
        rows: which of them are embedded.
        options: how an image is preprocessed.
        labelled: images with classes, or None.
        workers: decoder processes; 0 is one for each free CPU.
        collapse_ratio: an evaluation below this share of the best one is bad.

    Raises:
        ConfigError: none of the images can be read.
    """

    def __init__(
        self,
        start: DinoVisionTransformer,
        manifest: Manifest,
        rows: NDArray[np.int64],
        options: Preprocess,
        *,
        labelled: Labelled | None = None,
        workers: int = 0,
        collapse_ratio: float = 0.5,
    ) -> None:
        self._manifest, self._rows, self._options = manifest, rows, options
        self._labelled, self._workers = labelled, workers
        start_ND = self._embed(start, manifest, rows)
        self._readable = start_ND.isfinite().all(dim=1)
        if not self._readable.any():
            raise ConfigError(f"none of the {len(rows):,} images of the monitor can be read", hint=_LIST_FAILURES)
        self._start_ND = start_ND[self._readable]
        self.history = History("effective_rank" if labelled is None else "knn", collapse_ratio)

    def evaluate(self, backbone: DinoVisionTransformer, step: int) -> dict[str, float]:
        """The figures of a backbone; they are added to `history`.

        Raises:
            ConfigError: no labelled image can be read, or none of the queries.
            DivergedError: an embedding is NaN or infinite.
        """
        now_ND = self._embed(backbone, self._manifest, self._rows)[self._readable]
        if not now_ND.isfinite().all():
            raise DivergedError(f"training diverged by step {step}: embeddings are NaN or infinite", hint="halve `--set optim.base_lr`")
        figures = {
            "step": float(step),
            "effective_rank": effective_rank(now_ND),
            "neighbour_overlap": neighbour_overlap(self._start_ND, now_ND, OVERLAP_K),
            "feature_std": feature_std(now_ND),
            "feature_koleo": float(koleo_loss(now_ND)),
        }
        if self._labelled is not None:
            figures["knn"] = self._knn(backbone, self._labelled)
        self.history.evaluations.append(figures)
        return figures

    def _knn(self, backbone: DinoVisionTransformer, labelled: Labelled) -> float:
        rows = np.concatenate([labelled.train_rows, labelled.test_rows])
        vectors = self._embed(backbone, labelled.manifest, rows)
        labels = torch.from_numpy(labelled.labels[rows])
        split, readable = len(labelled.train_rows), vectors.isfinite().all(dim=1)
        is_train = torch.arange(len(rows)) < split
        train, test = is_train & readable, ~is_train & readable
        if not (train.any() and test.any()):
            raise ConfigError("`eval` needs labelled images that can be read, for the neighbours and for the queries", hint=_LIST_FAILURES)
        return knn_accuracy(vectors[train], labels[train], vectors[test], labels[test])

    def _embed(self, backbone: DinoVisionTransformer, manifest: Manifest, rows: NDArray[np.int64]) -> Tensor:
        return embed_rows(backbone, manifest, rows, self._options, self._workers)


@torch.inference_mode()
def embed_rows(
    backbone: DinoVisionTransformer, manifest: Manifest, rows: NDArray[np.int64], options: Preprocess, workers: int = 0
) -> Tensor:
    """CLS tokens (N, D) float32 on the CPU of some images; NaN where an image cannot be read."""
    device = backbone.cls_token.device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (options.mean, options.std))
    parts = []
    with Loader(manifest, rows, options, batch=64, workers=workers) as loader:
        for batch in loader:
            pixels = torch.from_numpy(np.asarray(batch.pixels)).to(device).permute(0, 3, 1, 2)
            cls_BD = backbone((pixels / 255 - mean) / std).cls.float().cpu()
            cls_BD[torch.from_numpy(batch.status != Status.OK)] = torch.nan
            parts.append(cls_BD)
    return torch.cat(parts)


def effective_rank(vectors_ND: Tensor) -> float:
    """The number of directions that the embeddings use: the exponential of the entropy of their singular values; 1 when all point one way.

    Source: RankMe (arXiv 2210.02885) Sec. 3; after Roy and Vetterli 2007.
    """
    singular = torch.linalg.svdvals(vectors_ND.double())
    share = singular / singular.sum().clamp(min=1e-300) + 1e-7  # embeddings may all be 0
    return float(torch.exp(-(share * share.log()).sum()))


def feature_std(vectors_ND: Tensor) -> float:
    """How spread normalised embeddings are, 0 when all are equal and about 1 when they fill the sphere."""
    unit = F.normalize(vectors_ND, dim=1)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(unit.shape[1]))


def neighbour_overlap(one_ND: Tensor, other_ND: Tensor, k: int) -> float:
    """The share of each image's k nearest neighbours that are the same in two sets of embeddings of the same images, 0..1.

    1 for a single image, which has no neighbours to lose.
    """
    k = min(k, len(one_ND) - 1)
    if k == 0:
        return 1.0
    sets = []
    for vectors in (one_ND, other_ND):
        unit = F.normalize(vectors, dim=1)
        nearest = (unit @ unit.T).fill_diagonal_(-2).topk(k, dim=1).indices
        sets.append(torch.zeros(len(unit), len(unit), dtype=torch.bool).scatter_(1, nearest, True))
    return float((sets[0] & sets[1]).sum() / (len(one_ND) * k))


def knn_accuracy(train_ND: Tensor, train_labels: Tensor, test_QD: Tensor, test_labels: Tensor) -> float:
    """The share of queries whose class wins a vote of the 20 nearest neighbours, each weighted by exp(cosine / 0.07), 0..1.

    Source: official dinov2/eval/knn.py; after Wu et al. 2018 (arXiv 1805.01978). k is cut to the number of neighbours there are.
    """
    similarity, nearest = (F.normalize(test_QD, dim=1) @ F.normalize(train_ND, dim=1).T).topk(min(KNN_K, len(train_ND)), dim=1)
    votes = torch.zeros(len(test_QD), int(train_labels.max()) + 1)
    votes.scatter_add_(1, train_labels[nearest], F.softmax(similarity / KNN_TEMPERATURE, dim=1))
    return float((votes.argmax(dim=1) == test_labels).float().mean())


def target_entropy(targets_RK: Tensor) -> tuple[float, float]:
    """How undecided each target is and how evenly all of them use the prototypes, both as a share of ln K, 0..1.

    If the first is near 1, the teacher is undecided. If the second is near 0, it gives the same target for every image.
    """
    scale = math.log(targets_RK.shape[1])
    each = torch.special.entr(targets_RK).sum(dim=1).mean()
    together = torch.special.entr(targets_RK.mean(dim=0)).sum()
    return float(each) / scale, float(together) / scale


def split_labelled(manifest: Manifest, limit: int, seed: int = 0) -> Labelled:
    """Labelled images in two parts: folders `train` and `test` where both are there, else one in five (or one) at random for the queries.

    The class of an image is the name of its folder.

    Args:
        manifest: images with keys such as `train/cat/1.jpg` or `cat/1.jpg`.
        limit: at most this many images of each part, drawn evenly.
        seed: of the draw.

    Raises:
        ConfigError: there are no class folders.
    """
    folders = [key.split(b"/")[:-1] for key in manifest.keys]
    if any(not parts for parts in folders) or len(names := sorted({parts[-1] for parts in folders})) < 2:
        raise ConfigError("`eval` needs a folder for each of two or more classes, such as `labelled/cat/1.jpg`")
    number_of = {name: number for number, name in enumerate(names)}
    labels = np.array([number_of[parts[-1]] for parts in folders], np.int64)
    train = np.array([b"train" in parts for parts in folders])
    test = np.array([b"test" in parts for parts in folders])
    if not (train.any() and test.any()):
        test = np.zeros(len(labels), bool)
        test[np.random.default_rng(seed).permutation(len(labels))[: max(1, len(labels) // 5)]] = True
        train = ~test
    return Labelled(manifest, _evenly(np.flatnonzero(train), limit), _evenly(np.flatnonzero(test), limit), labels)


def rows_to_watch(num_images: int, count: int) -> NDArray[np.int64]:
    """At most `count` rows, evenly over all images."""
    return _evenly(np.arange(num_images), count)


def _evenly(rows: NDArray[np.int64] | Sequence[int], count: int) -> NDArray[np.int64]:
    array = np.asarray(rows, np.int64)
    return array if len(array) <= count else array[np.linspace(0, len(array) - 1, count).round().astype(np.int64)]
