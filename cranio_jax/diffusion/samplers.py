"""Samplers as one scan over a table.

DDIM, DDPM and DPM-Solver++(2M) all move from x_t to the next step by
`x <- a x + b D + c (D - D_before) + s z`, where D is the network's current estimate of the clean sample
and z is fresh noise. What differs is the table of (a, b, c, s), made here in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cranio_jax.diffusion.schedules import NoiseSchedule

SAMPLERS = ("ddim", "ddpm", "dpm++2m")
SPACINGS = ("leading", "trailing", "linspace")


class Steps(NamedTuple):
    """A sampler's table, each `(steps,)`: the timestep, and the factors a, b, c, s above."""

    timesteps: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    s: np.ndarray


def _spaced(count: int, steps: int, spacing: str, offset: int, solver: bool) -> np.ndarray:
    """Timesteps in falling order, by the rules that diffusers' schedulers follow."""
    if not 0 < steps <= count:
        raise ValueError(f"{steps} sampling steps are not in 1 to {count}, the steps in training")
    if spacing == "leading":
        if solver:  # the multistep solvers leave out the cleanest place
            return (np.arange(steps + 1) * (count // (steps + 1)))[::-1][:-1] + offset
        return (np.arange(steps) * (count // steps))[::-1] + offset
    if spacing == "trailing":
        return np.round(np.arange(count, 0, -count / steps)).astype(int)[:steps] - 1
    if spacing == "linspace":
        if solver:
            return np.round(np.linspace(0, count - 1, steps + 1)).astype(int)[::-1][:-1]
        return np.round(np.linspace(0, count - 1, steps)).astype(int)[::-1]
    raise ValueError(f"spacing={spacing!r} is not one of {', '.join(SPACINGS)}")


def steps(
    schedule: NoiseSchedule,
    sampler: str,
    num_steps: int,
    spacing: str = "leading",
    steps_offset: int = 1,
    set_alpha_to_one: bool = False,
    eta: float = 0.0,
) -> Steps:
    """The table of a sampler.

    Args:
      schedule: noise levels.
      sampler: 'ddim' (Song et al. 2021), 'ddpm' (Ho et al. 2020, posterior variance) or 'dpm++2m' (Lu et al. 2022).
      num_steps: how many evaluations of the network.
      spacing: which timesteps, as diffusers' `timestep_spacing`.
      steps_offset: added to the timesteps of 'leading'.
      set_alpha_to_one: DDIM's last step goes to the clean sample, not to the schedule's first noise level.
      eta: DDIM's share of fresh noise.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is not one of {', '.join(SAMPLERS)}")
    bar = schedule.alphas_cumprod
    t = _spaced(len(bar), num_steps, spacing, steps_offset, solver=sampler.startswith("dpm"))
    if sampler == "ddim":  # by a constant stride, whatever the spacing
        following = t - len(bar) // num_steps
        after = np.where(following >= 0, bar[np.maximum(following, 0)], 1.0 if set_alpha_to_one else bar[0])
    else:
        after = np.append(bar[t[1:]], 1.0)
    now = bar[t]
    alpha, sigma, alpha_next, sigma_next = np.sqrt(now), np.sqrt(1 - now), np.sqrt(after), np.sqrt(1 - after)
    zeros = np.zeros(num_steps)
    if sampler == "ddim":
        fresh = eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
        direction = np.sqrt(np.maximum(1 - after - fresh**2, 0.0))
        return Steps(t, direction / sigma, alpha_next - direction * alpha / sigma, zeros, fresh)
    if sampler == "ddpm":
        ratio = now / after
        fresh = np.sqrt(np.maximum((1 - after) / (1 - now) * (1 - ratio), 1e-20)) * (t > 0)
        return Steps(t, np.sqrt(ratio) * (1 - after) / (1 - now), alpha_next * (1 - ratio) / (1 - now), zeros, fresh)
    with np.errstate(divide="ignore", invalid="ignore"):  # the ends may be pure noise and no noise
        half_log_snr = np.log(alpha) - np.log(sigma)
        h = np.append(half_log_snr[1:], np.inf) - half_log_snr
        b = -alpha_next * np.expm1(-h)
        c = np.zeros(num_steps)
        # Second order wherever there is an estimate before; the last step, to no noise, is first order.
        c[1:-1] = 0.5 * b[1:-1] * h[1:-1] / h[:-2]
    return Steps(t, sigma_next / sigma, b, c, zeros)


def sample(
    denoise: Callable[[Array, Array], Array],
    noise: Float[Array, "batch *n"],
    table: Steps,
    schedule: NoiseSchedule,
    keys: Array | None = None,
    clip: float | None = None,
    temperature: float = 1.0,
) -> Float[Array, "batch *n"]:
    """Runs a sampler from pure noise.

    Args:
      denoise: `(x_t, timesteps (batch,)) -> network output`.
      noise: standard normal.
      table: from `steps`.
      schedule: noise levels and the meaning of the network's output.
      keys: `(batch,)` one key for each example; needed where the table asks for fresh noise.
      clip: cuts each estimate of the clean sample to [-clip, clip].
      temperature: factor of all noise. Less than 1 draws nearer to the most likely: samples are alike then, and their spread
        tells less of what is not known.
    """
    batch = noise.shape[0]
    stochastic = bool(np.any(table.s > 0))
    if stochastic and keys is None:
        raise ValueError("this sampler draws noise at every step: pass one key for each example")

    def step(carry, row):
        x, before = carry
        t, a, b, c, s, index = row
        timesteps = jnp.full((batch,), t)
        clean = schedule.to_x0(denoise(x, timesteps), x, timesteps).astype(x.dtype)
        if clip is not None:
            clean = jnp.clip(clean, -clip, clip)
        x = a * x + b * clean + c * (clean - before)
        if stochastic:
            fresh = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, index), x.shape[1:], x.dtype))(keys)
            x = x + temperature * s * fresh
        return (x, clean), None

    rows = [jnp.asarray(table.timesteps, jnp.int32), *(jnp.asarray(v, jnp.float32) for v in table[1:])]
    (x, _), _ = jax.lax.scan(step, (temperature * noise, jnp.zeros_like(noise)), (*rows, jnp.arange(len(table.timesteps))))
    return x


def guided(denoise: Callable[..., Array], condition: Array, unconditional: Array, scale: float) -> Callable[[Array, Array], Array]:
    """Classifier-free guidance (Ho & Salimans 2022): both conditions in one batch, then extrapolated by `scale`.

    Args:
      denoise: `(x_t, timesteps, condition) -> output`; called with twice the batch unless `scale` is 1.
      condition: `(batch, ...)`.
      unconditional: `(batch, ...)`, such as the empty prompt.
      scale: 1 leaves guidance out.
    """
    if scale == 1.0:
        return lambda x, t: denoise(x, t, condition)
    both = jnp.concatenate([unconditional, condition])

    def combined(x, t):
        without, with_condition = jnp.split(denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both), 2)
        return without + scale * (with_condition - without)

    return combined
