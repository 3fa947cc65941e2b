"""CUT: one generator, one discriminator, and patches of the face that shall tell which patch of the X-ray they come from.

Contrastive unpaired translation (Park et al. 2020): which face belongs to which X-ray is not told.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from cranio_jax.methods.adversarial import Adversarial, check_norm, faces_of, judged, scaled
from cranio_jax.models.functional import Network
from cranio_jax.models.translation import NLayerDiscriminator, PatchSampler, ResnetGenerator


def contrast(
    queries: Float[Array, "b n d"], keys: Float[Array, "b n d"], temperature: float
) -> Float[Array, ""]:
    """PatchNCE: cross-entropy of finding a patch's own place among all places of its picture; no gradient into `keys`."""
    alike = (
        jnp.einsum("bnd,bmd->bnm", queries, jax.lax.stop_gradient(keys), precision="highest")
        / temperature
    )
    own = jnp.broadcast_to(jnp.arange(queries.shape[1]), alike.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(alike, own).mean()


class CUT(Adversarial):
    """The method behind the protocol of `cranio_jax.methods.Method`."""

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of the three networks, and no parameter. Raises InputError on impossible settings."""
        m, dtype = config.method, jnp.dtype(config.compute_dtype)
        check_norm(m.norm)
        # Of the generator's layers: the picture, both halvings, the first and the fifth block.
        self.places = tuple(place for place in m.nce_layers if place < 12 + m.blocks)
        generator = lambda rngs: ResnetGenerator(
            m.blocks, m.channels, m.norm, antialias=True, dtype=dtype, rngs=rngs
        )
        judge = dict(
            channels=m.channels, layers=m.discriminator_layers, norm=m.norm, antialias=True
        )
        networks = {
            "G": Network(generator),
            "D": Network(lambda rngs: NLayerDiscriminator(**judge, dtype=dtype, rngs=rngs)),
        }
        size = config.data.settings.size
        picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        seen = jax.eval_shape(
            lambda picture, key: (
                networks["G"].bind(networks["G"].init(key)).features(picture, self.places)
            ),
            picture,
            jax.eval_shape(lambda: jax.random.key(0)),
        )
        self.spots = [x.shape[1] * x.shape[2] for x in seen]
        widths = [x.shape[3] for x in seen]
        networks["F"] = Network(lambda rngs: PatchSampler(widths, dtype=dtype, rngs=rngs))
        super().__init__(config, networks)

    def _patches(
        self, features: Sequence[Array], spots: Sequence[Array]
    ) -> list[Float[Array, "b n c"]]:
        return [
            x.reshape(x.shape[0], -1, x.shape[3])[:, where]
            for x, where in zip(features, spots, strict=True)
        ]

    def train_step(self, state, frozen, batch, key) -> tuple[dict[str, Any], dict[str, Array]]:
        """The discriminator's update, then the generator's against it, from one forward pass. Draws hang on seed and step alone."""
        m, (x, y) = self.config, self.pictures(batch)
        keys = jax.random.split(jax.random.fold_in(key, state["step"]), (2, len(self.places)))
        # The same places in all pictures of a batch, as the authors draw them.
        draw = lambda keys: [
            jax.random.permutation(k, n)[: m.patches] for k, n in zip(keys, self.spots, strict=True)
        ]
        spots = draw(keys[0]), draw(keys[1])
        both, count = jnp.concatenate([x, y]), x.shape[0]

        def forward(params):
            generator = self.module("G", {"G": params}, state)
            return faces_of(generator(both)), self.kept_statistics(generator)

        made, backward, statistics = jax.vjp(forward, state["params"]["G"], has_aux=True)
        judge = lambda params, faces, real: judged(
            self.module("D", {"D": params}, state)(faces), real, m.gan
        )
        apart = lambda params: (judge(params, made[:count], False) + judge(params, y, True)) / 2
        discriminating, slope = jax.value_and_grad(apart)(state["params"]["D"])
        state = self.updated(state, "judge", {"D": slope})

        def loss(made, params):
            generator, sampler = (self.module(name, params, state) for name in ("G", "F"))
            before, after = (generator.features(pictures, self.places) for pictures in (both, made))
            nce = 0.0
            # The X-ray and its face, and a face and what becomes of it: which shall be itself.
            for part, where in zip((slice(None, count), slice(count, None)), spots, strict=True):
                kept, asked = (
                    sampler(self._patches([f[part] for f in found], where))
                    for found in (before, after)
                )
                nce += (
                    sum(contrast(q, k, m.temperature) for q, k in zip(asked, kept, strict=True))
                    / len(self.places)
                    / 2
                )
            fooling = judge(state["params"]["D"], made[:count], True)
            return fooling + m.nce * nce, {"fooling": fooling, "nce": nce}

        trained = {name: state["params"][name] for name in ("G", "F")}
        (total, terms), (slope, slopes) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            made, trained
        )
        slopes["G"] = jax.tree.map(jnp.add, slopes["G"], backward(slope)[0])
        state = self.updated(state, "generate", slopes)
        state |= {"step": state["step"] + 1, "statistics": state["statistics"] | {"G": statistics}}
        return state, {"loss": total, "discriminator": discriminating} | terms

    def generate(self, params, frozen, batch, key) -> Float[Array, "b h w 3"]:
        """One face for each X-ray; there is no noise."""
        return faces_of(self.networks["G"].bind(params)(jnp.repeat(scaled(batch["xray"]), 3, -1)))
