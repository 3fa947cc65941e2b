"""NNX modules as a function and a flat dictionary of parameters, keyed like a checkpoint."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str, jax.Array]
STORED = nnx.Any(nnx.Param, nnx.BatchStat)  # what a checkpoint holds


def params_of(module: nnx.Module) -> Params:
    """Returns parameters by path, such as `down_blocks.0.resnets.0.conv1.kernel`."""
    flat: Any = nnx.to_flat_state(nnx.state(module, STORED))
    return {".".join(map(str, path)): param.get_value() for path, param in flat}


def is_statistic(path: str) -> bool:
    """Returns True for a batch norm's statistic, which no gradient changes."""
    return path.endswith((".mean", ".var"))


def split_statistics(params: Params) -> tuple[Params, Params]:
    """Returns the parameters that gradients change, and the batch norms' statistics."""
    trained = {path: p for path, p in params.items() if not is_statistic(path)}
    return trained, {path: p for path, p in params.items() if is_statistic(path)}


def statistics_of(module: nnx.Module) -> Params:
    """Returns the statistics that a module's batch norms have stored."""
    return split_statistics(params_of(module))[1]


class KeySequence:
    """A replacement for `nnx.Rngs` while parameters are drawn: each call returns a new key.

    NNX's own streams keep their count in a Variable. Setting one under a trace searches the whole
    trace for its origin, which takes minutes for a U-Net.
    """

    def __init__(self, key: jax.Array):
        self._key = key
        self._count = 0

    def params(self) -> jax.Array:
        """Returns the next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


class Network:
    """The structure of a module, without parameters, which are passed in at each use."""

    def __init__(self, make: Callable[..., nnx.Module]):
        """Takes a function that builds the module from the `rngs` of its layers."""
        self._make = make
        abstract = nnx.eval_shape(lambda: make(rngs=KeySequence(jax.random.key(0))))
        parts: Any = nnx.split(abstract, STORED, ...)  # nnx declares a tuple of unknown length
        self._graph, state, self._rest = parts
        flat: Any = nnx.to_flat_state(state)
        self._paths = {".".join(map(str, path)): (path, param) for path, param in flat}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each parameter."""
        return {name: tuple(param.get_value().shape) for name, (_, param) in self._paths.items()}

    def init(self, key: jax.Array) -> Params:
        """Returns fresh parameters; call it inside jit."""
        return params_of(self._make(rngs=KeySequence(key)))

    def bind(self, params: Params) -> Any:
        """Returns the module with these parameters.

        Raises KeyError if their names are not the module's.
        """
        if params.keys() != self._paths.keys():
            wrong = sorted(params.keys() ^ self._paths.keys())
            raise KeyError(
                f"parameters and network differ in {len(wrong)} names, such as {wrong[0]}"
            )
        flat = [(path, param.replace(params[name])) for name, (path, param) in self._paths.items()]
        return nnx.merge(self._graph, nnx.from_flat_state(flat), self._rest)


def shared_network(make: Callable[..., nnx.Module]) -> Network:
    """Returns the network that `make` builds, the same object whenever `make` is the same.

    It takes a second to find the structure of a U-Net, and a run makes its method more than once.

    Args:
      make: a module's class, or `functools.partial` of it with hashable arguments. It takes `rngs`.
    """
    part = functools.partial(make)
    return _network(part.func, part.args, tuple(sorted(part.keywords.items())))


@functools.lru_cache(maxsize=64)
def _network(make: Callable[..., nnx.Module], args: tuple, settings: tuple) -> Network:
    return Network(lambda rngs: make(*args, rngs=rngs, **dict(settings)))
