"""The denoising U-Net of Stable Diffusion 1.x and 2.x."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from cranio_jax.models.config import collapsed, from_mapping, per_block
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

# Fields of published UNets and ControlNets that this family holds constant. `...` means: of no
# effect here; a tuple holds values that mean the same.
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
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": None,
    "reverse_transformer_layers_per_block": None,
}


PER_BLOCK = (
    "layers_per_block",
    "cross_attention_dim",
    "attention_head_dim",
    "num_attention_heads",
    "transformer_layers_per_block",
    "only_cross_attention",
)


class Attentions(NamedTuple):
    """A transformer's settings.

    Attributes:
      heads: of each attention.
      context: the width of the vectors that it attends to.
      layers: how many transformer blocks follow each other.
    """

    heads: int
    context: int
    layers: int


@dataclasses.dataclass(frozen=True)
class UNet2DConditionConfig:
    """Fields of a diffusers config.json, with its defaults.

    `attention_head_dim` is the number of heads, whatever its name says, unless
    `num_attention_heads` is given (a historical accident that the checkpoints keep).
    Fields that may be lists have an entry for each block of the encoder; a list of equal entries
    is kept as the one value.
    """

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int | tuple[int, ...] = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: int | tuple[int, ...] | None = None
    transformer_layers_per_block: int | tuple[Any, ...] = 1
    use_linear_projection: bool = False
    only_cross_attention: bool | tuple[bool, ...] = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    downsample_padding: int = 1
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0

    def __post_init__(self):
        blocks = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            count = len(getattr(self, name))
            if count != blocks:
                raise ValueError(f"{name} has {count} entries, block_out_channels has {blocks}")
        for name in PER_BLOCK:
            values = per_block(getattr(self, name), blocks, name)
            if any(isinstance(value, (list, tuple)) for value in values):
                raise ValueError(
                    f"{name}={list(values)}: a list within the list is not implemented"
                )
            if name == "cross_attention_dim":
                # Blocks without attention never use theirs; the middle block uses the last.
                kinds = zip(
                    values, self.down_block_types, reversed(self.up_block_types), strict=True
                )
                used = [v for v, *kind in kinds if "CrossAttn" in " ".join(kind)] + [values[-1]]
                values = tuple(used) if len(set(used)) == 1 else values
            object.__setattr__(self, name, collapsed(values))
        if self.only_cross_attention:
            raise ValueError(f"only_cross_attention={self.only_cross_attention} is not implemented")

    @classmethod
    def from_mapping(cls, fields: Mapping[str, Any]) -> "UNet2DConditionConfig":
        """Reads the content of a config.json; ValueError names a field that is not implemented."""
        return from_mapping(cls, fields, FIXED)

    def _per_block(self, name: str) -> tuple:
        return per_block(getattr(self, name), len(self.block_out_channels), name)

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual blocks of each block of the encoder; the decoder's have one more."""
        return self._per_block("layers_per_block")

    @property
    def attentions(self) -> tuple["Attentions", ...]:
        """The transformer at each resolution; the middle block has the last."""
        heads = "num_attention_heads" if self.num_attention_heads else "attention_head_dim"
        fields = (heads, "cross_attention_dim", "transformer_layers_per_block")
        return tuple(map(Attentions, *(self._per_block(name) for name in fields)))


def run(layer: nnx.Module, *inputs: Array, remat: bool) -> Array:
    """Returns a layer's output.

    With `remat` the backward pass computes the layer's activations again, and only its inputs are
    kept in memory until then.
    """

    def apply(*inputs):
        return layer(*inputs)

    return jax.checkpoint(apply)(*inputs) if remat else layer(*inputs)


