"""Outliers: isolation as a loop over all pairs has it, in one file and against another, whole or by a sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_extract.analysis import outliers as module
from dino_extract.analysis.outliers import outliers
from dino_extract.errors import ConfigError, StoreError
from tests.analysis.stores import blobs, write_store


def by_pairs(vectors: np.ndarray, bank: np.ndarray, k: int, own: dict[int, int]) -> tuple[list[float], list[int]]:
    """Isolation of each vector and its nearest bank vector; `own` says which bank vector a vector itself is."""
    vectors, bank = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (vectors.astype(float), bank.astype(float)))
    isolation, nearest = [], []
    for row, vector in enumerate(vectors):
        cosines = sorted(((float(vector @ other), -number) for number, other in enumerate(bank) if number != own.get(row)), reverse=True)
        isolation.append(1 - sum(cosine for cosine, _ in cosines[:k]) / len(cosines[:k]))
        nearest.append(-cosines[0][1])
    return isolation, nearest


def keys(count: int) -> list[str]:
    """Names of so many images, sorted."""
    return [f"{number:04}.jpg" for number in range(count)]


@pytest.mark.parametrize("k", [1, 5, 200])
def test_isolation_is_that_of_all_pairs(tmp_path: Path, k: int) -> None:
    """Order, isolation, share and nearest image are what a loop over all pairs gives, with more neighbours than images too."""
    vectors, _ = blobs(6, 10, 8, spread=0.7)
    path = write_store(tmp_path / "x.h5", keys(60), {"features": vectors})

    found = outliers(path, neighbours=k)

    isolation, nearest = by_pairs(vectors, vectors, k, {row: row for row in range(60)})
    order = sorted(range(60), key=lambda row: -isolation[row])
    assert found.paths == [keys(60)[row] for row in order]
    np.testing.assert_allclose(found.isolation, [isolation[row] for row in order], atol=1e-6)
    assert found.nearest == [keys(60)[nearest[row]] for row in order]
    np.testing.assert_allclose(found.unusual, [sum(other < isolation[row] - 1e-7 for other in isolation) / 60 for row in order], atol=1e-6)
    assert len(found) == found.num_compared == 60
    assert [line.path for line in found.first(3)] == found.paths[:3]


def test_another_file_can_be_the_reference(tmp_path: Path) -> None:
    """With `against`, neighbours are of the other file, and the share is of its images among themselves."""
    vectors, _ = blobs(8, 10, 16, spread=0.5)
    known, new = vectors[:60], vectors[50:]  # one kind that is known, two that are not
    train = write_store(tmp_path / "train.h5", keys(60), {"features": known})
    path = write_store(tmp_path / "new.h5", keys(30), {"features": new})

    found = outliers(path, train, neighbours=3)

    isolation, nearest = by_pairs(new, known, 3, {})
    usual, _ = by_pairs(known, known, 3, {row: row for row in range(60)})
    order = sorted(range(30), key=lambda row: -isolation[row])
    np.testing.assert_allclose(found.isolation, [isolation[row] for row in order], atol=1e-6)
    assert found.nearest == [keys(60)[nearest[row]] for row in order]
    np.testing.assert_allclose(found.unusual, [sum(other < isolation[row] - 1e-7 for other in usual) / 60 for row in order], atol=1e-6)
    assert set(found.paths[:20]) == set(keys(30)[10:])
    assert (found.unusual[:20] == 1).all()


@pytest.mark.parametrize("with_other", [False, True])
def test_many_images_are_compared_with_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_other: bool) -> None:
    """Of more images than are compared with, a random part is, the same one each time; none is its own neighbour."""
    monkeypatch.setattr(module, "MAX_COMPARED", 20)
    vectors, _ = blobs(5, 10, 8, spread=0.7)
    path = write_store(tmp_path / "x.h5", keys(50), {"features": vectors})
    other = write_store(tmp_path / "y.h5", keys(50), {"features": vectors[::-1]}) if with_other else None
    bank = vectors[::-1] if with_other else vectors
    rows = np.sort(np.random.default_rng(3).choice(50, 20, replace=False))

    found = outliers(path, other, seed=3, neighbours=4)

    own = {} if with_other else {int(row): number for number, row in enumerate(rows)}
    isolation, nearest = by_pairs(vectors, bank[rows], 4, own)
    order = sorted(range(50), key=lambda row: -isolation[row])
    assert found.paths == [keys(50)[row] for row in order]
    np.testing.assert_allclose(found.isolation, [isolation[row] for row in order], atol=1e-6)
    assert found.nearest == [keys(50)[rows[nearest[row]]] for row in order]
    assert found.num_compared == 20


def test_copies_are_each_other_s_neighbours(tmp_path: Path) -> None:
    """Images that are all the same are not isolated, although none counts as its own neighbour; the odd one is."""
    vectors = np.repeat(np.float32([[3, 4]]), 12, axis=0)
    vectors[7] = [4, -3]
    path = write_store(tmp_path / "x.h5", keys(12), {"features": vectors})

    found = outliers(path)

    assert found.paths[0] == "0007.jpg"
    assert found.isolation.tolist() == pytest.approx([1.0] + [0.0] * 11, abs=1e-6)
    assert all(path != near for path, near in zip(found.paths, found.nearest, strict=True))


def test_images_that_cannot_be_compared_are_an_error(tmp_path: Path) -> None:
    """A single image, no neighbours, and a file made by another model are refused."""
    one = write_store(tmp_path / "one.h5", keys(1), {"features": np.ones((1, 2), np.float32)})
    two = write_store(tmp_path / "two.h5", keys(2), {"features": np.eye(2, dtype=np.float32)})
    other = write_store(tmp_path / "other.h5", keys(2), {"features": np.eye(2, dtype=np.float32)}, model="vitb14")

    for store, against in ((one, None), (two, one)):
        with pytest.raises(ConfigError, match=r"one\.h5` has 1 image, which cannot be compared"):
            outliers(store, against)
    assert len(outliers(one, two)) == 1
    with pytest.raises(ConfigError, match="neighbours"):
        outliers(two, neighbours=0)
    with pytest.raises(StoreError, match="model"):
        outliers(two, other)
