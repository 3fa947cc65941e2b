"""Pix2Pix: a U-Net against a discriminator of patches, with an L1 term (Isola et al. 2017).

As in the study, the X-ray alone is the input. With `method.profile`, which is ours, view, sex, age
and change of BMI are channels beside it: Cranio-Diff's prompt tells them too. The only noise is
dropout, which stays on in generation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cranio_jax.data.prompts import PROFILE
from cranio_jax.errors import InputError
from cranio_jax.methods.adversarial import (
    Adversarial,
    check_norm,
    in_float32,
    mean_absolute_difference,
)
from cranio_jax.models.functional import Network, statistics_of
from cranio_jax.models.translation import NLayerDiscriminator, UnetGenerator, levels_of

Tree = dict[str, Any]


class Pix2Pix(Adversarial):
    """A generator `G` and a discriminator `D` of X-ray and face; see `methods.base.Method`."""

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of both networks without parameters.

        Raises InputError on impossible settings.
        """
        m = config.method
        dtype = jnp.dtype(config.compute_dtype)
        check_norm(m.norm)
        try:
            levels = levels_of(config.data.settings.size)
        except ValueError as error:
            raise InputError(
                f"data.settings.size={error}, by which Pix2Pix's U-Net divides it"
            ) from None

        inputs = 3 + (PROFILE if m.profile else 0)

        def generator(rngs):
            return UnetGenerator(
                levels,
                channels=m.channels,
                norm=m.norm,
                dropout=m.dropout,
                features_in=inputs,
                dtype=dtype,
                rngs=rngs,
            )

        def discriminator(rngs):
            return NLayerDiscriminator(
                features_in=inputs + 3,
                channels=m.channels,
                layers=m.discriminator_layers,
                norm=m.norm,
                dropout=m.discriminator_dropout,
                dtype=dtype,
                rngs=rngs,
            )

        super().__init__(config, {"G": Network(generator), "D": Network(discriminator)})

    def train_step(
        self, state: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> tuple[Tree, dict[str, Array]]:
        """Returns the state after an update of the discriminator, then of the generator.

        Both use one forward pass. Random draws depend on the key and the step alone.
        """
        m = self.config
        x, y = self.pictures(batch)
        keys = jax.random.split(jax.random.fold_in(key, state["step"]), (4, x.shape[0]))

        # Generate faces.
        def forward(params):
            generator = self.module("G", {"G": params}, state)
            return in_float32(generator(x, keys[0])), statistics_of(generator)

        fake, backward, statistics = jax.vjp(forward, state["params"]["G"], has_aux=True)

        # Update the discriminator.
        def judge(params, faces, real, keys):
            pairs = jnp.concatenate([x, faces], -1)
            return self.judge("D", {"D": params}, state, pairs, real=real, keys=(keys,))

        def discrimination(params):
            return (judge(params, fake, False, keys[1]) + judge(params, y, True, keys[2])) / 2

        params = state["params"]["D"]
        discriminator_loss, gradient = jax.value_and_grad(discrimination)(params)
        state = self.updated(state, "judge", {"D": gradient})

        # Update the generator.
        def loss(fake):
            fooling = judge(state["params"]["D"], fake, True, keys[3])
            l1 = mean_absolute_difference(fake, y)
            return fooling + m.l1 * l1, {"fooling": fooling, "l1": l1}

        (total, terms), gradient = jax.value_and_grad(loss, has_aux=True)(fake)
        state = self.updated(state, "generate", {"G": backward(gradient)[0]})
        metrics = {"loss": total, "discriminator": discriminator_loss} | terms
        return self.finished(state, {"G": statistics}), metrics

    def xrays(self, batch: Tree) -> Float[Array, "b h w c"]:
        """Returns X-rays in [-1, 1] in three equal channels, and the profile in four if wanted."""
        pictures = super().xrays(batch)
        if not self.config.profile:
            return pictures
        profile = batch["profile"][:, None, None]
        planes = jnp.broadcast_to(profile, (*pictures.shape[:3], profile.shape[-1]))
        return jnp.concatenate([pictures, planes.astype(pictures.dtype)], -1)

    def generate(
        self, params: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> Float[Array, "b h w 3"]:
        """Returns one face for each X-ray.

        Batch norms use their stored statistics, so that no face depends on others in the batch.
        """
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id_hash"])
        return in_float32(self.networks["G"].bind(params)(self.xrays(batch), keys))


METHOD = Pix2Pix
