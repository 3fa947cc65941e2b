"""A network that finds the outline of the head, soft tissue included, in an X-ray.

It generates no face. Cranio-Diff shows its outline to the ControlNet beside the X-ray, as other
ControlNets are shown edges or poses that a network has found (`pretrained.outline`). The paper has
none; it is our choice.
"""

import functools
from typing import Any

import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool

from cranio_jax import models
from cranio_jax.errors import InputError
from cranio_jax.methods import base, optimizer
from cranio_jax.metrics.masks import overlap
from cranio_jax.models.functional import Params, shared_network

Tree = dict[str, Any]


class Outline(base.FromScratch):
    """Finds the head in X-rays; see `methods.base.Method`.

    It is trained with the binary cross-entropy of each pixel.
    """

    kind: base.Kind = "outline"
    needs_faces = False
    needs_subjects = False
    needs_masks = True

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of the network without parameters.

        Raises InputError on impossible settings.
        """
        m = config.method
        size, least = config.data.settings.size, 2 ** len(m.widths)
        if size % least:
            raise InputError(
                f"data.settings.size={size}: {len(m.widths)} method.widths need a multiple of "
                f"{least}. Set such a size, or fewer widths."
            )
        self.settings = {"widths": tuple(m.widths), "side": size}
        dtype = jnp.dtype(config.compute_dtype)
        try:
            network = shared_network(
                functools.partial(models.OutlineNetwork, **self.settings, dtype=dtype)
            )
        except ValueError as error:
            raise InputError(f"method.{error}.") from None
        self.networks = {"outline": network}
        self.train_config = config.train
        self.optimizer = optimizer.make_optimizer(config.train, {})

    def init(self, key: Array, loaded: dict[str, Params] | None = None) -> tuple[Tree, Tree]:
        """Returns `(state, frozen)` of fresh parameters."""
        trained = base.drawn(self.networks, key, loaded)
        state = {
            "step": jnp.zeros((), jnp.int32),
            "params": trained,
            "opt_state": self.optimizer.init(trained),
        }
        return state, {}

    def train_step(
        self, state: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> tuple[Tree, base.Metrics]:
        """Returns the state after one update, and metrics."""

        def loss(params: Tree, batch: Tree, _: Tree) -> tuple[Array, base.Metrics]:
            true = batch["xray_mask"] > 0
            logits = self.networks["outline"].bind(params["outline"])(batch["xray"])
            logits = logits.astype(jnp.float32)
            value = optax.sigmoid_binary_cross_entropy(logits, true.astype(jnp.float32)).mean()
            return value, {"loss": value, "iou": overlap(logits > 0, true).mean()}

        gradients, metrics = optimizer.accumulated(
            loss, state["params"], batch, {}, parts=self.train_config.accumulate
        )
        return base.finish_step(self.optimizer, state, gradients, metrics)

    def generation_params(self, state: Tree) -> Params:
        """Returns the parameters of the network."""
        return state["params"]["outline"]

    def find(self, params: Params, batch: Tree) -> Bool[Array, "b h w 1"]:
        """Returns where the head is in each `xray`."""
        return self.networks["outline"].bind(params)(batch["xray"]) > 0


METHOD = Outline
