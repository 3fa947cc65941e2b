"""An untrained method's state, made of programs that other tests have compiled."""

from typing import Any

import jax
import numpy as np

from cranio_jax.distributed import sharding
from cranio_jax.methods import Method
from cranio_jax.runs.state import fresh_networks


def fresh(method: Method, seed: int = 0) -> tuple[Any, Any]:
    """Returns `(state, frozen)`, which `method.init` would draw in one program."""
    key = jax.random.key(seed)
    mesh = sharding.make_mesh(1)  # as the smallest configurations have it
    networks = fresh_networks(method, key, sorted(method.networks), mesh)
    return jax.jit(method.init)(key, jax.device_get(networks))


def drawn_on_host(method, key, names, mesh):
    """Stands in for `fresh_networks` where no value matters, and compiles nothing."""
    rng, made = np.random.default_rng(np.asarray(jax.random.key_data(key))), {}
    for name in names:
        shapes = jax.eval_shape(method.networks[name].init, key)
        values = {path: _drawn(rng, path, shape.shape) for path, shape in shapes.items()}
        made[name] = jax.device_put(values, sharding.state_sharding(shapes, mesh))
    return made


def _drawn(rng, path, shape):
    if path.endswith((".scale", ".var")):
        return np.ones(shape, np.float32)
    return rng.normal(0.0, 0.05, shape).astype(np.float32)
