"""Samplers as one scan over a table.

All of them move from x_t to the next step by

    x <- a x + b D + c (D - D1) + d (D1 - D2) + s z

D is the network's estimate of the clean sample at this step, D1 and D2 are those of the two steps
before, and z is fresh noise. What differs is the table of factors, made here in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cranio_jax.diffusion.schedules import NoiseSchedule, clean_sample

SAMPLERS = ("ddim", "ddpm", "dpm++2m", "euler", "euler_ancestral", "unipc")
SPACINGS = ("leading", "trailing", "linspace")
# Multistep solvers space one more step than they take and leave out the cleanest.
_MULTISTEP = ("dpm++2m", "unipc")
_EULER = ("euler", "euler_ancestral")
# The value that diffusers' solvers use for the last 0 of a zero-terminal-SNR schedule.
_ALMOST_ZERO = 2.0**-24


class Steps(NamedTuple):
    """A sampler's table. Each column is `(steps,)`.

    Attributes:
      timesteps: the network's inputs; not whole numbers for Euler with 'linspace'.
      a, b, c, d, s: the factors of this module's docstring.
      alpha, sigma: the noise level of each step, x_t = alpha x_0 + sigma noise.
      start: standard deviation of the noise with which sampling may start at this step.
    """

    timesteps: np.ndarray
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    d: np.ndarray
    s: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    start: np.ndarray


def _spaced(count: int, steps: int, spacing: str, offset: int, sampler: str) -> np.ndarray:
    """Returns timesteps in falling order, by the rules that diffusers' schedulers follow."""
    if not 0 < steps <= count:
        raise ValueError(f"{steps} sampling steps are not in 1 to {count}, the steps in training")
    if spacing not in SPACINGS:
        raise ValueError(f"spacing={spacing!r} is not one of {', '.join(SPACINGS)}")
    t: np.ndarray
    spaced = steps + 1 if sampler in _MULTISTEP and spacing != "trailing" else steps
    if spacing == "leading":
        t = (np.arange(spaced) * (count // spaced))[::-1] + offset
    elif spacing == "trailing":
        t = np.round(np.arange(count, 0, -count / steps)).astype(int) - 1
    elif sampler in _EULER:
        t = np.linspace(0, count - 1, spaced, dtype=np.float32)[::-1]
    else:
        t = np.round(np.linspace(0, count - 1, spaced)).astype(int)[::-1]
    t = t[:steps]
    if np.any(np.diff(t) >= 0) or t[0] >= count:
        raise ValueError(
            f"{steps} sampling steps with spacing={spacing!r} don't fit into {count} steps of "
            "training. Take fewer steps, or spacing='trailing'"
        )
    return t


def _ddim(now: np.ndarray, after: np.ndarray, eta: float) -> dict[str, np.ndarray]:
    alpha, sigma = np.sqrt(now), np.sqrt(1 - now)
    fresh = eta * np.sqrt((1 - after) / (1 - now) * (1 - now / after))
    direction = np.sqrt(np.maximum(1 - after - fresh**2, 0.0))
    return {"a": direction / sigma, "b": np.sqrt(after) - direction * alpha / sigma, "s": fresh}


def _ddpm(now: np.ndarray, after: np.ndarray, t: np.ndarray) -> dict[str, np.ndarray]:
    ratio = now / after
    return {
        "a": np.sqrt(ratio) * (1 - after) / (1 - now),
        "b": np.sqrt(after) * (1 - ratio) / (1 - now),
        "s": np.sqrt(np.maximum((1 - after) / (1 - now) * (1 - ratio), 1e-20)) * (t > 0),
    }


def _euler(now: np.ndarray, after: np.ndarray, ancestral: bool) -> dict[str, np.ndarray]:
    """Euler's step of x / alpha, whose noise has the level sigma / alpha."""
    level, level_next = np.sqrt((1 - now) / now), np.sqrt((1 - after) / after)
    # An ancestral step goes further down, and noise brings it up to the next level again.
    down = level_next**2 / level if ancestral else level_next
    alpha_next = np.sqrt(after)
    return {
        "a": alpha_next * down / level / np.sqrt(now),
        "b": alpha_next * (1 - down / level),
        "s": alpha_next * np.sqrt(level_next**2 - down**2),
    }


def _log_snr_steps(now: np.ndarray) -> np.ndarray:
    """Each step's length in half the log of the signal-to-noise ratio; the last is infinite."""
    half_log_snr = np.log(np.sqrt(now)) - np.log(np.sqrt(1 - now))
    return np.append(half_log_snr[1:], np.inf) - half_log_snr


def _multistep(now: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """DPM-Solver++(2M), which is also UniPC's predictor."""
    with np.errstate(divide="ignore", invalid="ignore"):  # the ends may be pure noise and no noise
        h = _log_snr_steps(now)
        b = -np.sqrt(after) * np.expm1(-h)
        c = np.zeros_like(b)
        # Second order wherever there is an estimate before; the last step is of first order.
        c[1:-1] = 0.5 * b[1:-1] * h[1:-1] / h[:-2]
    return {"a": np.sqrt(1 - after) / np.sqrt(1 - now), "b": b, "c": c}


def _unipc(now: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
    """UniPC of order 2, B(h) = exp(h) - 1.

    Before a step, its estimate D corrects the x that the step before predicted. Both use the same
    estimates, so the correction is linear in D - D1 and D1 - D2, and the next step absorbs it.
    """
    columns = _multistep(now, after)
    a, b, c = columns["a"], columns["b"], columns["c"]
    newest, older = np.zeros_like(b), np.zeros_like(b)
    newest[1:2] = 0.5 * b[:1]  # after a step of first order
    if len(b) > 2:
        h = _log_snr_steps(now)[:-1]
        ratio, h = -h[:-1] / h[1:], h[1:]
        first = (1 - h / -np.expm1(-h)) / -h
        second = 2 * ((np.expm1(-h) / -h - 1) / -h - 0.5) / np.expm1(-h)
        weight = (first - second) / (1 - ratio)
        newest[2:] = b[1:-1] * (first - weight)
        older[2:] = -b[1:-1] * weight / ratio - c[1:-1]
    return columns | {"c": c + a * newest, "d": a * older}


def steps(
    schedule: NoiseSchedule,
    sampler: str,
    num_steps: int,
    spacing: str = "leading",
    steps_offset: int = 1,
    set_alpha_to_one: bool = False,
    eta: float = 0.0,
) -> Steps:
    """Returns the table of a sampler.

    Args:
      schedule: noise levels.
      sampler: 'ddim' (Song et al. 2021), 'ddpm' (Ho et al. 2020, posterior variance), 'dpm++2m'
        (Lu et al. 2022), 'euler' and 'euler_ancestral' (Karras et al. 2022), or 'unipc'
        (Zhao et al. 2023), each as diffusers' scheduler of that name.
      num_steps: how many evaluations of the network.
      spacing: which timesteps, as diffusers' `timestep_spacing`.
      steps_offset: added to the timesteps of 'leading'.
      set_alpha_to_one: DDIM's last step goes to the clean sample, not to the first noise level.
      eta: DDIM's share of fresh noise.

    Raises:
      ValueError: an unknown sampler or spacing, or more steps than the schedule has places for.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r} is not one of {', '.join(SAMPLERS)}")
    bar = schedule.alphas_cumprod
    t = _spaced(len(bar), num_steps, spacing, steps_offset, sampler)
    if bar[-1] == 0 and sampler in (*_EULER, "unipc"):
        bar = np.append(bar[:-1], _ALMOST_ZERO)

    # Noise levels before and after each step.
    if sampler in _EULER:  # between two places of the schedule, sigma / alpha is interpolated
        now = 1 / (1 + np.interp(t, np.arange(len(bar)), np.sqrt((1 - bar) / bar)) ** 2)
    else:
        now = bar[t]
    after = np.append(now[1:], 1.0)
    if sampler == "ddim":  # by a constant stride, whatever the spacing
        following = t - len(bar) // num_steps
        last = 1.0 if set_alpha_to_one else bar[0]
        after = np.where(following >= 0, bar[np.maximum(following, 0)], last)

    # The factors.
    zeros = np.zeros(num_steps)
    if sampler == "ddim":
        factors = _ddim(now, after, eta)
    elif sampler == "ddpm":
        factors = _ddpm(now, after, t)
    elif sampler == "dpm++2m":
        factors = _multistep(now, after)
    elif sampler == "unipc":
        factors = _unipc(now, after)
    else:
        factors = _euler(now, after, ancestral=sampler == "euler_ancestral")
    alpha, sigma = np.sqrt(now), np.sqrt(1 - now)
    start = sigma if sampler in _EULER and spacing != "leading" else np.ones(num_steps)
    columns = {"c": zeros, "d": zeros, "s": zeros} | factors
    return Steps(timesteps=t, alpha=alpha, sigma=sigma, start=start, **columns)


def sample(
    denoise: Callable[..., Array],
    noise: Float[Array, "batch *n"],
    table: Steps,
    schedule: NoiseSchedule,
    keys: Array | None = None,
    clip: float | None = None,
    temperature: float = 1.0,
    per_step: Float[np.ndarray, "steps"] | None = None,
) -> Float[Array, "batch *n"]:
    """Runs a sampler from pure noise.

    Args:
      denoise: `(x_t, timesteps (batch,)) -> network output`.
      noise: standard normal.
      table: from `steps`.
      schedule: the meaning of the network's output.
      keys: `(batch,)` one key for each example; needed where the table asks for fresh noise.
      clip: cuts each estimate of the clean sample to [-clip, clip].
      temperature: factor of all noise. Below 1, samples are likelier and more alike,
        so their spread understates the uncertainty.
      per_step: a number for each step, which `denoise` takes as a third argument.
    """
    start = temperature * float(table.start[0]) * noise
    return run(denoise, start, table, schedule, keys, clip, temperature, per_step)


def run(
    denoise: Callable[..., Array],
    x: Float[Array, "batch *n"],
    table: Steps,
    schedule: NoiseSchedule,
    keys: Array | None = None,
    clip: float | None = None,
    temperature: float = 1.0,
    per_step: Float[np.ndarray, "steps"] | None = None,
) -> Float[Array, "batch *n"]:
    """Runs a sampler's steps from `x`, which has the noise level of the first one; see `sample`."""
    batch = x.shape[0]
    stochastic, third = bool(np.any(table.s > 0)), bool(np.any(table.d))
    if stochastic and keys is None:
        raise ValueError("this sampler draws noise at every step: pass one key for each example")

    def fresh_noise(index):
        def draw(key):
            return jax.random.normal(jax.random.fold_in(key, index), x.shape[1:], x.dtype)

        return jax.vmap(draw)(keys)

    def step(carry, row):
        x, before, earlier = carry
        factor, index, extra = row
        timesteps = jnp.full((batch,), factor.timesteps)
        output = denoise(x, timesteps, *extra)
        clean = clean_sample(schedule.prediction, output, x, factor.alpha, factor.sigma)
        clean = clean.astype(x.dtype)
        if clip is not None:
            clean = jnp.clip(clean, -clip, clip)
        x = factor.a * x + factor.b * clean + factor.c * (clean - before)
        if third:
            x = x + factor.d * (before - earlier)
        if stochastic:
            x = x + temperature * factor.s * fresh_noise(index)
        return (x, clean, before if third else earlier), None

    kind = jnp.int32 if np.issubdtype(table.timesteps.dtype, np.integer) else jnp.float32
    columns: Any = (jnp.asarray(column, jnp.float32) for column in table)
    timesteps: Any = jnp.asarray(table.timesteps, kind)
    rows = Steps(*columns)._replace(timesteps=timesteps)
    extra = () if per_step is None else (jnp.asarray(per_step, jnp.float32),)
    zeros = jnp.zeros_like(x)
    start = (x, zeros, zeros if third else ())
    (x, _, _), _ = jax.lax.scan(step, start, (rows, jnp.arange(len(table.timesteps)), extra))
    return x
