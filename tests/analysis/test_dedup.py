"""Near-duplicates: groups, what is kept, leakage, thresholds, and buckets against all pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from dino_extract.analysis.dedup import LADDER, DisjointSet, RowGroup, calibrate, dedup, group_rows, leaks
from dino_extract.analysis.vectors import near_pairs, representatives
from dino_extract.analysis.vectors.stored import Vectors
from dino_extract.errors import ConfigError, StoreError
from dino_extract.pictures.calibration import ALTERATIONS
from dino_extract.pictures.report.geometry import neighbourhood
from tests.analysis.stores import write_store


def angles(degrees: list[float]) -> np.ndarray:
    """Unit vectors in the plane, whose similarity is the cosine of the difference of their angles."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def with_copies(count: int, copies: int, noise: float, dim: int = 32) -> np.ndarray:
    """`count` random vectors, and after them a slightly changed copy of each of the first `copies`."""
    rng = np.random.default_rng(0)
    originals = rng.standard_normal((count, dim))
    return np.concatenate([originals, originals[:copies] + noise * rng.standard_normal((copies, dim))]).astype(np.float32)


def rows_of(groups: list[RowGroup]) -> set[tuple[int, ...]]:
    """The rows of each group, ascending."""
    return {tuple(sorted(group.rows.tolist())) for group in groups}


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of about 50 vectors, and blocks that cut through them."""
    monkeypatch.setattr(near_pairs, "BUCKET_ROWS", 50)
    monkeypatch.setattr(near_pairs, "QUERY_ROWS", 37)
    monkeypatch.setattr(near_pairs, "BANK_ROWS", 29)


def test_images_hang_together_through_others() -> None:
    """At 0, 5 and 10 degrees all are one group at a threshold of cos 6 degrees; 50 degrees stays alone."""
    groups, _ = group_rows(angles([0, 50, 5, 10]), float(np.cos(np.radians(6))))

    assert [group.rows.tolist() for group in groups] == [[0, 2, 3]]


@pytest.mark.parametrize("exact", [True, False])
def test_equal_vectors_are_found_at_a_threshold_of_one(exact: bool, small_buckets: None, tmp_path: Path) -> None:
    """Rounding, which makes their cosine 0.9999999, hides no pair: within a file, between two, or in the report."""
    once = np.random.default_rng(0).standard_normal((300, 192)).astype(np.float32)
    one, other = (write_store(tmp_path / f"{name}.h5", [f"{row:03}.jpg" for row in range(300)], {"features": once}) for name in "ab")

    groups, ladder = group_rows(np.repeat(once, 2, axis=0), 1.0, exact=exact)
    shared = leaks(one, other, threshold=1.0, exact=exact)
    unit = once.repeat(2, axis=0) / np.linalg.norm(once, axis=1).repeat(2)[:, None]
    near = neighbourhood(unit, neighbours=3, threshold=1.0, clusters=2)

    assert [group.rows.tolist() for group in groups] == [[row, row + 1] for row in range(0, 600, 2)]
    assert (ladder[0].groups, ladder[0].dropped) == (300, 300)
    assert sorted((leak.path, leak.other) for leak in shared) == [(f"{row:03}.jpg", f"{row:03}.jpg") for row in range(300)]
    assert len(near.duplicates) == 300


def test_groups_equal_connected_components_by_scipy() -> None:
    """On random vectors the groups are those of scipy's graph of all pairs above the threshold."""
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    vectors = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)

    groups, _ = group_rows(vectors, 0.97)

    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    _, component = csgraph.connected_components(unit @ unit.T >= 0.97, directed=False)
    witness = {tuple(np.flatnonzero(component == label)) for label in set(component.tolist())}
    assert rows_of(groups) == {group for group in witness if len(group) > 1}
    assert len(groups) > 10


def test_a_disjoint_set_joins_long_chains() -> None:
    """Pairs in random order along a chain make one set."""
    order = np.random.default_rng(0).permutation(999)
    disjoint = DisjointSet(1001)

    for part in np.array_split(order, 7):
        disjoint.join(part, part + 1)

    assert [group.tolist() for group in disjoint.groups()] == [list(range(1000))]


