"""Logistic regression against scikit-learn, in blocks, and chosen without the test set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dino_extract.analysis.probes import logistic
from dino_extract.analysis.probes.logistic import LogisticProbe, choose_strength, fit_logistic, split_held_out
from dino_extract.analysis.vectors.stored import Vectors
from dino_extract.errors import ConfigError
from tests.analysis.stores import blobs


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """300 overlapping vectors of 5 classes, off-centre and scaled as real features may be."""
    vectors, labels = blobs(5, 60, 8, spread=2.0, seed=seed)
    return 3.0 * vectors + 10.0, np.array([int(label[-2:]) for label in labels])


@pytest.mark.parametrize("strength", [1e-3, 1.0, 1e3])
def test_the_optimum_is_that_of_scikit_learn(strength: float) -> None:
    """Coefficients agree with scikit-learn's to four digits, for weak and strong regularisation."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    vectors, codes = problem()

    weight, bias = fit_logistic(vectors, codes, 5, strength)

    witness = linear_model.LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(vectors.astype(np.float64), codes)
    np.testing.assert_allclose(weight, witness.coef_, atol=1e-4 * np.abs(witness.coef_).max())
    np.testing.assert_allclose(bias - bias.mean(), witness.intercept_ - witness.intercept_.mean(), atol=1e-3 * np.abs(bias).max())


def test_blocks_from_a_file_give_the_same_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training set above the memory limit is read in blocks, with the same result."""
    vectors, codes = problem()
    held = fit_logistic(vectors, codes, 5, 1.0)
    monkeypatch.setattr(logistic, "HELD_NBYTES", 0)
    monkeypatch.setattr(Vectors.blocks, "__defaults__", (77,))

    streamed = fit_logistic(vectors, codes, 5, 1.0)

    np.testing.assert_allclose(streamed[0], held[0], atol=1e-5)


def test_the_chosen_strength_is_not_beaten_on_the_held_out_images() -> None:
    """No other strength of the grid that was tried does better on the held-out tenth."""
    vectors, codes = problem()

    strength, accuracy = choose_strength(vectors, codes, 5, seed=3)

    fit, held = split_held_out(codes, 0.1, 3)
    for other in (1e-6, 1e-4, 1e-2, 1.0, strength):
        weight, bias = fit_logistic(vectors[fit], codes[fit], 5, other)
        rival = float(((vectors[held] @ weight.T + bias).argmax(axis=1) == codes[held]).mean())
        assert rival <= accuracy + 1e-9
    assert accuracy > 0.5


def imbalanced(spread: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """400, 100 and 30 vectors of three classes that a weak strength does not tell apart."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [400, 100, 30])
    return (np.eye(3, 16)[codes] + spread * rng.normal(size=(530, 16))).astype(np.float32), codes


