"""The decoded terms of Cranio-Diff's loss (Eq. 10 and 11): perceptual and identity, on the estimate of the clean face."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from cranio_jax.errors import InputError
from cranio_jax.models.alignment import check_crop

GATES = ("none", "quadratic", "below")


def check(settings: ml_collections.ConfigDict) -> None:
    """Raises InputError where a setting of `method.losses` can't be meant."""
    if settings.gate not in GATES:
        raise InputError(f"method.losses.gate={settings.gate!r} is not one of {', '.join(GATES)}")
    for name in ("lpips", "identity"):
        if settings[name] < 0:
            raise InputError(f"method.losses.{name}={settings[name]} is negative")
    if settings.every < 1:
        raise InputError(f"method.losses.every={settings.every} must be 1 or more")
    check_crop(settings.crop, "method.losses.crop")


def timestep_gate(
    timesteps: Int[Array, "b"], count: int, gate: str, limit: int
) -> Float[Array, "b"]:
    """How much an estimate of the clean face from step t counts: all alike, (1 - t / T)^2, or those below `limit` alone.

    At high noise the estimate is an average of faces, whose identity means nothing.
    """
    if gate == "none":
        return jnp.ones(timesteps.shape, jnp.float32)
    if gate == "quadratic":
        return (1.0 - timesteps.astype(jnp.float32) / count) ** 2
    return (timesteps < limit).astype(jnp.float32)


def weighted_mean(each: Float[Array, "b"], weight: Float[Array, "b"]) -> Float[Array, ""]:
    """Mean over the batch of what counts; 0 where nothing does."""
    return (each * weight).sum() / jnp.maximum((weight > 0).sum(), 1)


def sometimes(active: Array, term: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """`term()` where `active`, else zeros at no cost."""
    shapes = jax.eval_shape(term)
    return jax.lax.cond(
        active, term, lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    )
