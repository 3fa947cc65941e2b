"""TAESD's decoder of Stable Diffusion's latents: faster than the autoencoder's, nearly as good."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cranio_jax.models.config import from_mapping
from cranio_jax.models.layers import NoLayer, conv

_FIXED = {
    "in_channels": ...,
    "encoder_block_out_channels": ...,
    "num_encoder_blocks": ...,
    "latent_magnitude": ...,
    "latent_shift": ...,
    "force_upcast": ...,
    "block_out_channels": ...,
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}


@dataclasses.dataclass(frozen=True)
class TinyDecoderConfig:
    """Fields of diffusers' AutoencoderTiny, with its defaults."""

    out_channels: int = 3
    latent_channels: int = 4
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> "TinyDecoderConfig":
        """Reads the content of a config.json; ValueError names a field that is not implemented."""
        return from_mapping(cls, fields, _FIXED)


class TinyBlock(nnx.Module):
    """Three convolutions and a residual."""

    def __init__(self, features: int, *, dtype=None, rngs: nnx.Rngs):
        first, second, third = (conv(features, features, dtype=dtype, rngs=rngs) for _ in range(3))
        self.conv = nnx.List([first, NoLayer(), second, NoLayer(), third])

    def __call__(self, x):
        hidden = jax.nn.relu(self.conv[2](jax.nn.relu(self.conv[0](x))))
        return jax.nn.relu(self.conv[4](hidden) + x)


class TinyLayers(nnx.Module):
    """The decoder's sequence.

    Layers without parameters keep their place, so that indices agree with the checkpoint's keys.
    """

    def __init__(self, c: TinyDecoderConfig, *, dtype=None, rngs: nnx.Rngs):
        kw = dict(dtype=dtype, rngs=rngs)
        layers = [conv(c.latent_channels, c.decoder_block_out_channels[0], **kw), NoLayer()]
        doubled = []
        last = len(c.num_decoder_blocks) - 1
        for i, (features, count) in enumerate(
            zip(c.decoder_block_out_channels, c.num_decoder_blocks, strict=True)
        ):
            layers += [TinyBlock(features, **kw) for _ in range(count)]
            if i < last:
                layers.append(NoLayer())
                doubled.append(len(layers))  # the picture doubles before this layer
            layers.append(
                conv(features, c.out_channels if i == last else features, use_bias=i == last, **kw)
            )
        self.doubled = tuple(doubled)
        self.layers = nnx.List(layers)

    def __call__(self, x):
        x = jax.nn.relu(self.layers[0](x))
        for i, layer in enumerate(self.layers):
            if i < 2 or isinstance(layer, NoLayer):
                continue
            if i in self.doubled:
                x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            x = layer(x)
        return x


class TinyDecoder(nnx.Module):
    """Decodes latents as the U-Net sees them (scaled)."""

    def __init__(self, config: TinyDecoderConfig, *, dtype=None, rngs: nnx.Rngs):
        self.config = config
        self.decoder = TinyLayers(config, dtype=dtype, rngs=rngs)

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Returns pictures, in about [-1, 1]."""
        # Large values are squashed softly, then [0, 1] becomes [-1, 1].
        return self.decoder(jnp.tanh(latents / 3.0) * 3.0) * 2.0 - 1.0
