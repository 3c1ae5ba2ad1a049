"""Exact neighbours against a naive loop and scikit-learn, in any blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dino_extract.analysis.vectors import neighbours
from dino_extract.analysis.vectors import stored as vectors
from dino_extract.analysis.vectors.neighbours import nearest, nearest_blocks, top_stable
from dino_extract.errors import ConfigError, StoreError


def random_vectors(count: int, seed: int = 0) -> np.ndarray:
    """(count, 16) float32."""
    return np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have both queries and bank come in several blocks of uneven size."""
    monkeypatch.setattr(vectors.Vectors.unit_blocks, "__defaults__", (23,))
    monkeypatch.setattr(nearest_blocks, "__kwdefaults__", {"leave_one_out": False, "query_rows": 17})


def test_nearest_equals_a_naive_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every query gets the bank vectors that sorting all cosines one query at a time gives."""
    small_blocks(monkeypatch)
    queries, bank = random_vectors(40), random_vectors(100, seed=1)

    similarity, index = nearest(queries, bank, 7)

    for row, query in enumerate(queries.astype(np.float64)):
        cosines = [float(query @ other / np.linalg.norm(query) / np.linalg.norm(other)) for other in bank.astype(np.float64)]
        order = sorted(range(100), key=lambda position: -cosines[position])[:7]  # used at once
        assert index[row].tolist() == order
        np.testing.assert_allclose(similarity[row], [cosines[position] for position in order], atol=1e-6)


def test_nearest_equals_scikit_learn_leaving_one_out() -> None:
    """Without itself, a vector has the neighbours that scikit-learn finds after the first."""
    sklearn = pytest.importorskip("sklearn.neighbors")
    bank = random_vectors(200)

    _, index = nearest(bank, bank, 5, leave_one_out=True)

    witness = sklearn.NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(bank)
    np.testing.assert_array_equal(index, witness.kneighbors(bank, return_distance=False)[:, 1:])


@pytest.mark.parametrize("in_blocks", [False, True])
def test_equal_neighbours_come_in_bank_order(monkeypatch: pytest.MonkeyPatch, in_blocks: bool) -> None:
    """Among equal vectors the first ones of the bank are taken, however the bank is cut into blocks."""
    if in_blocks:
        small_blocks(monkeypatch)
    bank = np.zeros((90, 16), np.float32)
    bank[:, 0] = 1.0
    bank[::3, 1] = 1.0

    _, index = nearest(bank[:40], bank, 10)

    assert index[0].tolist() == list(range(0, 30, 3))
    assert index[1].tolist() == [1, 2, 4, 5, 7, 8, 10, 11, 13, 14]


def test_no_vector_is_its_own_neighbour_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving one out works where queries and bank are cut differently."""
    small_blocks(monkeypatch)
    bank = random_vectors(100)

    found = list(nearest_blocks(bank, bank, 99, leave_one_out=True, query_rows=17))

    index = np.concatenate([block for _, _, block in found])
    assert all(sorted(row) == [other for other in range(100) if other != number] for number, row in enumerate(index.tolist()))


def test_a_large_bank_is_read_again_instead_of_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank above the memory limit gives the same neighbours."""
    queries, bank = random_vectors(40), random_vectors(100, seed=1)
    held = nearest(queries, bank, 7)
    small_blocks(monkeypatch)
    monkeypatch.setattr(neighbours, "HELD_NBYTES", 0)

    streamed = nearest(queries, bank, 7)

    np.testing.assert_array_equal(streamed[1], held[1])


def test_top_stable_cuts_through_equal_values_by_column() -> None:
    """Where the cut goes through equal values, the lower columns are kept."""
    values = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0], [5.0, 4.0, 3.0, 2.0, 1.0]])

    top, columns = top_stable(values, 2)

    assert columns.tolist() == [[1, 2], [0, 1]]
    assert top.tolist() == [[3.0, 2.0], [5.0, 4.0]]


def test_k_above_the_bank_gives_the_whole_bank() -> None:
    """With k = 50 and 10 vectors, there are 10 neighbours."""
    _, index = nearest(random_vectors(3), random_vectors(10, seed=1), 50)

    assert index.shape == (3, 10)


def test_a_zero_vector_is_like_no_other() -> None:
    """A vector of zeros has cosine 0 with everything, and never NaN."""
    similarity, _ = nearest(np.zeros((1, 16), np.float32), random_vectors(10), 3)

    assert similarity.tolist() == [[0.0, 0.0, 0.0]]


def test_a_nan_row_is_named() -> None:
    """A row with NaN is an error that gives its number."""
    bank = random_vectors(10)
    bank[7, 3] = np.nan

    with pytest.raises(StoreError, match="row 7 of the bank has NaN, infinite or enormous values"):
        nearest(random_vectors(3), bank, 2)


def test_different_widths_are_refused() -> None:
    """Vectors of different width cannot be compared, and the message gives both."""
    with pytest.raises(ConfigError, match="vectors of the queries have width 8, those of the bank 16"):
        nearest(random_vectors(3)[:, :8], random_vectors(10), 2)


def test_a_single_vector_has_no_neighbour() -> None:
    """A single vector left out leaves no neighbour."""
    with pytest.raises(ConfigError, match="has 1 images, which is too few"):
        nearest(random_vectors(1), random_vectors(1), 5, leave_one_out=True)
