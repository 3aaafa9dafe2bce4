"""Merged moments equal the moments of everything, in any cut and any order, and keep their digits."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.engine.moments import Moments


def cut(values, edges):
    return [Moments.of(part) for part in np.split(values, edges)]


@pytest.mark.parametrize("edges", [[1], [3, 4, 9], [10, 20, 30, 39]])
def test_merged_moments_equal_those_of_all_observations(edges):
    values = np.random.default_rng(0).normal(3, 2, (40, 2, 5))
    merged, *rest = cut(values, edges)
    for part in rest:
        merged = merged.merge(part)
    assert merged.count == 40
    np.testing.assert_allclose(merged.mean, values.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged.variance, values.var(axis=0, ddof=1), rtol=1e-12)


def test_order_of_merging_does_not_matter():
    values = np.random.default_rng(1).normal(0, 1, (30, 4))
    a, b, c = cut(values, [7, 19])
    left, right = a.merge(b).merge(c), c.merge(a.merge(b))
    np.testing.assert_allclose(left.mean, right.mean, rtol=1e-12)
    np.testing.assert_allclose(left.m2, right.m2, rtol=1e-12)


def test_a_large_offset_costs_no_digits():
    """The textbook sum of squares minus squared sum loses everything here."""
    noise = np.random.default_rng(2).normal(0, 1, 10_000)
    values = 1e8 + noise
    merged, *rest = cut(values, [100, 5_000])
    for part in rest:
        merged = merged.merge(part)
    assert float(merged.variance) == pytest.approx(values.var(ddof=1), rel=1e-6)


def test_one_observation_has_no_variance():
    assert np.isnan(Moments.of(np.ones((1, 3))).variance).all()
    assert (Moments.of(np.ones((1, 3))).m2 == 0).all()
