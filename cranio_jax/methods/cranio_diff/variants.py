"""Faces of the same person at another age or weight, made from a photograph.

The paper synthesises such faces and does not say how; the two ways here are our choice.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cranio_jax import diffusion
from cranio_jax.diffusion import editing
from cranio_jax.errors import InputError

if TYPE_CHECKING:
    from cranio_jax.methods.cranio_diff.method import CranioDiff

Tree = dict[str, Any]
WAYS = ("noise", "inversion")


def check(method: Any, settings: ml_collections.ConfigDict) -> None:
    """Raises InputError if a setting of `config.synthesize` does not fit the method's sampler."""
    if settings.way not in WAYS:
        raise InputError(
            f"synthesize.way={settings.way!r}: it is unknown. Use one of {', '.join(WAYS)}."
        )
    if not 0 < settings.strength <= 1:
        raise InputError(f"synthesize.strength={settings.strength}: it is not in 0 to 1.")
    if settings.way == "inversion" and settings.num_candidates > 1:
        raise InputError(
            f"synthesize.num_candidates={settings.num_candidates}: inversion gives one face. "
            "Set it to 1."
        )
    try:
        table = editing.last_steps(method.table, settings.strength)
    except ValueError as error:
        raise InputError(f"sampling: {error}") from None
    if settings.way == "inversion" and table.s.any():
        raise InputError("sampling.eta: steps with fresh noise can't be inverted. Set it to 0.")


def vary(
    method: "CranioDiff",
    params: Tree,
    batch: Tree,
    key: Array,
    settings: ml_collections.ConfigDict,
) -> Float[Array, "b h w 3"]:
    """Returns a face for each example, `(batch, size, size, 3)` in [-1, 1].

    The photograph's latents are brought to a noise level, with fresh noise or by inverting DDIM
    under the prompt of the true profile. From there DDIM runs under the prompt that is wanted.

    Args:
      method: reads no X-ray.
      params: of all networks.
      batch: `face`, uint8; `prompt_ids`, of the wanted profile; `true_ids`, of the true one; and
        `id_hash`, which decides the noise.
      key: of the noise.
      settings: `config.synthesize`.
    """
    table = editing.last_steps(method.table, settings.strength)
    latents = method._latents(params, batch).astype(method.exact)
    wanted = method._context(params, batch["prompt_ids"], method.sampling.clip_skip)
    true = method._context(params, batch["true_ids"], method.sampling.clip_skip)
    denoise = method._denoiser(params, None, 1.0)

    # Bring the latents to the first step's level.
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id_hash"])
    if settings.way == "noise":
        noise = jax.vmap(lambda k: jax.random.normal(k, latents.shape[1:]))(keys)
        x = editing.noised(latents, noise, table)
    else:
        x = editing.inverted(
            lambda x, t: denoise(x, t, true), latents, table, method.schedule, settings.iterations
        )

    # Sample.
    unconditional = None
    if method.sampling.guidance_scale != 1.0:
        negative = method._context(params, method.negative_prompt)
        unconditional = jnp.broadcast_to(negative, wanted.shape)
    guided = diffusion.guided(
        denoise,
        wanted,
        unconditional,
        scale=method.sampling.guidance_scale,
        rescale=method.sampling.guidance_rescale,
    )
    latents = diffusion.run(
        guided, x, table, method.schedule, keys, clip=method.sampling.clip or None
    )
    faces = method._codec(params).decode(latents.astype(method.dtype))
    return jnp.clip(faces.astype(jnp.float32), -1.0, 1.0)
