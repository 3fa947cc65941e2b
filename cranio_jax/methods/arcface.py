"""A face embedder trained on the subjects of a cohort: ArcFace's additive angular margin (Deng et al. 2019).

It generates nothing. It scores identity where no published ArcFace weights are at hand, or stands in the loss.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int, UInt8

from cranio_jax import data, models
from cranio_jax.errors import InputError
from cranio_jax.methods import optimizer
from cranio_jax.methods.base import FromScratch
from cranio_jax.models import alignment
from cranio_jax.models.functional import Network, is_statistic, params_of


def angular_margin(
    cosines: Float[Array, "b n"], labels: Int[Array, "b"], margin: float, scale: float
) -> Float[Array, "b n"]:
    """Logits: `scale` cos(angle + margin) for the example's own class, `scale` cos(angle) for the others.

    Beyond pi - margin, where the cosine would rise again, the own class's falls on along a line, as in insightface.
    """
    sines = jnp.sqrt(jnp.maximum(1.0 - cosines**2, 1e-12))
    turned = cosines * math.cos(margin) - sines * math.sin(margin)
    turned = jnp.where(
        cosines > math.cos(math.pi - margin), turned, cosines - margin * math.sin(margin)
    )
    own = jax.nn.one_hot(labels, cosines.shape[1], dtype=bool)
    return scale * jnp.where(own, turned, cosines)


def disturb(
    key: Array, faces: Float[Array, "b h w 3"], c: ml_collections.ConfigDict
) -> Float[Array, "b h w 3"]:
    """Faces in [-1, 1] moved and scaled by up to `shift` and `zoom` of their side, recoloured by up to `colour`.

    With the probability `grey` all channels become their mean: skin and hair are no identity, the shape of the head is.
    """
    count, height, width, _ = faces.shape
    keys = jax.random.split(key, 4)
    zoom = 1.0 + jax.random.uniform(keys[0], (count, 1), minval=-c.zoom, maxval=c.zoom) * jnp.ones(
        (1, 2)
    )
    sides = jnp.array([[height, width]], faces.dtype)
    shift = sides * (
        jax.random.uniform(keys[1], (count, 2), minval=-c.shift, maxval=c.shift) + (1.0 - zoom) / 2
    )
    move = lambda face, zoom, shift: jax.image.scale_and_translate(
        face, face.shape, (0, 1), zoom, shift, "linear", antialias=False
    )
    faces = jax.vmap(move)(faces + 1.0, zoom, shift) - 1.0
    grey = jax.random.bernoulli(keys[2], c.grey, (count, 1, 1, 1))
    faces = jnp.where(grey, faces.mean(-1, keepdims=True), faces)
    gain, bias = jnp.moveaxis(
        jax.random.uniform(keys[3], (count, 1, 1, 3, 2), minval=-c.colour, maxval=c.colour), -1, 0
    )
    return faces * (1.0 + gain) + bias


class ArcFace(FromScratch):
    """The method behind the protocol of `cranio_jax.methods.Method`, with `embed` in place of `generate`."""

    needs_faces = needs_subjects = True

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of the network, and no parameter. Raises InputError on impossible settings."""
        m = self.config = config.method
        self.dtype = jnp.dtype(config.compute_dtype)
        alignment.check_crop(m.crop, "method.crop")
        self.settings = {
            "network": m.network,
            "channels": m.channels,
            "height": m.height,
            "width": m.width,
        }
        try:
            self.network = Network(models.make_embedder(self.settings, dtype=self.dtype))
        except ValueError as error:
            raise InputError(f"method.{error}") from None
        self._whole_config = config
        if config.train.accumulate != 1:
            raise InputError(
                f"train.accumulate={config.train.accumulate}; batch norms want the whole batch at once, so it must be 1"
            )
        self.optimizer = optimizer.make_optimizer(config.train, {})

    def count_people(self) -> None:
        """Sets how many people there are to tell apart; builds the records if there are none.

        Raises InputError if the split 'train' holds one person.
        """
        builder = data.make_builder(self._whole_config.data)
        self.classes = len(data.subjects(builder, "train", self._whole_config))
        if self.classes < 2:
            raise InputError(
                "an embedder learns to tell people apart, and the split 'train' holds one subject"
            )

    def init(self, key: Array, loaded: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """`(state, frozen)` of fresh parameters; `statistics` are those of the batch norms."""
        made = (loaded or {}).get("embedder") or self.network.init(jax.random.fold_in(key, 0))
        statistics = {path: p for path, p in made.items() if is_statistic(path)}
        embedder = {path: p for path, p in made.items() if path not in statistics}
        wide = jax.eval_shape(
            self._embed, made, jnp.zeros((1, self.config.height, self.config.width, 3))
        ).shape[1]
        classes = {"kernel": jax.random.normal(jax.random.fold_in(key, 1), (wide, self.classes))}
        params = {"embedder": embedder, "classes": classes}
        state = {"step": jnp.zeros((), jnp.int32), "params": params, "statistics": statistics}
        return state | {"opt_state": self.optimizer.init(params)}, {}

    def _embed(self, params, faces):
        return self.network.bind(params)(faces)

    def _see(self, faces: UInt8[Array, "b H W 3"]) -> Float[Array, "b h w 3"]:
        return alignment.crop_face(
            faces.astype(jnp.float32) / 127.5 - 1.0,
            self.config.crop,
            self.config.height,
            self.config.width,
        )

    def train_step(self, state, frozen, batch, key):
        """One update. Draws depend on the seed and the step alone; batch norms see the whole global batch."""
        m, key = self.config, jax.random.fold_in(key, state["step"])
        faces = disturb(key, self._see(batch["face"]), m.disturb)

        def loss(params):
            module = self.network.bind(params["embedder"] | state["statistics"])
            module.train()
            vectors = module(faces).astype(jnp.float32)
            unit = lambda v, axis: (
                v * jax.lax.rsqrt(jnp.maximum((v * v).sum(axis, keepdims=True), 1e-12))
            )
            cosines = unit(vectors, 1) @ unit(params["classes"]["kernel"], 0)
            logits = angular_margin(cosines, batch["subject_index"], m.margin, m.scale)
            value = optax.softmax_cross_entropy_with_integer_labels(
                logits, batch["subject_index"]
            ).mean()
            right = (cosines.argmax(1) == batch["subject_index"]).mean(dtype=jnp.float32)
            kept = {path: p for path, p in params_of(module).items() if is_statistic(path)}
            return value, ({"loss": value, "accuracy": right}, kept)

        gradients, (metrics, statistics) = jax.grad(loss, has_aux=True)(state["params"])
        updates, opt_state = self.optimizer.update(gradients, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        metrics["gradient_norm"] = optax.global_norm(gradients)
        return {
            "step": state["step"] + 1,
            "params": params,
            "statistics": statistics,
            "opt_state": opt_state,
        }, metrics

    def generation_params(self, state):
        """Parameters and statistics of the network, without the classes."""
        return state["params"]["embedder"] | state["statistics"]

    def embed(self, params, frozen, batch) -> dict[str, Float[Array, "b d"]]:
        """Vectors of the batch's faces."""
        return {"face": self._embed(params, self._see(batch["face"])).astype(jnp.float32)}
