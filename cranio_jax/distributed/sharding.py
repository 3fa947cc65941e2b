"""One mesh for one device, eight or a pod: batches over both axes, large parameters over `fsdp`."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from cranio_jax.errors import InputError

MIN_SHARDED_SIZE = 2**16  # elements; smaller arrays cost more to gather than to keep


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """Returns the `("data", "fsdp")` mesh; `data` -1 uses all devices that `fsdp` leaves.

    Raises InputError if there are too few devices, or if several processes would not use all.
    """
    count = jax.device_count()
    if data == -1:
        data = max(count // fsdp, 1)
    if not 0 < data * fsdp <= count or (jax.process_count() > 1 and data * fsdp < count):
        raise InputError(
            f"mesh.data={data} x mesh.fsdp={fsdp} is {data * fsdp} devices, but there are {count}"
        )
    devices = jax.devices()[: data * fsdp]
    return jax.make_mesh(
        (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def check_batch(batch_size: int, mesh: Mesh, name: str) -> None:
    """Raises InputError if a batch does not divide evenly over the devices and the processes."""
    for count, what in ((mesh.size, "devices"), (jax.process_count(), "processes")):
        if batch_size <= 0 or batch_size % count:
            nearest = max(round(batch_size / count), 1) * count
            raise InputError(
                f"{name}={batch_size} does not divide over {count} {what}; "
                f"the nearest that does is {nearest}"
            )


def padded_batch(batch_size: int, mesh: Mesh, name: str = "batch_size") -> int:
    """Returns the smallest batch that holds `batch_size` examples and divides over all devices.

    For functions of single examples, where padding changes no result. Raises
    InputError, with the setting's `name`, if the batch is empty.
    """
    if batch_size < 1:
        raise InputError(f"{name}={batch_size}: a batch holds at least one example. Set 1 or more.")
    count = math.lcm(mesh.size, jax.process_count())
    return -(-batch_size // count) * count


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is the same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def random_key(seed: int, mesh: Mesh) -> jax.Array:
    """Returns a random key on every device.

    Programs take it as an argument, so that another seed needs no compilation.
    """
    return jax.jit(jax.random.key, out_shardings=replicated(mesh))(seed)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array's first axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(tree: Any, mesh: Mesh) -> Any:
    """Returns shardings for a tree of arrays or shapes.

    Large ones are split over `fsdp` along the largest axis that divides evenly.
    """
    fsdp = mesh.shape["fsdp"]

    def shard(leaf):
        shape = leaf.shape
        fitting = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
        if fsdp == 1 or np.prod(shape, dtype=np.int64) < MIN_SHARDED_SIZE or not fitting:
            return replicated(mesh)
        axis = max(fitting, key=lambda a: shape[a])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(shard, tree)


def local_rows(batch_size: int, mesh: Mesh) -> Int[np.ndarray, "n"]:
    """Returns the rows of a batch on this process's devices, which need not be contiguous."""
    parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns global arrays from this process's rows of a batch, in the order of `local_rows`."""
    sharding = batch_sharding(mesh)
    # With several processes, JAX would flag this intended transfer as a mistake.
    with jax.transfer_guard("allow"):
        return {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()
        }
