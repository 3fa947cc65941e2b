"""Pix2Pix: a U-Net against a discriminator of patches, with an L1 term (Isola et al. 2017).

The X-ray alone goes in, as in the study: of age and BMI it is told nothing. Its only noise is dropout, in use as well.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cranio_jax.errors import InputError
from cranio_jax.methods.adversarial import (
    Adversarial,
    absolute,
    check_norm,
    faces_of,
    judged,
    scaled,
)
from cranio_jax.models.functional import Network
from cranio_jax.models.translation import NLayerDiscriminator, UnetGenerator, levels_of


class Pix2Pix(Adversarial):
    """The method behind the protocol of `cranio_jax.methods.Method`."""

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of both networks, and no parameter. Raises InputError on impossible settings."""
        m, dtype = config.method, jnp.dtype(config.compute_dtype)
        check_norm(m.norm)
        try:
            levels = levels_of(config.data.settings.size)
        except ValueError as error:
            raise InputError(
                f"data.settings.size={error}, which Pix2Pix's U-Net halves it by"
            ) from None
        judge = dict(
            features_in=6,
            channels=m.channels,
            layers=m.discriminator_layers,
            norm=m.norm,
            dropout=m.discriminator_dropout,
        )
        networks = {
            "G": Network(
                lambda rngs: UnetGenerator(
                    levels, m.channels, m.norm, m.dropout, dtype=dtype, rngs=rngs
                )
            ),
            "D": Network(lambda rngs: NLayerDiscriminator(**judge, dtype=dtype, rngs=rngs)),
        }
        super().__init__(config, networks)

    def train_step(self, state, frozen, batch, key) -> tuple[dict[str, Any], dict[str, Array]]:
        """The discriminator's update, then the generator's against it, from one forward pass. Draws hang on seed and step alone."""
        m, (x, y) = self.config, self.pictures(batch)
        keys = jax.random.split(jax.random.fold_in(key, state["step"]), (4, x.shape[0]))

        def forward(params):
            generator = self.module("G", {"G": params}, state)
            return faces_of(generator(x, keys[0])), self.kept_statistics(generator)

        fake, backward, statistics = jax.vjp(forward, state["params"]["G"], has_aux=True)

        def judge(params, faces, real, keys):
            module = self.module("D", {"D": params}, state)
            return judged(module(jnp.concatenate([x, faces], -1), keys), real, m.gan)

        apart = lambda params: (
            (judge(params, fake, False, keys[1]) + judge(params, y, True, keys[2])) / 2
        )
        discriminating, slope = jax.value_and_grad(apart)(state["params"]["D"])
        state = self.updated(state, "judge", {"D": slope})

        def loss(fake):
            fooling, away = judge(state["params"]["D"], fake, True, keys[3]), absolute(fake, y)
            return fooling + m.l1 * away, {"fooling": fooling, "l1": away}

        (total, metrics), slope = jax.value_and_grad(loss, has_aux=True)(fake)
        state = self.updated(state, "generate", {"G": backward(slope)[0]})
        state |= {"step": state["step"] + 1, "statistics": state["statistics"] | {"G": statistics}}
        return state, {"loss": total, "discriminator": discriminating} | metrics

    def generate(self, params, frozen, batch, key) -> Float[Array, "b h w 3"]:
        """One face for each X-ray; batch norms use what they have stored, so that no face depends on its neighbours."""
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id_hash"])
        return faces_of(
            self.networks["G"].bind(params)(jnp.repeat(scaled(batch["xray"]), 3, -1), keys)
        )
