"""A linear classifier of embeddings that can be saved, with the model and settings that its inputs need."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dino_extract.analysis.probes.head_file import load_head, save_head
from dino_extract.analysis.vectors.compatible import require_compatible
from dino_extract.analysis.vectors.stored import StoreSource, Vectors, VectorSource, as_vectors, opened, stored_vectors
from dino_extract.errors import ConfigError
from dino_extract.options import Limits, checked
from dino_extract.results import Result, shown
from dino_extract.store import Store


@dataclass(frozen=True, eq=False)
class Probe(Result):
    """A linear head on stored vectors.

    Args:
        weight: (C, D) float32.
        bias: (C,) float32.
        classes: (C,) labels.
        datasets: datasets of a store whose vectors, side by side, are the input.
        attrs: root attributes of the training store: the model, and how images have to be embedded for this probe.
        path: where the probe was loaded from.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    classes: tuple[str, ...]
    datasets: tuple[str, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    path: str = "the classifier"
    json_without = ("weight", "bias", "attrs")

    def summary(self) -> str:
        """Number of classes, and the input."""
        return f"{len(self.classes):,} classes of {', '.join(self.datasets)}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each class."""
        return [{"class": name} for name in self.classes]

    def probabilities(self, vectors: VectorSource) -> NDArray[np.float32]:
        """(n, C) float32 probability of each class.

        Raises:
            ConfigError: the vectors have another width.
        """
        vectors = as_vectors(vectors, "the input")
        if vectors.dim != self.weight.shape[1]:
            raise ConfigError(f"the probe needs vectors of width {self.weight.shape[1]}, {vectors.name} has width {vectors.dim}")
        blocks = [torch.from_numpy(block @ self.weight.T + self.bias).softmax(dim=1).numpy() for _, block in vectors.blocks()]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self.classes)), np.float32)

    def inputs_of(self, store: Store) -> Vectors:
        """The vectors of a store that are the input of the probe.

        Raises:
            StoreError: the store is not compatible with the training store, unfinished, or without the datasets.
        """
        require_compatible(self, store)
        return stored_vectors(store, *self.datasets)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the probe as safetensors with its metadata.

        Raises:
            ConfigError: the file cannot be written, or exists.
        """
        description = {"classes": list(self.classes), "datasets": list(self.datasets), "attrs": self.attrs}
        save_head(path, "probe", {"weight": self.weight, "bias": self.bias}, description, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """A saved probe.

        Raises:
            StoreError: there is no such file, or it is not a probe.
        """
        arrays, known = load_head(path, "probe", hint="`dino-extract linear TRAIN.h5 --save PATH` makes one")
        return cls(arrays["weight"], arrays["bias"], tuple(known["classes"]), tuple(known["datasets"]), known["attrs"], os.fspath(path))


@dataclass(frozen=True)
class Classified(Result):
    """One classified image: its path, the most probable labels, and their probabilities."""

    path: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    def summary(self) -> str:
        """The path and the most probable label."""
        return f"{shown(self.path)}, {self.labels[0]} {self.probabilities[0]:.1%}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each label."""
        pairs = zip(self.labels, self.probabilities, strict=True)
        return [{"path": self.path, "label": label, "probability": probability} for label, probability in pairs]


def classify(probe: Probe | str | os.PathLike[str], store: StoreSource, *, top: int = 1) -> list[Classified]:
    """The most probable labels of every image of a store.

    Args:
        probe: probe, or path of one.
        store: store that is compatible with the training store of the probe, or path of one.
        top: number of labels per image.

    Raises:
        StoreError: the store is unfinished or not compatible, or the file is not a probe.
        ConfigError: `top` is below 1.
    """
    top = checked("top", int, top, Limits(least=1))
    probe = probe if isinstance(probe, Probe) else Probe.load(probe)
    with opened(store) as found:
        return classify_vectors(probe, probe.inputs_of(found), found.paths, top=top)


def classify_vectors(probe: Probe, vectors: VectorSource, paths: list[str], *, top: int = 1) -> list[Classified]:
    """As `classify`, for vectors and the paths of their images."""
    probabilities = probe.probabilities(vectors)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        Classified(path, tuple(probe.classes[code] for code in codes), tuple(float(row[code]) for code in codes))
        for path, codes, row in zip(paths, order.tolist(), probabilities, strict=True)
    ]