def naive_keep(cosine: np.ndarray, worth: np.ndarray, threshold: float) -> list[int]:
    """For each row the one that stays for it: rows by worth, each kept unless an earlier kept one is within the threshold."""
    kept: list[int] = []
    keep = [-1] * len(cosine)
    for row in sorted(range(len(cosine)), key=lambda row: (-worth[row], row)):
        keep[row] = next((other for other in kept if cosine[row, other] >= threshold), row)
        if keep[row] == row:
            kept.append(row)
    return keep


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(2, 80), threshold=st.floats(0.5, 0.999), block=st.integers(1, 90))
def test_every_dropped_image_resembles_a_kept_one(seed: int, count: int, threshold: float, block: int) -> None:
    """In blocks of any size as in a loop over single pairs: what goes is within the threshold of a kept row, no two kept ones are."""
    rng = np.random.default_rng(seed)
    vectors, worth = rng.standard_normal((count, 3)).astype(np.float32), rng.integers(0, 5, count)
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    steps = np.array([threshold, *LADDER])
    assume(np.abs(cosine[np.triu_indices(count, 1)][:, None] - steps).min() > 1e-6)  # else rounding decides
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representatives, "BLOCK_ROWS", block)
        groups, ladder = group_rows(vectors, threshold, worth=worth)
        again, _ = group_rows(vectors, threshold, worth=worth)

    keep = np.arange(count)
    for group in groups:
        keep[group.rows] = group.keep
        assert group.similarity == pytest.approx(cosine[group.rows, group.keep], abs=1e-6)
    assert keep.tolist() == naive_keep(cosine, worth, threshold)
    for step in ladder:
        assert step.dropped == sum(row != kept for row, kept in enumerate(naive_keep(cosine, worth, step.threshold)))
    assert [group.keep.tolist() for group in again] == [group.keep.tolist() for group in groups]


@pytest.mark.usefixtures("small_buckets")
def test_with_buckets_every_dropped_image_resembles_a_kept_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where buckets miss pairs, every dropped row is still within the threshold of a kept one of its group, and kept ones apart."""
    monkeypatch.setattr(near_pairs, "BUCKET_ROWS", 20)
    vectors = np.random.default_rng(0).standard_normal((600, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    groups, ladder = group_rows(vectors, 0.97, exact=False)

    assert max(len(np.unique(group.keep)) for group in groups) > 3
    for group in groups:
        kept = vectors[np.unique(group.keep)]
        assert ((vectors[group.rows] * vectors[group.keep]).sum(axis=1) >= 0.97 - 1e-6).all()
        assert (np.triu(kept @ kept.T, 1) < 0.97 + 1e-6).all()
    assert ladder[0].dropped == sum(int((group.rows != group.keep).sum()) for group in groups)
    assert ladder[0].groups == len(groups)


def test_of_a_chain_several_images_are_kept(tmp_path: Path) -> None:
    """At 0, 5, 10 and 15 degrees and a threshold of 6 the ends do not resemble the largest image, so one of them stays as well."""
    size = np.array([[10, 10], [20, 20], [10, 10], [10, 10], [10, 10]])
    keys = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    path = write_store(tmp_path / "x.h5", keys, {"features": angles([0, 5, 10, 15, 90])}, image_size=size)

    [group] = dedup(path, threshold=float(np.cos(np.radians(6)))).groups

    assert [(kept.path, kept.drop) for kept in group.kept] == [("b.jpg", ("a.jpg", "c.jpg")), ("d.jpg", ())]
    assert (len(group), group.drop) == (4, ["a.jpg", "c.jpg"])


@pytest.mark.usefixtures("small_buckets")
def test_buckets_find_the_copies_that_all_pairs_find() -> None:
    """With 20 buckets, nearly every copy is found, and nothing that comparing all pairs would not find."""
    vectors = with_copies(1000, 200, noise=0.2)

    groups, _ = group_rows(vectors, 0.9, exact=False)

    exact, _ = group_rows(vectors, 0.9, exact=True)
    assert rows_of(groups) <= rows_of(exact)
    assert len(groups) >= 0.97 * len(exact) >= 190


@pytest.mark.usefixtures("small_buckets")
def test_a_bank_too_large_for_memory_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted into a temporary file, the vectors give the same groups."""
    vectors = with_copies(300, 100, noise=0.2)
    in_memory, _ = group_rows(vectors, 0.9, exact=False)
    monkeypatch.setattr(near_pairs, "IN_MEMORY_NBYTES", 0)

    in_file, _ = group_rows(vectors, 0.9, exact=False)

    assert [group.rows.tolist() for group in in_file] == [group.rows.tolist() for group in in_memory]


@pytest.mark.usefixtures("small_buckets")
def test_buckets_between_two_sets_find_the_shared_images() -> None:
    """Copies of 100 of 1,000 vectors are found again among them."""
    vectors = with_copies(1000, 100, noise=0.2)

    pairs = list(near_pairs.near_pairs_between(Vectors(vectors[1000:]), Vectors(vectors[:1000]), 0.9, exact=False))

    found = {(int(query), int(row)) for queries, rows, _ in pairs for query, row in zip(queries, rows, strict=True)}
    assert len(found & {(number, number) for number in range(100)}) >= 97


