"""Classification by neighbours against the protocol written naively, and against scikit-learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dino_extract.analysis.probes.knn import KnnOptions, classify, draw_per_class, knn
from dino_extract.errors import ConfigError, StoreError
from tests.analysis.stores import blobs, keys_of, write_store


def naive_top1_top5(
    train: np.ndarray, codes: list[int], test: np.ndarray, truth: list[int], ks: list[int]
) -> dict[int, tuple[float, float]]:
    """The official formula in float64, one test image, neighbour and class at a time."""
    unit = [row / np.linalg.norm(row) for row in train.astype(np.float64)]
    right = {k: [0, 0] for k in ks}
    for row, label in zip(test.astype(np.float64), truth, strict=True):
        cosines = [float(row @ other) / float(np.linalg.norm(row)) for other in unit]
        order = sorted(range(len(cosines)), key=lambda position: -cosines[position])[: max(ks)]  # used at once
        weights = [math.exp(cosines[position] / 0.07) for position in order]
        for k in ks:
            votes = dict.fromkeys(range(max(codes) + 1), 0.0)
            for weight, position in zip(weights[:k], order[:k], strict=True):
                votes[codes[position]] += weight / sum(weights)
            ranked = sorted(votes, key=lambda code: -votes[code])
            right[k][0] += ranked[0] == label
            right[k][1] += label in ranked[:5] and votes[label] > 0
    return [share / len(truth) for k in ks for share in right[k]]


def test_accuracies_equal_the_official_formula() -> None:
    """Top-1 and top-5 for every k are those of the formula written as loops."""
    train, train_labels = blobs(8, 30, 6, spread=1.5)
    test, test_labels = blobs(8, 10, 6, spread=1.5, seed=1)

    result = classify(train, train_labels, test, test_labels)

    code = {name: position for position, name in enumerate(result.classes)}
    naive = naive_top1_top5(train, [code[x] for x in train_labels], test, [code[x] for x in test_labels], [10, 20, 100, 200])
    assert [score.k for score in result.scores] == [10, 20, 100, 200]
    assert [share for score in result.scores for share in (score.top1, score.top5)] == pytest.approx(naive)
    assert 0.3 < result.scores[0].top1 < 0.95, "a problem that is neither trivial nor hopeless"


def test_the_names_of_classes_do_not_change_top_5() -> None:
    """With one neighbour only its class is answered: top-5 is top-1, whichever names come first."""
    rng = np.random.default_rng(0)
    vectors, codes = rng.standard_normal((300, 8)).astype(np.float32), rng.integers(0, 20, 300)

    for names in (codes, 19 - codes):
        score = classify(vectors, [f"c{code:02}" for code in names], options=KnnOptions(k=(1,))).scores[0]

        assert score.top5 == score.top1


def test_one_neighbour_equals_scikit_learn() -> None:
    """With k = 1 the accuracy is that of scikit-learn's classifier by cosine."""
    sklearn = pytest.importorskip("sklearn.neighbors")
    train, train_labels = blobs(6, 40, 5, spread=1.5)
    test, test_labels = blobs(6, 40, 5, spread=1.5, seed=1)

    result = classify(train, train_labels, test, test_labels, options=KnnOptions(k=(1,)))

    witness = sklearn.KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(train, train_labels)
    assert result.scores[0].top1 == pytest.approx(witness.score(test, test_labels))


def test_a_single_file_leaves_each_image_out() -> None:
    """Without a test set an image never votes for itself: with labels at random, accuracy is at chance, not perfect."""
    rng = np.random.default_rng(0)
    vectors, labels = rng.standard_normal((400, 8)).astype(np.float32), [f"c{code}" for code in rng.integers(0, 4, 400)]

    result = classify(vectors, labels, options=KnnOptions(k=(1,)))

    assert result.scores[0].top1 < 0.35
    assert (result.num_train, result.num_test) == (400, 400)


def test_k_above_the_number_of_images_is_clamped() -> None:
    """With 12 images left, k = 20, 100 and 200 all mean 12 and are reported once."""
    vectors, labels = blobs(2, 6, 4)

    result = classify(vectors, labels, vectors, labels)

    assert [score.k for score in result.scores] == [10, 12]


def test_images_without_label_are_left_out_and_counted() -> None:
    """An image without a label neither votes nor is judged."""
    vectors, labels = blobs(2, 10, 4)
    labels[3] = ""

    result = classify(vectors, labels)

    assert (result.num_train, result.unlabelled) == (19, 1)


