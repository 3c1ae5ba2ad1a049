"""A file of embeddings as a torch data set."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import dino_extract as dx
from dino_extract.errors import ConfigError, StoreError
from tests.analysis.stores import write_store


@pytest.fixture
def store_path(tmp_path: Path) -> str:
    """Six embedded images in two folders, and one without a folder."""
    vectors = np.arange(7 * 4, dtype=np.float32).reshape(7, 4)
    keys = [f"{'aaabbb'[row]}/{row}.jpg" for row in range(6)]
    path = tmp_path / "photos.h5"
    write_store(path, [*keys, "z.jpg"], {"features": vectors})
    return str(path)


def test_items_are_the_rows_of_the_file(store_path: str) -> None:
    """Item i is row i of the embedded images, as float32."""
    data = dx.EmbeddingDataset(store_path)

    with dx.open(store_path) as store:
        assert len(data) == 7
        assert data.paths == store.paths
        for index in (0, 3, 6):
            item = data[index]
            assert isinstance(item, torch.Tensor)
            assert item.dtype == torch.float32
            np.testing.assert_array_equal(item.numpy(), np.asarray(store.features[index], np.float32))


def test_folders_are_labels_and_images_without_one_are_left_out(store_path: str) -> None:
    """With `labels=True` an item is an embedding and the number of its folder's class."""
    data = dx.EmbeddingDataset(store_path, labels=True)

    assert len(data) == 6
    assert data.classes == ("a", "b")
    for index, path in enumerate(data.paths):
        assert data.classes[data[index][1]] == path[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_with_workers_gives_every_row_once(store_path: str, workers: int) -> None:
    """Batches of a `DataLoader` in any order hold the same rows, whoever reads them."""
    data = dx.EmbeddingDataset(store_path)
    data[0]  # opened here first, which a forked worker must not share

    loader = DataLoader(data, batch_size=3, shuffle=True, num_workers=workers, multiprocessing_context="spawn" if workers else None)
    got = torch.cat(list(loader))

    assert sorted(got[:, 0].tolist()) == [float(4 * row) for row in range(7)]


def test_a_copy_through_pickle_reads_the_same(store_path: str) -> None:
    """A pickled data set opens its file again."""
    data = dx.EmbeddingDataset(store_path, labels=True)
    data[0]

    copy = pickle.loads(pickle.dumps(data))

    assert copy[5][1] == data[5][1]
    assert torch.equal(copy[5][0], data[5][0])


def test_a_missing_file_or_dataset_is_reported_at_once(store_path: str, tmp_path: Path) -> None:
    """A missing dataset, and labels that no image has, are errors when the data set is made."""
    flat = tmp_path / "flat.h5"
    write_store(flat, ["a.jpg", "b.jpg"], {"features": np.ones((2, 4), np.float32)})

    with pytest.raises(StoreError, match="has no `mean_features`"):
        dx.EmbeddingDataset(store_path, dataset="mean_features")
    with pytest.raises(ConfigError, match="no labels"):
        dx.EmbeddingDataset(flat, labels=True)
