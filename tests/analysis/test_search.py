"""Search: the right images in the right order, never the query itself, and an index that is only trusted while it fits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dino_extract.analysis.dedup import dedup
from dino_extract.analysis.search import retrieval_score, score_retrieval, search
from dino_extract.analysis.vectors import faiss_index
from dino_extract.errors import ConfigError, StoreError
from tests.analysis.stores import blobs, keys_of, write_store


def angles(degrees: list[float]) -> np.ndarray:
    """Unit vectors in the plane, whose similarity is the cosine of the difference of their angles."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Four images at 0, 10, 40 and 90 degrees."""
    return write_store(tmp_path / "x.h5", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], {"features": angles([0, 10, 40, 90])})


@pytest.fixture
def many(tmp_path: Path) -> tuple[str, np.ndarray]:
    """A store of 3,000 clustered vectors, and the vectors."""
    vectors, labels = blobs(100, 30, 16, spread=0.7)
    return write_store(tmp_path / "many.h5", keys_of(labels), {"features": vectors}), vectors


def test_hits_come_in_order_with_their_cosine(path: str) -> None:
    """A query at 12 degrees finds 10, 0 and 40 degrees, with the cosines of the differences."""
    [result] = search(path, angles([12]), top=3, names=["mine.jpg"])

    assert result.query == "mine.jpg"
    assert [hit.path for hit in result.hits] == ["b.jpg", "a.jpg", "c.jpg"]
    assert [hit.similarity for hit in result.hits] == pytest.approx(np.cos(np.radians([2, 12, 28])).tolist())


@pytest.mark.parametrize("names", [["one"], ["one", "two", "three"]])
def test_every_query_has_a_name(path: str, names: list[str]) -> None:
    """Fewer or more names than queries are an error, and no query is dropped for want of one."""
    with pytest.raises(ConfigError, match=f"2 queries need as many names, got {len(names)}"):
        search(path, angles([12, 13]), names=names)


def test_queries_may_be_tensors_or_lists(path: str) -> None:
    """A tensor, also with a gradient and in bfloat16, and a list of lists are vectors like an array of them."""
    usual = search(path, angles([0]), names="mine")

    others: list[Any] = [torch.tensor(angles([0]), requires_grad=True), torch.tensor(angles([0])).bfloat16(), [[1.0, 0.0]]]

    assert [search(path, each, names="mine") for each in others] == [usual] * 3


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_a_similarity_is_a_cosine(tmp_path: Path, index: Any) -> None:
    """Of equal and of opposite vectors too, whatever the last digit of their product: its arccos is a number."""
    if index == "hnsw":
        pytest.importorskip("faiss")
    some = np.random.default_rng(0).standard_normal((100, 192)).astype(np.float32)
    path = write_store(tmp_path / "y.h5", [f"{row:03}.jpg" for row in range(300)], {"features": np.concatenate([some, some, -some])})

    hits = [hit.similarity for result in search(path, path, top=300, index=index) for hit in result.hits]
    dropped = [cosine for group in dedup(path, threshold=0.999).groups for kept in group.kept for cosine in kept.similarity]

    assert len(dropped) == 100
    assert max(*hits, *dropped) <= 1
    assert min(hits) >= -1


def test_names_of_images_are_not_queries(path: str) -> None:
    """A list of files is one sentence that says how images become vectors."""
    with pytest.raises(ConfigError, match=r"the queries must be vectors, or a file of embeddings, got `x\.jpg`") as caught:
        search(path, ["x.jpg"])  # type: ignore[arg-type]

    assert "dx.embed_like(store, images)" in str(caught.value.hint)


def test_one_path_and_an_array_of_paths_are_lists(path: str) -> None:
    """A single path is not taken apart, and an array of paths is as good as a list."""
    usual = search(path, paths=["b.jpg"], top=2)

    assert search(path, paths="b.jpg", top=2) == search(path, paths=np.array(["b.jpg"]), top=2) == usual  # type: ignore[arg-type]


def test_an_image_of_the_file_does_not_find_itself(path: str) -> None:
    """A query by key leaves out its own row, not another one."""
    [result] = search(path, paths=["b.jpg"], top=2)

    assert [hit.path for hit in result.hits] == ["a.jpg", "c.jpg"]


