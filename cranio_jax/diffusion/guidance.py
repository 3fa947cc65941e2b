"""Guidance of a sampler by the prompt and the X-ray."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def guided(
    denoise: Callable[..., Array],
    condition: Array,
    unconditional: Array | None,
    scale: float,
    rescale: float = 0.0,
) -> Callable[..., Array]:
    """Returns `denoise` with classifier-free guidance (Ho & Salimans 2022).

    Both conditions go through the network in one batch; the output is extrapolated by `scale`.

    Args:
      denoise: `(x_t, timesteps, condition, ...) -> output`; called with twice the batch unless
        `scale` is 1.
      condition: `(batch, ...)`.
      unconditional: `(batch, ...)`, such as the empty or the negative prompt; None only if `scale`
        is 1.
      scale: 1 turns guidance off.
      rescale: share of the output that is rescaled to the standard deviation without
        guidance (Lin et al. 2024, section 3.4), 0 to 1.
    """
    if scale == 1.0:
        return lambda x, t, *rest: denoise(x, t, condition, *rest)
    if unconditional is None:
        raise ValueError(f"guidance of scale {scale} needs an unconditional input")
    both = jnp.concatenate([unconditional, condition])

    def combined(x, t, *rest):
        output = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both, *rest)
        without, with_condition = jnp.split(output, 2)
        result = without + scale * (with_condition - without)
        return rescaled(result, with_condition, rescale) if rescale else result

    return combined


def rescaled(
    output: Float[Array, "batch *n"],
    reference: Float[Array, "batch *n"],
    share: float,
) -> Float[Array, "batch *n"]:
    """Returns `output`, a `share` of it scaled to the standard deviation of each `reference`."""
    axes = tuple(range(1, output.ndim))
    ratio = reference.std(axes, ddof=1, keepdims=True) / output.std(axes, ddof=1, keepdims=True)
    return share * (output * ratio) + (1 - share) * output


def control_steps(num_steps: int, start: float, end: float) -> Float[np.ndarray, "steps"]:
    """Returns 1 for each step that lies fully between two fractions, else 0.

    `start` and `end` are diffusers' `control_guidance_start` and `control_guidance_end`, 0 to 1.
    """
    place = np.arange(num_steps)
    outside = (place / num_steps < start) | ((place + 1) / num_steps > end)
    return 1.0 - outside