@pytest.mark.parametrize("enough_held_out", [0, 500])
def test_the_most_common_class_is_not_predicted_for_all_images(enough_held_out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the weakest strengths fit the bias alone, stronger ones are tried until classes are told apart, patience or not."""
    monkeypatch.setattr(logistic, "ENOUGH_HELD_OUT", enough_held_out)
    vectors, codes = imbalanced()
    weakest = LogisticProbe(C=1e-4).fit(vectors, codes)
    assert (weakest.predict(vectors) == 0).all()  # 9 strengths above the first

    answers = LogisticProbe().fit(vectors, codes).predict(vectors)

    recalls = [(answers[codes == code] == code).mean() for code in range(3)]
    assert min(recalls) > 0.5, recalls


def test_the_search_ends_after_ten_strengths_without_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held out by the thousand, ten strengths without gain end the search, and so does an accuracy that none can beat."""
    monkeypatch.setattr(logistic, "ENOUGH_HELD_OUT", 0)
    tried: list[float] = []
    solve = logistic.Problem.solve

    def counted(self: logistic.Problem, strength: float, *others: Any) -> torch.Tensor:
        tried.append(strength)
        return solve(self, strength, *others)

    monkeypatch.setattr(logistic.Problem, "solve", counted)

    best, _ = choose_strength(*imbalanced(), 3)
    searched = len(tried)
    _, accuracy = choose_strength(np.eye(2, dtype=np.float32).repeat(50, axis=0), np.repeat([0, 1], 50), 2)

    assert tried[:searched] == list(logistic.OFFICIAL_STRENGTHS[: logistic.OFFICIAL_STRENGTHS.index(best) + 11])
    assert searched < 45
    assert accuracy == 1.0
    assert len(tried) == searched + 1


def test_held_out_images_are_of_every_class_and_disjoint() -> None:
    """A tenth of each class is held out; a class of one image keeps it for training."""
    codes = np.array([0] * 50 + [1] * 20 + [2])

    fit, held = split_held_out(codes, 0.1, seed=0)

    assert np.bincount(codes[held], minlength=3).tolist() == [5, 2, 0]
    assert sorted([*fit, *held]) == list(range(71))


def test_the_estimator_works_in_scikit_learn_tools() -> None:
    """Cross-validation and cloning take it for one of their own."""
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression

    vectors, codes = problem()
    labels = np.array(["a", "b", "c", "d", "e"])[codes]

    probe = clone(LogisticProbe(C=0.1)).fit(vectors, labels)

    witness = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(vectors.astype(np.float64), labels)
    assert probe.predict(vectors).tolist() == witness.predict(vectors).tolist()
    np.testing.assert_allclose(probe.predict_proba(vectors), witness.predict_proba(vectors), atol=1e-3)
    assert probe.score(vectors, labels) == pytest.approx(witness.score(vectors, labels))


@pytest.mark.parametrize("num_classes", [2, 5])
def test_scikit_learn_tools_give_the_same_result_as_with_their_own_classifier(num_classes: int) -> None:
    """Cross-validation, grid search, pipelines and calibration give the figures of scikit-learn's logistic regression."""
    pytest.importorskip("sklearn")
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors, codes = problem()
    vectors, labels = vectors[codes < num_classes], np.array(["a", "b", "c", "d", "e"])[codes[codes < num_classes]]
    theirs_of_ours = 2 if num_classes == 2 else 1  # where theirs has a single row of weights
    ours, theirs = LogisticProbe(C=0.1), LogisticRegression(C=0.1 * theirs_of_ours, tol=1e-10, max_iter=10_000)

    for scoring in (None, "roc_auc_ovr" if num_classes > 2 else "roc_auc"):
        scores = [cross_val_score(each, vectors, labels, cv=3, scoring=scoring) for each in (ours, theirs)]
        np.testing.assert_allclose(*scores, atol=1e-3)
    grids = [GridSearchCV(each, {"C": [1e-6, each.C]}, cv=3).fit(vectors, labels) for each in (ours, theirs)]
    assert [grid.best_params_["C"] for grid in grids] == [ours.C, theirs.C]
    pipelines = [make_pipeline(StandardScaler(), each).fit(vectors, labels) for each in (ours, theirs)]
    assert pipelines[0].predict(vectors).tolist() == pipelines[1].predict(vectors).tolist()
    calibrated = [CalibratedClassifierCV(each, cv=3).fit(vectors, labels).predict_proba(vectors) for each in (ours, theirs)]
    np.testing.assert_allclose(*calibrated, atol=1e-2)


def test_a_strength_is_chosen_where_none_is_given() -> None:
    """Without C the estimator chooses one and says which."""
    vectors, codes = problem()

    assert LogisticProbe().fit(vectors, codes).C_ in logistic.OFFICIAL_STRENGTHS


def test_a_single_class_is_refused() -> None:
    """There is nothing to tell apart."""
    with pytest.raises(ConfigError, match="needs two classes or more, but all images have the label `a`"):
        LogisticProbe().fit(np.eye(3, dtype=np.float32), ["a", "a", "a"])


def test_a_strength_is_above_zero() -> None:
    """C=0 is not C=None, which chooses."""
    vectors, labels = blobs(2, 5, 4)

    with pytest.raises(ConfigError, match="C must be above 0, got 0"):
        LogisticProbe(C=0).fit(vectors, labels)


def test_an_unknown_parameter_is_named() -> None:
    """A wrong parameter name is an error, as in scikit-learn."""
    with pytest.raises(ValueError, match="no parameter `alpha`"):
        LogisticProbe().set_params(alpha=1)
