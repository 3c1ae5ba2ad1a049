"""Linear probes: the accuracy of a linear classifier on frozen embeddings. All choices are made on held-out training images.

Source: official dinov2/eval/log_regression.py and eval/linear.py, inputs from one or four layers with or without the mean patch token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dino_extract.analysis.probes.knn import draw_per_class
from dino_extract.analysis.probes.logistic import HELD_OUT, accuracy, choose_strength, fit_logistic, split_held_out
from dino_extract.analysis.probes.probe import Probe
from dino_extract.analysis.probes.scores import Answers, ClassScore, add_to_confusion, class_table, mean_recall, printable, top_accuracy
from dino_extract.analysis.probes.sgd_heads import ITERATIONS, LEARNING_RATES, fit_heads
from dino_extract.analysis.vectors.compatible import require_compatible, require_other_images
from dino_extract.analysis.vectors.labels import LabelSource, classes_of, encode, labels_of, require_known
from dino_extract.analysis.vectors.stored import StoreSource, Vectors, opened, rows_where, stored_vectors
from dino_extract.errors import ConfigError
from dino_extract.options import Limits, as_list, checked, require_with
from dino_extract.results import Result, plain
from dino_extract.store import Store

Method = Literal["logistic", "sgd"]
TEST_SHARE = 0.2  # share of the images that test, without a test file


@dataclass(frozen=True)
class Candidate:
    """A way to train: the input, its best setting (C, or learning rate), and the accuracy on held-out training images."""

    input: str
    setting: float
    held_out: float


@dataclass(frozen=True, eq=False)
class LinearResult(Result):
    """The result of a linear probe.

    Args:
        method: logistic or sgd.
        candidates: the ways that were tried, one per input.
        chosen: the candidate with the best accuracy on held-out training images.
        top1: accuracy on the test images, 0..1.
        top5: share of the test images whose class is among the first five, 0..1.
        confusion: (C, C) int64 number of test images by true (row) and predicted (column) class.
        probe: the trained head.
        num_train: number of training images.
        num_test: number of test images.
        answers: the predicted class of each test image.
        unlabelled: number of images left out because they have no label.
    """

    method: Method
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    top1: float
    top5: float
    confusion: NDArray[np.int64]
    probe: Probe
    num_train: int
    num_test: int
    answers: Answers
    unlabelled: int
    json_without = ("answers", "probe")
    json_with = ("classes", "mean_recall", "per_class")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, sorted."""
        return self.probe.classes

    @property
    def per_class(self) -> list[ClassScore]:
        """Recall, precision and the most common error of each class."""
        return class_table(self.confusion, self.probe.classes)

    @property
    def mean_recall(self) -> float:
        """Mean accuracy of the classes, 0..1."""
        return mean_recall(self.confusion)

    def summary(self) -> str:
        """Number of test images, top-1 and the chosen input."""
        return f"{self.num_test:,} images, top-1 {self.top1:.1%}, {self.method} on {self.chosen.input}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each input that was tried."""
        return [{**asdict(each), "chosen": each == self.chosen} for each in self.candidates]

    def to_dict(self) -> dict[str, Any]:
        """As `Result.to_dict`; `confusion` is None for more than 1,000 classes."""
        return {**super().to_dict(), "confusion": plain(printable(self.confusion))}


def linear(
    train: StoreSource,
    test: StoreSource | None = None,
    *,
    method: Method = "logistic",
    dataset: str | Sequence[str] = (),
    labels: LabelSource = None,
    test_labels: LabelSource = None,
    label_depth: int = 1,
    per_class: int | None = None,
    iterations: int = ITERATIONS,
    seed: int = 0,
) -> LinearResult:
    """Train a linear classifier on one store and test it on another, or on a fifth of the same one.

    Args:
        train: store, or path of one.
        test: compatible store, or path of one.
        method: logistic regression by L-BFGS, or heads by SGD.
        dataset: one or several inputs: cls, cls+mean, last4, last4+mean, see `inputs_in`. By default all stored inputs are tried. The best
            input on held-out training images is used.
        labels: a file or a list, see `labels_of`. None takes the folder names.
        test_labels: labels of `test`. By default `labels`.
        label_depth: number of folders above the image: 1 is the folder it is in.
        per_class: few-shot: train on this many images of each class.
        iterations: number of steps of SGD.
        seed: seed of everything drawn at random.

    Raises:
        DinoExtractError: a file is unfinished, the files are not compatible, there are no labels or a single class, an input is not
            stored, or an option is wrong.
    """
    checked("method", Method, method)
    require_with("test_labels", test_labels, "test", test)
    checked("iterations", int, iterations, Limits(least=1))
    with opened(train) as train_store:
        names = labels_of(train_store, labels, label_depth)
        classes = classes_of(names)
        codes = encode(names, classes)
        rows, unlabelled = rows_where(codes >= 0), int((codes < 0).sum())
        available = _chosen_inputs(train_store, as_list(dataset))
        if test is None:
            fit, held = split_held_out(codes[rows], TEST_SHARE, seed)
            learn, judge = _Images(train_store, rows[fit], codes), _Images(train_store, rows[held], codes)
            return _run(learn.few(per_class, seed), judge, classes, available, method, iterations, seed, unlabelled)
        with opened(test) as test_store:
            require_compatible(train_store, test_store)
            require_other_images(train_store, test_store, test_labels)
            other_names = labels_of(test_store, test_labels if test_labels is not None else labels, label_depth)
            require_known(other_names, classes)
            test_codes = encode(other_names, classes)
            judge = _Images(test_store, rows_where(test_codes >= 0), test_codes)
            unlabelled += len(test_codes) - len(judge.rows)
            learn = _Images(train_store, rows, codes).few(per_class, seed)
            return _run(learn, judge, classes, available, method, iterations, seed, unlabelled)


