"""PSNR and SSIM against scikit-image, MS-SSIM against scipy."""

import jax
import numpy as np
import pytest
from scipy import ndimage
from skimage import metrics as skimage

from cranio_jax import metrics
from cranio_jax.errors import InputError

# Compiled, as the program uses them.
psnr, ssim, ms_ssim = map(jax.jit, (metrics.psnr, metrics.ssim, metrics.ms_ssim))


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    a = rng.random((4, 24, 30, 3), np.float32)
    smooth = np.cumsum(np.cumsum(a, 1), 2) / 400
    return smooth % 1.0, np.clip(
        smooth % 1.0 + 0.1 * rng.standard_normal(a.shape).astype(np.float32), 0, 1
    )


def test_psnr(pairs):
    wanted = [
        skimage.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(*pairs, strict=True)
    ]
    np.testing.assert_allclose(psnr(*pairs), wanted, rtol=1e-5)


def test_ssim(pairs):
    options = dict(
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
    )
    wanted = [skimage.structural_similarity(a, b, **options) for a, b in zip(*pairs, strict=True)]
    np.testing.assert_allclose(ssim(*pairs), wanted, rtol=1e-4)


def test_ms_ssim():
    rng = np.random.default_rng(0)
    a = ndimage.gaussian_filter(rng.random((2, 181, 203, 3)), (0, 3, 3, 0)) * 4 - 1.5
    b = np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1)
    a = np.clip(a, 0, 1)

    def smooth(x):
        return ndimage.gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]

    def one(x, y):
        value = 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mean_x, mean_y = smooth(x), smooth(y)
            structure = (2 * (smooth(x * y) - mean_x * mean_y) + 9e-4) / (
                smooth(x * x) - mean_x**2 + smooth(y * y) - mean_y**2 + 9e-4
            )
            luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
            value *= np.mean(structure * (luminance if scale == 4 else 1)) ** weight
            x, y = (
                p[: p.shape[0] // 2 * 2, : p.shape[1] // 2 * 2]
                .reshape(p.shape[0] // 2, 2, p.shape[1] // 2, 2)
                .mean((1, 3))
                for p in (x, y)
            )
        return value

    wanted = [np.mean([one(a[i, ..., c], b[i, ..., c]) for c in range(3)]) for i in range(2)]
    got = ms_ssim(a.astype(np.float32), b.astype(np.float32))
    assert 0.1 < wanted[0] < 0.97
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    words = "MS-SSIM needs pictures of at least 176 x 176 pixels, not 175 x 203"
    with pytest.raises(InputError, match=words):
        ms_ssim(a[:, :175], b[:, :175])


SSIM = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1)


@pytest.mark.parametrize("size", [(11, 11), (11, 30), (16, 12), (8, 8), (10, 40), (1, 1)])
@pytest.mark.parametrize("constant", [False, True])
def test_small_pictures(size, constant):
    """A number where scikit-image has one, else a sentence."""
    a, b = np.random.default_rng(0).random((2, 1, *size, 3), np.float32)
    if constant:
        a, b = np.full_like(a, 0.25), np.full_like(a, 0.75)
    wanted = skimage.peak_signal_noise_ratio(a[0], b[0], data_range=1.0)
    np.testing.assert_allclose(psnr(a, b), [wanted], rtol=1e-5)
    try:
        wanted = skimage.structural_similarity(a[0], b[0], data_range=1.0, **SSIM)
    except ValueError:
        words = f"SSIM needs pictures of at least 11 x 11 pixels, not {size[0]} x {size[1]}. Use"
        with pytest.raises(InputError, match=f"^{words}"):
            ssim(a, b)
    else:
        np.testing.assert_allclose(ssim(a, b), [wanted], rtol=1e-4, atol=1e-5)


def test_within_a_mask(pairs):
    a, b = pairs
    where = np.zeros((4, 24, 30, 1), np.float32)
    where[:, 6:20, 7:25] = 1.0
    inside = (slice(6, 20), slice(7, 25))
    wanted = [
        skimage.peak_signal_noise_ratio(x[inside], y[inside], data_range=1.0)
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(psnr(a, b, where), wanted, rtol=1e-5)
    options = dict(
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=-1,
        full=True,
    )
    maps = [skimage.structural_similarity(x, y, **options)[1] for x, y in zip(a, b, strict=True)]
    fits = (
        slice(6, 19),
        slice(7, 25),
    )  # the window's middle is never nearer than five pixels to the edge
    np.testing.assert_allclose(ssim(a, b, where), [m[fits].mean() for m in maps], rtol=1e-4)
    np.testing.assert_allclose(ssim(a, b, np.ones_like(where)), ssim(a, b), rtol=1e-6)
