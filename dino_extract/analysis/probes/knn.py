"""k-nearest-neighbour classification by the official protocol: the quality of features without any training.

Dimension key: `B` test images in a block, `k` neighbours, `C` classes.
Source: official dinov2/eval/knn.py; InstDisc (arXiv 1805.01978) Sec. 3.4, weights exp(similarity / T) with T = 0.07.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.probes.scores import Answers, ClassScore, add_to_confusion, class_table, mean_recall, printable, top_accuracy
from dino_extract.analysis.vectors.compatible import require_other_images
from dino_extract.analysis.vectors.labels import LabelSource, classes_of, encode, labels_of, require_known
from dino_extract.analysis.vectors.neighbours import nearest_blocks
from dino_extract.analysis.vectors.stored import (
    StoreSource,
    Vectors,
    VectorSource,
    as_vectors,
    open_vectors,
    require_same_dim,
    rows_where,
)
from dino_extract.errors import ConfigError
from dino_extract.options import Options, as_list, option, require_with
from dino_extract.results import Result, plain

OFFICIAL_K = (10, 20, 100, 200)
TEMPERATURE = 0.07
TABLE_K = 20  # k of the per-class table: the usual best by the official help, and so not chosen on the test set


@dataclass(frozen=True)
class KnnOptions(Options):
    """How neighbours vote.

    Args:
        k: numbers of neighbours. Numbers above the number of training images become that number.
        temperature: T of the weights exp(similarity / T).
        per_class: few-shot: train on this many images of each class, drawn at random.
        tries: number of draws to average over.
        seed: seed of the first draw. Each further draw adds 1.

    Raises:
        ConfigError: a number is out of range, or there are several tries without `per_class`.
    """

    k: tuple[int, ...] = option(OFFICIAL_K, least=1)
    temperature: float = option(TEMPERATURE, above=0)
    per_class: int | None = option(None, least=1)
    tries: int = option(1, least=1)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k:
            raise ConfigError("`k` needs at least one number of neighbours")
        if self.tries > 1 and self.per_class is None:
            raise ConfigError("`tries` averages over draws of `per_class`, which is not given", hint="for example `--per-class 5`")


@dataclass(frozen=True)
class KnnScore:
    """Accuracy with k neighbours, 0..1; with several tries their mean, and the standard deviation of top-1."""

    k: int
    top1: float
    top5: float
    top1_std: float = 0.0


@dataclass(frozen=True, eq=False)
class KnnResult(Result):
    """The result of a classification by neighbours.

    Args:
        scores: one score for each k, ascending.
        classes: class names, sorted.
        confusion: (C, C) int64 number of test images by true (row) and predicted (column) class, with `table_k` neighbours, over all tries.
        table_k: k of the confusion matrix and the answers.
        num_train: number of training images in one try.
        num_test: number of test images in one try.
        answers: the predicted class of each test image, with `table_k` neighbours.
        unlabelled: number of images left out because they have no label.
    """

    scores: tuple[KnnScore, ...]
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    table_k: int
    num_train: int
    num_test: int
    answers: Answers
    unlabelled: int = 0
    json_without = ("answers",)
    json_with = ("mean_recall", "per_class")

    @property
    def per_class(self) -> list[ClassScore]:
        """Recall, precision and the most common error of each class."""
        return class_table(self.confusion, self.classes)

    @property
    def mean_recall(self) -> float:
        """Mean accuracy of the classes, 0..1."""
        return mean_recall(self.confusion)

    def summary(self) -> str:
        """Number of test images, and the best top-1."""
        best = max(self.scores, key=lambda score: score.top1)
        return f"{self.num_test:,} images, top-1 {best.top1:.1%} at k={best.k}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each k."""
        return [asdict(score) for score in self.scores]

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`; `confusion` is None for more than 1,000 classes."""
        return {**super().to_dict(), "confusion": plain(printable(self.confusion))}


def knn(
    train: StoreSource,
    test: StoreSource | None = None,
    *,
    labels: LabelSource = None,
    test_labels: LabelSource = None,
    label_depth: int = 1,
    dataset: str = "features",
    k: int | Sequence[int] = OFFICIAL_K,
    temperature: float = TEMPERATURE,
    per_class: int | None = None,
    tries: int = 1,
    seed: int = 0,
) -> KnnResult:
    """Classify the images of `test` by their neighbours in `train`; without `test`, each image by all the others.

    Args:
        train: store, or path of one.
        test: compatible store, or path of one.
        labels: a file or a list, see `labels_of`. None takes the folder names.
        test_labels: labels of `test`. By default `labels`.
        label_depth: number of folders above the image: 1 is the folder it is in.
        dataset: vectors to compare, (N, D) in the file.
        k: one or several numbers of neighbours, see `KnnOptions`.
        temperature: see `KnnOptions`.
        per_class: see `KnnOptions`.
        tries: see `KnnOptions`.
        seed: see `KnnOptions`.

    Raises:
        DinoExtractError: a file is unfinished, the files are not compatible, there are no labels or a single class, or an option is wrong.
    """
    require_with("test_labels", test_labels, "test", test)
    options = KnnOptions(tuple(as_list(k)), temperature, per_class, tries, seed)
    with open_vectors(train, dataset) as learned:
        names = labels_of(learned.store, labels, label_depth)
        if test is None:
            return classify(learned.vectors, names, options=options)
        with open_vectors(test, dataset, like=learned) as judged:
            require_other_images(learned.store, judged.store, test_labels)
            judged_names = labels_of(judged.store, test_labels if test_labels is not None else labels, label_depth)
            return classify(learned.vectors, names, judged.vectors, judged_names, options=options)


def classify(
    train: VectorSource,
    train_labels: Sequence[str],
    test: VectorSource | None = None,
    test_labels: Sequence[str] = (),
    *,
    options: KnnOptions | None = None,
) -> KnnResult:
    """As `knn`, for vectors and one label per vector ("" for none).

    Args:
        train: (n, D).
        train_labels: (n,).
        test: (m, D). By default each training vector is classified by the others, and few-shot the vectors not drawn by the drawn ones.
        test_labels: (m,).
        options: how neighbours vote. By default the official protocol.

    Raises:
        ConfigError: there is a single class, the widths differ, or the numbers of labels and vectors differ.
    """
    options = options or KnnOptions()
    classes = classes_of(train_labels)
    bank = _labelled(as_vectors(train, "the training vectors"), train_labels, classes)
    if test is None:
        return _run(bank, None, classes, options, len(train_labels) - len(bank.codes))
    require_known(test_labels, classes)
    query = _labelled(as_vectors(test, "the test vectors"), test_labels, classes)
    require_same_dim(bank.vectors, query.vectors)
    return _run(bank, query, classes, options, len(train_labels) + len(test_labels) - len(bank.codes) - len(query.codes))


class _Labelled(NamedTuple):
    vectors: Vectors  # (n, D)
    codes: NDArray[np.int64]  # (n,) position of the class
    rows: NDArray[np.int64]  # (n,) row of each among all vectors

    def take(self, rows: NDArray[np.int64]) -> _Labelled:
        return _Labelled(self.vectors.take(rows), self.codes[rows], self.rows[rows])


def _labelled(vectors: Vectors, labels: Sequence[str], classes: Sequence[str]) -> _Labelled:
    """The vectors that have a label."""
    if len(labels) != len(vectors):
        raise ConfigError(f"{vectors.name} has {len(vectors):,} images, but {len(labels):,} labels")
    codes = encode(labels, classes)
    return _Labelled(vectors, codes, np.arange(len(codes))).take(rows_where(codes >= 0))


def _run(bank: _Labelled, query: _Labelled | None, classes: tuple[str, ...], options: KnnOptions, unlabelled: int) -> KnnResult:
    """Run every try: the whole bank once, or several draws of a few images per class."""
    most = len(bank.codes) - (query is None)
    if options.per_class is not None:  # as in the official code: k is at most the images of a class
        most = min(len(bank.codes), options.per_class)
    if most < 1:
        raise ConfigError("a single labelled image has no neighbours")
    ks = sorted({min(k, most) for k in options.k})
    vote = _Vote(ks, options.temperature, len(classes))
    shares = []
    for draw in range(options.tries if options.per_class is not None else 1):
        train, test = (bank, query) if options.per_class is None else _few_shot(bank, query, options.per_class, options.seed + draw)
        right = vote.count(train, test)
        num_train, num_test = len(train.codes), len((test or train).codes)
        shares.append(right / num_test)
    tries = np.stack(shares)  # (tries, ks, 2)
    mean, std = tries.mean(axis=0), tries[:, :, 0].std(axis=0)
    scores = [KnnScore(k, float(mean[row, 0]), float(mean[row, 1]), float(std[row])) for row, k in enumerate(ks)]
    return KnnResult(tuple(scores), classes, vote.confusion, vote.table_k, num_train, num_test, vote.answers, unlabelled)


def _few_shot(bank: _Labelled, query: _Labelled | None, per_class: int, seed: int) -> tuple[_Labelled, _Labelled]:
    """A few images of each class, and the images that test them: the query, or else the rest of the bank."""
    shots = draw_per_class(bank.codes, per_class, seed)
    if query is None:
        query = bank.take(np.setdiff1d(np.arange(len(bank.codes)), shots))
        if len(query.codes) == 0:
            raise ConfigError(f"`per_class` {per_class} takes every image for training and leaves none to test")
    return bank.take(shots), query


def draw_per_class(codes: NDArray[np.int64], per_class: int, seed: int) -> NDArray[np.int64]:
    """Ascending positions of `per_class` random images of each class, or of all images of a smaller class."""
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(codes == code))[:per_class] for code in np.unique(codes).tolist()]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


class _Vote:
    """Counts right answers for every k, and over all tries the confusions at one k."""

    def __init__(self, ks: list[int], temperature: float, num_classes: int) -> None:
        self.ks, self.temperature, self.num_classes = ks, temperature, num_classes
        self.table_k = max([k for k in ks if k <= TABLE_K], default=ks[0])
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.answers: Answers  # of the last try

    def count(self, train: _Labelled, test: _Labelled | None) -> NDArray[np.int64]:
        """(len(ks), 2) int64 number of test images with the true class first, and among the first five.

        Without `test`, each training image is left out in turn.
        """
        query = test or train
        right, answers = np.zeros((len(self.ks), 2), np.int64), []
        codes_n = torch.from_numpy(train.codes)
        for first, similarity, index in nearest_blocks(query.vectors, train.vectors, max(self.ks), leave_one_out=test is None):
            true_B = torch.from_numpy(query.codes[first : first + len(index)])
            neighbours_Bk = codes_n[torch.from_numpy(index)]
            scores = class_scores(torch.from_numpy(similarity), neighbours_Bk, self.num_classes, self.ks, self.temperature)
            for row, scores_BC in enumerate(scores):
                voted_BC = scores_BC.masked_fill(scores_BC == 0, -torch.inf)  # a class without a vote is not an answer
                right[row] += [top_accuracy(voted_BC, true_B, 1), top_accuracy(voted_BC, true_B, 5)]
                if self.ks[row] == self.table_k:
                    best, ranked = scores_BC.sort(dim=1, descending=True, stable=True)
                    answers.append((ranked[:, 0].numpy(), (best[:, 0] / best.sum(dim=1)).numpy()))
        predicted, share = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        self.answers = Answers(query.rows, query.codes, predicted, share)
        add_to_confusion(self.confusion, query.codes, predicted)
        return right


def class_scores(similarity_Bk: Tensor, codes_Bk: Tensor, num_classes: int, ks: Sequence[int], temperature: float) -> list[Tensor]:
    """For each k, (B, C) float32 weights that the k nearest neighbours give to each class.

    The weights are the softmax of similarity / T over all given neighbours, in the official code the 200 nearest. Each k sums the first k.

    Args:
        similarity_Bk: (B, max k) float32, best first.
        codes_Bk: (B, max k) int64 class of each neighbour.
        num_classes: C.
        ks: ascending numbers of neighbours.
        temperature: T.
    """
    weights_Bk = torch.softmax(similarity_Bk / temperature, dim=1)
    scores_BC, done, found = torch.zeros(len(codes_Bk), num_classes), 0, []
    for k in ks:
        scores_BC = scores_BC.scatter_add(1, codes_Bk[:, done:k], weights_Bk[:, done:k])
        found.append(scores_BC)
        done = k
    return found