def test_few_shot_trains_on_few_images_of_each_class() -> None:
    """With 3 images per class the rest of the file is the test set, and no k is above 3."""
    vectors, labels = blobs(4, 20, 8)

    result = classify(vectors, labels, options=KnnOptions(per_class=3, tries=2))

    assert (result.num_train, result.num_test) == (12, 68)
    assert [score.k for score in result.scores] == [3]


def test_few_shot_averages_over_draws() -> None:
    """Two tries give the mean of the two single draws."""
    vectors, labels = blobs(4, 20, 3, spread=1.5)

    both = classify(vectors, labels, options=KnnOptions(per_class=2, tries=2, seed=5)).scores[0]

    singles = [classify(vectors, labels, options=KnnOptions(per_class=2, seed=seed)).scores[0].top1 for seed in (5, 6)]
    assert both.top1 == pytest.approx(np.mean(singles))
    assert both.top1_std == pytest.approx(np.std(singles))


def test_a_draw_has_the_asked_number_of_each_class() -> None:
    """A class with fewer images gives all it has."""
    codes = np.array([0] * 5 + [1] * 2)

    drawn = draw_per_class(codes, 3, seed=0)

    assert np.bincount(codes[drawn]).tolist() == [3, 2]


def test_few_shot_that_leaves_no_test_image_is_refused() -> None:
    """If every image is drawn for training, there is no test image."""
    vectors, labels = blobs(2, 5, 4)

    with pytest.raises(ConfigError, match="`per_class` 5 takes every image"):
        classify(vectors, labels, options=KnnOptions(per_class=5))


def test_confusion_counts_true_rows_and_predicted_columns() -> None:
    """An image of class a that lies among those of class b is counted in row a, column b."""
    train = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)

    result = classify(train, ["a", "a", "b", "b"], np.array([[0, 1]], np.float32), ["a"], options=KnnOptions(k=(2,)))

    assert result.confusion.tolist() == [[0, 1], [0, 0]]
    assert result.per_class[0].mistaken_for == "b"


def test_files_of_different_models_are_refused(tmp_path: Path) -> None:
    """Vectors of two models are never compared."""
    vectors, labels = blobs(2, 5, 4)
    paths = [write_store(tmp_path / f"{model}.h5", keys_of(labels), {"features": vectors}, model=model) for model in ("vits14", "vitb14")]

    with pytest.raises(StoreError, match="are not compatible"):
        knn(*paths)


def test_an_unfinished_file_is_refused(tmp_path: Path) -> None:
    """A run in progress is not evaluated as if it were whole."""
    vectors, labels = blobs(2, 5, 4)
    path = write_store(tmp_path / "x.h5", keys_of(labels), {"features": vectors}, limit=4)

    with pytest.raises(StoreError, match="is not finished: 4 of 10 rows"):
        knn(path)


def test_files_are_classified_by_their_folders(tmp_path: Path) -> None:
    """Two stores of separable classes give full marks, and failed images take no part."""
    vectors, labels = blobs(3, 10, 16, spread=0.1)
    train = write_store(tmp_path / "train.h5", keys_of(labels), {"features": vectors.astype(np.float16)}, failed=(0, 7))
    test = write_store(tmp_path / "test.h5", keys_of(labels), {"features": vectors.astype(np.float16)})

    result = knn(train, test, k=(5,))

    assert (result.scores[0].top1, result.num_train, result.num_test) == (1.0, 28, 30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": (0,)}, "`k` must be a whole number of at least 1"),
        ({"k": ()}, "`k` needs at least one number of neighbours"),
        ({"tries": 0}, "`tries` must be"),
        ({"tries": 5}, "`tries` averages over draws of `per_class`, which is not given"),
        ({"temperature": 0.0}, "`temperature` must be a number above 0, got `0.0`"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, object], message: str) -> None:
    """Wrong numbers are refused before any work."""
    with pytest.raises(ConfigError, match=message):
        KnnOptions(**options)


def test_one_k_is_a_list_of_one() -> None:
    """`k=5` and `k=[5]` are the same; text is one sentence."""
    vectors, labels = blobs(3, 10, 6, spread=1.0)

    scores = [classify(vectors, labels, options=KnnOptions(k=k)).scores for k in (5, np.int64(5), [5])]  # type: ignore[arg-type]

    assert scores[0] == scores[1] == scores[2]
    with pytest.raises(ConfigError, match="`k` must be a whole number of at least 1, got `5`"):
        KnnOptions(k="5")
