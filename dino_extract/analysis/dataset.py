"""The embeddings of a file as a torch `Dataset`, for a head of one's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_extract.analysis.vectors.labels import LabelSource, classes_of, encode, labels_of
from dino_extract.store import RaggedRows, Store, open_store

Item = Tensor | tuple[Tensor, int]


class EmbeddingDataset(torch.utils.data.Dataset[Item]):
    """The embeddings of a file, row by row, for a `DataLoader` with any number of workers.

    Each item is an embedding as float32: (D,) of `features`, (h, w, D) of `patch_features`. With `labels`, each item is a pair of the
    embedding and the number of its class, and images without a label are left out. The dataset can be pickled. Every process opens the
    file for itself.

    Args:
        path: the finished file.
        dataset: the rows of the file to read, such as `features`, `mean_features` or `layers/11/features`.
        labels: True for the names of the folders, or anything that `knn` takes as labels. None gives embeddings alone.
        label_depth: with the names of the folders, how many folders above the image: 1 is the folder it is in.

    Attributes:
        paths: (n,) path of each item.
        classes: names of the classes in the order of their numbers, () without labels.
        targets: (n,) int64 number of the class of each item, None without labels.

    Raises:
        StoreError: the file is missing, damaged, unfinished or has no such dataset.
        ConfigError: no image has a label.
        SourceError: a file of labels cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        dataset: str = "features",
        labels: LabelSource | bool = None,
        label_depth: int = 1,
    ) -> None:
        self.path, self.dataset = os.path.abspath(path), dataset
        self.classes: tuple[str, ...] = ()
        self.targets: np.ndarray[Any, np.dtype[np.int64]] | None = None
        with open_store(path) as store:
            store.require_complete()[dataset]  # a missing dataset is reported now, not in a worker
            self._rows = np.arange(len(store))
            if labels is not None and labels is not False:
                names = labels_of(store, None if labels is True else labels, label_depth)
                self._rows = np.array([row for row, name in enumerate(names) if name], np.int64)
                self.classes = tuple(classes_of(names))
                self.targets = encode(names, self.classes)[self._rows]
            self.paths = [store.paths[row] for row in self._rows.tolist()]
        self._opened: tuple[int, Store] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """The items of one batch, read together; `DataLoader` calls this."""
        stored, rows = self._store()[self.dataset], self._rows[np.asarray(indices, np.int64)]
        found = [stored[row] for row in rows.tolist()] if isinstance(stored, RaggedRows) else stored[rows]
        embeddings = [torch.from_numpy(np.asarray(embedding, np.float32)) for embedding in found]
        if self.targets is None:
            return list(embeddings)
        return [(embedding, int(self.targets[index])) for embedding, index in zip(embeddings, indices, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __repr__(self) -> str:
        classes = f", {len(self.classes):,} classes" if self.classes else ""
        return f"<EmbeddingDataset {self.path}: {len(self):,} x {self.dataset}{classes}>"

    def _store(self) -> Store:
        """The file, opened by this process: a forked one must not use its parent's."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), open_store(self.path)
        return self._opened[1]
