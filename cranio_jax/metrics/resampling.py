"""Uncertainty of means over subjects: one subject's pictures are not independent."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


def subject_means(values: Float[Array, "n"], subjects: Sequence[str]) -> Float[Array, "s"]:
    """Returns the mean of each subject's values, in the order of the subjects' names."""
    _, which = np.unique(subjects, return_inverse=True)
    return np.bincount(which, values) / np.bincount(which)


def bootstrap(
    values: Float[Array, "n"], subjects: Sequence[str], rounds: int, seed: int
) -> tuple[float, float, float]:
    """Returns the mean over subjects and the bounds of its 95 % bootstrap interval.

    Subjects are resampled, because one subject's pictures are not independent.

    Args:
      values: one number for each example.
      subjects: the subject of each example.
      rounds: number of resamples.
      seed: of the resampling.
    """
    means = subject_means(values, subjects)
    draws = np.random.default_rng(seed).integers(0, len(means), (rounds, len(means)))
    low, high = np.percentile(means[draws].mean(1), [2.5, 97.5])
    return float(means.mean()), float(low), float(high)


def bootstrap_ratio(
    over: Float[Array, "s"], under: Float[Array, "s"], rounds: int, seed: int
) -> tuple[float, float, float]:
    """Returns the ratio of two means over subjects, and the bounds of its 95 % bootstrap interval.

    `over` and `under` have a value for each subject; both are resampled together.
    """
    draws = np.random.default_rng(seed).integers(0, len(over), (rounds, len(over)))
    ratios = over[draws].sum(1) / under[draws].sum(1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(over.sum() / under.sum()), float(low), float(high)


def permutation_test(
    values: Float[Array, "q"],
    control: Float[Array, "q"],
    subjects: Sequence[str],
    rounds: int,
    seed: int,
) -> float:
    """Returns the p-value of the mean gain over `control`, one-sided.

    The null distribution flips the signs of the subjects' mean gains at random.
    """
    gains = subject_means(np.asarray(values) - np.asarray(control), subjects)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (rounds, len(gains)))
    return float((1 + ((signs * gains).mean(1) >= gains.mean() - 1e-12).sum()) / (1 + rounds))
