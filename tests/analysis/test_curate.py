"""Training sets: balanced choice, and choice by a seed set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_extract.analysis.curate import balanced_sample, curate, default_levels, even_shares, nearest_in_turn
from dino_extract.errors import ConfigError, StoreError
from tests.analysis.stores import blobs, keys_of, write_store


def test_shares_are_as_equal_as_sizes_allow() -> None:
    """A small cluster gives all it has and the others share the rest; the sum is always the budget."""
    rng = np.random.default_rng(0)

    assert even_shares(np.array([1, 10, 10]), 9, rng).tolist() == [1, 4, 4]
    assert sorted(even_shares(np.array([5, 5, 5]), 7, rng).tolist()) == [2, 2, 3]
    assert even_shares(np.array([2, 3]), 99, rng).tolist() == [2, 3]


def test_a_balanced_sample_evens_out_rare_kinds() -> None:
    """Of 900 common and 100 rare images, a budget of 100 takes 50 of each."""
    codes = np.array([0] * 900 + [1] * 100)

    rows = balanced_sample([codes], 100)

    assert np.bincount(codes[rows]).tolist() == [50, 50]
    assert len(set(rows.tolist())) == 100


def test_a_balanced_sample_goes_down_the_levels() -> None:
    """The budget is shared by the coarse clusters first, then by the fine ones within each."""
    fine, coarse = np.repeat([0, 1, 2, 3], 25), np.repeat([0, 0, 0, 1], 25)

    rows = balanced_sample([fine, coarse], 30)

    assert np.bincount(fine[rows]).tolist() == [5, 5, 5, 15]


def test_seeds_take_their_neighbours_in_turn() -> None:
    """Each seed's nearest comes before any seed's second nearest, and no image is taken twice."""
    bank = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.3, 1], [-1, 0]], np.float32)
    seeds = np.array([[1, 0], [1, 0.01], [0, 1]], np.float32)

    rows = nearest_in_turn(seeds, bank, 4)

    assert set(rows[:2].tolist()) == {0, 3}
    assert set(rows.tolist()) == {0, 1, 3, 4}


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A store with 60 images of one kind and 10 of each of two others."""
    vectors, labels = blobs(3, 60, 16, spread=0.2)
    keep = [*range(60), *range(60, 70), *range(120, 130)]
    return write_store(tmp_path / "x.h5", keys_of([labels[row] for row in keep]), {"features": vectors[keep]})


def test_curating_balances_a_file(path: str) -> None:
    """From 60, 10 and 10 images, a budget of 30 takes 10 of each kind."""
    chosen = curate(path, 30, levels=[3])

    assert [sum(key.startswith(f"class00{code}/") for key in chosen) for code in range(3)] == [10, 10, 10]


@pytest.mark.parametrize("by", ["sample", "cluster"])
def test_curating_like_seeds_takes_their_kind(path: str, tmp_path: Path, by: str) -> None:
    """With seeds of one kind, all that is chosen is of that kind."""
    vectors, _ = blobs(3, 60, 16, spread=0.2, seed=9)
    seeds = write_store(tmp_path / "seeds.h5", [f"s{row}.jpg" for row in range(5)], {"features": vectors[60:65]})

    levels = [3] if by == "cluster" else []
    chosen = curate(path, 8, levels=levels, like=seeds, by=by)  # type: ignore[arg-type]  # one of the literals

    assert len(chosen) == 8
    assert all(key.startswith("class001/") for key in chosen)


@pytest.mark.parametrize(("levels", "by"), [([3], "sample"), ([9, 3], "cluster")])
def test_levels_that_would_be_ignored_are_refused(path: str, levels: list[int], by: str) -> None:
    """Neighbours of seeds need no clusters, and seeded clusters are of one level."""
    with pytest.raises(ConfigError, match="`levels` are for an even choice"):
        curate(path, 8, levels=levels, like=path, by=by)  # type: ignore[arg-type]  # one of the literals


def test_too_few_seeds_for_clusters_are_refused(path: str, tmp_path: Path) -> None:
    """Three seeds are not more than 3."""
    vectors, _ = blobs(3, 60, 16, spread=0.2)
    seeds = write_store(tmp_path / "seeds.h5", ["a.jpg", "b.jpg", "c.jpg"], {"features": vectors[:3]})

    with pytest.raises(ConfigError, match="no cluster has 4 or more of the 3 seeds"):
        curate(path, 8, levels=[3], like=seeds, by="cluster")


def test_seeds_of_another_model_are_refused(path: str, tmp_path: Path) -> None:
    """Seeds must be embedded by the same network."""
    seeds = write_store(tmp_path / "seeds.h5", ["a.jpg"], {"features": np.ones((1, 16), np.float32)}, model="vitb14")

    with pytest.raises(StoreError, match="are not compatible"):
        curate(path, 8, like=seeds)


def test_more_images_than_the_file_has_is_refused(path: str) -> None:
    """The message has both numbers."""
    with pytest.raises(ConfigError, match=r"must be from 1 to the 80 images of .*, got 99"):
        curate(path, 99)


def test_default_levels_grow_with_the_file() -> None:
    """10,000 images are divided into 200 and 14, a handful into what is possible."""
    assert default_levels(10_000) == [200, 14]
    assert default_levels(1) == [1]
