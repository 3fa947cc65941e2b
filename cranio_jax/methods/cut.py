"""CUT: contrastive unpaired translation (Park et al. 2020).

One generator, one discriminator, and a contrastive loss that relates each patch of the face to the
patch of the X-ray it comes from. Which face belongs to which X-ray is not used.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from cranio_jax.methods.adversarial import Adversarial, check_norm, in_float32
from cranio_jax.models.functional import Network, statistics_of
from cranio_jax.models.translation import NLayerDiscriminator, PatchSampler, ResnetGenerator

Tree = dict[str, Any]


def contrast(
    queries: Float[Array, "b n d"], keys: Float[Array, "b n d"], temperature: float
) -> Float[Array, ""]:
    """Returns PatchNCE: the cross-entropy of finding a patch's place in its picture.

    No gradient flows into `keys`.
    """
    keys = jax.lax.stop_gradient(keys)
    similarity = jnp.einsum("bnd,bmd->bnm", queries, keys, precision="highest") / temperature
    labels = jnp.broadcast_to(jnp.arange(queries.shape[1]), similarity.shape[:2])
    return optax.softmax_cross_entropy_with_integer_labels(similarity, labels).mean()


class CUT(Adversarial):
    """A generator `G`, a discriminator `D` and a sampler of patches `F`.

    See `methods.base.Method`.
    """

    def __init__(self, config: ml_collections.ConfigDict):
        """Builds the structure of the three networks without parameters.

        Raises InputError on impossible settings.
        """
        m = config.method
        dtype = jnp.dtype(config.compute_dtype)
        size = config.data.settings.size
        check_norm(m.norm)
        # Layers of the generator: the picture, both halvings, the first and the fifth block.
        self.places = tuple(place for place in m.nce_layers if place < 12 + m.blocks)

        def generator(rngs):
            return ResnetGenerator(
                m.blocks, m.channels, m.norm, antialias=True, dtype=dtype, rngs=rngs
            )

        def discriminator(rngs):
            return NLayerDiscriminator(
                channels=m.channels,
                layers=m.discriminator_layers,
                norm=m.norm,
                antialias=True,
                dtype=dtype,
                rngs=rngs,
            )

        networks = {"G": Network(generator), "D": Network(discriminator)}

        # The sampler's sizes depend on the shapes of the generator's features.
        def features(picture, key):
            network = networks["G"]
            return network.bind(network.init(key)).features(picture, self.places)

        picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = [x.shape for x in jax.eval_shape(features, picture, key)]
        self.spots = [shape[1] * shape[2] for shape in shapes]
        widths = [shape[3] for shape in shapes]
        networks["F"] = Network(lambda rngs: PatchSampler(widths, dtype=dtype, rngs=rngs))
        super().__init__(config, networks)

    def _draw_spots(self, keys: Array) -> list[Array]:
        """Returns the places of patches in each layer, the same in all pictures of a batch."""
        return [
            jax.random.permutation(key, count)[: self.config.patches]
            for key, count in zip(keys, self.spots, strict=True)
        ]

    def _patches(
        self, features: Sequence[Array], spots: Sequence[Array]
    ) -> list[Float[Array, "b _ _"]]:
        return [
            x.reshape(x.shape[0], -1, x.shape[3])[:, where]
            for x, where in zip(features, spots, strict=True)
        ]

    def train_step(
        self, state: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> tuple[Tree, dict[str, Array]]:
        """Returns the state after an update of the discriminator, then of the generator.

        Both use one forward pass. Random draws depend on the key and the step alone.
        """
        m = self.config
        x, y = self.pictures(batch)
        keys = jax.random.split(jax.random.fold_in(key, state["step"]), (2, len(self.places)))
        spots = self._draw_spots(keys[0]), self._draw_spots(keys[1])

        # Generate faces of the X-rays, and of the faces themselves.
        inputs, count = jnp.concatenate([x, y]), x.shape[0]

        def forward(params):
            generator = self.module("G", {"G": params}, state)
            return in_float32(generator(inputs)), statistics_of(generator)

        outputs, backward, statistics = jax.vjp(forward, state["params"]["G"], has_aux=True)

        # Update the discriminator.
        def judge(params, faces, real):
            return self.judge("D", {"D": params}, state, faces, real=real)

        def discrimination(params):
            return (judge(params, outputs[:count], False) + judge(params, y, True)) / 2

        params = state["params"]["D"]
        discriminator_loss, gradient = jax.value_and_grad(discrimination)(params)
        state = self.updated(state, "judge", {"D": gradient})

        # Update the generator and the sampler of patches.
        def loss(outputs, params):
            nce = self._contrast(params, state, inputs, outputs, spots=spots)
            fooling = judge(state["params"]["D"], outputs[:count], True)
            return fooling + m.nce * nce, {"fooling": fooling, "nce": nce}

        trained = {name: state["params"][name] for name in ("G", "F")}
        (total, terms), (gradient, gradients) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            outputs, trained
        )
        gradients["G"] = jax.tree.map(jnp.add, gradients["G"], backward(gradient)[0])
        state = self.updated(state, "generate", gradients)
        metrics = {"loss": total, "discriminator": discriminator_loss} | terms
        return self.finished(state, {"G": statistics}), metrics

    def _contrast(
        self,
        params: Tree,
        state: Tree,
        inputs: Float[Array, "pictures h w 3"],
        outputs: Float[Array, "pictures h w 3"],
        spots: tuple[list[Array], list[Array]],
    ) -> Float[Array, ""]:
        """Returns PatchNCE between inputs and outputs, averaged over layers and both halves.

        The first half relates X-rays to faces; the second half relates faces to what the generator
        turns them into, which should be themselves.
        """
        generator = self.module("G", params, state)
        sampler = self.module("F", params, state)
        before = generator.features(inputs, self.places)
        after = generator.features(outputs, self.places)
        count = inputs.shape[0] // 2
        nce: Any = 0.0
        for half, where in zip((slice(None, count), slice(count, None)), spots, strict=True):
            keys = sampler(self._patches([f[half] for f in before], where))
            queries = sampler(self._patches([f[half] for f in after], where))
            pairs = zip(queries, keys, strict=True)
            each = sum(contrast(q, k, self.config.temperature) for q, k in pairs)
            nce += each / len(self.places) / 2
        return nce

    def generate(
        self, params: Tree, frozen: Tree, batch: Tree, key: Array
    ) -> Float[Array, "b h w 3"]:
        """Returns one face for each X-ray; there is no noise."""
        return in_float32(self.networks["G"].bind(params)(self.xrays(batch)))


METHOD = CUT
