"""Accumulators over batches: values by place, moments of features, the Inception score.

They run inside jit, merge in any order, and are evaluated on the host in float64.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int

from cranio_jax.errors import InputError

# Accumulators are on a device, and on the host after the last batch. Those of several kinds of
# faces are stacked along a first axis k.
Either = Array | np.ndarray | np.floating


@flax.struct.dataclass
class Moments(clu_metrics.Metric):
    """Accumulates mean and covariance.

    The moments are centred, since raw second moments of features with a large mean lose precision.

    Attributes:
      count: examples so far.
      mean: `(d,)`.
      scatter: `(d, d)`, the sum of outer products of the features minus their mean.
    """

    count: Float[Either, "*k"]
    mean: Float[Either, "*k d"]
    scatter: Float[Either, "*k d d"]

    @classmethod
    def of(cls, name: str, width: int) -> type["Moments"]:
        """Returns a metric for a `clu.metrics.Collection`.

        It accumulates the model output `name`, features `(batch, width)`, with the output `mask`.
        """
        base: Any = cls  # a class created here can't be checked

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
        shift = jnp.asarray(other.mean - self.mean)
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
class ByPlace(clu_metrics.Metric):
    """Collects a value of each example at its own place.

    Attributes:
      values: `(capacity, ...)`, zero at places without an example.
    """

    values: Float[Either, "n ..."]

    @classmethod
    def of(cls, name: str, capacity: int, *shape: int) -> type["ByPlace"]:
        """Returns a metric for a `clu.metrics.Collection`.

        It keeps the model output `name`, `(batch, *shape)`, with the outputs `place` and `mask`.
        """
        base: Any = cls  # a class created here can't be checked

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
    def empty(cls, capacity: int, *shape: int) -> "ByPlace":
        """Returns an accumulator with places for `capacity` examples."""
        return cls(jnp.zeros((capacity, *shape)))

    def add(
        self, values: Float[Array, "b ..."], place: Int[Array, "b"], mask: Float[Array, "b"]
    ) -> "ByPlace":
        """Returns the accumulator with a batch at `place`; a mask of 0 leaves an example out."""
        place = jnp.where(mask > 0, place, self.values.shape[0])
        values = values.astype(self.values.dtype)
        return self.replace(values=jnp.asarray(self.values).at[place].set(values, mode="drop"))

    def merge(self, other: "ByPlace") -> "ByPlace":
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

    count: Float[Either, "*k s"]
    classes: Float[Either, "*k s c"]
    negentropy: Float[Either, "*k s"]

    @classmethod
    def of(cls, name: str, splits: int, classes: int) -> type["InceptionScore"]:
        """Returns a metric for a `clu.metrics.Collection`.

        It accumulates the logits `name` with the outputs `split` and `mask`.
        """
        base: Any = cls  # a class created here can't be checked

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
                "score empty. Lower evaluate.inception_splits."
            )
        mean = classes / count[:, None]
        scores = np.exp(negentropy / count - (mean * np.log(np.maximum(mean, 1e-300))).sum(1))
        return float(scores.mean()), float(scores.std())


def _split_sums(member: Float[Array, "b s"], each: Float[Array, "b c"]) -> Float[Array, "s c"]:
    """Returns the sums of `each` over the examples of each split."""
    return jnp.matmul(member.T, each, precision="highest")
