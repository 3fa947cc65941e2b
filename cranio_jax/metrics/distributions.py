"""How a set of generated faces lies beside a set of real ones in a network's features: Frechet and kernel distance, Inception score.

What accumulates runs inside jit, merges in any order, and ends on the host in float64.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int

from cranio_jax.errors import InputError


@flax.struct.dataclass
class Moments(clu_metrics.Metric):
    """Mean and covariance, centred all along: raw second moments lose the digits of features with a large mean.

    Attributes:
      count: examples so far.
      mean: `(d,)`.
      scatter: `(d, d)`, the sum of outer products of what is left when the mean is taken off.
    """

    count: Float[Array, ""]
    mean: Float[Array, "d"]
    scatter: Float[Array, "d d"]

    @classmethod
    def of(cls, name: str, width: int) -> type["Moments"]:
        """For a `clu.metrics.Collection`: of the model output `name`, features `(batch, width)`; takes `mask` beside it."""

        @flax.struct.dataclass
        class Of(cls):
            @classmethod
            def empty(cls):
                return super().empty(width)

            @classmethod
            def from_model_output(cls, mask, **outputs):
                return super().from_model_output(outputs[name], mask)

        return Of

    @classmethod
    def empty(cls, width: int) -> "Moments":
        """Of no example with features of `width`."""
        return cls(jnp.zeros(()), jnp.zeros(width), jnp.zeros((width, width)))

    @classmethod
    def from_model_output(
        cls, features: Float[Array, "b d"], mask: Float[Array, "b"], **_
    ) -> "Moments":
        """Of a batch; a mask of 0 leaves an example out."""
        features, mask = features.astype(jnp.float32), mask.astype(jnp.float32)
        count = mask.sum()
        mean = (features * mask[:, None]).sum(0) / jnp.maximum(count, 1.0)
        apart = (features - mean[None]) * mask[:, None]
        return cls(count, mean, jnp.matmul(apart.T, apart, precision="highest"))

    def merge(self, other: "Moments") -> "Moments":
        """Of both (Chan et al. 1979)."""
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1.0)
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + jnp.outer(apart, apart) * (self.count * share)
        return self.replace(count=count, mean=self.mean + apart * share, scatter=scatter)

    def compute(self) -> tuple[np.ndarray, np.ndarray]:
        """`(mean, covariance)` in float64. Raises InputError where there are fewer than two examples."""
        count, mean, scatter = (
            np.asarray(a, np.float64) for a in jax.device_get((self.count, self.mean, self.scatter))
        )
        if count < 2:
            raise InputError(
                f"a covariance of {int(count)} images means nothing; two are the least"
            )
        return mean, scatter / (count - 1.0)


@flax.struct.dataclass
class Rows(clu_metrics.Metric):
    """A value of each example at the example's own place, for what can't be summed up.

    Attributes:
      values: `(capacity, ...)`, zero where nothing came.
    """

    values: Float[Array, "n ..."]

    @classmethod
    def of(cls, name: str, capacity: int, *shape: int) -> type["Rows"]:
        """For a `clu.metrics.Collection`: of the model output `name`, `(batch, *shape)`; takes `place` and `mask` beside it."""

        @flax.struct.dataclass
        class Of(cls):
            @classmethod
            def empty(cls):
                return super().empty(capacity, *shape)

            @classmethod
            def from_model_output(cls, place, mask, **outputs):
                return cls.empty().add(outputs[name], place, mask)

        return Of

    @classmethod
    def empty(cls, capacity: int, *shape: int) -> "Rows":
        """Room for `capacity` examples."""
        return cls(jnp.zeros((capacity, *shape)))

    def add(
        self, values: Float[Array, "b ..."], place: Int[Array, "b"], mask: Float[Array, "b"]
    ) -> "Rows":
        """With a batch whose examples belong at `place`; a mask of 0 leaves an example out."""
        place = jnp.where(mask > 0, place, self.values.shape[0])
        return self.replace(
            values=self.values.at[place].set(values.astype(self.values.dtype), mode="drop")
        )

    def merge(self, other: "Rows") -> "Rows":
        """Of both; no place may be in both."""
        return self.replace(values=self.values + other.values)

    def compute(self) -> np.ndarray:
        """The values."""
        return np.asarray(jax.device_get(self.values))


@flax.struct.dataclass
class InceptionScore(clu_metrics.Metric):
    """exp of the mean divergence of a picture's classes from its set's, in each of several splits (Salimans et al. 2016).

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
        """For a `clu.metrics.Collection`: of the logits `name`; takes `split` and `mask` beside them."""

        @flax.struct.dataclass
        class Of(cls):
            @classmethod
            def empty(cls):
                return super().empty(splits, classes)

            @classmethod
            def from_model_output(cls, split, mask, **outputs):
                return cls.empty().add(outputs[name], split, mask)

        return Of

    @classmethod
    def empty(cls, splits: int, classes: int) -> "InceptionScore":
        """Of no example."""
        return cls(jnp.zeros(splits), jnp.zeros((splits, classes)), jnp.zeros(splits))

    def add(
        self, logits: Float[Array, "b c"], split: Int[Array, "b"], mask: Float[Array, "b"]
    ) -> "InceptionScore":
        """With a batch, each example in its `split`; a mask of 0 leaves an example out."""
        log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
        p = jnp.exp(log_p)
        member = jax.nn.one_hot(split, self.count.shape[0]) * mask[:, None]
        into = lambda each: jnp.matmul(member.T, each, precision="highest")
        negentropy = into((p * log_p).sum(-1, keepdims=True))[:, 0]
        return self.replace(
            count=self.count + member.sum(0),
            classes=self.classes + into(p),
            negentropy=self.negentropy + negentropy,
        )

    def merge(self, other: "InceptionScore") -> "InceptionScore":
        """Of both."""
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits. Raises InputError where a split has no example."""
        count, classes, negentropy = (
            np.asarray(a, np.float64)
            for a in jax.device_get((self.count, self.classes, self.negentropy))
        )
        if not count.all():
            raise InputError(
                f"{int(count.sum())} images leave one of {len(count)} splits of the Inception score empty; take fewer splits"
            )
        mean = classes / count[:, None]
        scores = np.exp(negentropy / count - (mean * np.log(np.maximum(mean, 1e-300))).sum(1))
        return float(scores.mean()), float(scores.std())


def root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """The symmetric square root; eigenvalues below 0, which rounding makes of 0, count as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def frechet_distance(
    a: tuple[np.ndarray, np.ndarray],
    b: tuple[np.ndarray, np.ndarray],
    root_b: Float[np.ndarray, "d d"] | None = None,
) -> float:
    """Frechet distance of two normal distributions, each `(mean, covariance)`: FID where features are Inception's.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017). The trace of the root is taken through the
    symmetric C_b^(1/2) C_a C_b^(1/2), which has real eigenvalues where covariances of few images are singular, too.
    `root_b` spares the root of a `b` that many are held against.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    root_b = root(cov_b) if root_b is None else root_b
    product = np.linalg.eigvalsh(root_b @ cov_a @ root_b)
    spread = np.trace(cov_a) + np.trace(cov_b) - 2.0 * np.sqrt(np.maximum(product, 0.0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + spread)


def frechet_distance_of_rows(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> float:
    """As `frechet_distance`, of the features themselves: exact and quick where there are fewer pictures than features.

    The trace of (C_a C_b)^(1/2) is the sum of the singular values of A B^T / ((n - 1) (m - 1))^(1/2), with A and B the
    centred features: no root is taken of the zeros, up to rounding, that singular covariances are full of.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if min(len(a), len(b)) < 2:
        raise InputError(
            f"a covariance of {min(len(a), len(b))} images means nothing; two are the least"
        )
    left, right = ((x - x.mean(0)) / np.sqrt(len(x) - 1.0) for x in (a, b))
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum() + (left**2).sum() + (right**2).sum() - 2.0 * cross
    )


def kernel_distance(
    a: Float[Array, "n d"], b: Float[Array, "m d"], subset: int, rounds: int, seed: int
) -> tuple[float, float]:
    """Mean and standard deviation, over random subsets, of the unbiased squared MMD with (x.y / d + 1)^3 (Binkowski et al. 2018).

    KID where features are Inception's. Raises InputError where a set is smaller than a subset.
    """
    smaller = min(len(a), len(b))
    if not 2 <= subset <= smaller:
        raise InputError(
            f"the kernel distance's subsets of {subset} images don't fit in {smaller}; set a size of 2 to {smaller}"
        )
    a, b, rng = np.asarray(a, np.float64), np.asarray(b, np.float64), np.random.default_rng(seed)
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1.0) ** 3
    among = lambda k: (k.sum() - np.trace(k)) / (subset * (subset - 1))

    def once():
        x, y = (features[rng.choice(len(features), subset, replace=False)] for features in (a, b))
        return among(kernel(x, x)) + among(kernel(y, y)) - 2.0 * kernel(x, y).mean()

    found = [once() for _ in range(rounds)]
    return float(np.mean(found)), float(np.std(found))