class DownBlock2D(nnx.Module):
    """Residual blocks, each followed by a transformer if `attentions` is set; a downsampler."""

    def __init__(
        self,
        c: UNet2DConditionConfig,
        features_in: int,
        features: int,
        layers: int,
        attentions: Attentions | None,
        downsample: bool,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        kw = dict(dtype=dtype, rngs=rngs)
        inputs = [features_in] + [features] * (layers - 1)
        self.resnets = nnx.List([_resnet(c, width, features, **kw) for width in inputs])
        if attentions is not None:
            self.attentions = nnx.List([transformer(c, features, attentions, **kw) for _ in inputs])
        if downsample:
            self.downsamplers = nnx.List([Downsample2D(features, c.downsample_padding, **kw)])

    def __call__(self, hidden, temb, context, remat=False):
        residuals = []
        for i, resnet in enumerate(self.resnets):
            hidden = run(resnet, hidden, temb, remat=remat)
            if hasattr(self, "attentions"):
                hidden = run(self.attentions[i], hidden, context, remat=remat)
            residuals.append(hidden)
        if hasattr(self, "downsamplers"):
            hidden = self.downsamplers[0](hidden)
            residuals.append(hidden)
        return hidden, residuals


class UpBlock2D(nnx.Module):
    """Residual blocks over the encoder's residuals, else as `DownBlock2D`; an upsampler."""

    def __init__(
        self,
        c: UNet2DConditionConfig,
        features_in: int,
        skips: list[int],
        features: int,
        attentions: Attentions | None,
        upsample: bool,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        kw = dict(dtype=dtype, rngs=rngs)
        inputs = [features_in] + [features] * (len(skips) - 1)
        widths = [width + skip for width, skip in zip(inputs, skips, strict=True)]
        self.resnets = nnx.List([_resnet(c, width, features, **kw) for width in widths])
        if attentions is not None:
            self.attentions = nnx.List([transformer(c, features, attentions, **kw) for _ in skips])
        if upsample:
            self.upsamplers = nnx.List([Upsample2D(features, **kw)])

    def __call__(self, hidden, residuals, temb, context, size, remat=False):
        for i, resnet in enumerate(self.resnets):
            hidden = jnp.concatenate([hidden, residuals[-1 - i]], -1)
            hidden = run(resnet, hidden, temb, remat=remat)
            if hasattr(self, "attentions"):
                hidden = run(self.attentions[i], hidden, context, remat=remat)
        return self.upsamplers[0](hidden, size) if hasattr(self, "upsamplers") else hidden


class UNetMidBlock2DCrossAttn(nnx.Module):
    """Residual block, transformer, residual block at the lowest resolution."""

    def __init__(self, c, *, dtype=None, rngs: nnx.Rngs):
        features, kw = c.block_out_channels[-1], dict(dtype=dtype, rngs=rngs)
        self.resnets = nnx.List([_resnet(c, features, features, **kw) for _ in range(2)])
        self.attentions = nnx.List([transformer(c, features, c.attentions[-1], **kw)])

    def __call__(self, hidden, temb, context, remat=False):
        hidden = run(self.resnets[0], hidden, temb, remat=remat)
        hidden = run(self.attentions[0], hidden, context, remat=remat)
        return run(self.resnets[1], hidden, temb, remat=remat)


def _resnet(c, features_in: int, features: int, *, dtype=None, rngs: nnx.Rngs) -> ResnetBlock2D:
    """Returns a residual block with the settings of configuration `c`."""
    dim_time = 4 * c.block_out_channels[0]
    settings = (dim_time, c.norm_num_groups, c.norm_eps, c.act_fn)
    return ResnetBlock2D(features_in, features, *settings, dtype=dtype, rngs=rngs)


def transformer(
    c, features: int, attentions: Attentions, *, dtype=None, rngs: nnx.Rngs
) -> Transformer2DModel:
    """Returns the transformer that configuration `c` puts at a resolution."""
    return Transformer2DModel(
        features,
        attentions.context,
        attentions.heads,
        c.norm_num_groups,
        c.use_linear_projection,
        attentions.layers,
        dtype=dtype,
        rngs=rngs,
    )


def down_blocks(c, *, dtype=None, rngs: nnx.Rngs) -> nnx.List:
    """The encoder half, which UNet and ControlNet share."""
    blocks, features_in = [], c.block_out_channels[0]
    for i, (kind, features) in enumerate(
        zip(c.down_block_types, c.block_out_channels, strict=True)
    ):
        if kind not in ("CrossAttnDownBlock2D", "DownBlock2D"):
            raise ValueError(f"down_block_types[{i}]={kind!r} is not implemented")
        attentions = c.attentions[i] if kind.startswith("CrossAttn") else None
        last = i == len(c.block_out_channels) - 1
        block = DownBlock2D(
            c, features_in, features, c.layers[i], attentions, not last, dtype=dtype, rngs=rngs
        )
        blocks.append(block)
        features_in = features
    return nnx.List(blocks)


def residual_features(c) -> list[int]:
    """Returns the channels of each residual, from `conv_in` to the lowest resolution."""
    features = [c.block_out_channels[0]]
    for i, width in enumerate(c.block_out_channels):
        features += [width] * (c.layers[i] + (i < len(c.block_out_channels) - 1))
    return features


class UNet2DConditionModel(nnx.Module):
    """Predicts noise, velocity or the clean sample from a noisy one (Rombach et al. 2022)."""

    def __init__(
        self, config: UNet2DConditionConfig, *, remat: bool = False, dtype=None, rngs: nnx.Rngs
    ):
        """With `remat`, gradients take less memory and more time: see `run`."""
        c = self.config = config
        self.remat = remat
        widths = c.block_out_channels
        self.conv_in = conv(c.in_channels, widths[0], dtype=dtype, rngs=rngs)
        self.time_embedding = TimestepEmbedding(
            widths[0], 4 * widths[0], c.act_fn, dtype=dtype, rngs=rngs
        )
        self.down_blocks = down_blocks(c, dtype=dtype, rngs=rngs)
        self.mid_block = UNetMidBlock2DCrossAttn(c, dtype=dtype, rngs=rngs)
        skips, blocks, features_in = residual_features(c), [], widths[-1]
        for i, (kind, features) in enumerate(zip(c.up_block_types, reversed(widths), strict=True)):
            if kind not in ("CrossAttnUpBlock2D", "UpBlock2D"):
                raise ValueError(f"up_block_types[{i}]={kind!r} is not implemented")
            attentions = c.attentions[-1 - i] if kind.startswith("CrossAttn") else None
            taken = [skips.pop() for _ in range(c.layers[-1 - i] + 1)]
            last = i == len(widths) - 1
            block = UpBlock2D(
                c, features_in, taken, features, attentions, not last, dtype=dtype, rngs=rngs
            )
            blocks.append(block)
            features_in = features
        self.up_blocks = nnx.List(blocks)
        self.conv_norm_out = nnx.GroupNorm(
            widths[0], c.norm_num_groups, epsilon=c.norm_eps, dtype=dtype, rngs=rngs
        )
        self.conv_out = conv(widths[0], c.out_channels, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        sample: Float[Array, "b h w c"],
        timesteps: Num[Array, "b"],
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
            residuals = [
                r + extra
                for r, extra in zip(residuals, down_block_additional_residuals, strict=True)
            ]
        if mid_block_additional_residual is not None:
            hidden = hidden + mid_block_additional_residual
        for block in self.up_blocks:
            count = len(block.resnets)
            taken, residuals = residuals[-count:], residuals[:-count]
            size = residuals[-1].shape[1:3] if residuals else None
            hidden = block(hidden, taken, temb, encoder_hidden_states, size, self.remat)
        return self.conv_out(ACTIVATIONS[c.act_fn](self.conv_norm_out(hidden)))


def encode(model, sample, timesteps, context, extra=None):
    """Runs conv_in, the encoder and the middle block of a UNet or ControlNet.

    `extra` is added after conv_in. Returns the middle block's output, the residuals and the time
    embedding.
    """
    c = model.config
    temb = timestep_embedding(timesteps, c.block_out_channels[0], c.flip_sin_to_cos, c.freq_shift)
    temb = model.time_embedding(temb.astype(sample.dtype))
    hidden = model.conv_in(sample)
    if extra is not None:
        hidden = hidden + extra
    residuals = [hidden]
    for block in model.down_blocks:
        hidden, more = block(hidden, temb, context, model.remat)
        residuals += more
    return model.mid_block(hidden, temb, context, model.remat), residuals, temb
