"""The protocol's answers of a method that freezes nothing and starts from no published weights."""

import math
from collections.abc import Mapping
from typing import Any

import jax


class FromScratch:
    """See `cranio_jax.methods.Method`; a subclass has `init`, `train_step`, `generation_params`, and `generate` or `embed`."""

    remat = False

    settings: Mapping[str, Any] = {}  # no published networks

    def load(self, mesh: jax.sharding.Mesh, frozen_only: bool) -> dict[str, Any]:
        """Nothing."""
        return {}

    def encodable(self) -> dict[str, dict[str, Any]]:
        """Nothing is frozen."""
        return {}

    def weight_hashes(self) -> dict[str, str]:
        """No published weights."""
        return {}

    def parameter_count(self) -> dict[str, int]:
        """Parameters of each trained part, batch norms' statistics not counted."""
        params = jax.eval_shape(self.init, jax.random.key(0))[0]["params"]
        return {
            name: sum(math.prod(p.shape) for p in part.values()) for name, part in params.items()
        }
