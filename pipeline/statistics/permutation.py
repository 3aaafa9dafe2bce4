"""Exact permutation tests over models, and the smallest p that so few of them can reach.

Flows in: one figure per model, and what is to explain it: a group (method, architecture) or a number (size).
Flows out: a share of variance and its p-value. Pure.

Models are the unit: a claim about training methods is a claim about models yet to come, so the models are
permuted, not the prompts, however many there are of these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

MAX_EXACT = 50_000
"""More assignments than this are drawn at random instead of enumerated."""


@dataclass(frozen=True)
class PermutationTest:
    """`r_squared` is the share of the variance between models that the factor explains; `p_value` the share of
    the assignments of factor to models that explain as much or more; `smallest_p` what the best possible
    assignment would have had. `exact` is False where assignments were drawn at random."""

    r_squared: float
    p_value: float
    smallest_p: float
    num_assignments: int
    exact: bool


def group_test(values: Sequence[float], groups: Sequence[str]) -> PermutationTest | None:
    """One-way comparison; None with fewer than two groups or three models, or where no model differs.

    The statistic is the sum of squares between groups (with two groups: the absolute difference of means).
    With groups of n1, n2, ... models there are n! / (n1! n2! ...) assignments; those that only exchange the
    names of groups of one size explain the same.
    """
    counts = Counter(groups)
    outcome = np.asarray(values, np.float64)
    if len(counts) < 2 or len(outcome) < 3 or np.ptp(outcome) == 0:
        return None
    names = sorted(counts)
    labels = np.array([names.index(group) for group in groups])
    sizes = [counts[name] for name in names]
    num_assignments = math.factorial(len(outcome)) // math.prod(math.factorial(size) for size in sizes)
    alike = math.prod(math.factorial(number) for number in Counter(sizes).values())
    rows = _labelings(labels, sizes, num_assignments)  # [assignments, models]
    between = _between(outcome, rows, len(names))
    return _test(between, float(_between(outcome, labels[None], len(names))[0]), outcome, alike, num_assignments)


def trend_test(values: Sequence[float], sizes: Sequence[float]) -> PermutationTest | None:
    """Straight line over log2(size); None with fewer than three models, or where sizes or values do not differ."""
    outcome, x = np.asarray(values, np.float64), np.log2(np.asarray(sizes, np.float64))
    if len(outcome) < 3 or np.ptp(outcome) == 0 or np.ptp(x) == 0:
        return None
    num_assignments = math.factorial(len(outcome))
    if num_assignments <= MAX_EXACT:
        order = np.array(list(permutations(range(len(outcome)))))
    else:
        rng = np.random.default_rng(0)
        order = rng.permuted(np.tile(np.arange(len(outcome)), (MAX_EXACT, 1)), axis=1)
    centred, y = x - x.mean(), outcome - outcome.mean()
    explained = (centred[order] @ y) ** 2 / (centred @ centred)
    return _test(explained, float((centred @ y) ** 2 / (centred @ centred)), outcome, 1, num_assignments)


def _test(
    explained: np.ndarray, observed: float, outcome: np.ndarray, alike: int, num_assignments: int
) -> PermutationTest:
    total = float(((outcome - outcome.mean()) ** 2).sum())
    reached = int((explained >= observed - 1e-9 * total).sum())
    exact = num_assignments <= MAX_EXACT
    p_value = reached / len(explained) if exact else (reached + 1) / (len(explained) + 1)
    smallest = alike / num_assignments if exact else 1 / (len(explained) + 1)
    return PermutationTest(observed / total, p_value, smallest, num_assignments, exact)


def _between(outcome: np.ndarray, labels: np.ndarray, num_groups: int) -> np.ndarray:
    """Sum of squares between groups of each row of `labels` `[assignments, models]`."""
    centred = outcome - outcome.mean()
    total = np.zeros(len(labels))
    for group in range(num_groups):
        inside = labels == group
        total += (inside @ centred) ** 2 / inside.sum(axis=1)
    return total


def _labelings(labels: np.ndarray, sizes: Sequence[int], num_assignments: int) -> np.ndarray:
    """All assignments of labels to models, or MAX_EXACT random ones where there are more."""
    if num_assignments <= MAX_EXACT:
        return np.array(list(_arrangements(list(sizes), len(labels))))
    return np.random.default_rng(0).permuted(np.tile(labels, (MAX_EXACT, 1)), axis=1)


def _arrangements(left: list[int], length: int) -> Iterator[tuple[int, ...]]:
    """Every sequence of `length` labels in which label k occurs left[k] times."""
    if length == 0:
        yield ()
        return
    for label, number in enumerate(left):
        if number:
            rest = [*left[:label], number - 1, *left[label + 1 :]]
            for tail in _arrangements(rest, length - 1):
                yield (label, *tail)
