"""The decoded terms of Cranio-Diff's loss (Eq. 10 and 11): perceptual and identity, on the estimate of the clean face."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from cranio_jax.errors import InputError

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
    top, left, height, width = settings.crop
    if not (0 <= top < top + height <= 1 and 0 <= left < left + width <= 1):
        raise InputError(f"method.losses.crop={tuple(settings.crop)} is not (top, left, height, width) within the picture, as parts of 1")


def timestep_gate(timesteps: Int[Array, "b"], count: int, gate: str, limit: int) -> Float[Array, "b"]:
    """How much an estimate of the clean face from step t counts: all alike, (1 - t / T)^2, or those below `limit` alone.

    At high noise the estimate is an average of faces, whose identity means nothing.
    """
    if gate == "none":
        return jnp.ones(timesteps.shape, jnp.float32)
    if gate == "quadratic":
        return (1.0 - timesteps.astype(jnp.float32) / count) ** 2
    return (timesteps < limit).astype(jnp.float32)


def crop_face(faces: Float[Array, "b H W 3"], crop: tuple[float, float, float, float], height: int, width: int) -> Float[Array, "b h w 3"]:
    """The fixed crop `(top, left, height, width)`, as parts of the picture, at the size an embedder takes."""
    top, left, tall, wide = (
        round(part * side) for part, side in zip(crop, (faces.shape[1], faces.shape[2], faces.shape[1], faces.shape[2]), strict=True)
    )
    part = faces[:, top : top + tall, left : left + wide]
    return jax.image.resize(part, (faces.shape[0], height, width, 3), "linear")


def cosine_distance(a: Float[Array, "b d"], b: Float[Array, "b d"]) -> Float[Array, "b"]:
    """1 - cos, 0 for the same direction."""
    dot = (a * b).sum(-1)
    # The square root has no slope at zero.
    return 1.0 - dot * jax.lax.rsqrt(jnp.maximum((a * a).sum(-1) * (b * b).sum(-1), 1e-12))


def weighted_mean(each: Float[Array, "b"], weight: Float[Array, "b"]) -> Float[Array, ""]:
    """Mean over the batch of what counts; 0 where nothing does."""
    return (each * weight).sum() / jnp.maximum((weight > 0).sum(), 1)


def sometimes(active: Array, term: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """`term()` where `active`, else zeros at no cost."""
    shapes = jax.eval_shape(term)
    return jax.lax.cond(active, term, lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