def test_the_largest_image_is_kept(tmp_path: Path) -> None:
    """Of three copies the one with the most pixels stays, and of equal ones the first path."""
    size = np.array([[10, 10], [20, 30], [30, 20], [99, 99]])
    path = write_store(tmp_path / "x.h5", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], {"features": angles([0, 1, 2, 60])}, image_size=size)

    result = dedup(path)

    [group] = result.groups
    [kept] = group.kept
    assert (kept.path, kept.drop) == ("b.jpg", ("a.jpg", "c.jpg"))
    assert kept.similarity == pytest.approx([np.cos(np.radians(1))] * 2)
    assert result.drop == ["a.jpg", "c.jpg"]


def test_the_ladder_counts_the_effect_of_stricter_thresholds() -> None:
    """At 4 degrees apart two images are the same at 0.99 and not at 0.999."""
    _, ladder = group_rows(angles([0, 4, 90]), 0.95)

    assert {step.threshold: step.dropped for step in ladder} == {0.95: 1, 0.97: 1, 0.98: 1, 0.99: 1, 0.995: 1, 0.999: 0}


def test_leaks_name_the_most_similar_image_of_the_other_file(tmp_path: Path) -> None:
    """A test image near two training images is reported once, with the nearer one."""
    train = write_store(tmp_path / "train.h5", ["a.jpg", "b.jpg", "c.jpg"], {"features": angles([0, 3, 80])})
    test = write_store(tmp_path / "test.h5", ["x.jpg", "y.jpg"], {"features": angles([2, 40])})

    [leak] = leaks(test, train)

    assert (leak.path, leak.other) == ("x.jpg", "b.jpg")
    assert leak.similarity == pytest.approx(np.cos(np.radians(1)))


def test_leaks_between_models_are_refused(tmp_path: Path) -> None:
    """Files of two models have nothing to compare."""
    paths = [write_store(tmp_path / f"{model}.h5", ["a.jpg"], {"features": angles([0])}, model=model) for model in ("vits14", "vitb14")]

    with pytest.raises(StoreError, match="are not compatible"):
        leaks(*paths)


@pytest.mark.parametrize("threshold", [0.0, 1.5, -0.3])
def test_thresholds_outside_the_cosine_are_refused(threshold: float) -> None:
    """A threshold of 0 would join everything, above 1 nothing."""
    with pytest.raises(ConfigError, match="`threshold` must be a cosine above 0 and at most 1"):
        group_rows(angles([0, 1]), threshold)


def test_calibration_counts_found_copies_and_other_images() -> None:
    """At cos 18 degrees, copies 5 and 2 degrees away are found and those 30 and 50 away are not; one of two images finds another one."""
    vectors = angles([0, 15, 100, 160, 0])

    [step] = calibrate(vectors, np.array([1, 2]), {"near": angles([20, 98]), "far": angles([45, 50])}, [float(np.cos(np.radians(18)))])

    assert step.recall == {"near": 1.0, "far": 0.0}
    assert step.others == 0.5


def test_calibration_does_not_take_an_image_for_another_one() -> None:
    """An image alone in its direction finds none beside itself, one with an exact copy does, on whichever side that lies."""
    vectors = angles([0, 90, 0])

    shares = [calibrate(vectors, np.array([row]), {}, [0.9])[0].others for row in range(3)]

    assert shares == [1.0, 0.0, 1.0]


def test_a_single_image_cannot_calibrate() -> None:
    """A single image cannot be compared with other images."""
    with pytest.raises(ConfigError, match="compares images with other images"):
        calibrate(angles([0]), np.array([0]), {})


@pytest.mark.parametrize(
    ("kind", "size"), [("crop", (128, 96)), ("re-encode", (160, 120)), ("resize", (80, 60)), ("flip", (160, 120)), ("colour", (160, 120))]
)
def test_alterations_give_another_picture_of_the_expected_size(kind: str, size: tuple[int, int]) -> None:
    """A crop and a resize are smaller, the others as large as before, and none leaves the pixels as they were."""
    grey = np.add.outer(np.arange(120), np.arange(160)) % 256
    picture = Image.fromarray(np.stack([grey, grey // 2, 255 - grey], axis=2).astype(np.uint8))

    altered = ALTERATIONS[kind][1](picture)

    assert (altered.mode, altered.size) == ("RGB", size)
    assert altered.tobytes() != picture.tobytes()
