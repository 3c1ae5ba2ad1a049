"""Multinomial logistic regression by L-BFGS in blocks, with the optimum of scikit-learn.

Dimension key: `B` vectors in a block, `D` width, `C` classes. The strength C of the literature is spelled `strength`: the loss is
    |W|^2 / 2 + strength * sum over images of -log softmax(W x + b)[class],  without a penalty on the bias b.
Source: official dinov2/eval/log_regression.py (45 strengths from 1e-6 to 1e5, chosen on 10 % of the training images, then trained on
all of them).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_extract.analysis.vectors.covariance import moments
from dino_extract.analysis.vectors.stored import Vectors, VectorSource, as_vectors
from dino_extract.errors import ConfigError

OFFICIAL_STRENGTHS = tuple((10.0 ** np.linspace(-6, 5, 45)).tolist())
PATIENCE = 10  # the search ends after this number of strengths in a row without improvement on the held-out images
ENOUGH_HELD_OUT = 500  # with fewer images the accuracy is too noisy for PATIENCE, and all strengths take only seconds
HELD_OUT = 0.1  # share of the training images that is held out to choose the strength
MAX_ITER = 1000
_TOLERANCE = 1e-7  # the largest gradient entry of the mean loss at the optimum
_ROUGH_TOLERANCE = 1e-4  # enough to compare strengths by accuracy, with a third to a sixth of the steps
_LEAST_CURVATURE = 1e-9  # relative to the mean variance: a smaller value is noise of float64, and the Cholesky factor might not exist
HELD_NBYTES = 1 << 30  # in float64. Larger training sets are read again in every iteration


class Problem:
    """Mean loss and gradient over all vectors. They are centred, which gives the same optimum in fewer steps."""

    def __init__(self, vectors: Vectors, codes: NDArray[np.int64], num_classes: int) -> None:
        self.vectors, self.codes, self.num_classes = vectors, torch.from_numpy(codes), num_classes
        count, mean_D, scatter_DD = moments(block for _, block in vectors.blocks())
        self.mean_D, self.covariance_DD = torch.from_numpy(mean_D), torch.from_numpy(scatter_DD / count)
        is_held = len(vectors) * vectors.dim * 8 <= HELD_NBYTES
        self._held = list(self._read()) if is_held else None

    def _read(self) -> Iterator[tuple[int, Tensor]]:
        for first, block in self.vectors.blocks():
            yield first, torch.from_numpy(block).double() - self.mean_D

    def loss_and_gradient(self, weight_CD: Tensor, bias_C: Tensor, strength: float) -> tuple[Tensor, Tensor, Tensor]:
        """The loss divided by strength * n, which has the same optimum for all sizes, and its gradients."""
        count = len(self.vectors)
        penalty = 1.0 / (strength * count)
        loss = 0.5 * penalty * (weight_CD**2).sum()
        gradient_CD, gradient_C = penalty * weight_CD, torch.zeros_like(bias_C)
        for first, block_BD in self._held if self._held is not None else self._read():
            codes_B = self.codes[first : first + len(block_BD)]
            log_BC = torch.log_softmax(block_BD @ weight_CD.T + bias_C, dim=1)
            rows = torch.arange(len(codes_B))
            loss = loss - log_BC[rows, codes_B].sum() / count
            error_BC = log_BC.exp()
            error_BC[rows, codes_B] -= 1.0
            gradient_CD += error_BC.T @ block_BD / count
            gradient_C += error_BC.sum(dim=0) / count
        return loss, gradient_CD, gradient_C

    def solve(self, strength: float, start: Tensor | None, max_iter: int, tolerance: float) -> Tensor:
        """(C, D + 1) float64 optimum for centred vectors, with the bias last; `start` is the optimum of a neighbouring strength.

        L-BFGS works on weight @ factor, where factor @ factor.T is close to the curvature of the loss, so that the curvature is similar in
        all directions. Without it a weak penalty needs a thousand steps, because a few directions vary much more than the rest.
        """
        penalty = 1.0 / (strength * len(self.vectors))
        floor = max(penalty, _LEAST_CURVATURE * float(self.covariance_DD.diagonal().mean()))
        curvature_DD = self.covariance_DD / self.num_classes + floor * torch.eye(self.vectors.dim, dtype=torch.float64)
        factor_DD = torch.linalg.cholesky(curvature_DD)

        def weight_of(solution: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(factor_DD, solution[:, :-1], upper=False, left=False)

        solution = torch.zeros(self.num_classes, self.vectors.dim + 1, dtype=torch.float64)
        if start is not None:
            solution = torch.cat([start[:, :-1] @ factor_DD, start[:, -1:]], dim=1)
        optimiser = torch.optim.LBFGS(
            [solution], max_iter=max_iter, tolerance_grad=tolerance, tolerance_change=1e-12, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            loss, gradient_CD, gradient_C = self.loss_and_gradient(weight_of(solution), solution[:, -1], strength)
            scaled_CD = torch.linalg.solve_triangular(factor_DD.T, gradient_CD, upper=True, left=False)
            solution.grad = torch.cat([scaled_CD, gradient_C[:, None]], dim=1)
            return loss

        optimiser.step(closure)
        return torch.cat([weight_of(solution), solution[:, -1:]], dim=1)

    def uncentred(self, solution: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weight (C, D) and bias (C,) for vectors as they are stored."""
        weight_CD = solution[:, :-1]
        return weight_CD.numpy(), (solution[:, -1] - weight_CD @ self.mean_D).numpy()


