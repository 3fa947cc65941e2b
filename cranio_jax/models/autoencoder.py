"""The variational autoencoder between pictures and latents."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cranio_jax.models.config import from_mapping
from cranio_jax.models.layers import (
    ACTIVATIONS,
    Attention,
    Downsample2D,
    ResnetBlock2D,
    Upsample2D,
    conv,
)

_FIXED = {
    "sample_size": ...,
    "force_upcast": ...,
    "latents_mean": None,
    "latents_std": None,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """Fields of a diffusers config.json, with its defaults."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215

    def __post_init__(self):
        for name, kind in (
            ("down_block_types", "DownEncoderBlock2D"),
            ("up_block_types", "UpDecoderBlock2D"),
        ):
            blocks = tuple(getattr(self, name))
            if blocks != (kind,) * len(self.block_out_channels):
                raise ValueError(
                    f"{name}={getattr(self, name)} is not implemented: "
                    f"only one {kind} for each of block_out_channels is"
                )

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> "AutoencoderKLConfig":
        """Reads the content of a config.json; ValueError names a field that is not implemented."""
        return from_mapping(cls, fields, _FIXED)


class AttentionBlock(Attention):
    """Single-head attention over pixels, with its own group norm and residual."""

    def __init__(self, features: int, groups: int, *, dtype=None, rngs: nnx.Rngs):
        super().__init__(features, features, 1, bias=True, dtype=dtype, rngs=rngs)
        self.group_norm = nnx.GroupNorm(features, groups, epsilon=1e-6, dtype=dtype, rngs=rngs)

    def __call__(  # type: ignore[override]
        self, hidden: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = hidden.shape
        attended = super().__call__(self.group_norm(hidden).reshape(b, h * w, c))
        return hidden + attended.reshape(b, h, w, c)


class _Stage(nnx.Module):
    """Residual blocks of one resolution, then a down- or upsampler."""

    def __init__(self, c, features_in, features, layers, sampler, *, dtype=None, rngs: nnx.Rngs):
        self.resnets = nnx.List(
            [
                ResnetBlock2D(
                    features_in if i == 0 else features,
                    features,
                    None,
                    c.norm_num_groups,
                    1e-6,
                    c.act_fn,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range(layers)
            ]
        )
        if sampler == "down":
            self.downsamplers = nnx.List(
                [Downsample2D(features, padding=0, dtype=dtype, rngs=rngs)]
            )
        elif sampler == "up":
            self.upsamplers = nnx.List([Upsample2D(features, dtype=dtype, rngs=rngs)])

    def __call__(self, hidden):
        for resnet in self.resnets:
            hidden = resnet(hidden)
        for name in ("downsamplers", "upsamplers"):
            if hasattr(self, name):
                hidden = getattr(self, name)[0](hidden)
        return hidden


class _MidBlock(nnx.Module):
    def __init__(self, c, *, dtype=None, rngs: nnx.Rngs):
        features = c.block_out_channels[-1]
        resnets = [
            ResnetBlock2D(
                features, features, None, c.norm_num_groups, 1e-6, c.act_fn, dtype=dtype, rngs=rngs
            )
            for _ in range(2)
        ]
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List(
            [AttentionBlock(features, c.norm_num_groups, dtype=dtype, rngs=rngs)]
        )

    def __call__(self, hidden):
        return self.resnets[1](self.attentions[0](self.resnets[0](hidden)))


class Encoder(nnx.Module):
    """Returns the moments of a picture's latents."""

    def __init__(self, c: AutoencoderKLConfig, *, dtype=None, rngs: nnx.Rngs):
        widths = c.block_out_channels
        self.conv_in = conv(c.in_channels, widths[0], dtype=dtype, rngs=rngs)
        inputs = (widths[0], *widths[:-1])
        self.down_blocks = nnx.List(
            [
                _Stage(
                    c,
                    a,
                    b,
                    c.layers_per_block,
                    "down" if i < len(widths) - 1 else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
            ]
        )
        self.mid_block = _MidBlock(c, dtype=dtype, rngs=rngs)
        self.conv_norm_out = nnx.GroupNorm(
            widths[-1], c.norm_num_groups, epsilon=1e-6, dtype=dtype, rngs=rngs
        )
        self.conv_out = conv(widths[-1], 2 * c.latent_channels, dtype=dtype, rngs=rngs)
        self.act = ACTIVATIONS[c.act_fn]

    def __call__(self, hidden):
        hidden = self.conv_in(hidden)
        for block in self.down_blocks:
            hidden = block(hidden)
        return self.conv_out(self.act(self.conv_norm_out(self.mid_block(hidden))))


class Decoder(nnx.Module):
    """Returns the picture of latents."""

    def __init__(self, c: AutoencoderKLConfig, *, dtype=None, rngs: nnx.Rngs):
        widths = c.block_out_channels[::-1]
        self.conv_in = conv(c.latent_channels, widths[0], dtype=dtype, rngs=rngs)
        self.mid_block = _MidBlock(c, dtype=dtype, rngs=rngs)
        inputs = (widths[0], *widths[:-1])
        self.up_blocks = nnx.List(
            [
                _Stage(
                    c,
                    a,
                    b,
                    c.layers_per_block + 1,
                    "up" if i < len(widths) - 1 else None,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, (a, b) in enumerate(zip(inputs, widths, strict=True))
            ]
        )
        self.conv_norm_out = nnx.GroupNorm(
            widths[-1], c.norm_num_groups, epsilon=1e-6, dtype=dtype, rngs=rngs
        )
        self.conv_out = conv(widths[-1], c.out_channels, dtype=dtype, rngs=rngs)
        self.act = ACTIVATIONS[c.act_fn]

    def __call__(self, hidden):
        hidden = self.mid_block(self.conv_in(hidden))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self.conv_out(self.act(self.conv_norm_out(hidden)))


class AutoencoderKL(nnx.Module):
    """Autoencoder with a diagonal Gaussian over latents of 1/2^(blocks - 1) of the size."""

    def __init__(self, config: AutoencoderKLConfig, *, dtype=None, rngs: nnx.Rngs):
        c = self.config = config
        self.encoder = Encoder(c, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(c, dtype=dtype, rngs=rngs)
        self.quant_conv = conv(
            2 * c.latent_channels, 2 * c.latent_channels, 1, dtype=dtype, rngs=rngs
        )
        self.post_quant_conv = conv(c.latent_channels, c.latent_channels, 1, dtype=dtype, rngs=rngs)

    def moments(
        self, picture: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Returns mean and log-variance (clipped to [-30, 20]) of a picture's latents."""
        mean, log_variance = jnp.split(self.quant_conv(self.encoder(picture)), 2, -1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(
        self, picture: Float[Array, "b H W 3"], key: Array | None = None
    ) -> Float[Array, "b h w c"]:
        """Returns a picture's scaled latents: a sample if `key` is set, else the mean."""
        mean, log_variance = self.moments(picture)
        if key is not None:
            mean = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(
                key, mean.shape, mean.dtype
            )
        return mean * self.config.scaling_factor

    def decode(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Returns the picture, in about [-1, 1], of scaled latents."""
        return self.decode_raw(latents / self.config.scaling_factor)

    def decode_raw(self, latents: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Returns the picture, in about [-1, 1], of latents that are not scaled."""
        return self.decoder(self.post_quant_conv(latents))
