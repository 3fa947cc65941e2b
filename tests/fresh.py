"""An untrained method's state, made of programs that other tests have compiled."""

from typing import Any

import jax

from cranio_jax.distributed import sharding
from cranio_jax.methods import Method
from cranio_jax.runs.state import fresh_networks


def fresh(method: Method, seed: int = 0) -> tuple[Any, Any]:
    """Returns `(state, frozen)`, which `method.init` would draw in one program."""
    key = jax.random.key(seed)
    mesh = sharding.make_mesh(min(2, jax.device_count()))  # as the smallest configurations have it
    networks = fresh_networks(method, key, sorted(method.networks), mesh)
    return jax.jit(method.init)(key, jax.device_get(networks))
