"""Metrics of sets: all generated faces and all true ones, in the features of a network."""

import dataclasses
import functools
from typing import NamedTuple

from jaxtyping import Float
from numpy import ndarray as Array

from cranio_jax.metrics.distributions import (
    frechet_distance,
    frechet_distance_of_rows,
    kernel_distance,
    root,
)
from cranio_jax.metrics.estimates import Estimate
from cranio_jax.metrics.registry import SetMetric, Weights, register

INCEPTION = "inception"
INCEPTION_WEIGHTS = Weights(
    "fid, kid and the inception score", "pt_inception-2015-12-05-6726825d.pth"
)


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """A network's features of a set of pictures, on the host.

    Attributes:
      rows: `(n, d)` features.
      mean, covariance: of the features, in float64.
      inception_score: mean and standard deviation over splits; None if the network has no classes.
    """

    rows: Float[Array, "n d"]
    mean: Float[Array, "d"]
    covariance: Float[Array, "d d"]
    inception_score: tuple[float, float] | None = None

    @functools.cached_property
    def root(self) -> Float[Array, "d d"]:
        """The square root of the covariance."""
        return root(self.covariance)


class SetOptions(NamedTuple):
    """Attributes: `subset` and `rounds` of the kernel distance, and the `seed` of its subsets."""

    subset: int
    rounds: int
    seed: int


def _frechet(ours: FeatureSet, truth: FeatureSet, options: SetOptions) -> Estimate:
    # With fewer pictures than features the covariances are singular, and their root inexact.
    if min(len(ours.rows), len(truth.rows)) <= len(truth.covariance):
        return Estimate(mean=frechet_distance_of_rows(ours.rows, truth.rows))
    moments = (ours.mean, ours.covariance), (truth.mean, truth.covariance)
    return Estimate(mean=frechet_distance(*moments, truth.root))


def _kernel(ours: FeatureSet, truth: FeatureSet, options: SetOptions) -> Estimate:
    mean, sd = kernel_distance(ours.rows, truth.rows, options.subset, options.rounds, options.seed)
    return Estimate(mean=mean, sd=sd)


def _inception_score(ours: FeatureSet, truth: FeatureSet, options: SetOptions) -> Estimate | None:
    if ours.inception_score is None:
        return None
    mean, sd = ours.inception_score
    return Estimate(mean=float(mean), sd=float(sd))


def _of_inception(name: str):
    def key_of(network: str) -> str | None:
        return name if network == INCEPTION else None

    return key_of


def _of_others(name: str):
    def key_of(network: str) -> str | None:
        return None if network == INCEPTION else f"{name}/{network}"

    return key_of


FID = register(
    SetMetric(
        name="fid",
        title="FID",
        higher_is_better=False,
        digits=1,
        weights=INCEPTION_WEIGHTS,
        key_of=_of_inception("fid"),
        compute=_frechet,
    )
)
KID = register(
    SetMetric(
        name="kid",
        title="KID x 1000",
        higher_is_better=False,
        digits=2,
        scale=1000.0,
        weights=INCEPTION_WEIGHTS,
        key_of=_of_inception("kid"),
        compute=_kernel,
    )
)
INCEPTION_SCORE = register(
    SetMetric(
        name="inception score",
        title="Inception score",
        higher_is_better=True,
        digits=2,
        weights=INCEPTION_WEIGHTS,
        key_of=_of_inception("inception score"),
        compute=_inception_score,
    )
)
FRECHET = register(
    SetMetric(
        name="frechet",
        title="Fréchet distance",
        higher_is_better=False,
        digits=3,
        key_of=_of_others("frechet"),
        compute=_frechet,
    )
)
KERNEL = register(
    SetMetric(
        name="kernel",
        title="kernel distance x 1000",
        higher_is_better=False,
        digits=2,
        scale=1000.0,
        key_of=_of_others("kernel"),
        compute=_kernel,
    )
)
