"""The equations of the objective transcribed loop by loop in float64: slow, and with nothing shared with the code under test."""

from __future__ import annotations

import math

Matrix = list[list[float]]


def softmax(scores: list[float]) -> list[float]:
    """exp(s_k) / sum exp(s)."""
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def cross_entropy(target: list[float], scores: list[float], temp: float) -> float:
    """-sum_k p_k log softmax(z / temp)_k."""
    return -sum(p * math.log(q) for p, q in zip(target, softmax([score / temp for score in scores]), strict=True))


def dino_local_and_global(
    student_global: list[Matrix], student_local: list[Matrix], teacher: list[Matrix], temp: float
) -> tuple[float, float]:
    """The two image-level terms: every student crop against every other teacher crop, divided by the number of pairs."""
    images, num_pairs = len(teacher[0]), 0
    local_sum = global_sum = 0.0
    for t, targets in enumerate(teacher):
        for scores in student_local:
            num_pairs += 1
            local_sum += sum(cross_entropy(targets[b], scores[b], temp) for b in range(images)) / images
        for s, scores in enumerate(student_global):
            if s != t:
                num_pairs += 1
                global_sum += sum(cross_entropy(targets[b], scores[b], temp) for b in range(images)) / images
    return local_sum / num_pairs, global_sum / num_pairs


def ibot(student: Matrix, teacher: Matrix, masks: list[list[bool]], temp: float) -> float:
    """Mean over crops of the mean cross-entropy over the masked patches of each; a crop without any counts as 0."""
    row, total = 0, 0.0
    for mask in masks:
        hidden = sum(mask)
        for _ in range(hidden):
            total += cross_entropy(teacher[row], student[row], temp) / hidden
            row += 1
    return total / len(masks)


def koleo(vectors: Matrix) -> float:
    """-1/n sum_i log(min_j |x_i - x_j|) of the normalised vectors."""
    unit = [[value / math.sqrt(sum(v * v for v in vector)) for value in vector] for vector in vectors]
    total = 0.0
    for i, one in enumerate(unit):
        nearest = min(math.dist(one, other) for j, other in enumerate(unit) if j != i)
        total -= math.log(nearest)
    return total / len(unit)


def sinkhorn(scores: Matrix, temp: float, iterations: int) -> Matrix:
    """Alternate: columns (prototypes) sum to 1 / K, rows sum to 1 / n; at the end rows sum to 1."""
    n, k = len(scores), len(scores[0])
    q = [[math.exp(score / temp) for score in row] for row in scores]
    for _ in range(iterations):
        for j in range(k):
            mass = sum(q[i][j] for i in range(n))
            for i in range(n):
                q[i][j] /= mass * k
        for i in range(n):
            mass = sum(q[i])
            q[i] = [value / (mass * n) for value in q[i]]
    return [[value * n for value in row] for row in q]
