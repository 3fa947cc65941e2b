"""AdamW with warm-up, clipping and accumulation."""

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
    """AdamW as `config.train` sets it: rate 'constant', 'cosine' or 'linear' after linear warm-up.

    'cosine' falls to zero at the last step; 'linear' stays until half of the steps are done and falls to zero then, as the
    authors of Pix2Pix and CycleGAN have it.

    `rates` gives networks another rate than `t.learning_rate`, on the same schedule; parameters are a tree by network.
    """
    if t.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, t.learning_rate, t.warmup_steps, max(t.num_steps, t.warmup_steps + 1)
        )
    elif t.schedule == "constant":
        rate = optax.linear_schedule(
            0.0 if t.warmup_steps else t.learning_rate, t.learning_rate, max(t.warmup_steps, 1)
        )
    elif t.schedule == "linear":
        half = t.num_steps // 2
        falling = optax.linear_schedule(
            t.learning_rate, 0.0, max(t.num_steps - half, 1), half - t.warmup_steps
        )
        rate = optax.join_schedules(
            [optax.linear_schedule(0.0, t.learning_rate, max(t.warmup_steps, 1)), falling],
            [t.warmup_steps],
        )
    else:
        raise InputError(f"train.schedule={t.schedule!r} is not one of {', '.join(SCHEDULES)}")
    clip = optax.clip_by_global_norm(t.clip_norm) if t.clip_norm else optax.identity()
    factors = {name: own / t.learning_rate for name, own in rates.items()}
    times = lambda part, factor: jax.tree.map(lambda u: factor * u, part)
    scale = lambda updates, params: {
        name: times(part, factors.get(name, 1.0)) for name, part in updates.items()
    }
    own_rates = optax.stateless(scale) if factors else optax.identity()
    return optax.chain(
        clip, optax.adamw(rate, b1=t.b1, b2=t.b2, weight_decay=t.weight_decay), own_rates
    )


def accumulated(
    loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]],
    params: Any,
    batch: Any,
    draws: Any,
    parts: int,
) -> tuple[Any, dict[str, jax.Array]]:
    """Mean gradient and metrics of a batch, computed in `parts` equal pieces one after the other.

    The pieces are strided, so that each holds a share of every device's examples and none has to move.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient(params, batch, draws)
    cut = lambda a: jnp.swapaxes(a.reshape(a.shape[0] // parts, parts, *a.shape[1:]), 0, 1)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, gradient(params, *piece)), None

    pieces = jax.tree.map(cut, (batch, draws))
    start = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype),
        jax.eval_shape(gradient, params, *jax.tree.map(lambda a: a[0], pieces)),
    )
    total, _ = jax.lax.scan(add, start, pieces)
    return jax.tree.map(lambda a: a / parts, total)