def test_a_copy_of_the_query_is_still_found(tmp_path: Path) -> None:
    """Only the query's own row is left out: its exact duplicate is the first hit, on whichever side of it that lies."""
    path = write_store(tmp_path / "x.h5", ["a.jpg", "b.jpg", "c.jpg"], {"features": angles([5, 5, 60])})

    results = search(path, paths=["a.jpg", "b.jpg"], top=1)

    assert [result.hits[0].path for result in results] == ["b.jpg", "a.jpg"]


def test_more_hits_than_images_gives_all_images(path: str) -> None:
    """With `top` above the size of the file, everything is found once."""
    [result] = search(path, angles([0]), top=50)

    assert [hit.path for hit in result.hits] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_a_store_of_the_same_model_can_be_the_query(path: str, tmp_path: Path) -> None:
    """Every image of the other file is a query by its name."""
    other = write_store(tmp_path / "y.h5", ["q.jpg"], {"features": angles([85])})

    [result] = search(path, other, top=1)

    assert (result.query, result.hits[0].path) == ("q.jpg", "d.jpg")


def test_a_store_of_another_model_is_refused(path: str, tmp_path: Path) -> None:
    """Vectors of another network are never compared."""
    other = write_store(tmp_path / "y.h5", ["q.jpg"], {"features": angles([85])}, model="vitb14")

    with pytest.raises(StoreError, match=r"are not compatible \(model vits14 and vitb14"):
        search(path, other)


def test_an_unknown_key_is_named(path: str) -> None:
    """The error shows what keys look like."""
    with pytest.raises(ConfigError, match=r"has no image `z.jpg`") as caught:
        search(path, paths=["z.jpg"])

    assert caught.value.hint == "keys look like `a.jpg`"


def test_a_failed_image_cannot_be_a_query(tmp_path: Path) -> None:
    """An image without an embedding is told apart from one that is not there."""
    path = write_store(tmp_path / "x.h5", ["a.jpg", "b.jpg"], {"features": angles([5, 6])}, failed=(1,))

    with pytest.raises(ConfigError, match=r"`b.jpg` has no embedding: broken"):
        search(path, paths=["b.jpg"])


@pytest.mark.parametrize(
    ("kwargs", "message"), [({}, "no query given"), ({"paths": ["a.jpg"], "top": 0}, "`top` must be a whole number of at least 1")]
)
def test_calls_without_meaning_are_refused(path: str, kwargs: dict[str, object], message: str) -> None:
    """No query and no hits asked for are errors."""
    with pytest.raises(ConfigError, match=message):
        search(path, **kwargs)


