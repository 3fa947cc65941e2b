"""Distances between feature sets against scipy's matrix root, sums over pairs and closed forms.

The order of the features and the number of devices must not matter.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special

from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.metrics import distributions
from cranio_jax.metrics.accumulators import ByPlace, InceptionScore, Moments


def batches(count, size):
    """Yields `(rows, mask)` of each batch; the last is padded with copies."""
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        yield np.minimum(rows, count - 1), (rows < count).astype(np.float32)


def moments(features, size, mesh=None):
    place = (lambda batch: sharding.put_batch(batch, mesh)) if mesh else (lambda batch: batch)
    step = jax.jit(lambda total, b: total.merge(Moments.from_model_output(**b)))
    total = Moments.empty(features.shape[1])
    for rows, mask in batches(len(features), size):
        total = step(total, place({"features": features[rows], "mask": mask}))
    return total


def test_moments_of_features_with_a_large_mean():
    features = (1000.0 + np.random.default_rng(0).standard_normal((500, 24))).astype(np.float32)
    mean, covariance = moments(features, 7).compute()
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-6)
    wanted = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(covariance, wanted, atol=2e-4)
    # Raw second moments in float32 are far less exact.
    raw = (features.T @ features / 500 - np.outer(features.mean(0), features.mean(0))) * 500 / 499
    assert np.abs(raw - wanted).max() > 100 * np.abs(covariance - wanted).max()


def test_order_batches_and_devices_do_not_count():
    features = np.random.default_rng(0).gamma(1.0, size=(100, 16)).astype(np.float32)
    wanted = moments(features, 100).compute()
    ways = [
        moments(features, 7),
        moments(features[::-1], 33),
        moments(features, 8, sharding.make_mesh()),
    ]
    parts = [moments(features[:30], 30), moments(features[30:], 70), Moments.empty(16)]
    for order in itertools.permutations(parts):
        ways.append(order[0].merge(order[1]).merge(order[2]))
    for way in ways:
        for got, value in zip(way.compute(), wanted, strict=True):
            np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [300, 20])  # 20 images in 32 dimensions: covariances are singular
def test_frechet_distance(count):
    rng = np.random.default_rng(0)
    a, b = (
        rng.gamma(1.0, size=(count, 32)),
        rng.gamma(1.3, size=(count, 32)) @ (np.eye(32) + 0.1 * rng.standard_normal((32, 32))),
    )
    stats = [(x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)]
    got = distributions.frechet_distance(*stats)
    eps = 1e-10 * np.eye(32)
    root = scipy.linalg.sqrtm((stats[0][1] + eps) @ (stats[1][1] + eps)).real
    wanted = ((stats[0][0] - stats[1][0]) ** 2).sum() + np.trace(
        stats[0][1] + stats[1][1] - 2 * root
    )
    assert got == pytest.approx(wanted, rel=1e-3)
    streamed = distributions.frechet_distance(
        moments(a.astype(np.float32), 8).compute(), moments(b.astype(np.float32), 9).compute()
    )
    assert streamed == pytest.approx(got, rel=1e-3)
    assert distributions.frechet_distance(stats[0], stats[0]) == pytest.approx(0.0, abs=1e-6)
    assert distributions.frechet_distance_of_rows(a, b) == pytest.approx(got, rel=1e-7)
    assert distributions.frechet_distance_of_rows(a, a) == pytest.approx(0.0, abs=1e-9)
    # Sets of identical pictures have zero covariance.
    same = np.repeat(a[:1], 5, 0), np.repeat(b[:1], 7, 0)
    wanted = ((a[0] - b[0]) ** 2).sum()
    assert distributions.frechet_distance_of_rows(*same) == pytest.approx(wanted, rel=1e-9)
    # Sets of different sizes.
    few = b[: count // 2]
    wanted = distributions.frechet_distance(stats[0], (few.mean(0), np.cov(few, rowvar=False)))
    assert distributions.frechet_distance_of_rows(a, few) == pytest.approx(wanted, rel=1e-6)


def test_frechet_distance_of_known_distributions():
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    got = distributions.frechet_distance((np.zeros(3), np.diag(a)), (np.ones(3), np.diag(b)))
    assert got == pytest.approx(3.0 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_kernel_distance():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((12, 5)), rng.standard_normal((12, 5)) + 0.5

    def kernel(x, y):
        return (np.dot(x, y) / 5 + 1) ** 3

    def pairs(x):
        return np.mean([kernel(p, q) for p, q in itertools.permutations(x, 2)])

    wanted = pairs(a) + pairs(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    got, spread = distributions.kernel_distance(
        a, b, subset=12, rounds=3, seed=0
    )  # each subset is the whole set
    assert got == pytest.approx(wanted, rel=1e-9) and spread < 1e-9
    # Unbiased: zero on average for equal distributions, even with small subsets.
    same, spread = distributions.kernel_distance(
        *rng.standard_normal((2, 2000, 5)), subset=50, rounds=400, seed=0
    )
    assert abs(same) < 4 * spread / 400**0.5 + 0.02 and spread > 0.02
    assert distributions.kernel_distance(a, b, 6, 5, seed=1) != distributions.kernel_distance(
        a, b, 6, 5, seed=2
    )
    # For sets of different sizes, the mean over many subsets equals that over all pairs.
    few = b[:9]
    wanted = pairs(a) + pairs(few) - 2 * np.mean([kernel(x, y) for x in a for y in few])
    got, spread = distributions.kernel_distance(a, few, subset=8, rounds=2000, seed=0)
    assert got == pytest.approx(wanted, abs=4 * spread / 2000**0.5) and wanted > spread / 10
    with pytest.raises(InputError, match="kernel_subset=13: only 12 images"):
        distributions.kernel_distance(a, b, 13, 3, 0)


@pytest.mark.parametrize("size", [7, 100])
def test_inception_score(size):
    logits = (3 * np.random.default_rng(0).standard_normal((100, 20))).astype(np.float32)
    split = np.arange(100) * 3 // 100
    step = jax.jit(lambda total, *batch: total.add(*batch))
    total = InceptionScore.empty(3, 20)
    for rows, mask in batches(100, size):
        total = step(total, jnp.asarray(logits[rows]), jnp.asarray(split[rows]), mask)
    p = scipy.special.softmax(logits.astype(np.float64), 1)
    scores = [
        np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean())
        for q in (p[split == s] for s in range(3))
    ]
    np.testing.assert_allclose(total.compute(), (np.mean(scores), np.std(scores)), rtol=1e-4)
    both = (
        InceptionScore.empty(3, 20)
        .add(jnp.asarray(logits), jnp.asarray(split), jnp.ones(100))
        .merge(InceptionScore.empty(3, 20))
    )
    np.testing.assert_allclose(both.compute(), total.compute(), rtol=1e-5)


def test_bounds_of_the_inception_score():
    sure = 50.0 * jnp.eye(10)

    def score(logits):
        return (
            InceptionScore.empty(1, 10).add(logits, jnp.zeros(10, int), jnp.ones(10)).compute()[0]
        )

    assert score(sure) == pytest.approx(10.0, rel=1e-5) and score(
        jnp.zeros((10, 10))
    ) == pytest.approx(1.0, rel=1e-5)
    with pytest.raises(InputError, match="leave one of 2 splits of the Inception score empty"):
        InceptionScore.empty(2, 10).add(sure, jnp.zeros(10, int), jnp.ones(10)).compute()


def test_rows_come_to_their_places():
    values, place = (
        np.arange(30, dtype=np.float32).reshape(10, 3),
        np.random.default_rng(0).permutation(10),
    )
    halves = []
    for part in (slice(0, 4), slice(4, 10)):
        rows = ByPlace.empty(10, 3)
        for start in range(part.start, part.stop, 4):
            batch = np.arange(start, start + 4)
            mask = (batch < part.stop).astype(np.float32)
            batch = np.minimum(batch, 9)
            rows = jax.jit(lambda r, v, p, m: r.add(v, p, m))(
                rows, values[batch], place[batch], mask
            )
        halves.append(rows)
    for a, b in (halves, halves[::-1]):
        np.testing.assert_array_equal(a.merge(b).compute()[place], values)


def test_one_image_has_no_covariance():
    with pytest.raises(InputError, match="a covariance of 1 images"):
        distributions.frechet_distance_of_rows(np.ones((1, 3)), np.ones((4, 3)))
    with pytest.raises(InputError, match="a covariance of 1 images"):
        Moments.from_model_output(jnp.ones((4, 3)), jnp.array([1.0, 0, 0, 0])).compute()
