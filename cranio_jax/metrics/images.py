"""Pixel metrics of pairs of pictures, for each example."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_WINDOW, _SIGMA = 11, 1.5  # Wang et al. 2004
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003
MS_SSIM_SIDE = _WINDOW * 2 ** (len(_SCALES) - 1)


def _mean(values: Float[Array, "b h w c"], where: Float[Array, "b h w 1"] | None) -> Float[Array, "b"]:
    """Mean over pixels and channels; of the pixels `where` is 1 alone."""
    if where is None:
        return values.mean((1, 2, 3))
    return (values * where).sum((1, 2, 3)) / jnp.maximum(where.sum((1, 2, 3)) * values.shape[-1], 1.0)


def psnr(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], where: Float[Array, "b h w 1"] | None = None) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; identical ones count as one in 8 bit off by half (54 dB).

    With `where`, of the pixels alone at which it is 1.
    """
    error = _mean((a - b) ** 2, where)
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


def _terms(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, "b h2 w2 c"]]:
    """Luminance, and contrast with structure, at the places where the window fits."""
    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), (2 * covariance + c2) / (var_a + var_b + c2)


def ssim(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], where: Float[Array, "b h w 1"] | None = None) -> Float[Array, "b"]:
    """Structural similarity (Wang et al. 2004) of pictures in [0, 1].

    Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, mean over channels and
    over the places where the window fits; with `where`, over those of them alone at which it is 1.
    """
    luminance, structure = _terms(a, b)
    edge = _WINDOW // 2
    return _mean(luminance * structure, None if where is None else where[:, edge:-edge, edge:-edge])


def ms_ssim(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Multi-scale structural similarity (Wang et al. 2003) of pictures in [0, 1] with sides of MS_SSIM_SIDE at least.

    Five scales, halved by means of 2 x 2 pixels (an odd last row is left out); at each the mean contrast and structure,
    not below 0, to the power of the scale's weight; luminance at the coarsest alone; mean over channels.
    """
    if min(a.shape[1:3]) < MS_SSIM_SIDE:
        raise ValueError(f"MS-SSIM wants pictures of {MS_SSIM_SIDE} pixels a side, not {min(a.shape[1:3])}")
    value = 1.0
    for scale, weight in enumerate(_SCALES):
        luminance, structure = _terms(a, b)
        last = scale == len(_SCALES) - 1
        value = value * jnp.maximum((luminance * structure if last else structure).mean((1, 2)), 0.0) ** weight
        a, b = (jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4 for x in (a, b))
    return value.mean(-1)
