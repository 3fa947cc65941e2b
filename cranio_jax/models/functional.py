"""NNX modules as a function and a flat dictionary of parameters, keyed like a checkpoint."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]


def params_of(module: nnx.Module) -> Params:
    """Parameters by path, such as `down_blocks.0.resnets.0.conv1.kernel`."""
    return {".".join(map(str, path)): param.get_value() for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param))}


class Network:
    """A module that is built in no memory: its structure here, its parameters wherever they are passed in."""

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        """`make` builds the module from its random streams."""
        self._make = make
        abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        self._graph, state, self._rest = nnx.split(abstract, nnx.Param, ...)
        self._paths = {".".join(map(str, path)): (path, param) for path, param in nnx.to_flat_state(state)}

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters; call it inside jit."""
        return params_of(self._make(nnx.Rngs(key)))

    def bind(self, params: Params) -> Any:
        """The module with these parameters. Raises KeyError where the names are not the module's."""
        if params.keys() != self._paths.keys():
            wrong = sorted(params.keys() ^ self._paths.keys())
            raise KeyError(f"parameters and network differ in {len(wrong)} names, such as {wrong[0]}")
        flat = [(path, param.replace(params[name])) for name, (path, param) in self._paths.items()]
        return nnx.merge(self._graph, nnx.from_flat_state(flat), self._rest)
