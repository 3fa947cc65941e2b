"""Cranio-Diff's loss: the denoiser's squared error, and terms on the decoded estimate of the face.

The decoded terms (Eq. 10 and 11) are a perceptual distance and an identity distance.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from cranio_jax import diffusion
from cranio_jax.models import alignment

if TYPE_CHECKING:
    from cranio_jax.methods.cranio_diff.method import CranioDiff

Tree = dict[str, Any]


def diffusion_loss(
    method: "CranioDiff", params: Tree, batch: Tree, draws: Tree
) -> tuple[Array, dict[str, Array]]:
    """Returns the loss of a batch, and its parts to log.

    The first part is the weighted squared error of the denoiser's output; Eq. 9 of the paper is
    its unweighted form.

    Args:
      method: the networks and their settings.
      params: of all networks, trained and frozen.
      batch: with `xray`, and `latents` and `context` or what they are encoded from.
      draws: `timesteps`, `noise`, `drop_prompt`, `true_outline` (whether the ControlNet is
        shown the true outline), and `decoded`, the strength of the decoded terms.
    """
    m, schedule = method.config, method.schedule
    timesteps, noise = draws["timesteps"], draws["noise"]

    # Encode the face and the prompt.
    latents = batch["latents"] if "latents" in batch else method._latents(params, batch)
    x0 = latents.astype(method.exact)
    x_t = schedule.add_noise(x0, noise, timesteps)
    if "context" in batch:
        context = batch["context"]
    else:
        context = method._context(params, batch["prompt_ids"])
    if m.prompt_dropout:
        empty = method._context(params, method.empty_prompt)
        context = jnp.where(draws["drop_prompt"][:, None, None], empty, context)

    # Denoise.
    picture = method.condition(params, batch["xray"])
    if picture is not None and m.true_outline:
        outlines = soft_mask(batch["xray_mask"]).astype(picture.dtype)
        shown = draws["true_outline"][:, None, None, None]
        picture = picture.at[..., 1:2].set(jnp.where(shown, outlines, picture[..., 1:2]))
    denoise = method._denoiser(params, picture, 1.0)
    output = denoise(x_t, timesteps, context)
    error = output - schedule.target(x0, noise, timesteps)
    weight = diffusion.loss_weight(schedule, timesteps, m.loss_weight, m.min_snr_gamma)
    squared = error**2
    if picture is not None and m.outline_weight:
        squared *= outline_weights(picture[..., 1:2], method.factor, m.outline_weight)
    each = weight * squared.mean((1, 2, 3))
    total, metrics = each.mean(), {"mse": (error**2).mean()}

    # Compare faces. Terms whose weight is 0 are not compiled.
    if method.feature_files:
        strength = draws["decoded"][0]
        x0_hat = schedule.to_x0(output, x_t, timesteps)
        terms = sometimes(
            strength > 0, lambda: decoded_terms(method, params, batch, x0_hat, timesteps)
        )
        for name, value in terms.items():
            total += m.losses[name] * strength * value
        metrics |= terms
    return total, {"loss": total} | metrics


def soft_mask(mask: Num[Array, "b H W 1"]) -> Float[Array, "b H W 1"]:
    """Returns a mask with soft edges, in [0, 1]; a pixel is of the head where `mask` is not 0.

    Edges become about three pixels wide, as wide as those that the shipped outline network finds in
    real X-rays.
    """
    head = (mask > 0).astype(jnp.float32)
    # Binomial weights, whose standard deviation is a pixel.
    for axis in (1, 2):
        padded = jnp.pad(head, [(2, 2) if i == axis else (0, 0) for i in range(4)], "edge")
        length = head.shape[axis]
        shifted = [
            weight / 16.0 * jax.lax.slice_in_dim(padded, k, k + length, axis=axis)
            for k, weight in enumerate((1, 4, 6, 4, 1))
        ]
        head = jnp.stack(shifted).sum(0)
    return head


def outline_weights(
    head: Float[Array, "b H W 1"], factor: int, weight: float
) -> Float[Array, "b h w 1"]:
    """Returns the weight of each latent, of mean 1: those at the outline weigh `1 + weight` times.

    Args:
      head: the probability that a pixel is of the head.
      factor: pixels per latent and side.
      weight: how much more latents at the outline count than the others.
    """
    # A probability of a half is an edge.
    edge = (4.0 * head * (1.0 - head)).astype(jnp.float32)
    b, height, width, _ = edge.shape
    cells = edge.reshape(b, height // factor, factor, width // factor, factor, 1).max((2, 4))
    weights = 1.0 + weight * cells
    return weights / weights.mean((1, 2, 3), keepdims=True)


def decoded_terms(
    method: "CranioDiff",
    params: Tree,
    batch: Tree,
    x0_hat: Float[Array, "b h w d"],
    timesteps: Int[Array, "b"],
) -> dict[str, Array]:
    """Returns the distances between decoded estimates `x0_hat` and true faces.

    'lpips' is perceptual (Eq. 10), 'identity' is that of face embeddings (Eq. 11); each only if its
    weight is not 0. Both are gated by the timestep.
    """
    s = method.config.losses
    # Decode a strided part of the batch, which is an equal share of each device's examples.
    stride = max(x0_hat.shape[0] // s.decode_batch, 1) if s.decode_batch else 1
    x0_hat, timesteps, batch = jax.tree.map(lambda a: a[::stride], (x0_hat, timesteps, batch))
    decoders: Tree = {name: params[name] for name in ("light_decoder", "vae") if name in params}
    faces = _decode(method, decoders, x0_hat.astype(method.dtype)).astype(method.exact)
    truth = batch["face"].astype(method.exact) / 127.5 - 1.0

    # Compare.
    gate = timestep_gate(timesteps, method.schedule.count, s.gate, s.gate_limit)
    terms = {}
    if s.lpips:
        distance = method._bind("lpips", params)
        terms["lpips"] = weighted_mean(distance(faces, truth), gate)
    if s.identity:
        embeddings = _embeddings(method, params, batch, (faces, truth))
        counts = gate if s.lateral_identity else gate * batch["frontal"]
        terms["identity"] = weighted_mean(alignment.cosine_distance(*embeddings), counts)
    return terms


def _decode(method: "CranioDiff", decoders: Tree, latents: Array) -> Array:
    """Returns decoded latents; the backward pass decodes again, to save the largest activations."""

    @jax.checkpoint
    def decode(decoders, latents):
        if "light_decoder" in decoders:
            return method._bind("light_decoder", decoders).decode(latents)
        return method._codec(decoders).decode(latents)

    return decode(decoders, latents)


def _embeddings(
    method: "CranioDiff", params: Tree, batch: Tree, pictures: tuple[Array, Array]
) -> list[Array]:
    """Returns the embeddings of estimated and true faces, both aligned by the true landmarks.

    Landmarks found in the estimate would depend on yet another network.
    """
    embed = method._bind("embedder", params)
    landmarks = batch.get("landmarks") if method.aligns else None
    embeddings = []
    for faces in pictures:
        face = alignment.embedder_input(
            faces, landmarks, method.crop, height=embed.height, width=embed.width
        )
        embeddings.append(embed(face).astype(method.exact))
    return embeddings


def timestep_gate(
    timesteps: Int[Array, "b"], count: int, gate: str, limit: int
) -> Float[Array, "b"]:
    """Returns the weight of the estimate of the clean face at each timestep.

    At high noise the estimate is an average of faces, which has no identity. `gate` is 'none' for
    a weight of 1, 'quadratic' for (1 - t / count)^2, or 'below' for 1 below `limit` and 0 above.
    """
    if gate == "none":
        return jnp.ones(timesteps.shape, jnp.float32)
    if gate == "quadratic":
        return (1.0 - timesteps.astype(jnp.float32) / count) ** 2
    return (timesteps < limit).astype(jnp.float32)


def weighted_mean(each: Float[Array, "b"], weight: Float[Array, "b"]) -> Float[Array, ""]:
    """Returns the weighted sum over the number of positive weights; 0 if all weights are 0."""
    return (each * weight).sum() / jnp.maximum((weight > 0).sum(), 1)


def sometimes(active: Array, term: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """Returns `term()` if `active`, else zeros without computing it."""
    shapes = jax.eval_shape(term)
    return jax.lax.cond(
        active, term, lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    )
