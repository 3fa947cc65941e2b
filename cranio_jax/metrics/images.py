"""Pixel metrics of pairs of pictures, for each example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_WINDOW, _SIGMA = 11, 1.5  # Wang et al. 2004


def psnr(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; identical ones count as one in 8 bit off by half (54 dB)."""
    error = jnp.mean((a - b) ** 2, axis=(1, 2, 3))
    return -10.0 * jnp.log10(jnp.maximum(error, (0.5 / 255.0) ** 2))


def _smooth(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    offsets = jnp.arange(_WINDOW) - (_WINDOW - 1) / 2
    kernel = jnp.exp(-0.5 * (offsets / _SIGMA) ** 2)
    kernel = kernel / kernel.sum()
    channels = x.shape[-1]
    for shape in ((_WINDOW, 1), (1, _WINDOW)):
        weights = jnp.broadcast_to(kernel.reshape(*shape, 1, 1), (*shape, 1, channels))
        x = jax.lax.conv_general_dilated(
            x, weights, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=channels, precision="highest"
        )
    return x


def ssim(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Structural similarity (Wang et al. 2004) of pictures in [0, 1].

    Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, mean over channels and
    over the places where the window fits.
    """
    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    bottom = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return jnp.mean(top / bottom, axis=(1, 2, 3))
