"""Spread against error, of samples whose honesty is known."""

import numpy as np
import pytest

from cranio_jax.evaluation.comparison import compare
from cranio_jax.evaluation.reliability import deviations, summary
from cranio_jax.metrics.resampling import bootstrap_ratio
from cranio_jax.reporting import charts, tables
from tests.evaluation.test_comparison import results

SUBJECTS = [f"s{i // 2}" for i in range(40)]


def drawn(honesty, count=4):
    """Samples of `(count, 40, 500, 3)` and a truth whose spread is `honesty` times as large."""
    rng = np.random.default_rng(0)
    middle = rng.uniform(size=(40, 500, 3))
    spread = np.exp(rng.normal(0, 1.0, (40, 500, 1)))
    samples = middle + spread * rng.normal(size=(count, *middle.shape))
    return samples, middle + honesty * spread * rng.normal(size=middle.shape)


@pytest.mark.parametrize("count", [2, 8])
def test_honest_samples_have_a_ratio_of_one(count):
    found = summary(deviations(*drawn(1.0, count)), SUBJECTS, rounds=500, seed=0)
    assert found.ratio.mean == pytest.approx(1.0, abs=0.03)
    assert found.ratio.low < 1.0 < found.ratio.high
    assert found.correlation > 0.3
    expected, error = np.array(found.points).T
    assert len(expected) == 10 and (np.diff(expected) > 0).all()
    if count == 8:  # two samples know their own spread badly
        np.testing.assert_allclose(error[2:], expected[2:], rtol=0.35)


def test_samples_that_are_too_sure_are_found_out():
    """With a truth twice as far away, the squared error is 4 + 1/4 in place of 1 + 1/4."""
    found = summary(deviations(*drawn(2.0)), SUBJECTS, rounds=500, seed=0)
    assert found.ratio.mean == pytest.approx(np.sqrt(4.25 / 1.25), abs=0.06)
    # Spread that tells nothing about the error.
    honest = deviations(*drawn(1.0))
    error = np.random.default_rng(1).permutation(honest.error.ravel()).reshape(40, 500)
    found = summary(honest._replace(error=error), SUBJECTS, rounds=9, seed=0)
    assert abs(found.correlation) < 0.02


def test_a_ratio_of_means_resamples_both_together():
    rng = np.random.default_rng(0)
    under = rng.uniform(1, 9, 30)
    ratio, low, high = bootstrap_ratio(3 * under, under, rounds=200, seed=0)
    assert ratio == pytest.approx(3.0) and low == pytest.approx(3.0) == high
    over = rng.uniform(1, 9, 30)
    ratio, low, high = bootstrap_ratio(over, under, rounds=200, seed=0)
    assert ratio == pytest.approx(over.mean() / under.mean()) and low < ratio < high


def test_tables_and_charts_of_several_seeds():
    found = summary(deviations(*drawn(1.0)), SUBJECTS, rounds=50, seed=0)
    runs = {"ours": [results("ours", np.zeros(6), np.ones(6)) for _ in range(2)]}
    for one in runs["ours"]:
        one.reliability = {"ours": {"pixels": found}}
    merged = compare(runs, "ours", (), rounds=50)
    assert merged.reliability["ours"]["pixels"].points == [tuple(p) for p in found.points]
    ratio = merged.reliability["ours"]["pixels"].ratio
    assert ratio.mean == pytest.approx(found.ratio.mean) and ratio.sd == 0.0
    assert f"| ours: pixels | {ratio.mean:.2f} ± 0.00 |" in tables.markdown(merged)
    chart = charts.reliability(merged.reliability)
    page = tables.web(merged, "reliability", chart)
    assert page.startswith("<details><summary>Spread of the samples") and chart in page
    assert chart.count("data:image/svg+xml") == 1
