"""The files behind Cranio-Diff's networks, and their parameters on the mesh."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from cranio_jax import models, pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.models.functional import Network, Params


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
    return pathlib.Path(losses[field]).expanduser()


def read_tiny_decoder(losses: ml_collections.ConfigDict, codec: str) -> models.TinyDecoderConfig:
    """Returns the configuration of the decoder that `config.method.losses.decoder` holds."""
    if codec != "vae":
        raise InputError(
            f"method.losses.decoder={losses.decoder}: it replaces an autoencoder's decoder. "
            "It needs method.codec='vae'."
        )
    file = pathlib.Path(losses.decoder) / "config.json"
    try:
        return models.TinyDecoderConfig.from_mapping(pretrained.read_settings(file))
    except ValueError as error:
        raise InputError(f"method.losses.decoder: {error}") from None


def load_part(
    pipeline: pretrained.Pipeline,
    name: str,
    network: Network,
    mesh: jax.sharding.Mesh,
    dtype: jnp.dtype,
) -> Params:
    """Returns a part's published parameters, on the mesh.

    `name` is 'unet_lora' for the U-Net's additions, which `network` contains. A ControlNet without
    a file of its own starts from the U-Net's encoder, and its other parameters are missing here.
    Raises InputError if the parameters do not fit the network.
    """
    additions = name == "unet_lora"
    shapes = {
        path: shape for path, shape in network.shapes().items() if models.is_lora(path) == additions
    }
    has_files = name in pipeline.folders
    source = name if has_files else "unet"
    with pipeline.open(source) as tensors:
        if not has_files:
            shapes, tensors = pretrained.pick(shapes, tensors)
        places = shardings(shapes, mesh, dtype)
        return pretrained.load(shapes, tensors, places, f"{pipeline.name}'s {source}", dtype)


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


def shardings(shapes: dict[str, tuple[int, ...]], mesh: jax.sharding.Mesh, dtype: jnp.dtype):
    """Returns where each parameter is placed on the mesh."""
    abstract = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()}
    return sharding.state_sharding(abstract, mesh)
