"""CycleGAN: generators in both directions, two discriminators, unpaired (Zhu et al. 2017).

A is the X-ray and B the face: `G_A` generates faces, which `D_A` judges. Which face belongs to
which X-ray is not used.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cranio_jax.methods.adversarial import (
    Adversarial,
    check_norm,
    in_float32,
    mean_absolute_difference,
)
from cranio_jax.models.functional import Network, Params, statistics_of
from cranio_jax.models.translation import NLayerDiscriminator, ResnetGenerator

Pool = dict[str, Array]
Tree = dict[str, Any]


def drawn_from(
    pool: Pool, pictures: Float[Array, "b h w 3"], key: Array
) -> tuple[Float[Array, "b h w 3"], Pool]:
    """Returns pictures for a discriminator, and the pool after them.

    Until the pool is full, each picture is kept and returned. After that, half of them are
    exchanged for one that was kept. `pool` holds `pictures` and how many are `kept`.
    """
    size = pool["pictures"].shape[0]

    def draw(pool, item):
        picture, key = item
        place = jax.random.randint(key, (), 0, size)
        exchanged = jax.random.bernoulli(jax.random.fold_in(key, 0))
        full = pool["kept"] == size
        place = jnp.where(full, place, pool["kept"])
        older = pool["pictures"][place]
        stored = jnp.where(~full | exchanged, picture, older)
        kept = jnp.minimum(pool["kept"] + 1, size)
        pool = {"pictures": pool["pictures"].at[place].set(stored), "kept": kept}
        return pool, jnp.where(full & exchanged, older, picture)

    pool, pictures = jax.lax.scan(draw, pool, (pictures, jax.random.split(key, len(pictures))))
    return pictures, pool


class CycleGAN(Adversarial):
    """Generators `G_A` and `G_B`, discriminators `D_A` and `D_B`; see `methods.base.Method`."""

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of the four networks without parameters.

        Raises InputError on impossible settings.
        """
        m = config.method
        dtype = jnp.dtype(config.compute_dtype)
        check_norm(m.norm)

        def generator(rngs):
            return ResnetGenerator(m.blocks, m.channels, m.norm, dtype=dtype, rngs=rngs)

        def discriminator(rngs):
            return NLayerDiscriminator(
                3, m.channels, m.discriminator_layers, m.norm, dtype=dtype, rngs=rngs
            )

        networks = {
            "G_A": Network(generator),
            "G_B": Network(generator),
            "D_A": Network(discriminator),
            "D_B": Network(discriminator),
        }
        super().__init__(config, networks)

    def init(self, key: Array, loaded: dict[str, Params] | None = None) -> tuple[Tree, Tree]:
        """Returns `(state, frozen)`; the state has a pool of earlier faces and one of X-rays."""
        state, frozen = super().init(key, loaded)
        return state | {"pools": {"faces": self._pool(), "xrays": self._pool()}}, frozen

    def _pool(self) -> Pool:
        pictures = jnp.zeros((self.config.pool, self.size, self.size, 3))
        return {"pictures": pictures, "kept": jnp.zeros((), jnp.int32)}

    def train_step(
        self, state: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> tuple[Tree, dict[str, Array]]:
        """Returns the state after an update of the generators, then of the discriminators.

        Random draws depend on the key and the step alone.
        """
        a, b = self.pictures(batch)
        keys = jax.random.split(jax.random.fold_in(key, state["step"]), 2)

        # Compute the generators' gradient.
        def loss(params):
            return self._generators_loss(params, state, a, b)

        generators = {name: state["params"][name] for name in ("G_A", "G_B")}
        (total, (terms, faces, xrays, statistics)), gradients = jax.value_and_grad(
            loss, has_aux=True
        )(generators)
        faces, pool_of_faces = drawn_from(state["pools"]["faces"], faces, keys[0])
        xrays, pool_of_xrays = drawn_from(state["pools"]["xrays"], xrays, keys[1])

        # Compute the discriminators' gradient.
        def discrimination(params):
            pairs = (("D_A", faces, b), ("D_B", xrays, a))
            return (
                sum(
                    self.judge(name, params, state, fake, real=False)
                    + self.judge(name, params, state, real, real=True)
                    for name, fake, real in pairs
                )
                / 2
            )

        discriminators = {name: state["params"][name] for name in ("D_A", "D_B")}
        discriminator_loss, judges = jax.value_and_grad(discrimination)(discriminators)

        # Update both.
        state = self.updated(state, "generate", gradients)
        state = self.updated(state, "judge", judges)
        state |= {"pools": {"faces": pool_of_faces, "xrays": pool_of_xrays}}
        metrics = {"loss": total, "discriminator": discriminator_loss} | terms
        return self.finished(state, statistics), metrics

    def _generators_loss(
        self, params: Tree, state: Tree, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]
    ) -> tuple[Array, tuple[dict[str, Array], Array, Array, Tree]]:
        """Returns the loss, and its terms, generated faces and X-rays, and statistics."""
        m = self.config
        to_face = self.module("G_A", params, state)
        to_xray = self.module("G_B", params, state)
        faces, xrays = to_face(a), to_xray(b)
        terms = {
            "fooling": self.judge("D_A", state["params"], state, faces, real=True)
            + self.judge("D_B", state["params"], state, xrays, real=True)
        }
        terms["cycle"] = mean_absolute_difference(to_xray(faces), a) + mean_absolute_difference(
            to_face(xrays), b
        )
        total = terms["fooling"] + m.cycle * terms["cycle"]
        if m.identity:
            terms["same"] = mean_absolute_difference(to_face(b), b) + mean_absolute_difference(
                to_xray(a), a
            )
            total += m.identity * terms["same"]
        statistics = {"G_A": statistics_of(to_face), "G_B": statistics_of(to_xray)}
        return total, (terms, in_float32(faces), in_float32(xrays), statistics)

    def generate(
        self, params: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> Float[Array, "b h w 3"]:
        """Returns one face for each X-ray; there is no noise."""
        return in_float32(self.networks["G_A"].bind(params)(self.xrays(batch)))


METHOD = CycleGAN
