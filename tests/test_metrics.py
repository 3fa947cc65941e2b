"""PSNR and SSIM against scikit-image; the collection under a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cranio_jax import metrics
from cranio_jax.evaluate import PixelMetrics, bootstrap, score

skimage = pytest.importorskip("skimage.metrics", reason="the reference metrics need the test extra")


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    a = rng.random((4, 24, 30, 3), np.float32)
    smooth = np.cumsum(np.cumsum(a, 1), 2) / 400
    return smooth % 1.0, np.clip(smooth % 1.0 + 0.1 * rng.standard_normal(a.shape).astype(np.float32), 0, 1)


def test_psnr(pairs):
    wanted = [skimage.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(*pairs, strict=True)]
    np.testing.assert_allclose(metrics.psnr(*pairs), wanted, rtol=1e-5)


def test_ssim(pairs):
    options = dict(data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1)
    wanted = [skimage.structural_similarity(a, b, **options) for a, b in zip(*pairs, strict=True)]
    np.testing.assert_allclose(metrics.ssim(*pairs), wanted, rtol=1e-4)


def test_padding_does_not_count(pairs):
    a, b = (np.round(p * 255).astype(np.uint8) for p in pairs)
    totals = jax.jit(PixelMetrics.empty)()
    totals, each = jax.jit(score)(a, b, jnp.array([1.0, 1, 0, 0]), totals)
    totals, _ = jax.jit(score)(a[::-1], b[::-1], jnp.array([0.0, 1, 0, 0]), totals)
    np.testing.assert_allclose(totals.compute()["psnr"], np.mean([each["psnr"][i] for i in (0, 1, 2)]), rtol=1e-6)


def test_bootstrap_resamples_subjects():
    """Copies of a subject's pictures must not narrow the interval."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal(20)
    mean, low, high = bootstrap(np.repeat(values, 18), [f"s{i}" for i in np.repeat(np.arange(20), 18)], 4000, 0)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20**0.5, rel=0.1)
