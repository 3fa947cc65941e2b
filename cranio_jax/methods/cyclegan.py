"""CycleGAN: two generators, there and back, and two discriminators; which face belongs to which X-ray is not told (Zhu et al. 2017).

A is the X-ray and B the face: `G_A` makes faces, which `D_A` judges.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from cranio_jax.methods.adversarial import (
    Adversarial,
    absolute,
    check_norm,
    faces_of,
    judged,
    scaled,
)
from cranio_jax.models.functional import Network
from cranio_jax.models.translation import NLayerDiscriminator, ResnetGenerator

Pool = dict[str, Array]


def drawn_from(
    pool: Pool, pictures: Float[Array, "b h w 3"], key: Array
) -> tuple[Float[Array, "b h w 3"], Pool]:
    """Pictures for a discriminator, one by one: until the pool is full each is kept and returned; then half of them are
    exchanged for one that was kept. `pool` holds `pictures` and how many are `kept`."""
    size = pool["pictures"].shape[0]

    def one(pool, item):
        picture, key = item
        place, exchanged = (
            jax.random.randint(key, (), 0, size),
            jax.random.bernoulli(jax.random.fold_in(key, 0)),
        )
        full = pool["kept"] == size
        place = jnp.where(full, place, pool["kept"])
        older = pool["pictures"][place]
        stored = jnp.where(~full | exchanged, picture, older)
        pool = {
            "pictures": pool["pictures"].at[place].set(stored),
            "kept": jnp.minimum(pool["kept"] + 1, size),
        }
        return pool, jnp.where(full & exchanged, older, picture)

    pool, pictures = jax.lax.scan(one, pool, (pictures, jax.random.split(key, len(pictures))))
    return pictures, pool


class CycleGAN(Adversarial):
    """The method behind the protocol of `cranio_jax.methods.Method`."""

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of the four networks, and no parameter. Raises InputError on impossible settings."""
        m, dtype = config.method, jnp.dtype(config.compute_dtype)
        check_norm(m.norm)
        generator = lambda rngs: ResnetGenerator(
            m.blocks, m.channels, m.norm, dtype=dtype, rngs=rngs
        )
        judge = lambda rngs: NLayerDiscriminator(
            3, m.channels, m.discriminator_layers, m.norm, dtype=dtype, rngs=rngs
        )
        super().__init__(
            config,
            {
                "G_A": Network(generator),
                "G_B": Network(generator),
                "D_A": Network(judge),
                "D_B": Network(judge),
            },
        )

    def init(self, key, loaded=None):
        """As of all, with pools of earlier faces and X-rays for the discriminators, which survive a restart."""
        state, frozen = super().init(key, loaded)
        pool = lambda: {
            "pictures": jnp.zeros((self.config.pool, self.size, self.size, 3)),
            "kept": jnp.zeros((), jnp.int32),
        }
        return state | {"pools": {"faces": pool(), "xrays": pool()}}, frozen

    def train_step(self, state, frozen, batch, key) -> tuple[dict[str, Any], dict[str, Array]]:
        """The generators' update, then the discriminators'. Draws hang on seed and step alone."""
        m, (a, b) = self.config, self.pictures(batch)
        keys = jax.random.split(jax.random.fold_in(key, state["step"]), 2)
        judge = lambda name, params, pictures, real: judged(
            self.module(name, params, state)(pictures), real, m.gan
        )

        def loss(params):
            to_face, to_xray = (self.module(name, params, state) for name in ("G_A", "G_B"))
            faces, xrays = to_face(a), to_xray(b)
            terms = {
                "fooling": judge("D_A", state["params"], faces, True)
                + judge("D_B", state["params"], xrays, True)
            }
            terms["cycle"] = absolute(to_xray(faces), a) + absolute(to_face(xrays), b)
            total = terms["fooling"] + m.cycle * terms["cycle"]
            if m.identity:
                terms["same"] = absolute(to_face(b), b) + absolute(to_xray(a), a)
                total += m.identity * terms["same"]
            statistics = {
                name: self.kept_statistics(module)
                for name, module in (("G_A", to_face), ("G_B", to_xray))
            }
            return total, (terms, faces_of(faces), faces_of(xrays), statistics)

        generators = {name: state["params"][name] for name in ("G_A", "G_B")}
        (total, (terms, faces, xrays, statistics)), slope = jax.value_and_grad(loss, has_aux=True)(
            generators
        )
        faces, pool_of_faces = drawn_from(state["pools"]["faces"], faces, keys[0])
        xrays, pool_of_xrays = drawn_from(state["pools"]["xrays"], xrays, keys[1])

        def apart(params):
            pairs = (("D_A", faces, b), ("D_B", xrays, a))
            return (
                sum(
                    judge(name, params, fake, False) + judge(name, params, real, True)
                    for name, fake, real in pairs
                )
                / 2
            )

        discriminating, judges_slope = jax.value_and_grad(apart)(
            {name: state["params"][name] for name in ("D_A", "D_B")}
        )
        state = self.updated(self.updated(state, "generate", slope), "judge", judges_slope)
        state |= {"step": state["step"] + 1, "statistics": state["statistics"] | statistics}
        state |= {"pools": {"faces": pool_of_faces, "xrays": pool_of_xrays}}
        return state, {"loss": total, "discriminator": discriminating} | terms

    def generate(self, params, frozen, batch, key) -> Float[Array, "b h w 3"]:
        """One face for each X-ray; there is no noise."""
        return faces_of(self.networks["G_A"].bind(params)(jnp.repeat(scaled(batch["xray"]), 3, -1)))