@pytest.mark.parametrize("kind", ["hnsw", "ivfpq"])
def test_an_index_finds_nearly_what_exact_search_finds(many: tuple[str, np.ndarray], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recall@10 against exact search is above 0.9, and similarities are exact."""
    pytest.importorskip("faiss")
    monkeypatch.setattr(faiss_index, "MIN_PQ_ROWS", 3000)
    path, vectors = many
    queries = vectors[::30] + 0.1 * np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)

    found = search(path, queries, index=kind)  # type: ignore[arg-type]  # one of the literals

    exact = search(path, queries, index="exact")
    shared = [len({hit.path for hit in a.hits} & {hit.path for hit in b.hits}) / 10 for a, b in zip(found, exact, strict=True)]
    assert np.mean(shared) > 0.9
    similarity_of = {hit.path: hit.similarity for hit in exact[0].hits}
    assert all(hit.similarity == pytest.approx(similarity_of[hit.path], abs=1e-5) for hit in found[0].hits if hit.path in similarity_of)


def test_an_index_is_built_once(many: tuple[str, np.ndarray]) -> None:
    """The second search reads the index kept beside the file."""
    pytest.importorskip("faiss")
    path, vectors = many
    first = search(path, vectors[:5], index="hnsw")
    built = os.stat(f"{path}.features.hnsw.faiss").st_mtime_ns

    second = search(path, vectors[:5], index="hnsw")

    assert second == first
    assert os.stat(f"{path}.features.hnsw.faiss").st_mtime_ns == built


def test_an_index_is_written_next_to_a_file_of_any_name(tmp_path: Path) -> None:
    """A name that is not UTF-8 keeps faiss neither from writing nor from reading it."""
    pytest.importorskip("faiss")
    keys = [f"{row:02}.jpg" for row in range(50)]
    path = write_store(tmp_path / os.fsdecode(b"\xff.h5"), keys, {"features": blobs(5, 10, 16)[0]})

    first, second = (search(path, path, top=3, index="hnsw") for _ in range(2))

    assert first == second
    assert Path(f"{path}.features.hnsw.faiss").exists()


@pytest.mark.parametrize("change", ["store", "index", "passport"])
def test_an_index_that_does_not_fit_is_built_anew(many: tuple[str, np.ndarray], change: str) -> None:
    """After the store has changed, or with half an index or a damaged passport, the hits are those of the store as it is now."""
    pytest.importorskip("faiss")
    path, vectors = many
    search(path, vectors[:5], index="hnsw")
    if change == "store":
        os.unlink(path)
        write_store(path, keys_of(["class"] * len(vectors)), {"features": vectors[::-1].copy()})
    elif change == "index":
        os.truncate(f"{path}.features.hnsw.faiss", 1000)
    else:
        Path(f"{path}.features.hnsw.faiss.json").write_text(json.dumps({"rows": 3}))

    found = search(path, vectors[:5], index="hnsw", top=1)

    exact = search(path, vectors[:5], index="exact", top=1)
    assert [result.hits[0].path for result in found] == [result.hits[0].path for result in exact]


def test_ivfpq_of_few_images_is_refused(path: str) -> None:
    """Product quantisation cannot be trained on a handful of vectors."""
    pytest.importorskip("faiss")

    with pytest.raises(ConfigError, match=r"needs at least 10,000 images, .* has 4"):
        search(path, angles([3]), index="ivfpq")


def test_map_equals_scikit_learn() -> None:
    """Mean average precision is the mean of scikit-learn's average precision over all queries, in any blocks."""
    metrics = pytest.importorskip("sklearn.metrics")
    vectors, labels = blobs(5, 12, 4, spread=1.5)
    codes = np.array([int(label[-2:]) for label in labels])

    score = score_retrieval(vectors, codes, similarities=7 * 60)

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    others = [np.delete(np.arange(60), row) for row in range(60)]
    witness = [metrics.average_precision_score(codes[rest] == codes[row], unit[rest] @ unit[row]) for row, rest in enumerate(others)]
    assert score.mean_average_precision == pytest.approx(np.mean(witness))
    assert score.queries == 60
    assert score.chance == pytest.approx(11 / 59)


def test_map_of_perfect_classes_is_one() -> None:
    """Where each class is one point, every relevant image comes first."""
    score = score_retrieval(np.repeat(np.eye(4, dtype=np.float32), 3, axis=0), np.repeat(np.arange(4), 3))

    assert (score.mean_average_precision, score.top1) == (1.0, 1.0)


def test_map_leaves_out_labels_that_occur_once() -> None:
    """An image alone in its class, and one without a class, are no queries."""
    vectors = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)

    assert score_retrieval(vectors, np.array([0, 0, 1, -1, -1])).queries == 2


def test_map_without_pairs_is_refused() -> None:
    """Where no label occurs twice there is nothing to retrieve."""
    with pytest.raises(ConfigError, match="no label occurs on two images"):
        score_retrieval(np.eye(3, dtype=np.float32), np.array([0, 1, 2]))


def test_the_retrieval_of_folders_is_scored_from_a_store(tmp_path: Path) -> None:
    """The labels are the names of the folders, unless others are given."""
    vectors, labels = blobs(4, 6, 8, spread=0.1)
    path = write_store(tmp_path / "x.h5", keys_of(labels), {"features": vectors})

    score = retrieval_score(path)

    assert score == score_retrieval(vectors, np.repeat(np.arange(4), 6))
    assert repr(score).startswith("RetrievalScore(mAP 1.0000, first hit right 100.0%, 24 queries")
    assert retrieval_score(path, labels=["a", "b"] * 12).mean_average_precision < 0.7
