"""A linear classifier of embeddings as a file of its own, which knows by which network its inputs must be made."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dino_extract.analysis.vectors.compatible import require_compatible
from dino_extract.analysis.vectors.stored import StoreSource, Vectors, VectorSource, as_vectors, opened, stored_vectors
from dino_extract.analysis.writing import writing
from dino_extract.errors import ConfigError, StoreError
from dino_extract.options import Limits, checked
from dino_extract.results import Result, shown
from dino_extract.store import Store

FORMAT = "1"  # of the metadata entry `dino_extract_probe`


@dataclass(frozen=True, eq=False)
class Probe(Result):
    """A linear head on stored vectors.

    Args:
        weight: (C, D) float32.
        bias: (C,) float32.
        classes: (C,) labels.
        datasets: datasets of a store whose vectors, side by side, are the input.
        attrs: root attributes of the training store: the model, and how images have to be embedded for this probe.
        path: where it was loaded from.
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
            ConfigError: vectors of another width.
        """
        vectors = as_vectors(vectors, "the input")
        if vectors.dim != self.weight.shape[1]:
            raise ConfigError(f"the probe takes vectors of width {self.weight.shape[1]}, {vectors.name} has width {vectors.dim}")
        blocks = [torch.from_numpy(block @ self.weight.T + self.bias).softmax(dim=1).numpy() for _, block in vectors.blocks()]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self.classes)), np.float32)

    def inputs_of(self, store: Store) -> Vectors:
        """The vectors of a store that the probe takes.

        Raises:
            StoreError: made differently than the training store, unfinished, or without the datasets.
        """
        require_compatible(self, store)
        return stored_vectors(store, *self.datasets)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the probe as safetensors with its metadata.

        Raises:
            ConfigError: it cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        metadata = {"classes": list(self.classes), "datasets": list(self.datasets), "attrs": self.attrs}
        tensors = {"weight": np.ascontiguousarray(self.weight, np.float32), "bias": np.ascontiguousarray(self.bias, np.float32)}
        with writing(path, "classifier", also=SafetensorError):  # its own class for a missing folder, OSError for a full disk
            save_file(tensors, path, metadata={"dino_extract_probe": FORMAT, "probe": json.dumps(metadata)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probe:
        """A saved probe.

        Raises:
            StoreError: no such file, or not a probe.
        """
        from safetensors import SafetensorError, safe_open

        name, hint = os.fspath(path), "`dino-extract linear TRAIN.h5 --save PATH` makes one"
        if not os.path.isfile(name):
            raise StoreError(f"there is no classifier `{name}`", hint=hint)
        try:
            with safe_open(name, "np") as file:
                metadata = file.metadata() or {}
                if metadata.get("dino_extract_probe") != FORMAT:
                    raise StoreError(f"`{name}` is not a classifier of embeddings", hint=hint)
                fields = json.loads(metadata["probe"])
                weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
                return cls(weight, bias, tuple(fields["classes"]), tuple(fields["datasets"]), fields["attrs"], name)
        except (SafetensorError, ValueError, KeyError) as error:
            raise StoreError(f"`{name}` is not a classifier of embeddings, or damaged", hint=hint) from error
        except OSError as error:
            raise StoreError(f"classifier `{name}` cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True)
class Classified(Result):
    """One classified image: its path, the likeliest labels, and their probabilities."""

    path: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    def summary(self) -> str:
        """The path and its likeliest label."""
        return f"{shown(self.path)}, {self.labels[0]} {self.probabilities[0]:.1%}"

    def table(self) -> list[dict[str, Any]]:
        """A row for each label."""
        pairs = zip(self.labels, self.probabilities, strict=True)
        return [{"path": self.path, "label": label, "probability": probability} for label, probability in pairs]


def classify(probe: Probe | str | os.PathLike[str], store: StoreSource, *, top: int = 1) -> list[Classified]:
    """The likeliest labels of every image of a store.

    Args:
        probe: probe, or path of one.
        store: store, or path of one, made as the probe's training store was.
        top: labels per image.

    Raises:
        StoreError: a store made differently, an unfinished one, or no probe.
        ConfigError: no label at all.
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
