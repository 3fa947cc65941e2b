"""Numbers with their uncertainty."""

from collections.abc import Sequence

import msgspec
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from cranio_jax.metrics.resampling import bootstrap


class Estimate(msgspec.Struct, omit_defaults=True, frozen=True):
    """A number with its uncertainty, as far as that is known.

    Attributes:
      mean: over subjects, subsets or seeds.
      low, high: the 95 % interval of resampling subjects.
      sd: the standard deviation over subsets, splits or seeds.
      p: the p-value of the gain over a control.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    p: float | None = None


def mean_interval(
    values: Float[Array, "n"], subjects: Sequence[str], rounds: int, seed: int
) -> Estimate:
    """Returns the mean over subjects with its 95 % bootstrap interval.

    Args:
      values: one for each example.
      subjects: whose example it is.
      rounds: resamples of the subjects.
      seed: of the resampling.
    """
    mean, low, high = bootstrap(np.asarray(values), subjects, rounds, seed)
    return Estimate(mean=mean, low=low, high=high)
