"""A matcher of X-rays and faces: one network brings both into one space, trained by the contrastive loss (Hadsell et al. 2006).

It generates nothing, and answers what a reader will ask: is it better to make a face, or to compare directly? After the
group's earlier work; network, margin and that all pairs of a batch are compared are ours.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int

from cranio_jax import models
from cranio_jax.errors import InputError
from cranio_jax.methods import optimizer
from cranio_jax.methods.base import FromScratch
from cranio_jax.models.functional import Network, is_statistic, params_of


def contrastive(
    xrays: Float[Array, "b d"], faces: Float[Array, "b d"], subjects: Int[Array, "b"], margin: float
) -> Float[Array, ""]:
    """Squared distance of an X-ray and a face of one subject, squared lack of distance below `margin` of two subjects'.

    Of all pairs of the batch; both kinds count alike, however many there are.
    """
    square = ((xrays[:, None] - faces[None]) ** 2).sum(-1)
    distance = jnp.sqrt(jnp.maximum(square, 1e-12))
    same = subjects[:, None] == subjects[None]
    mean = lambda values, where: (values * where).sum() / jnp.maximum(where.sum(), 1)
    return mean(square, same) + mean(jnp.maximum(margin - distance, 0.0) ** 2, ~same)


class Siamese(FromScratch):
    """The method behind the protocol of `cranio_jax.methods.Method`, with `embed` in place of `generate`."""

    needs_faces = needs_subjects = True

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of the network, and no parameter. Raises InputError on impossible settings."""
        m = self.config = config.method
        self.dtype = jnp.dtype(config.compute_dtype)
        settings = {"network": m.network, "channels": m.channels, "height": m.side, "width": m.side}
        try:
            self.network = Network(models.make_embedder(settings, dtype=self.dtype))
        except ValueError as error:
            raise InputError(f"method.{error}") from None
        if config.train.accumulate != 1:
            raise InputError(
                f"train.accumulate={config.train.accumulate}; pairs are of the whole batch, so it must be 1"
            )
        self.optimizer = optimizer.make_optimizer(config.train, {})

    def init(self, key: Array, loaded: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """`(state, frozen)` of fresh parameters; `statistics` are those of the batch norms."""
        made = (loaded or {}).get("twin") or self.network.init(key)
        statistics = {path: p for path, p in made.items() if is_statistic(path)}
        params = {"twin": {path: p for path, p in made.items() if path not in statistics}}
        state = {"step": jnp.zeros((), jnp.int32), "params": params, "statistics": statistics}
        return state | {"opt_state": self.optimizer.init(params)}, {}

    def _embed(self, module, batch) -> tuple[Float[Array, "b d"], Float[Array, "b d"]]:
        """Unit vectors of X-rays and faces, which the network sees in one batch."""
        count, side = batch["face"].shape[0], self.config.side
        pictures = (
            jnp.concatenate([jnp.repeat(batch["xray"], 3, -1), batch["face"]]).astype(jnp.float32)
            / 127.5
            - 1.0
        )
        vectors = module(jax.image.resize(pictures, (2 * count, side, side, 3), "linear")).astype(
            jnp.float32
        )
        vectors *= jax.lax.rsqrt(jnp.maximum((vectors**2).sum(1, keepdims=True), 1e-12))
        return vectors[:count], vectors[count:]

    def train_step(self, state, frozen, batch, key):
        """One update; batch norms see X-rays and faces of the whole global batch together."""

        def loss(params):
            module = self.network.bind(params["twin"] | state["statistics"])
            module.train()
            xrays, faces = self._embed(module, batch)
            found = (xrays @ faces.T).argmax(1)
            right = (batch["subject_index"][found] == batch["subject_index"]).mean(
                dtype=jnp.float32
            )
            kept = {path: p for path, p in params_of(module).items() if is_statistic(path)}
            value = contrastive(xrays, faces, batch["subject_index"], self.config.margin)
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
        """Parameters and statistics of the network."""
        return state["params"]["twin"] | state["statistics"]

    def embed(self, params, frozen, batch) -> dict[str, Float[Array, "b d"]]:
        """Vectors of the batch's X-rays and of its faces."""
        return dict(
            zip(("xray", "face"), self._embed(self.network.bind(params), batch), strict=True)
        )
