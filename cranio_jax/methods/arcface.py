"""A face embedder trained on the subjects of a cohort (ArcFace, Deng et al. 2019).

It generates nothing. It scores identity if there are no published ArcFace weights, or serves in
Cranio-Diff's identity loss.
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
from cranio_jax.methods import base, optimizer
from cranio_jax.models import alignment
from cranio_jax.models.functional import Params, shared_network, split_statistics, statistics_of

Tree = dict[str, Any]


def angular_margin(
    cosines: Float[Array, "b n"], labels: Int[Array, "b"], margin: float, scale: float
) -> Float[Array, "b n"]:
    """Returns logits: `scale` cos(angle + margin) for the true class, `scale` cos(angle) otherwise.

    Beyond pi - margin the cosine would rise again; there the true class's logit falls linearly,
    as in insightface.
    """
    sines = jnp.sqrt(jnp.maximum(1.0 - cosines**2, 1e-12))
    turned = cosines * math.cos(margin) - sines * math.sin(margin)
    linear = cosines - margin * math.sin(margin)
    turned = jnp.where(cosines > math.cos(math.pi - margin), turned, linear)
    is_label = jax.nn.one_hot(labels, cosines.shape[1], dtype=bool)
    return scale * jnp.where(is_label, turned, cosines)


def disturb(
    key: Array, faces: Float[Array, "b h w 3"], c: ml_collections.ConfigDict
) -> Float[Array, "b h w 3"]:
    """Returns faces in [-1, 1], randomly moved, scaled and recoloured.

    `c.shift` and `c.zoom` are the largest changes as fractions of its side, `c.colour` is that
    of each channel's gain and bias. With probability `c.grey` all channels become their mean, since
    identity lies in the head's shape rather than in the colour of skin and hair.
    """
    count, height, width, _ = faces.shape
    keys = jax.random.split(key, 4)

    def uniform(key, shape, limit):
        return jax.random.uniform(key, shape, minval=-limit, maxval=limit)

    # Move and scale.
    zoom = 1.0 + uniform(keys[0], (count, 1), c.zoom) * jnp.ones((1, 2))
    sides = jnp.array([[height, width]], faces.dtype)
    shift = sides * (uniform(keys[1], (count, 2), c.shift) + (1.0 - zoom) / 2)

    def move(face, zoom, shift):
        return jax.image.scale_and_translate(
            face, face.shape, (0, 1), zoom, shift, "linear", antialias=False
        )

    faces = jax.vmap(move)(faces + 1.0, zoom, shift) - 1.0
    # Recolour.
    grey = jax.random.bernoulli(keys[2], c.grey, (count, 1, 1, 1))
    faces = jnp.where(grey, faces.mean(-1, keepdims=True), faces)
    gain, bias = jnp.moveaxis(uniform(keys[3], (count, 1, 1, 3, 2), c.colour), -1, 0)
    return faces * (1.0 + gain) + bias


class ArcFace(base.FromScratch):
    """An embedder of faces; see `methods.base.Method`.

    Attributes:
      settings: of the network, as `models.make_embedder` takes them.
      classes: the number of people that it is trained to tell apart, set by `count_people`.
    """

    kind: base.Kind = "embedder"
    needs_faces = True
    needs_subjects = True

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of the network without parameters.

        Raises InputError on impossible settings.
        """
        m = config.method
        self.config = m
        self.whole_config = config
        alignment.check_crop(m.crop, "method.crop")
        self.settings = {
            "network": m.network,
            "channels": m.channels,
            "height": m.height,
            "width": m.width,
        }
        dtype = jnp.dtype(config.compute_dtype)
        try:
            embedder = shared_network(models.make_embedder(self.settings, dtype=dtype))
        except ValueError as error:
            raise InputError(f"method.{error}") from None
        self.networks = {"embedder": embedder}
        base.check_whole_batch(config.train, "batch norms need the whole batch at once")
        self.optimizer = optimizer.make_optimizer(config.train, {})

    def count_people(self) -> None:
        """Sets the number of people to tell apart; builds the records if there are none.

        Raises InputError if the split 'train' holds one person.
        """
        builder = data.make_builder(self.whole_config.data)
        self.classes = len(data.subjects(builder, "train", self.whole_config))
        if self.classes < 2:
            raise InputError(
                "data.builder: its split 'train' holds one subject, but an embedder learns to tell "
                "people apart. Use records of more subjects."
            )

    def init(self, key: Array, loaded: dict[str, Params] | None = None) -> tuple[Tree, Tree]:
        """Returns `(state, frozen)` of fresh parameters; `statistics` are those of batch norms."""
        params = base.drawn(self.networks, key, loaded)
        embedder, statistics = split_statistics(params["embedder"])
        picture = jnp.zeros((1, self.config.height, self.config.width, 3))
        width = jax.eval_shape(self._embed, params["embedder"], picture).shape[1]
        kernel = jax.random.normal(jax.random.fold_in(key, 1), (width, self.classes))
        trained = {"embedder": embedder, "classes": {"kernel": kernel}}
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": trained,
            "statistics": statistics,
            "opt_state": self.optimizer.init(trained),
        }
        return state, {}

    def _embed(self, params: Params, faces: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        return self.networks["embedder"].bind(params)(faces)

    def crop(self, faces: UInt8[Array, "b H W 3"]) -> Float[Array, "b h w 3"]:
        """Returns the part of each face that the network sees, in [-1, 1]."""
        c = self.config
        return alignment.crop_face(base.scaled(faces), c.crop, c.height, c.width)

    def train_step(
        self, state: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> tuple[Tree, base.Metrics]:
        """Returns the state after one update, and metrics.

        Random draws depend on the key and the step alone; batch norms see the whole global batch.
        """
        m, labels = self.config, batch["subject_index"]
        key = jax.random.fold_in(key, state["step"])
        faces = disturb(key, self.crop(batch["face"]), m.disturb)

        def loss(params):
            module = self.networks["embedder"].bind(params["embedder"] | state["statistics"])
            module.train()
            vectors = base.unit_vectors(module(faces).astype(jnp.float32), 1)
            cosines = vectors @ base.unit_vectors(params["classes"]["kernel"], 0)
            logits = angular_margin(cosines, labels, m.margin, m.scale)
            value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            accuracy = (cosines.argmax(1) == labels).mean(dtype=jnp.float32)
            return value, ({"loss": value, "accuracy": accuracy}, statistics_of(module))

        gradients, (metrics, statistics) = jax.grad(loss, has_aux=True)(state["params"])
        state, metrics = base.finish_step(self.optimizer, state, gradients, metrics)
        return state | {"statistics": statistics}, metrics

    def generation_params(self, state: Tree) -> Params:
        """Returns parameters and statistics of the network, without the classes."""
        return state["params"]["embedder"] | state["statistics"]

    def embed(self, params: Params, frozen: Tree, batch: Tree) -> dict[str, Float[Array, "b _"]]:
        """Returns a vector of each `face`."""
        return {"face": self._embed(params, self.crop(batch["face"])).astype(jnp.float32)}


METHOD = ArcFace
