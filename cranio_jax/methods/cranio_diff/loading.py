"""The published files of Cranio-Diff's networks, and their parameters on the mesh."""

import pathlib

import jax
import jax.numpy as jnp
import ml_collections

from cranio_jax import models, pretrained
from cranio_jax.errors import InputError
from cranio_jax.methods.loss_networks import shardings
from cranio_jax.models.functional import Network, Params


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
