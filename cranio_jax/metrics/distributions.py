"""Metrics of sets of faces in a network's features: Frechet, kernel distance, Inception score.

Accumulators run inside jit, merge in any order, and are evaluated on the host in float64.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int

from cranio_jax.errors import InputError


@flax.struct.dataclass
class Moments(clu_metrics.Metric):
    """Accumulates mean and covariance.

    The moments are centred, since raw second moments of features with a large mean lose precision.

    Attributes:
      count: examples so far.
      mean: `(d,)`.
      scatter: `(d, d)`, the sum of outer products of the features minus their mean.
    """

    count: Float[Array, ""]
    mean: Float[Array, "d"]
    scatter: Float[Array, "d d"]

    @classmethod
    def of(cls, name: str, width: int) -> type["Moments"]:
        """Returns a metric for a `clu.metrics.Collection`.

        It accumulates the model output `name`, features `(batch, width)`, with the output `mask`.
        """
        base: Any = cls  # a class that is made here can't be checked

        @flax.struct.dataclass
        class Of(base):
            @classmethod
            def empty(cls):
                return super().empty(width)

            @classmethod
            def from_model_output(cls, mask, **outputs):
                return super().from_model_output(outputs[name], mask)

        return Of

    @classmethod
    def empty(cls, width: int) -> "Moments":
        """Returns an accumulator without examples, of features of `width`."""
        return cls(jnp.zeros(()), jnp.zeros(width), jnp.zeros((width, width)))

    @classmethod
    def from_model_output(
        cls, features: Float[Array, "b d"], mask: Float[Array, "b"], **_
    ) -> "Moments":
        """Returns an accumulator of one batch; a mask of 0 leaves an example out."""
        features = features.astype(jnp.float32)
        mask = mask.astype(jnp.float32)
        count = mask.sum()
        mean = (features * mask[:, None]).sum(0) / jnp.maximum(count, 1.0)
        centred = (features - mean[None]) * mask[:, None]
        return cls(count, mean, jnp.matmul(centred.T, centred, precision="highest"))

    def merge(self, other: "Moments") -> "Moments":
        """Returns the accumulator of both sets of examples (Chan et al. 1979)."""
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1.0)
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + jnp.outer(shift, shift) * (self.count * share)
        return self.replace(count=count, mean=self.mean + shift * share, scatter=scatter)

    def compute(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(mean, covariance)` in float64.

        Raises InputError if there are fewer than two examples.
        """
        count, mean, scatter = (
            np.asarray(a, np.float64) for a in jax.device_get((self.count, self.mean, self.scatter))
        )
        if count < 2:
            raise InputError(
                f"a covariance of {int(count)} images is undefined. Score at least two images."
            )
        return mean, scatter / (count - 1.0)


@flax.struct.dataclass
class Rows(clu_metrics.Metric):
    """Collects a value of each example at its own place.

    Attributes:
      values: `(capacity, ...)`, zero at places without an example.
    """

    values: Float[Array, "n ..."]

    @classmethod
    def of(cls, name: str, capacity: int, *shape: int) -> type["Rows"]:
        """Returns a metric for a `clu.metrics.Collection`.

        It keeps the model output `name`, `(batch, *shape)`, with the outputs `place` and `mask`.
        """
        base: Any = cls  # a class that is made here can't be checked

        @flax.struct.dataclass
        class Of(base):
            @classmethod
            def empty(cls):
                return super().empty(capacity, *shape)

            @classmethod
            def from_model_output(cls, place, mask, **outputs):
                return cls.empty().add(outputs[name], place, mask)

        return Of

    @classmethod
    def empty(cls, capacity: int, *shape: int) -> "Rows":
        """Returns an accumulator with places for `capacity` examples."""
        return cls(jnp.zeros((capacity, *shape)))

    def add(
        self, values: Float[Array, "b ..."], place: Int[Array, "b"], mask: Float[Array, "b"]
    ) -> "Rows":
        """Returns the accumulator with a batch at `place`; a mask of 0 leaves an example out."""
        place = jnp.where(mask > 0, place, self.values.shape[0])
        values = values.astype(self.values.dtype)
        return self.replace(values=self.values.at[place].set(values, mode="drop"))

    def merge(self, other: "Rows") -> "Rows":
        """Returns the accumulator of both, which must have no place in common."""
        return self.replace(values=self.values + other.values)

    def compute(self) -> np.ndarray:
        """Returns the values."""
        return np.asarray(jax.device_get(self.values))


@flax.struct.dataclass
class InceptionScore(clu_metrics.Metric):
    """Accumulates the Inception score in several splits (Salimans et al. 2016).

    It is exp of the mean divergence of a picture's class probabilities from those of its split.

    Attributes:
      count: `(splits,)` examples.
      classes: `(splits, classes)` summed probabilities.
      negentropy: `(splits,)` summed p log p.
    """

    count: Float[Array, "s"]
    classes: Float[Array, "s c"]
    negentropy: Float[Array, "s"]

    @classmethod
    def of(cls, name: str, splits: int, classes: int) -> type["InceptionScore"]:
        """Returns a metric for a `clu.metrics.Collection`.

        It accumulates the logits `name` with the outputs `split` and `mask`.
        """
        base: Any = cls  # a class that is made here can't be checked

        @flax.struct.dataclass
        class Of(base):
            @classmethod
            def empty(cls):
                return super().empty(splits, classes)

            @classmethod
            def from_model_output(cls, split, mask, **outputs):
                return cls.empty().add(outputs[name], split, mask)

        return Of

    @classmethod
    def empty(cls, splits: int, classes: int) -> "InceptionScore":
        """Returns an accumulator without examples."""
        return cls(jnp.zeros(splits), jnp.zeros((splits, classes)), jnp.zeros(splits))

    def add(
        self, logits: Float[Array, "b c"], split: Int[Array, "b"], mask: Float[Array, "b"]
    ) -> "InceptionScore":
        """Returns the accumulator with a batch; a mask of 0 leaves an example out."""
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        p = jnp.exp(log_p)
        member = jax.nn.one_hot(split, self.count.shape[0]) * mask[:, None]
        negentropy = _split_sums(member, (p * log_p).sum(-1, keepdims=True))[:, 0]
        return self.replace(
            count=self.count + member.sum(0),
            classes=self.classes + _split_sums(member, p),
            negentropy=self.negentropy + negentropy,
        )

    def merge(self, other: "InceptionScore") -> "InceptionScore":
        """Returns the accumulator of both sets of examples."""
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> tuple[float, float]:
        """Returns mean and standard deviation over the splits.

        Raises InputError if a split has no example.
        """
        count, classes, negentropy = (
            np.asarray(a, np.float64)
            for a in jax.device_get((self.count, self.classes, self.negentropy))
        )
        if not count.all():
            raise InputError(
                f"{int(count.sum())} images leave one of {len(count)} splits of the Inception "
                "score empty; take fewer splits"
            )
        mean = classes / count[:, None]
        scores = np.exp(negentropy / count - (mean * np.log(np.maximum(mean, 1e-300))).sum(1))
        return float(scores.mean()), float(scores.std())


def _split_sums(member: Float[Array, "b s"], each: Float[Array, "b c"]) -> Float[Array, "s c"]:
    """Returns the sums of `each` over the examples of each split."""
    return jnp.matmul(member.T, each, precision="highest")


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
            f"the kernel distance's subsets of {subset} images don't fit in {smaller}; "
            f"set a size of 2 to {smaller}"
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
