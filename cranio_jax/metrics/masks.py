"""The agreement of two masks, such as a head that was found in an X-ray and the true one."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from cranio_jax.metrics.registry import Metric, register


def overlap(found: Bool[Array, "b h w 1"], true: Bool[Array, "b h w 1"]) -> Float[Array, "b"]:
    """Returns the intersection over the union of each pair of masks; 1 if both are empty."""
    axes = (1, 2, 3)
    intersection = (found & true).sum(axes)
    union = (found | true).sum(axes)
    return jnp.where(union > 0, intersection / jnp.maximum(union, 1), 1.0)


IOU = register(Metric(name="iou", title="IoU of the head", higher_is_better=True, digits=3))
