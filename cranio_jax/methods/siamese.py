"""A matcher of X-rays and faces: one network maps both to one space (Hadsell et al. 2006).

It generates nothing. It answers whether comparing an X-ray with faces directly is better than
generating a face. It follows the authors' earlier work; the network, the margin and the use of all
pairs of a batch are ours.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from cranio_jax import models
from cranio_jax.errors import InputError
from cranio_jax.methods import base, optimizer
from cranio_jax.models.functional import Params, shared_network, split_statistics, statistics_of

Tree = dict[str, Any]


def contrastive(
    xrays: Float[Array, "b d"], faces: Float[Array, "b d"], subjects: Int[Array, "b"], margin: float
) -> Float[Array, ""]:
    """Returns the contrastive loss over all pairs of an X-ray and a face in the batch.

    It is the mean squared distance of one subject's pairs, plus the mean squared shortfall
    below `margin` of different subjects' pairs.
    """
    square = ((xrays[:, None] - faces[None]) ** 2).sum(-1)
    distance = jnp.sqrt(jnp.maximum(square, 1e-12))
    same = subjects[:, None] == subjects[None]

    def mean(values, where):
        return (values * where).sum() / jnp.maximum(where.sum(), 1)

    return mean(square, same) + mean(jnp.maximum(margin - distance, 0.0) ** 2, ~same)


class Siamese(base.FromScratch):
    """A matcher of X-rays and faces; see `methods.base.Method`."""

    kind: base.Kind = "matcher"
    needs_faces = True
    needs_subjects = True

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of the network without parameters.

        Raises InputError on impossible settings.
        """
        m = config.method
        self.config = m
        settings = {"network": m.network, "channels": m.channels, "height": m.side, "width": m.side}
        dtype = jnp.dtype(config.compute_dtype)
        try:
            self.network = shared_network(models.make_embedder(settings, dtype=dtype))
        except ValueError as error:
            raise InputError(f"method.{error}") from None
        base.check_whole_batch(config.train, "the loss compares all pairs of the batch at once")
        self.optimizer = optimizer.make_optimizer(config.train, {})

    def init(self, key: Array, loaded: dict[str, Params] | None = None) -> tuple[Tree, Tree]:
        """Returns `(state, frozen)` of fresh parameters; `statistics` are those of batch norms."""
        twin, statistics = split_statistics((loaded or {}).get("twin") or self.network.init(key))
        trained = {"twin": twin}
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": trained,
            "statistics": statistics,
            "opt_state": self.optimizer.init(trained),
        }
        return state, {}

    def _embed(self, module: Any, batch: Tree) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Returns unit vectors of X-rays and faces, which the network sees as one batch."""
        count, side = batch["face"].shape[0], self.config.side
        both = jnp.concatenate([jnp.repeat(batch["xray"], 3, -1), batch["face"]])
        pictures = jax.image.resize(base.scaled(both), (2 * count, side, side, 3), "linear")
        vectors = module(pictures).astype(jnp.float32)
        # Written out, since the gradient of base.unit_vectors differs in its last bits.
        square = (vectors**2).sum(1, keepdims=True)
        vectors = vectors * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
        return vectors[:count], vectors[count:]

    def train_step(
        self, state: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> tuple[Tree, base.Metrics]:
        """Returns the state after one update, and metrics.

        Batch norms see X-rays and faces of the whole global batch together.
        """
        subjects = batch["subject_index"]

        def loss(params):
            module = self.network.bind(params["twin"] | state["statistics"])
            module.train()
            xrays, faces = self._embed(module, batch)
            nearest = (xrays @ faces.T).argmax(1)
            accuracy = (subjects[nearest] == subjects).mean(dtype=jnp.float32)
            value = contrastive(xrays, faces, subjects, self.config.margin)
            return value, ({"loss": value, "accuracy": accuracy}, statistics_of(module))

        gradients, (metrics, statistics) = jax.grad(loss, has_aux=True)(state["params"])
        state, metrics = base.finish_step(self.optimizer, state, gradients, metrics)
        return state | {"statistics": statistics}, metrics

    def generation_params(self, state: Tree) -> Params:
        """Returns parameters and statistics of the network."""
        return state["params"]["twin"] | state["statistics"]

    def embed(self, params: Params, frozen: Tree, batch: Tree) -> dict[str, Float[Array, "b _"]]:
        """Returns unit vectors of each `xray` and of each `face`."""
        xrays, faces = self._embed(self.network.bind(params), batch)
        return {"xray": xrays, "face": faces}


METHOD = Siamese
