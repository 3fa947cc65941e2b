"""Uncertainty of means over subjects: one subject's pictures are not independent."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


def subject_means(values: Float[Array, "n"], subjects: Sequence[str]) -> Float[Array, "s"]:
    """The mean of each subject's values, in the order of the subjects' names."""
    _, which = np.unique(subjects, return_inverse=True)
    return np.bincount(which, values) / np.bincount(which)


def bootstrap(
    values: Float[Array, "n"], subjects: Sequence[str], rounds: int, seed: int
) -> tuple[float, float, float]:
    """Mean over subjects and the 95 % interval of resampling them: one subject's pictures are not independent.

    Args:
      values: one number for each example.
      subjects: whose example it is.
      rounds: resamples.
      seed: of the resampling.
    """
    means = subject_means(values, subjects)
    draws = np.random.default_rng(seed).integers(0, len(means), (rounds, len(means)))
    low, high = np.percentile(means[draws].mean(1), [2.5, 97.5])
    return float(means.mean()), float(low), float(high)


def permutation_test(
    values: Float[Array, "q"],
    control: Float[Array, "q"],
    subjects: Sequence[str],
    rounds: int,
    seed: int,
) -> float:
    """Chance of so large a mean gain over `control` if it were none: signs of the subjects' mean gains are drawn anew."""
    gains = subject_means(np.asarray(values) - np.asarray(control), subjects)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (rounds, len(gains)))
    return float((1 + ((signs * gains).mean(1) >= gains.mean() - 1e-12).sum()) / (1 + rounds))