class _Images(NamedTuple):
    """Some labelled images of a store."""

    store: Store
    rows: NDArray[np.int64]  # (n,) which of the embedded images
    all_codes: NDArray[np.int64]  # class of every embedded image, -1 without label

    @property
    def codes(self) -> NDArray[np.int64]:
        return self.all_codes[self.rows]

    def vectors(self, datasets: Sequence[str]) -> Vectors:
        return stored_vectors(self.store, *datasets).take(self.rows)

    def few(self, per_class: int | None, seed: int) -> _Images:
        """At most `per_class` of each class."""
        if per_class is None:
            return self
        return self._replace(rows=self.rows[draw_per_class(self.codes, checked("per_class", int, per_class, Limits(least=1)), seed)])


def inputs_in(store: Store) -> dict[str, tuple[str, ...]]:
    """The official inputs that a store has, and the datasets of each: cls, cls+mean, last4, last4+mean.

    Four layers that are not the last layers of the model are named by their numbers, such as `layers2-5-8-11`.
    """
    layers = sorted(int(match[1]) for name in store.names if (match := re.fullmatch(r"layers/(\d+)/features", name)))[-4:]
    inputs: dict[str, tuple[str, ...]] = {}
    if "features" in store:
        inputs["cls"] = ("features",)
    if len(layers) == 4:
        name = "last4" if _are_last(store, layers) else f"layers{'-'.join(map(str, layers))}"
        inputs[name] = tuple(f"layers/{layer}/features" for layer in layers)
    if "mean_features" in store:
        inputs.update({f"{name}+mean": (*datasets, "mean_features") for name, datasets in list(inputs.items())})
    return inputs


def _are_last(store: Store, layers: list[int]) -> bool:
    """Whether these four are the last blocks of the model: a file does not store their number, but the last one equals `features`."""
    if layers[-1] - layers[0] != 3 or "features" not in store:
        return False
    last, final = (stored_vectors(store, name)[:16] for name in (f"layers/{layers[-1]}/features", "features"))
    return np.array_equal(last, final)


def _chosen_inputs(store: Store, wanted: Sequence[str]) -> dict[str, tuple[str, ...]]:
    available = inputs_in(store)
    missing = [name for name in wanted if name not in available]
    if missing or not available:
        what = f"no input `{missing[0]}`" if missing else "no CLS tokens"
        raise ConfigError(
            f"`{store.path}` has {what}, only {', '.join(available) or ', '.join(store.names)}",
            hint="embed with `--tokens cls,mean --layers last4` to have all inputs",
        )
    return {name: available[name] for name in wanted or available}


def _run(
    train: _Images,
    test: _Images,
    classes: tuple[str, ...],
    inputs: dict[str, tuple[str, ...]],
    method: Method,
    iterations: int,
    seed: int,
    unlabelled: int,
) -> LinearResult:
    if len(test.rows) == 0:
        raise ConfigError("no image is left to test on: every class has a single image", hint="give a test file")
    candidates = []
    for name, datasets in inputs.items():
        vectors = train.vectors(datasets)
        if method == "logistic":
            setting, held_out = choose_strength(vectors, train.codes, len(classes), seed=seed)
        else:
            setting, held_out = _choose_rate(vectors, train.codes, len(classes), iterations, seed)
        candidates.append(Candidate(name, setting, held_out))
    chosen = max(candidates, key=lambda each: float(np.nan_to_num(each.held_out, nan=-1.0)))  # the first of equals
    datasets = inputs[chosen.input]
    if method == "logistic":
        weight, bias = fit_logistic(train.vectors(datasets), train.codes, len(classes), chosen.setting)
    else:
        rates = (chosen.setting,)
        weights, biases = fit_heads(
            train.vectors(datasets), train.codes, len(classes), learning_rates=rates, iterations=iterations, seed=seed
        )
        weight, bias = weights[0], biases[0]
    probe = Probe(weight.astype(np.float32), bias.astype(np.float32), classes, datasets, train.store.attrs)
    top1, top5, answers = _test(probe, test, datasets)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    add_to_confusion(confusion, answers.true, answers.predicted)
    counts = len(train.rows), len(test.rows)
    return LinearResult(method, tuple(candidates), chosen, top1, top5, confusion, probe, *counts, answers, unlabelled)


def _choose_rate(vectors: Vectors, codes: NDArray[np.int64], num_classes: int, iterations: int, seed: int) -> tuple[float, float]:
    """The learning rate whose head does best on held-out training images, and its accuracy there."""
    fit, held = split_held_out(codes, HELD_OUT, seed)
    if len(held) == 0:
        return LEARNING_RATES[-1], float("nan")
    weights, biases = fit_heads(vectors.take(fit), codes[fit], num_classes, iterations=iterations, seed=seed)
    scores = [accuracy(vectors.take(held), codes[held], weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    best = int(np.argmax(scores))
    return LEARNING_RATES[best], scores[best]


def _test(probe: Probe, images: _Images, datasets: Sequence[str]) -> tuple[float, float, Answers]:
    """Top-1 and top-5 accuracy, and the answers."""
    vectors, right, answers = images.vectors(datasets), np.zeros(2), []
    for first, block in vectors.blocks():
        scores = torch.from_numpy(probe.probabilities(block))
        true = torch.from_numpy(images.codes[first : first + len(block)])
        right += [top_accuracy(scores, true, 1), top_accuracy(scores, true, 5)]
        best = scores.max(dim=1)
        answers.append((best.indices.numpy(), best.values.numpy()))
    top1, top5 = (right / len(vectors)).tolist()
    predicted, share = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    return top1, top5, Answers(images.rows, images.codes, predicted, share)
