"""Pixel metrics of pairs of pictures, for each example."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cranio_jax.errors import InputError

_WINDOW, _SIGMA = 11, 1.5  # Wang et al. 2004
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003
# The shortest side, in pixels, of a picture that the window fits into, at all scales.
SSIM_SIDE = _WINDOW
MS_SSIM_SIDE = _WINDOW * 2 ** (len(_SCALES) - 1)


def _check_side(name: str, least: int, height: int, width: int) -> None:
    if min(height, width) < least:
        raise InputError(
            f"{name} needs pictures of at least {least} x {least} pixels, not {height} x {width}. "
            "Use larger pictures, or leave it out."
        )


def _mean(
    values: Float[Array, "b h w c"], where: Float[Array, "b h w 1"] | None
) -> Float[Array, "b"]:
    """Mean over pixels and channels; of the pixels `where` is 1 alone."""
    if where is None:
        return values.mean((1, 2, 3))
    return (values * where).sum((1, 2, 3)) / jnp.maximum(
        where.sum((1, 2, 3)) * values.shape[-1], 1.0
    )


def psnr(
    a: Float[Array, "b h w c"],
    b: Float[Array, "b h w c"],
    where: Float[Array, "b h w 1"] | None = None,
) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; identical ones count as one in 8 bit off by half (54 dB).

    With `where`, of the pixels alone at which it is 1.
    """
    error = _mean((a - b) ** 2, where)
    return -10.0 * jnp.log10(jnp.maximum(error, (0.5 / 255.0) ** 2))


def _smooth(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    kernel = np.exp(-0.5 * ((np.arange(_WINDOW) - (_WINDOW - 1) / 2) / _SIGMA) ** 2)
    for axis in (1, 2):
        fits = x.shape[axis] - _WINDOW + 1
        # A sum of moved pictures: a convolution by channels would be computed in half precision on some devices, and slowly on others.
        x = sum(
            weight * jax.lax.slice_in_dim(x, i, i + fits, axis=axis)
            for i, weight in enumerate((kernel / kernel.sum()).tolist())
        )
    return x


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    return (
        sum(
            x[:, i : x.shape[1] - 1 + i : 2, j : x.shape[2] - 1 + j : 2]
            for i in range(2)
            for j in range(2)
        )
        / 4
    )


def _terms(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, "b h2 w2 c"]]:
    """Luminance, and contrast with structure, at the places where the window fits."""
    c1, c2 = 0.01**2, 0.03**2
    # Flat pictures would lose the digits of their variance to the mean.
    middle_a, middle_b = a.mean((1, 2), keepdims=True), b.mean((1, 2), keepdims=True)
    a, b = a - middle_a, b - middle_b
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + middle_a, mean_b + middle_b
    return (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1), (2 * covariance + c2) / (
        var_a + var_b + c2
    )


def ssim(
    a: Float[Array, "b h w c"],
    b: Float[Array, "b h w c"],
    where: Float[Array, "b h w 1"] | None = None,
) -> Float[Array, "b"]:
    """Structural similarity (Wang et al. 2004) of pictures in [0, 1].

    Gaussian window of 11 pixels, sigma 1.5, K1 = 0.01, K2 = 0.03, population covariance, mean over channels and
    over the places where the window fits; with `where`, over those of them alone at which it is 1.
    Raises InputError if a side is shorter than SSIM_SIDE.
    """
    _check_side("SSIM", SSIM_SIDE, *a.shape[1:3])
    luminance, structure = _terms(a, b)
    edge = _WINDOW // 2
    return _mean(luminance * structure, None if where is None else where[:, edge:-edge, edge:-edge])


def ms_ssim(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Multi-scale structural similarity (Wang et al. 2003) of pictures in [0, 1] with sides of MS_SSIM_SIDE at least.

    Five scales, halved by means of 2 x 2 pixels (an odd last row is left out); at each the mean contrast and structure,
    not below 0, to the power of the scale's weight; luminance at the coarsest alone; mean over channels.
    Raises InputError if a side is shorter than MS_SSIM_SIDE.
    """
    _check_side("MS-SSIM", MS_SSIM_SIDE, *a.shape[1:3])
    value = 1.0
    for scale, weight in enumerate(_SCALES):
        luminance, structure = _terms(a, b)
        last = scale == len(_SCALES) - 1
        value = (
            value
            * jnp.maximum((luminance * structure if last else structure).mean((1, 2)), 0.0)
            ** weight
        )
        a, b = _halved(a), _halved(b)
    return value.mean(-1)
