"""Scores of held-out faces during training."""

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
    """Generates faces of validation subjects with few sampling steps and scores them, in one step.

    Attributes:
      every: how many training steps lie between two validations.
    """

    def __init__(self, config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, builder: Any):
        """Raises InputError if there are no such subjects, or the method generates nothing."""
        v, c = config.validation, config.evaluate
        self.every = v.every
        self._batch_size = sharding.padded_batch(c.batch_size, mesh, "evaluate.batch_size")
        config = config.copy_and_resolve_references()
        config.sampling.num_steps = v.num_steps
        self._method = method = make_method(config)
        if method.kind != "generator":
            raise InputError(
                f"validation.every={v.every}: {config.method.name} generates no faces to score; "
                "set it to 0"
            )

        # A spread of the validation examples.
        source = data.Examples(builder, "validation", config, ("xray", "face", "head_mask"))
        count = min(v.examples, len(source))
        chosen = np.linspace(0, len(source) - 1, count).astype(int)
        self._examples = [source[int(i)] for i in chosen]

        def generate(given: tuple[Any, Any], batch: data.Batch) -> tuple[jax.Array, jax.Array]:
            """Returns faces of one kind, and whether each holds finite numbers only."""
            params, frozen = given
            faces, finite = generation.quantised(
                method, config.seed, params, frozen, batch, jnp.uint32(0)
            )
            return faces[None], finite[None]

        self._scorer = Scorer(
            Features(c.weights, c.crop),
            mesh,
            kinds=("validation",),
            size=self._examples[0]["face"].shape[:2],
            count=count,
            splits=min(c.inception_splits, count),
            masked="head_mask" in self._examples[0],
            generate=generate,
        )

    def __call__(self, state: Any, frozen: Any) -> dict[str, float]:
        """Returns means over the examples, by "validation/METRIC"."""
        given = (self._method.generation_params(state), frozen)
        _, scores = self._scorer.run(self._examples, self._batch_size, None, given)
        return {
            f"validation/{metric}": float(values.mean())
            for metric, values in scores["validation"].pairs.items()
        }
