"""A method's state on the mesh: from a checkpoint, from published weights, or from scratch."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import Method, make_method
from cranio_jax.methods.base import key_of
from cranio_jax.models.functional import Params
from cranio_jax.runs import initial
from cranio_jax.runs.checkpoints import Checkpoints
from cranio_jax.runs.workdir import check, read_identity


def shardings_of(method: Method, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Returns `(shapes, shardings)`, each of `(state, frozen)`."""
    shapes = jax.eval_shape(method.init, jax.eval_shape(lambda: jax.random.key(0)))
    return shapes, sharding.state_sharding(shapes, mesh)


class Restored(NamedTuple):
    """A state to resume from.

    Attributes:
      state: of the method.
      frozen: parameters that are not trained.
      step: how many steps are done.
      position: of the batches; None at the start.
    """

    state: Any
    frozen: Any
    step: int
    position: dict[str, int] | None


def restore_or_init(
    method: Method,
    mesh: jax.sharding.Mesh,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
) -> Restored:
    """Returns the state of our newest whole checkpoint.

    Without one, the state starts from another run's weights (`train.init_from`), with published
    ones, or with fresh ones. Raises InputError if weights can't be read or do not fit.
    """
    shapes, shardings = shardings_of(method, mesh)
    is_fresh = checkpoints.latest is None

    # Weights that the state does not hold.
    loaded = method.load(mesh, frozen_only=not is_fresh)
    if config.train.init_from:
        mark = read_identity(workdir)["weights"][initial.FIELD]
        others = initial.load(config.train.init_from, mark, shapes, shardings, not is_fresh)
        for name, params in others.items():
            network = name.removesuffix("_lora")
            loaded[network] = loaded.get(network, {}) | params

    # Weights that nothing holds.
    key = sharding.random_key(config.seed, mesh)
    needed = method.networks.keys() if is_fresh else method.networks.keys() & shapes[1].keys()
    loaded |= fresh_networks(method, key, sorted(needed - loaded.keys()), mesh)
    if is_fresh:
        init = jax.jit(method.init, out_shardings=shardings, donate_argnums=1)
        state, frozen = init(key, loaded)
        return Restored(state, frozen, step=0, position=None)

    def init_frozen(key: jax.Array, loaded: Any) -> Any:
        return method.init(key, loaded)[1]

    step, state, position = checkpoints.restore(shapes[0], shardings[0])
    init = jax.jit(init_frozen, out_shardings=shardings[1], donate_argnums=1)
    return Restored(state, init(key, loaded), step, position)


def fresh_networks(
    method: Method, key: jax.Array, names: Sequence[str], mesh: jax.sharding.Mesh
) -> dict[str, Params]:
    """Returns fresh parameters of some of a method's networks, on the mesh.

    Each network has a program of its own: compiling them is most of a small network's start, and
    the compilation cache then keeps them for other settings of the method, and for a restart.
    """
    # A CPU compiles them in half the time with few optimisations, to the same numbers.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    quickly = {"xla_backend_optimization_level": 1} if on_cpu else None
    fresh = {}
    for name in names:
        draw = method.networks[name].init
        key_here = key_of(name, method.networks, key)
        places = sharding.state_sharding(jax.eval_shape(draw, key_here), mesh)
        fresh[name] = jax.jit(draw, out_shardings=places, compiler_options=quickly)(key_here)
    return fresh


def published(
    config: ml_collections.ConfigDict,
) -> tuple[Method, jax.sharding.Mesh, Any, Any]:
    """Returns `(method, mesh, params, frozen)`, to generate with published weights as they are.

    Raises InputError if a network that generates is not published, or does not fit.
    """
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    method = make_method(config)
    if untrained := method.untrained():
        raise InputError(
            f"--workdir is missing, and no published file gives {' and '.join(untrained)} of "
            f"{config.method.name}. Name the workdir of a trained run, or published weights."
        )

    def ready(key: jax.Array, loaded: Any) -> tuple[Any, Any]:
        state, frozen = method.init(key, loaded)
        return method.generation_params(state), frozen

    key = sharding.random_key(config.seed, mesh)
    loaded = method.load(mesh, frozen_only=False)
    loaded |= fresh_networks(method, key, sorted(method.networks.keys() - loaded.keys()), mesh)
    shapes = jax.eval_shape(ready, key, loaded)
    places = sharding.state_sharding(shapes, mesh)
    params, frozen = jax.jit(ready, out_shardings=places, donate_argnums=1)(key, loaded)
    return method, mesh, params, frozen


def restore(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> tuple[Method, jax.sharding.Mesh, Any, Any, int]:
    """Returns `(method, mesh, state, frozen, step)` of the newest whole checkpoint.

    Raises InputError if there is none, or it is another experiment's.
    """
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    method = make_method(config)
    check(workdir, config, method)
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise InputError(
            f"{workdir} holds no checkpoint; run job=train first, or name another --workdir"
        )
    with Checkpoints(folder, config.train.keep, config.train.keep_period) as checkpoints:
        if checkpoints.latest is None:
            raise InputError(f"{folder} holds no complete checkpoint; run job=train first")
        restored = restore_or_init(method, mesh, config, workdir, checkpoints)
    return method, mesh, restored.state, restored.frozen, restored.step
