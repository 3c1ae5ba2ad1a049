"""Figures, maps and groups of the report against naive ones."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

from dino_extract.analysis.vectors.stored import Vectors
from dino_extract.errors import ConfigError
from dino_extract.pictures.report.geometry import maps_of, neighbourhood, survey


def unit_vectors(num: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    """Random directions."""
    vectors = np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_spectrum_and_effective_rank_equal_those_of_a_singular_value_decomposition() -> None:
    """Block by block the survey finds what numpy's SVD finds of all centred vectors at once."""
    vectors = np.random.default_rng(0).normal(size=(300, 12)) @ np.diag(np.arange(1, 13)) + 5

    found = survey(Vectors(vectors.astype(np.float32)))

    singular = np.linalg.svd(vectors - vectors.mean(axis=0), compute_uv=False)
    share = singular / singular.sum()
    np.testing.assert_allclose(found.spectrum, singular**2 / (singular**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(found.effective_rank, np.exp(-(share * np.log(share)).sum()), rtol=1e-4)
    np.testing.assert_allclose(found.norms, np.linalg.norm(vectors, axis=1), rtol=1e-5)


def test_mean_cosine_is_that_of_all_pairs() -> None:
    """The mean similarity of two different vectors equals the mean over all pairs."""
    vectors = unit_vectors(50)

    found = survey(Vectors(vectors))

    similarity = vectors @ vectors.T
    np.testing.assert_allclose(found.mean_cosine, similarity[np.triu_indices(50, 1)].mean(), atol=1e-6)


def test_vectors_on_a_line_have_effective_rank_one() -> None:
    """Collapsed embeddings use one dimension."""
    vectors = np.outer(np.arange(1, 21), np.ones(8)).astype(np.float32)

    assert survey(Vectors(vectors)).effective_rank == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("num", [50, 2500])
def test_the_pca_map_keeps_the_two_strongest_directions(num: int) -> None:
    """The map is what scikit-learn's PCA gives, up to the sign of its axes, by SVD and by the covariance."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    vectors = unit_vectors(num) * np.linspace(3, 1, 16).astype(np.float32)

    found = maps_of(vectors, "pca")["PCA"]

    want = decomposition.PCA(2, svd_solver="full").fit_transform(vectors)
    np.testing.assert_allclose(np.abs(found), np.abs(want), atol=2e-3)


def test_auto_adds_a_map_that_keeps_neighbours() -> None:
    """With scikit-learn installed, two clouds far apart stay apart in a t-SNE map as well."""
    pytest.importorskip("sklearn")
    vectors = np.concatenate([unit_vectors(30) * 0.1 + 1, unit_vectors(30, seed=1) * 0.1 - 1])

    points = maps_of(vectors, "auto")["t-SNE"]

    centres = points[:30].mean(axis=0), points[30:].mean(axis=0)
    assert (np.linalg.norm(points[:30] - centres[0], axis=1) < np.linalg.norm(points[:30] - centres[1], axis=1)).all()


needs_umap = pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed")


@needs_umap
def test_umap_keeps_neighbours_and_repeats() -> None:
    """In a UMAP map nearly all of the nearest points come from the same of three clouds, and a second map is the same."""
    vectors = np.concatenate([unit_vectors(40, seed=seed) * 0.1 + np.eye(3, 16, dtype=np.float32)[seed] for seed in range(3)])

    points = maps_of(vectors, "umap")["UMAP"]

    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    nearest = distance.argsort(axis=1)[:, 1:6] // 40
    assert (nearest == np.arange(120)[:, None] // 40).mean() > 0.95
    np.testing.assert_array_equal(maps_of(vectors, "umap")["UMAP"], points)


@needs_umap
def test_auto_takes_umap_where_tsne_would_be_slow() -> None:
    """Above the limit of t-SNE the second map is by UMAP, and up to it by t-SNE; the log names each before it is computed."""
    pytest.importorskip("sklearn")
    lines: list[str] = []

    assert list(maps_of(unit_vectors(20), "auto", lines.append, tsne_images=20)) == ["PCA", "t-SNE"]
    assert list(maps_of(unit_vectors(21), "auto", lines.append, tsne_images=20)) == ["PCA", "UMAP"]
    assert lines == ["t-SNE of 20 images ...", "UMAP of 21 images ..."]


@pytest.mark.parametrize(("method", "package"), [("tsne", "scikit-learn"), ("umap", "umap-learn")])
def test_a_map_whose_library_is_missing_is_refused(method: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A map that is asked for by name is not replaced by another one."""
    for module in ("sklearn.manifold", "umap"):
        monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigError, match=f"`projection` {method} needs {package}"):
        maps_of(unit_vectors(20), method)


def test_duplicates_are_the_connected_groups_of_similar_images() -> None:
    """A chain of similar images is one group, though its ends are not similar."""
    angles = np.array([0, 10, 20, 90, 180, 185]) * np.pi / 180
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    near = neighbourhood(vectors, neighbours=3, threshold=0.98, clusters=2)

    assert near.duplicates == [[0, 1, 2], [4, 5]]


def test_the_lonely_image_is_the_most_isolated() -> None:
    """The image far from all others has the largest isolation."""
    vectors = np.concatenate([unit_vectors(20) * 0.2 + 1, -np.ones((1, 16))]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    near = neighbourhood(vectors, neighbours=5, threshold=0.99, clusters=2)

    assert near.isolation.argmax() == 20
