"""Pixel metrics of pairs of pictures, for each example."""

from typing import Any

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
    """Returns the mean over channels and pixels, or over the pixels at which `where` is 1."""
    if where is None:
        return values.mean((1, 2, 3))
    count = where.sum((1, 2, 3)) * values.shape[-1]
    return (values * where).sum((1, 2, 3)) / jnp.maximum(count, 1.0)


def psnr(
    a: Float[Array, "b h w c"],
    b: Float[Array, "b h w c"],
    where: Float[Array, "b h w 1"] | None = None,
) -> Float[Array, "b"]:
    """Returns the peak signal-to-noise ratio in dB of pictures in [0, 1].

    With `where`, only the pixels at which it is 1 count. Identical pictures get 54 dB, as if each
    value in 8 bit were off by a half.
    """
    error = _mean((a - b) ** 2, where)
    return -10.0 * jnp.log10(jnp.maximum(error, (0.5 / 255.0) ** 2))


def _smooth(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    kernel = np.exp(-0.5 * ((np.arange(_WINDOW) - (_WINDOW - 1) / 2) / _SIGMA) ** 2)
    for axis in (1, 2):
        fits = x.shape[axis] - _WINDOW + 1
        # A convolution would have half precision on some devices, and be slow on others.
        parts: Any = (
            weight * jax.lax.slice_in_dim(x, i, i + fits, axis=axis)
            for i, weight in enumerate((kernel / kernel.sum()).tolist())
        )
        x = sum(parts)
    return x


def _halved(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    parts: Any = (
        x[:, i : x.shape[1] - 1 + i : 2, j : x.shape[2] - 1 + j : 2]
        for i in range(2)
        for j in range(2)
    )
    return sum(parts) / 4


def _terms(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]
) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, "b h2 w2 c"]]:
    """Returns luminance, and contrast with structure, at the places where the window fits."""
    c1, c2 = 0.01**2, 0.03**2
    # Centre: next to a large mean, the variance of a flat picture would lose its precision.
    middle_a, middle_b = a.mean((1, 2), keepdims=True), b.mean((1, 2), keepdims=True)
    a, b = a - middle_a, b - middle_b
    mean_a, mean_b = _smooth(a), _smooth(b)
    var_a, var_b = _smooth(a * a) - mean_a**2, _smooth(b * b) - mean_b**2
    covariance = _smooth(a * b) - mean_a * mean_b
    mean_a, mean_b = mean_a + middle_a, mean_b + middle_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return luminance, structure


def ssim(
    a: Float[Array, "b h w c"],
    b: Float[Array, "b h w c"],
    where: Float[Array, "b h w 1"] | None = None,
) -> Float[Array, "b"]:
    """Returns the structural similarity (Wang et al. 2004) of pictures in [0, 1].

    It uses a Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03 and population
    covariances. The mean is over channels and the places where the window fits; with `where`, over
    those at which it is 1.

    Raises InputError if a side is shorter than SSIM_SIDE.
    """
    _check_side("SSIM", SSIM_SIDE, *a.shape[1:3])
    luminance, structure = _terms(a, b)
    edge = _WINDOW // 2
    return _mean(luminance * structure, None if where is None else where[:, edge:-edge, edge:-edge])


def ms_ssim(a: Float[Array, "b h w c"], b: Float[Array, "b h w c"]) -> Float[Array, "b"]:
    """Returns the multi-scale structural similarity (Wang et al. 2003) of pictures in [0, 1].

    Each of five scales contributes the mean contrast and structure, at least 0, to the power of its
    weight; the coarsest also the luminance. Scales are halved by means of 2 x 2 pixels, without an
    odd last row. The result is a mean over channels.

    Raises InputError if a side is shorter than MS_SSIM_SIDE.
    """
    _check_side("MS-SSIM", MS_SSIM_SIDE, *a.shape[1:3])
    value: Any = 1.0
    for scale, weight in enumerate(_SCALES):
        luminance, structure = _terms(a, b)
        last = scale == len(_SCALES) - 1
        similarity = luminance * structure if last else structure
        value = value * jnp.maximum(similarity.mean((1, 2)), 0.0) ** weight
        a, b = _halved(a), _halved(b)
    return value.mean(-1)
