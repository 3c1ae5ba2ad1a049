"""k-means, hierarchies of clusters, and agreement with labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dino_extract.analysis.cluster import agreement, cluster, default_clusters, hierarchy
from dino_extract.analysis.vectors.kmeans import kmeans, learn_centres
from dino_extract.analysis.vectors.stored import Vectors
from dino_extract.errors import ConfigError
from tests.analysis.stores import blobs, keys_of, write_store


def test_separate_groups_are_found_whole() -> None:
    """Ten well separated groups are the ten clusters."""
    vectors, labels = blobs(10, 30, 16, spread=0.1)

    found = kmeans(vectors, 10)

    codes = np.array([int(label[-2:]) for label in labels])
    assert agreement(found.codes, codes).nmi == pytest.approx(1.0)


def test_no_seed_merges_groups_that_lie_apart() -> None:
    """Eight clear groups are found whole whichever centres come first: none is divided while two others share a cluster."""
    vectors, labels = blobs(8, 30, 16, spread=0.3)

    for seed in range(20):
        codes = kmeans(vectors, 8, seed=seed).codes

        assert len(set(zip(codes.tolist(), labels, strict=True))) == 8


def test_clusters_are_numbered_by_size() -> None:
    """Cluster 0 is the largest."""
    vectors, _ = blobs(3, 40, 16, spread=0.1)

    found = kmeans(vectors[:90], 3)

    assert np.bincount(found.codes).tolist() == [40, 40, 10]


def test_the_objective_is_as_good_as_scikit_learn() -> None:
    """On overlapping groups the mean squared distance of the best of ten seeds is within 1 % of scikit-learn's best of ten starts."""
    sklearn = pytest.importorskip("sklearn.cluster")
    vectors, _ = blobs(8, 50, 8, spread=0.8)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    found = [kmeans(vectors, 8, seed=seed) for seed in range(10)]

    witness = sklearn.KMeans(8, n_init=10, random_state=0).fit(unit)
    ours = min(((unit - each.centres[each.codes]) ** 2).sum() for each in found)
    means = np.stack([unit[witness.labels_ == code].mean(axis=0) for code in range(8)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert ours <= 1.01 * ((unit - means[witness.labels_]) ** 2).sum()


def test_every_vector_is_with_its_nearest_centre() -> None:
    """Codes and similarities are those of the nearest centre."""
    vectors, _ = blobs(5, 40, 6, spread=1.5)

    found = kmeans(vectors, 7)

    cosines = vectors @ found.centres.T / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(found.similarity, cosines.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(cosines[np.arange(200), found.codes], cosines.max(axis=1), atol=1e-5)


def test_the_same_seed_gives_the_same_clusters() -> None:
    """Clustering is repeatable."""
    vectors, _ = blobs(5, 40, 6, spread=1.5)

    np.testing.assert_array_equal(kmeans(vectors, 7, seed=3).codes, kmeans(vectors, 7, seed=3).codes)


def test_copies_do_not_break_the_first_centres() -> None:
    """With fewer different vectors than clusters, the clusters still are as many as asked, and none is NaN."""
    centres = learn_centres(Vectors(np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)), 5)

    assert centres.shape == (5, 3)
    assert bool(centres.isfinite().all())


def test_more_clusters_than_images_are_refused() -> None:
    """The message gives both numbers."""
    with pytest.raises(ConfigError, match="3 images of the vectors cannot make 5 clusters"):
        kmeans(np.eye(3, dtype=np.float32), 5)


def test_levels_are_nested() -> None:
    """Images of one fine cluster are always in one coarse cluster."""
    vectors, _ = blobs(12, 20, 16, spread=0.5)

    fine, coarse = hierarchy(vectors, [12, 3])

    assert all(len(set(coarse.codes[fine.codes == code].tolist())) == 1 for code in range(12))
    assert sorted(np.bincount(coarse.codes).tolist(), reverse=True) == np.bincount(coarse.codes).tolist()


def test_similarity_is_that_of_the_image_at_every_level() -> None:
    """Also above the finest level it is the cosine of the image, and not of a finer centre, to the centre of its cluster."""
    vectors, _ = blobs(12, 20, 16, spread=0.5)

    levels = hierarchy(vectors, [12, 3])

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for level in levels:
        np.testing.assert_allclose(level.similarity, (unit * level.centres[level.codes]).sum(axis=1), atol=1e-5)


def test_levels_must_fall() -> None:
    """A level with more clusters than the one below it is refused."""
    with pytest.raises(ConfigError, match="fall from level to level, got 5, 10"):
        hierarchy(np.eye(20, dtype=np.float32), [5, 10])


def test_nmi_equals_scikit_learn_and_purity_a_count() -> None:
    """Normalised mutual information is scikit-learn's; purity counts the commonest label of each cluster."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 200)
    clusters = np.where(rng.random(200) < 0.6, codes, rng.integers(0, 6, 200))

    found = agreement(clusters, codes)

    assert found.nmi == pytest.approx(metrics.normalized_mutual_info_score(codes, clusters))
    assert found.purity == pytest.approx(sum(np.bincount(codes[clusters == each]).max() for each in set(clusters.tolist())) / 200)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A store with 60 images of one kind and 10 of each of two others."""
    vectors, labels = blobs(3, 60, 16, spread=0.2)
    keep = [*range(60), *range(60, 70), *range(120, 130)]
    return write_store(tmp_path / "x.h5", keys_of([labels[row] for row in keep]), {"features": vectors[keep]})


def test_a_store_is_clustered_at_every_level(path: str) -> None:
    """Levels come finest first, over all embedded images."""
    levels = cluster(path, 6, coarser=[3])

    assert [len(level.centres) for level in levels] == [6, 3]
    assert all(len(level.codes) == 80 for level in levels)


def test_one_coarser_level_is_a_list_of_one(path: str) -> None:
    """`coarser=2` and `coarser=[2]` give the same levels."""
    one, many = cluster(path, 4, coarser=2), cluster(path, 4, coarser=[2])

    assert [level.codes.tolist() for level in one] == [level.codes.tolist() for level in many]


def test_the_number_of_clusters_follows_the_number_of_images(path: str) -> None:
    """80 images make 6 clusters by default, a million make 30, and one image makes one."""
    assert [len(level.centres) for level in cluster(path)] == [6]
    assert (default_clusters(1_000_000), default_clusters(1)) == (30, 1)


def test_a_clustering_is_a_table_of_images(path: str) -> None:
    """Each image has a row with its cluster on every level and its similarity."""
    found = cluster(path, 6, coarser=[3])

    first = found.table()[0]
    assert list(first) == ["path", "cluster6", "cluster3", "similarity"]
    assert first["path"] == "class000/00000.jpg"
    assert len(found.table()) == 80


def test_the_rows_of_a_cluster_begin_with_the_most_typical(path: str) -> None:
    """Rows of a cluster fall in their cosine to its centre, and all clusters together have every row once."""
    [level] = cluster(path, 4)

    rows = [level.rows(number) for number in range(4)]

    assert all((np.diff(level.similarity[each]) <= 0).all() for each in rows)
    assert sorted(np.concatenate(rows).tolist()) == list(range(80))
