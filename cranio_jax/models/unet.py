"""The denoising U-Net of Stable Diffusion 1.x and 2.x."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cranio_jax.models.config import from_mapping, per_block
from cranio_jax.models.layers import (
    ACTIVATIONS,
    Downsample2D,
    ResnetBlock2D,
    TimestepEmbedding,
    Transformer2DModel,
    Upsample2D,
    conv,
    timestep_embedding,
)

# Fields of published UNets and ControlNets that this family holds constant. `...` means: of no effect here.
FIXED = {
    "sample_size": ...,
    "upcast_attention": ...,  # attention logits are always computed in float32
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "mid_block_scale_factor": 1,
    "dual_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "dropout": 0.0,
    "attention_type": "default",
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "addition_embed_type_num_heads": ...,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "class_embeddings_concat": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "reverse_transformer_layers_per_block": None,
}


@dataclasses.dataclass(frozen=True)
class UNet2DConditionConfig:
    """Fields of a diffusers config.json, with its defaults.

    `attention_head_dim` is the number of heads, whatever its name says, unless
    `num_attention_heads` is given (a historical accident that the checkpoints keep).
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: int = 2
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    transformer_layers_per_block: int = 1
    use_linear_projection: bool = False
    only_cross_attention: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    downsample_padding: int = 1
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0

    def __post_init__(self):
        blocks = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != blocks:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, block_out_channels has {blocks}")
        if self.only_cross_attention:
            raise ValueError("only_cross_attention=True is not implemented")

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> "UNet2DConditionConfig":
        """Reads the content of a config.json; ValueError names a field that is not implemented."""
        return from_mapping(cls, fields, FIXED)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each resolution."""
        return per_block(self.num_attention_heads or self.attention_head_dim, len(self.block_out_channels))


class DownBlock2D(nnx.Module):
    """Residual blocks, each followed by a transformer where `heads` is given, then a downsampler."""

    def __init__(self, c, features_in: int, features: int, heads: int | None, downsample: bool, *, dtype=None, rngs: nnx.Rngs):
        dim_time = 4 * c.block_out_channels[0]
        self.resnets = nnx.List(
            [
                ResnetBlock2D(
                    features_in if i == 0 else features, features, dim_time, c.norm_num_groups, c.norm_eps, c.act_fn, dtype=dtype, rngs=rngs
                )
                for i in range(c.layers_per_block)
            ]
        )
        if heads is not None:
            self.attentions = nnx.List([transformer(c, features, heads, dtype=dtype, rngs=rngs) for _ in range(c.layers_per_block)])
        if downsample:
            self.downsamplers = nnx.List([Downsample2D(features, c.downsample_padding, dtype=dtype, rngs=rngs)])

    def __call__(self, hidden, temb, context):
        residuals = []
        for i, resnet in enumerate(self.resnets):
            hidden = resnet(hidden, temb)
            if hasattr(self, "attentions"):
                hidden = self.attentions[i](hidden, context)
            residuals.append(hidden)
        if hasattr(self, "downsamplers"):
            hidden = self.downsamplers[0](hidden)
            residuals.append(hidden)
        return hidden, residuals


class UpBlock2D(nnx.Module):
    """Residual blocks over the encoder's residuals, transformers as in `DownBlock2D`, then an upsampler."""

    def __init__(
        self, c, features_in: int, skips: list[int], features: int, heads: int | None, upsample: bool, *, dtype=None, rngs: nnx.Rngs
    ):
        dim_time = 4 * c.block_out_channels[0]
        self.resnets = nnx.List(
            [
                ResnetBlock2D(
                    (features_in if i == 0 else features) + skip,
                    features,
                    dim_time,
                    c.norm_num_groups,
                    c.norm_eps,
                    c.act_fn,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, skip in enumerate(skips)
            ]
        )
        if heads is not None:
            self.attentions = nnx.List([transformer(c, features, heads, dtype=dtype, rngs=rngs) for _ in skips])
        if upsample:
            self.upsamplers = nnx.List([Upsample2D(features, dtype=dtype, rngs=rngs)])

    def __call__(self, hidden, residuals, temb, context, size):
        for i, resnet in enumerate(self.resnets):
            hidden = resnet(jnp.concatenate([hidden, residuals[-1 - i]], -1), temb)
            if hasattr(self, "attentions"):
                hidden = self.attentions[i](hidden, context)
        return self.upsamplers[0](hidden, size) if hasattr(self, "upsamplers") else hidden


class UNetMidBlock2DCrossAttn(nnx.Module):
    """Residual block, transformer, residual block at the lowest resolution."""

    def __init__(self, c, *, dtype=None, rngs: nnx.Rngs):
        features, dim_time = c.block_out_channels[-1], 4 * c.block_out_channels[0]
        resnet = lambda: ResnetBlock2D(features, features, dim_time, c.norm_num_groups, c.norm_eps, c.act_fn, dtype=dtype, rngs=rngs)
        self.resnets = nnx.List([resnet(), resnet()])
        self.attentions = nnx.List([transformer(c, features, c.heads[-1], dtype=dtype, rngs=rngs)])

    def __call__(self, hidden, temb, context):
        hidden = self.attentions[0](self.resnets[0](hidden, temb), context)
        return self.resnets[1](hidden, temb)


def transformer(c, features: int, heads: int, *, dtype=None, rngs: nnx.Rngs) -> Transformer2DModel:
    """The transformer that configuration `c` puts at a resolution."""
    return Transformer2DModel(
        features,
        c.cross_attention_dim,
        heads,
        c.norm_num_groups,
        c.use_linear_projection,
        c.transformer_layers_per_block,
        dtype=dtype,
        rngs=rngs,
    )


def down_blocks(c, *, dtype=None, rngs: nnx.Rngs) -> nnx.List:
    """The encoder half, which UNet and ControlNet share."""
    blocks, features_in = [], c.block_out_channels[0]
    for i, (kind, features) in enumerate(zip(c.down_block_types, c.block_out_channels, strict=True)):
        if kind not in ("CrossAttnDownBlock2D", "DownBlock2D"):
            raise ValueError(f"down_block_types[{i}]={kind!r} is not implemented")
        heads = c.heads[i] if kind.startswith("CrossAttn") else None
        last = i == len(c.block_out_channels) - 1
        blocks.append(DownBlock2D(c, features_in, features, heads, not last, dtype=dtype, rngs=rngs))
        features_in = features
    return nnx.List(blocks)


def residual_features(c) -> list[int]:
    """Channels of each residual that the encoder hands on, from `conv_in` to the lowest resolution."""
    features = [c.block_out_channels[0]]
    for i, width in enumerate(c.block_out_channels):
        features += [width] * (c.layers_per_block + (i < len(c.block_out_channels) - 1))
    return features


class UNet2DConditionModel(nnx.Module):
    """Predicts noise, velocity or the clean sample from a noisy one (Rombach et al. 2022)."""

    def __init__(self, config: UNet2DConditionConfig, *, dtype=None, rngs: nnx.Rngs):
        c = self.config = config
        widths = c.block_out_channels
        self.conv_in = conv(c.in_channels, widths[0], dtype=dtype, rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], c.act_fn, dtype=dtype, rngs=rngs)
        self.down_blocks = down_blocks(c, dtype=dtype, rngs=rngs)
        self.mid_block = UNetMidBlock2DCrossAttn(c, dtype=dtype, rngs=rngs)
        skips, blocks, features_in = residual_features(c), [], widths[-1]
        for i, (kind, features) in enumerate(zip(c.up_block_types, reversed(widths), strict=True)):
            if kind not in ("CrossAttnUpBlock2D", "UpBlock2D"):
                raise ValueError(f"up_block_types[{i}]={kind!r} is not implemented")
            heads = c.heads[-1 - i] if kind.startswith("CrossAttn") else None
            taken = [skips.pop() for _ in range(c.layers_per_block + 1)]
            blocks.append(UpBlock2D(c, features_in, taken, features, heads, i < len(widths) - 1, dtype=dtype, rngs=rngs))
            features_in = features
        self.up_blocks = nnx.List(blocks)
        self.conv_norm_out = nnx.GroupNorm(widths[0], c.norm_num_groups, epsilon=c.norm_eps, dtype=dtype, rngs=rngs)
        self.conv_out = conv(widths[0], c.out_channels, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Float[Array, "b"],
        encoder_hidden_states: Float[Array, "b m d"],
        down_block_additional_residuals: list[Array] | None = None,
        mid_block_additional_residual: Array | None = None,
    ) -> Float[Array, "b h w c_out"]:
        """Denoises one step.

        Args:
          sample: noisy latents.
          timesteps: diffusion steps, 0 (clean) to T - 1.
          encoder_hidden_states: the text encoder's output.
          down_block_additional_residuals: a ControlNet's additions to the encoder's residuals.
          mid_block_additional_residual: its addition to the middle block's output.
        """
        c = self.config
        hidden, residuals, temb = encode(self, sample, timesteps, encoder_hidden_states)
        if down_block_additional_residuals is not None:
            residuals = [r + extra for r, extra in zip(residuals, down_block_additional_residuals, strict=True)]
        if mid_block_additional_residual is not None:
            hidden = hidden + mid_block_additional_residual
        for block in self.up_blocks:
            count = c.layers_per_block + 1
            taken, residuals = residuals[-count:], residuals[:-count]
            size = residuals[-1].shape[1:3] if residuals else None
            hidden = block(hidden, taken, temb, encoder_hidden_states, size)
        return self.conv_out(ACTIVATIONS[c.act_fn](self.conv_norm_out(hidden)))


def encode(model, sample, timesteps, context, extra=None):
    """Runs conv_in, the encoder and the middle block of a UNet or ControlNet.

    `extra` is added after conv_in. Returns the middle block's output, the residuals and the time embedding.
    """
    c = model.config
    temb = timestep_embedding(timesteps, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift)
    temb = model.time_embedding(temb.astype(sample.dtype))
    hidden = model.conv_in(sample)
    if extra is not None:
        hidden = hidden + extra
    residuals = [hidden]
    for block in model.down_blocks:
        hidden, more = block(hidden, temb, context)
        residuals += more
    return model.mid_block(hidden, temb, context), residuals, temb
