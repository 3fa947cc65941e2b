"""Networks that only a loss uses, such as LPIPS, and the files of their weights."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from cranio_jax import assets, models, pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.models.functional import Network, Params, shared_network


class FeatureFile(NamedTuple):
    """A file with parameters of a network in the loss.

    Attributes:
      prefix: the paths of the parameters that are in this file begin with it.
      part: its kind, as `pretrained.open_part` takes it; empty for parameters under our names.
      network: the architecture, as `pretrained.open_part` takes it.
      path: where it is.
    """

    prefix: str
    part: str
    network: str
    path: pathlib.Path


def loss_file(losses: ml_collections.ConfigDict, field: str, term: str) -> pathlib.Path:
    """Returns the path in a field of `config.method.losses`. Raises InputError if it is empty."""
    if not losses[field]:
        raise InputError(
            f"method.losses.{field} is empty: the {term} term needs it. Name the file of weights, "
            "or set the weight of the term to 0."
        )
    return assets.located(losses[field])


def check_trunk(losses: ml_collections.ConfigDict, size: int) -> None:
    """Raises InputError if LPIPS's trunk is unknown, or too deep for pictures of `size` pixels."""
    if losses.trunk not in models.TRUNKS:
        trunks = ", ".join(models.TRUNKS)
        raise InputError(
            f"method.losses.trunk={losses.trunk!r}: it is unknown. Use one of {trunks}."
        )
    models.check_side(losses.trunk, size, size)


def lpips(
    losses: ml_collections.ConfigDict, size: int, dtype: jnp.dtype
) -> tuple[Network, list[FeatureFile]]:
    """Returns the network that `config.method.losses` names for the LPIPS term, and its files.

    Raises InputError if a file is not named, or the trunk does not fit pictures of `size` pixels.
    """
    check_trunk(losses, size)
    network = shared_network(functools.partial(models.LPIPS, losses.trunk, dtype=dtype))
    files = [
        FeatureFile(prefix, part, losses.trunk, loss_file(losses, f"{part}_file", "lpips"))
        for prefix, part in (("features.", "trunk"), ("lin", "heads"))
    ]
    return network, files


def load_features(
    files: Sequence[FeatureFile], network: Network, mesh: jax.sharding.Mesh, dtype: jnp.dtype
) -> Params:
    """Returns the parameters of a network that a loss uses, from its files, on the mesh."""
    params: Params = {}
    for file in files:
        shapes = {
            path: shape for path, shape in network.shapes().items() if path.startswith(file.prefix)
        }
        if file.part:
            opened = pretrained.open_part(file.path, file.part, file.network)
        else:
            opened = pretrained.open_weights(file.path)
        with opened as tensors:
            if not file.part:  # a file of TAESD has an encoder, too
                tensors = {k: t for k, t in tensors.items() if not k.startswith("encoder.")}
            places = shardings(shapes, mesh, dtype)
            params |= pretrained.load(shapes, tensors, places, file.path.name, dtype)
    return params


def shardings(shapes: dict[str, tuple[int, ...]], mesh: jax.sharding.Mesh, dtype: jnp.dtype) -> Any:
    """Returns where each parameter is placed on the mesh."""
    abstract = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}
    return sharding.state_sharding(abstract, mesh)
