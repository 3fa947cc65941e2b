"""Other pictures of the same person: sampling that starts from a picture's latents.

Both ways give x at a noise level, from which the rest of DDIM's steps run under another prompt.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cranio_jax.diffusion.samplers import Steps
from cranio_jax.diffusion.schedules import NoiseSchedule, clean_sample

_CLOSE = 1e-5


def last_steps(table: Steps, strength: float) -> Steps:
    """Returns the last steps of DDIM's table, a share `strength` of them, as diffusers counts.

    Raises ValueError if no step is left, or the sampler is another one.
    """
    if np.any(table.c) or np.any(table.d):
        raise ValueError("steps that depend on steps before them can't start in between. Use ddim.")
    taken = min(int(len(table.timesteps) * strength), len(table.timesteps))
    if taken < 1:
        raise ValueError(f"strength={strength:g} leaves none of {len(table.timesteps)} steps")
    return Steps(*(column[-taken:] for column in table))


def noised(
    latents: Float[Array, "batch *n"], noise: Float[Array, "batch *n"], table: Steps
) -> Float[Array, "batch *n"]:
    """Returns latents with noise of the table's first level (SDEdit, Meng et al. 2022)."""
    return float(table.alpha[0]) * latents + float(table.sigma[0]) * noise


def inverted(
    denoise: Callable[..., Array],
    latents: Float[Array, "batch *n"],
    table: Steps,
    schedule: NoiseSchedule,
    iterations: int = 20,
) -> Float[Array, "batch *n"]:
    """Returns the x from which DDIM's steps lead to `latents` (DDIM inversion, Song et al. 2021).

    A step from x to what follows it is x' = a x + b D(x). Inversion by one evaluation takes the
    network's output at x' for that at x. Here x is iterated to a fixed point of the equation, so
    that sampling leads back (Pan et al. 2023). Solved for x, the equation has two forms with the
    same solutions: by D, and by the noise that D implies, which also holds where a is 0 and
    converges for networks that predict noise.

    Args:
      denoise: as for `sample`, under the picture's own prompt.
      latents: clean.
      table: DDIM's, without fresh noise.
      schedule: the meaning of the network's output.
      iterations: evaluations of the network for each step, at most. They end where x changes by
        less than 1e-5.
    """
    if np.any(table.s):
        raise ValueError("steps with fresh noise can't be inverted. Set eta=0.")
    batch = latents.shape[0]
    axes = tuple(range(1, latents.ndim))

    # x = p x' + q x + r D(x).
    alpha_after = table.b + table.a * table.alpha
    sigma_after = table.a * table.sigma
    noise = table.sigma - table.alpha * sigma_after / alpha_after
    by_clean = (table.a > 0.5) & (schedule.prediction != "epsilon")
    a = np.where(by_clean, table.a, 1.0)
    p = np.where(by_clean, 1.0 / a, table.alpha / alpha_after)
    q = np.where(by_clean, 0.0, noise / table.sigma)
    r = np.where(by_clean, -table.b / a, -noise * table.alpha / table.sigma)

    def step(after, row):
        timestep, alpha, sigma, p, q, r = row
        timesteps = jnp.full((batch,), timestep)

        def closer(state):
            # Anderson's acceleration with one earlier iterate: plain iteration oscillates where the
            # network is steep.
            count, x, earlier, earlier_change = state
            output = denoise(x, timesteps)
            clean = clean_sample(schedule.prediction, output, x, alpha, sigma).astype(x.dtype)
            new = p * after + q * x + r * clean
            change = new - x
            bend = change - earlier_change
            share = (change * bend).sum(axes, keepdims=True) / jnp.maximum(
                (bend**2).sum(axes, keepdims=True), 1e-20
            )
            share = jnp.where(count > 0, share, 0.0)
            return count + 1, new - share * (new - earlier), new, change

        def is_far(state):
            count, *_, change = state
            return (count < iterations) & (jnp.abs(change).max() > _CLOSE)

        far = jnp.full_like(after, jnp.inf)
        _, x, _, _ = jax.lax.while_loop(is_far, closer, (0, after, after, far))
        return x, None

    factors = (jnp.asarray(f, jnp.float32) for f in (table.alpha, table.sigma, p, q, r))
    rows = (jnp.asarray(table.timesteps, jnp.int32), *factors)
    x, _ = jax.lax.scan(step, latents, rows, reverse=True)
    return x
