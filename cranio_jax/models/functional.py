"""NNX modules as a function and a flat dictionary of parameters, keyed like a checkpoint."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]
STORED = nnx.Any(nnx.Param, nnx.BatchStat)  # what a checkpoint holds


def params_of(module: nnx.Module) -> Params:
    """Parameters by path, such as `down_blocks.0.resnets.0.conv1.kernel`."""
    return {
        ".".join(map(str, path)): param.get_value()
        for path, param in nnx.to_flat_state(nnx.state(module, STORED))
    }


def is_statistic(path: str) -> bool:
    """Whether a parameter is a batch norm's stored statistic, which no gradient changes."""
    return path.endswith((".mean", ".var"))


class KeySequence:
    """Stands for `nnx.Rngs` while parameters are made: a fresh key at each call, by counting.

    NNX's own streams keep their count in a Variable, and setting one under a trace searches the whole trace for
    its origin: quadratic in the number of layers, minutes for a U-Net.
    """

    def __init__(self, key: jax.Array):
        self._key, self._count = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


class Network:
    """A module that is built in no memory: its structure here, its parameters wherever they are passed in."""

    def __init__(self, make: Callable[[Any], nnx.Module]):
        """`make` builds the module from what its layers take as `rngs`."""
        self._make = make
        abstract = nnx.eval_shape(lambda: make(KeySequence(jax.random.key(0))))
        self._graph, state, self._rest = nnx.split(abstract, STORED, ...)
        self._paths = {
            ".".join(map(str, path)): (path, param) for path, param in nnx.to_flat_state(state)
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter."""
        return {name: tuple(param.get_value().shape) for name, (_, param) in self._paths.items()}

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters; call it inside jit."""
        return params_of(self._make(KeySequence(key)))

    def bind(self, params: Params) -> Any:
        """The module with these parameters. Raises KeyError where the names are not the module's."""
        if params.keys() != self._paths.keys():
            wrong = sorted(params.keys() ^ self._paths.keys())
            raise KeyError(
                f"parameters and network differ in {len(wrong)} names, such as {wrong[0]}"
            )
        flat = [(path, param.replace(params[name])) for name, (path, param) in self._paths.items()]
        return nnx.merge(self._graph, nnx.from_flat_state(flat), self._rest)
