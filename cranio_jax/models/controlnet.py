"""ControlNet: a copy of the U-Net's encoder that reads a picture (Zhang et al. 2023)."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from cranio_jax.models.config import from_mapping
from cranio_jax.models.layers import TimestepEmbedding, conv, zero_conv
from cranio_jax.models.unet import (
    FIXED,
    UNet2DConditionConfig,
    UNetMidBlock2DCrossAttn,
    down_blocks,
    encode,
    residual_features,
    run,
)


@dataclasses.dataclass(frozen=True)
class ControlNetConfig(UNet2DConditionConfig):
    """The U-Net's fields and those of the picture's encoder.

    Output and decoder fields have no effect. Each entry of `conditioning_embedding_out_channels`
    after the first halves the picture, so their number must agree with the autoencoder: four for
    its factor of 8.
    """

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> "ControlNetConfig":
        """Reads the content of a config.json; ValueError names a field that is not implemented."""
        only_here = {
            "controlnet_conditioning_channel_order": "rgb",
            "global_pool_conditions": False,
        }
        if "down_block_types" in fields:
            blocks = len(fields["down_block_types"])
            fields = {"up_block_types": ("UpBlock2D",) * blocks, **fields}
        return from_mapping(cls, fields, FIXED | only_here)

    def __post_init__(self):
        super().__post_init__()
        if self.conditioning_channels not in (1, 3):
            raise ValueError(
                f"conditioning_channels={self.conditioning_channels} is not implemented; "
                "only 3 and 1 are, since an X-ray is grey"
            )


class ControlNetConditioningEmbedding(nnx.Module):
    """Turns a picture into features of the latents' size; its last layer starts at zero."""

    def __init__(
        self, features: int, channels: int, widths: tuple[int, ...], *, dtype=None, rngs: nnx.Rngs
    ):
        self.conv_in = conv(channels, widths[0], dtype=dtype, rngs=rngs)
        blocks = []
        for here, following in itertools.pairwise(widths):
            blocks += [
                conv(here, here, dtype=dtype, rngs=rngs),
                conv(here, following, stride=2, dtype=dtype, rngs=rngs),
            ]
        self.blocks = nnx.List(blocks)
        self.conv_out = conv(
            widths[-1], features, dtype=dtype, rngs=rngs, kernel_init=nnx.initializers.zeros
        )

    def __call__(self, picture: Float[Array, "b H W c"]) -> Float[Array, "b h w d"]:
        hidden = jax.nn.silu(self.conv_in(picture))
        for block in self.blocks:
            hidden = jax.nn.silu(block(hidden))
        return self.conv_out(hidden)


class ControlNetModel(nnx.Module):
    """Turns a picture into additions to a U-Net's residuals; all zero before training."""

    def __init__(
        self, config: ControlNetConfig, *, remat: bool = False, dtype=None, rngs: nnx.Rngs
    ):
        """With `remat`, gradients take less memory and more time: see `unet.run`."""
        c = self.config = config
        self.remat = remat
        widths = c.block_out_channels
        self.conv_in = conv(c.in_channels, widths[0], dtype=dtype, rngs=rngs)
        self.time_embedding = TimestepEmbedding(
            widths[0], 4 * widths[0], c.act_fn, dtype=dtype, rngs=rngs
        )
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            widths[0],
            c.conditioning_channels,
            c.conditioning_embedding_out_channels,
            dtype=dtype,
            rngs=rngs,
        )
        self.down_blocks = down_blocks(c, dtype=dtype, rngs=rngs)
        self.controlnet_down_blocks = nnx.List(
            [zero_conv(n, dtype=dtype, rngs=rngs) for n in residual_features(c)]
        )
        self.mid_block = UNetMidBlock2DCrossAttn(c, dtype=dtype, rngs=rngs)
        self.controlnet_mid_block = zero_conv(widths[-1], dtype=dtype, rngs=rngs)

    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Num[Array, "b"],
        encoder_hidden_states: Float[Array, "b m d"],
        controlnet_cond: Float[Array, "b H W k"],
        conditioning_scale: float | Float[Array, ""] = 1.0,
    ) -> tuple[list[Array], Array]:
        """Returns additions to the residuals and to the middle block of a U-Net.

        Args:
          sample: noisy latents.
          timesteps: diffusion steps.
          encoder_hidden_states: the text encoder's output.
          controlnet_cond: the picture, in [0, 1] as published ControlNets take it; a grey one is
            repeated to the network's channels.
          conditioning_scale: strength of the control.
        """
        channels = self.config.conditioning_channels
        if controlnet_cond.shape[-1] == 1:
            controlnet_cond = jnp.repeat(controlnet_cond, channels, -1)
        picture = run(self.controlnet_cond_embedding, controlnet_cond, remat=self.remat)
        if picture.shape[1:3] != sample.shape[1:3]:
            raise ValueError(
                f"the picture is reduced to {picture.shape[1:3]}, and the latents are "
                f"{sample.shape[1:3]}: conditioning_embedding_out_channels must have one entry for "
                "each halving, and one more"
            )
        hidden, residuals, _ = encode(self, sample, timesteps, encoder_hidden_states, picture)
        residuals = [
            z(r) * conditioning_scale
            for z, r in zip(self.controlnet_down_blocks, residuals, strict=True)
        ]
        return residuals, self.controlnet_mid_block(hidden) * conditioning_scale