def fit_logistic(
    vectors: VectorSource, codes: NDArray[np.int64], num_classes: int, strength: float, *, max_iter: int = MAX_ITER
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (C, D) and bias (C,) float64 of the optimum for one strength.

    Args:
        vectors: (n, D).
        codes: (n,) int64 class of each.
        num_classes: C.
        strength: inverse of the regularisation, the C of scikit-learn.
        max_iter: the most iterations of L-BFGS.
    """
    problem = Problem(as_vectors(vectors), codes, num_classes)
    return problem.uncentred(problem.solve(strength, None, max_iter, _TOLERANCE))


def choose_strength(vectors: VectorSource, codes: NDArray[np.int64], num_classes: int, *, seed: int = 0) -> tuple[float, float]:
    """The strength with the best accuracy on held-out training images, and that accuracy; of equally good strengths the weakest.

    Where classes differ in size, the weakest strengths fit the bias alone and always predict the most common class. They have the same
    accuracy, so patience counts from the first strength that is better than the weakest one.

    Args:
        vectors: (n, D).
        codes: (n,) int64.
        num_classes: C.
        seed: seed of the choice of held-out images.
    """
    vectors = as_vectors(vectors)
    fit, held = split_held_out(codes, HELD_OUT, seed)
    if len(held) == 0:
        return 1.0, float("nan")  # with one image per class, no image can be held out
    problem = Problem(vectors.take(fit), codes[fit], num_classes)
    best, best_accuracy, since, solution = 1.0, -1.0, 0, None
    for strength in OFFICIAL_STRENGTHS:
        solution = problem.solve(strength, solution, MAX_ITER, _ROUGH_TOLERANCE)
        score = accuracy(vectors.take(held), codes[held], *problem.uncentred(solution))
        if score > best_accuracy:
            best, best_accuracy, since = strength, score, 0
        elif best > OFFICIAL_STRENGTHS[0] and len(held) >= ENOUGH_HELD_OUT:
            since += 1
        if since >= PATIENCE or best_accuracy == 1.0:
            break
    return best, best_accuracy


def split_held_out(codes: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to fit on and positions to hold out, ascending: the same share of every class, and at least one to fit on."""
    rng = np.random.default_rng(seed)
    held = []
    for code in np.unique(codes).tolist():
        rows = rng.permutation(np.flatnonzero(codes == code))
        held.append(rows[: min(len(rows) - 1, max(1, round(len(rows) * share)))])
    held_out = np.sort(np.concatenate(held)).astype(np.int64)
    return np.setdiff1d(np.arange(len(codes)), held_out), held_out


def accuracy(vectors: Vectors, codes: NDArray[np.int64], weight: NDArray[np.float64], bias: NDArray[np.float64]) -> float:
    """Share of vectors whose highest score is their class."""
    right = 0
    for first, block in vectors.blocks():
        right += int(((block @ weight.T + bias).argmax(axis=1) == codes[first : first + len(block)]).sum())
    return right / len(vectors)


class LogisticProbe:
    """Logistic regression on embeddings with the interface of a scikit-learn classifier.

    With two classes, scikit-learn has one row of weights and finds the same solution at twice the C.

    Args:
        C: inverse of the regularisation. None chooses one of the official 45 values on 10 % of the training images.
        max_iter: the most iterations of L-BFGS.
        seed: seed of the choice of the held-out images.

    Attributes:
        classes_: labels, sorted.
        coef_: (C, D) float64, one row per class, also with two classes.
        intercept_: (C,) float64.
        C_: the strength used.
    """

    _estimator_type = "classifier"  # as `__sklearn_tags__`, for scikit-learn before 1.6

    def __init__(self, C: float | None = None, *, max_iter: int = MAX_ITER, seed: int = 0) -> None:
        self.C, self.max_iter, self.seed = C, max_iter, seed

    def fit(self, X: VectorSource, y: Any) -> LogisticProbe:
        """Learn from (n, D) vectors and (n,) labels.

        Raises:
            ConfigError: there is a single class, the numbers of labels and vectors differ, or C is not above 0.
        """
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise ConfigError(f"classification needs two classes or more, but all images have the label `{self.classes_[0]}`")
        vectors = as_vectors(X, "the training vectors")
        if len(vectors) != len(codes):
            raise ConfigError(f"{vectors.name} has {len(vectors):,} images, but {len(codes):,} labels")
        if self.C is not None and not self.C > 0:
            raise ConfigError(f"C must be above 0, got {self.C}", hint="None chooses it")
        self.C_ = choose_strength(vectors, codes, len(self.classes_), seed=self.seed)[0] if self.C is None else self.C
        self.coef_, self.intercept_ = fit_logistic(vectors, codes, len(self.classes_), self.C_, max_iter=self.max_iter)
        return self

    def decision_function(self, X: VectorSource) -> NDArray[np.float64]:
        """(n, C) scores; with two classes (n,), the second minus the first, as the tools of scikit-learn expect."""
        scores = self._scores(X)
        return scores if len(self.classes_) > 2 else scores[:, 1] - scores[:, 0]

    def predict_proba(self, X: VectorSource) -> NDArray[np.float64]:
        """(n, C) probabilities."""
        return torch.softmax(torch.from_numpy(self._scores(X)), dim=1).numpy()

    def predict(self, X: VectorSource) -> NDArray[Any]:
        """(n,) labels."""
        found: NDArray[Any] = self.classes_[self._scores(X).argmax(axis=1)]
        return found

    def _scores(self, X: VectorSource) -> NDArray[np.float64]:
        """(n, C)."""
        vectors = as_vectors(X)
        return np.concatenate([block @ self.coef_.T + self.intercept_ for _, block in vectors.blocks()])

    def score(self, X: VectorSource, y: Any) -> float:
        """Share of right labels."""
        return float((self.predict(X) == np.asarray(y)).mean())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, for the tools of scikit-learn."""
        return {"C": self.C, "max_iter": self.max_iter, "seed": self.seed}

    def __sklearn_tags__(self) -> Any:
        """The tags that the tools of scikit-learn read to recognise a classifier."""
        from sklearn.utils import ClassifierTags, Tags, TargetTags  # only scikit-learn itself calls this

        return Tags("classifier", TargetTags(required=True), classifier_tags=ClassifierTags())

    def set_params(self, **params: Any) -> LogisticProbe:
        """Change arguments."""
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"no parameter `{name}`, only C, max_iter, seed")
            setattr(self, name, value)
        return self
