"""A method's state on the mesh: from our newest checkpoint, from published weights, or from scratch."""

import pathlib

import jax
import ml_collections

from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import Method, make_method
from cranio_jax.runs import initial
from cranio_jax.runs.checkpoints import Checkpoints
from cranio_jax.runs.workdir import check, read_identity


def shardings_of(method: Method, mesh: jax.sharding.Mesh):
    """`(shapes, shardings)`, each of `(state, frozen)`."""
    shapes = jax.eval_shape(method.init, jax.eval_shape(lambda: jax.random.key(0)))
    return shapes, sharding.state_sharding(shapes, mesh)


def restore_or_init(
    method: Method,
    mesh: jax.sharding.Mesh,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    checkpoints: Checkpoints,
):
    """Returns `(state, frozen, step, position)`.

    The state is that of our newest checkpoint, else it begins with another run's weights
    (`train.init_from`), published ones or fresh ones. `position` is that of the batches, None at
    the start.
    """
    shapes, shardings = shardings_of(method, mesh)
    fresh = checkpoints.latest is None
    loaded = method.load(mesh, frozen_only=not fresh)
    if config.train.init_from:
        began = read_identity(workdir)["weights"][initial.FIELD]
        others = initial.load(config.train.init_from, began, shapes, shardings, not fresh)
        for name, params in others.items():
            network = name.removesuffix("_lora")
            loaded[network] = loaded.get(network, {}) | params
    key = sharding.random_key(config.seed, mesh)
    # Run once: on a CPU the same numbers, compiled in half the time, which a small network's start is mostly spent on.
    quickly = (
        {"xla_backend_optimization_level": 1} if mesh.devices.flat[0].platform == "cpu" else None
    )
    compiled = lambda f, placed: jax.jit(
        f, out_shardings=placed, donate_argnums=1, compiler_options=quickly
    )
    if fresh:
        return *compiled(method.init, shardings)(key, loaded), 0, None
    step, state, position = checkpoints.restore(shapes[0], shardings[0])
    frozen = compiled(lambda key, loaded: method.init(key, loaded)[1], shardings[1])(key, loaded)
    return state, frozen, step, position


def restore(config: ml_collections.ConfigDict, workdir: pathlib.Path):
    """`(method, mesh, state, frozen, step)` of the newest checkpoint. Raises InputError where there is none."""
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    method = make_method(config)
    check(workdir, config, method)
    if not (workdir / "checkpoints").is_dir():
        raise InputError(
            f"{workdir} holds no checkpoint; run job=train first, or name another --workdir"
        )
    with Checkpoints(
        workdir / "checkpoints", config.train.keep, config.train.keep_period
    ) as checkpoints:
        if checkpoints.latest is None:
            raise InputError(
                f"{workdir / 'checkpoints'} holds no complete checkpoint; run job=train first"
            )
        return method, mesh, *restore_or_init(method, mesh, config, workdir, checkpoints)[:3]
