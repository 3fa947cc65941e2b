"""Distances of two sets of faces in a network's features: Frechet and kernel distance.

Both are computed on the host in float64.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from cranio_jax.errors import InputError


def root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Returns the symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def frechet_distance(
    a: tuple[np.ndarray, np.ndarray],
    b: tuple[np.ndarray, np.ndarray],
    root_b: Float[np.ndarray, "d d"] | None = None,
) -> float:
    """Returns the Frechet distance of two normal distributions, each `(mean, covariance)`.

    It is the FID for Inception's features: |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))
    (Heusel et al. 2017). The trace of the root is computed from the symmetric
    C_b^(1/2) C_a C_b^(1/2), whose eigenvalues are real even for the singular covariances of few
    images. `root_b` is `root` of b's covariance, to compute it once for many comparisons.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    root_b = root(cov_b) if root_b is None else root_b
    product = np.linalg.eigvalsh(root_b @ cov_a @ root_b)
    spread = np.trace(cov_a) + np.trace(cov_b) - 2.0 * np.sqrt(np.maximum(product, 0.0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + spread)


def frechet_distance_of_rows(a: Float[Any, "n d"], b: Float[Any, "m d"]) -> float:
    """Returns the Frechet distance of two sets of features.

    It is exact, and quick if there are fewer pictures than features. The trace of (C_a C_b)^(1/2)
    is the sum of the singular values of A B^T / ((n - 1) (m - 1))^(1/2), where A and B are the
    centred features. So no root is taken of a singular covariance's zeros, which have rounding
    errors. Raises InputError if a set has fewer than two images.
    """
    smaller = min(len(a), len(b))
    if smaller < 2:
        raise InputError(f"a covariance of {smaller} images is undefined. Score at least two.")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    left, right = ((x - x.mean(0)) / np.sqrt(len(x) - 1.0) for x in (a, b))
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum() + (left**2).sum() + (right**2).sum() - 2.0 * cross
    )


def kernel_distance(
    a: Float[Any, "n d"], b: Float[Any, "m d"], subset: int, rounds: int, seed: int
) -> tuple[float, float]:
    """Returns mean and standard deviation of the kernel distance over random subsets.

    It is the unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018), the KID
    for Inception's features. Raises InputError if a set is smaller than `subset`.
    """
    smaller = min(len(a), len(b))
    if not 2 <= subset <= smaller:
        raise InputError(
            f"evaluate.kernel_subset={subset}: only {smaller} images are scored. "
            f"Set 2 to {smaller}."
        )
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    rng = np.random.default_rng(seed)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1.0) ** 3

    def mean_of_pairs(k):
        return (k.sum() - np.trace(k)) / (subset * (subset - 1))

    def distance():
        x, y = (features[rng.choice(len(features), subset, replace=False)] for features in (a, b))
        return mean_of_pairs(kernel(x, x)) + mean_of_pairs(kernel(y, y)) - 2.0 * kernel(x, y).mean()

    distances = [distance() for _ in range(rounds)]
    return float(np.mean(distances)), float(np.std(distances))
