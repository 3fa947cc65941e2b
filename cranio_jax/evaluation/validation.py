"""How good are faces of people held out, while the method still trains?"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cranio_jax import data
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation import generation
from cranio_jax.evaluation.scorer import Scorer
from cranio_jax.methods import make_method
from cranio_jax.metrics.features import Features


class Validation:
    """Generates and scores, in one step, faces of the validation subjects with few sampling steps."""

    def __init__(self, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, builder: Any):
        """Raises InputError where there are no validation subjects, or the method generates nothing."""
        v, c = config.validation, config.evaluate
        sharding.padded_batch(c.batch_size, mesh, "evaluate.batch_size")
        config = config.copy_and_resolve_references()
        config.sampling.num_steps = v.num_steps
        method = make_method(config)
        if not hasattr(method, "generate"):
            raise InputError(
                f"validation.every={v.every}: {config.method.name} generates no faces to look at;"
                " set it to 0"
            )
        source = data.Examples(builder, "validation", config, ("xray", "face", "head_mask"))
        chosen = np.linspace(0, len(source) - 1, min(v.examples, len(source))).astype(int)
        self._examples, self._batch_size, self.every = (
            [source[int(i)] for i in chosen],
            c.batch_size,
            v.every,
        )

        def draw(given, batch):
            return jax.tree.map(
                lambda a: a[None],
                generation.quantised(method, config.seed, *given, batch, jnp.uint32(0)),
            )

        self._method = method
        size = self._examples[0]["face"].shape[:2]
        splits = min(c.inception_splits, len(chosen))
        masked = "head_mask" in self._examples[0]
        self._scorer = Scorer(
            Features(c.weights, c.crop),
            mesh,
            ("validation",),
            size,
            len(chosen),
            splits,
            masked,
            draw,
        )

    def __call__(self, state: Any, frozen: Any) -> dict[str, float]:
        """Means over the examples, by metric."""
        given = (self._method.generation_params(state), frozen)
        _, scored = self._scorer.run(self._examples, self._batch_size, None, given)
        return {
            f"validation/{metric}": float(values.mean())
            for metric, values in scored["validation"].pairs.items()
        }
