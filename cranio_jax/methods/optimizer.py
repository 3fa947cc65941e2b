"""AdamW, its learning rate schedule, and clipping of gradients."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from cranio_jax.errors import InputError

SCHEDULES = ("constant", "cosine", "linear")


def make_optimizer(
    t: ml_collections.ConfigDict, rates: Mapping[str, float]
) -> optax.GradientTransformation:
    """Returns AdamW as `config.train` sets it.

    Args:
      t: `config.train`. After linear warm-up the rate is 'constant', falls to zero as a 'cosine'
        at the last step, or, if 'linear', stays for half of the steps and then falls to zero, as in
        the authors' Pix2Pix and CycleGAN.
      rates: networks with another rate than `t.learning_rate`, on the same schedule. Parameters
        are a tree by network.

    Raises:
      InputError: an unknown schedule.
    """
    clip = optax.clip_by_global_norm(t.clip_norm) if t.clip_norm else optax.identity()
    adamw = optax.adamw(_schedule(t), b1=t.b1, b2=t.b2, weight_decay=t.weight_decay)
    factors = {name: rate / t.learning_rate for name, rate in rates.items()}

    def scale(updates, params):
        return {
            name: jax.tree.map(lambda u, name=name: factors.get(name, 1.0) * u, part)
            for name, part in updates.items()
        }

    return optax.chain(clip, adamw, optax.stateless(scale) if factors else optax.identity())


def _schedule(t: ml_collections.ConfigDict) -> optax.Schedule:
    """Returns the learning rate by step."""
    if t.schedule == "cosine":
        last = max(t.num_steps, t.warmup_steps + 1)
        return optax.warmup_cosine_decay_schedule(0.0, t.learning_rate, t.warmup_steps, last)
    if t.schedule == "constant":
        start = 0.0 if t.warmup_steps else t.learning_rate
        return optax.linear_schedule(start, t.learning_rate, max(t.warmup_steps, 1))
    if t.schedule == "linear":
        half = t.num_steps // 2
        # join_schedules counts the second schedule's steps from the end of the warm-up.
        rising = optax.linear_schedule(0.0, t.learning_rate, max(t.warmup_steps, 1))
        falling = optax.linear_schedule(
            t.learning_rate, 0.0, max(t.num_steps - half, 1), half - t.warmup_steps
        )
        return optax.join_schedules([rising, falling], [t.warmup_steps])
    names = ", ".join(SCHEDULES)
    raise InputError(f"train.schedule={t.schedule!r}: it is unknown. Use one of {names}.")


def accumulated(
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    params: Any,
    batch: Any,
    draws: Any,
    parts: int,
) -> tuple[Any, dict[str, jax.Array]]:
    """Returns the mean gradient and metrics of a batch, computed in `parts` equal pieces.

    The pieces are strided, so that each holds an equal share of every device's examples and none
    has to move.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch, draws)

    def cut(a):
        return jnp.swapaxes(a.reshape(a.shape[0] // parts, parts, *a.shape[1:]), 0, 1)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, gradient(params, *piece)), None

    pieces = jax.tree.map(cut, (batch, draws))
    first = jax.tree.map(lambda a: a[0], pieces)
    shapes = jax.eval_shape(gradient, params, *first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, pieces)
    return jax.tree.map(lambda a: a / parts, total)
