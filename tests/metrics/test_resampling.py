"""Intervals and tests over subjects, against their known distributions."""

import numpy as np
import pytest
from scipy import stats

from cranio_jax.metrics.resampling import bootstrap, permutation_test


def test_bootstrap_resamples_subjects():
    """Copies of a subject's pictures must not narrow the interval."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(20)
    mean, low, high = bootstrap(
        np.repeat(values, 18), [f"s{i}" for i in np.repeat(np.arange(20), 18)], 4000, 0
    )
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20**0.5, rel=0.1)


def test_permutations_by_subject():
    rng = np.random.default_rng(0)
    subjects = [f"p{i}" for i in range(20) for _ in range(18)]
    control = rng.random(360)
    assert permutation_test(control + 0.2, control, subjects, 2000, 0) == pytest.approx(1 / 2001)
    # Gains that are one subject's alone are no evidence, however many pictures show it.
    assert permutation_test(control + np.equal(subjects, "p3"), control, subjects, 2000, 0) > 0.4
    by_chance = [
        permutation_test(np.repeat(rng.standard_normal(20), 18), np.zeros(360), subjects, 500, seed)
        for seed in range(200)
    ]
    assert stats.kstest(by_chance, "uniform").pvalue > 0.01
