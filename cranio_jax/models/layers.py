"""Building blocks that UNet, ControlNet and autoencoder share."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
}


def convolve(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l i d"],
    stride: int,
    padding: Sequence[tuple[int, int]],
    groups: int = 1,
) -> Float[Array, "b h2 w2 d"]:
    """Returns a convolution, computed in the form that is fastest on the backend.

    On a CPU, a 1 x 1 convolution, or one with more channels than pixels, becomes a matrix product.
    XLA's own code is two and three times slower for these, and copies the flipped kernel
    for each gradient. It takes up to six times as long without padding as with some, so one column
    is added and its result cut off.
    """
    *window, _, features = kernel.shape
    height, width = (
        (n + sum(pad) - k) // stride + 1
        for n, pad, k in zip(x.shape[1:3], padding, window, strict=True)
    )
    rows, columns = padding
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and groups == 1 and (window == [1, 1] or x.shape[0] * height * width <= features):
        x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))

        def strided(first, count):
            return slice(first, first + stride * (count - 1) + 1, stride)

        taps = [
            x[:, strided(i, height), strided(j, width)]
            for i in range(window[0])
            for j in range(window[1])
        ]
        return jnp.concatenate(taps, -1) @ kernel.reshape(-1, features)
    if on_cpu and not sum(rows) + sum(columns):
        columns = (0, 1)
    axes = ("NHWC", "HWIO", "NHWC")
    result = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (rows, columns), None, None, axes, groups
    )
    return result[:, :, :width]


class Conv(nnx.Conv):
    """nnx.Conv computed by `convolve`; takes square strides and explicit padding alone."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "b h w c"]
    ) -> Float[Array, "b h2 w2 d"]:
        bias = None if self.bias is None else self.bias[...].reshape(1, 1, 1, -1)
        x, kernel, bias = nnx.nn.dtypes.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        strides: Any = self.strides
        padding: Any = self.padding
        stride = strides if isinstance(strides, int) else strides[0]
        x = convolve(x, kernel, stride, padding, groups=self.feature_group_count)
        return x if bias is None else x + bias


def conv(
    features_in: int,
    features_out: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int | None = None,
    *,
    dtype=None,
    rngs: nnx.Rngs,
    **kwargs,
) -> nnx.Conv:
    """Returns a square convolution with torch's padding, kernel // 2 on every side by default."""
    padding = kernel // 2 if padding is None else padding
    return Conv(
        features_in,
        features_out,
        (kernel, kernel),
        strides=stride,
        padding=((padding, padding), (padding, padding)),
        dtype=dtype,
        rngs=rngs,
        **kwargs,
    )


def batch_norm(
    features: int, epsilon: float = 1e-5, *, dtype=None, rngs: nnx.Rngs, **kwargs
) -> nnx.BatchNorm:
    """Returns torch's batch norm, which uses its stored statistics.

    After `train()` it uses the batch's, and the stored ones move a tenth of the way to them.
    """
    return nnx.BatchNorm(
        features,
        use_running_average=True,
        momentum=0.9,
        epsilon=epsilon,
        dtype=dtype,
        rngs=rngs,
        **kwargs,
    )


def zero_conv(features: int, *, dtype=None, rngs: nnx.Rngs) -> nnx.Conv:
    """Returns a 1 x 1 convolution of zeros, so that a ControlNet starts without effect."""
    return conv(features, features, 1, dtype=dtype, rngs=rngs, kernel_init=nnx.initializers.zeros)


def timestep_embedding(
    timesteps: Num[Array, "batch"],
    dim: int,
    flip_sin_to_cos: bool = True,
    freq_shift: float = 0.0,
) -> Float[Array, "batch dim"]:
    """Returns the sinusoidal embedding of diffusion steps (Vaswani et al. 2017).

    The two switches are diffusers'.
    """
    half = dim // 2
    frequencies = jnp.exp(
        -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    )
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None, :]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    if flip_sin_to_cos:
        parts.reverse()
    return jnp.concatenate(parts, -1)


class TimestepEmbedding(nnx.Module):
    """Two-layer perceptron over the sinusoidal embedding."""

    def __init__(self, dim_in: int, dim: int, act_fn: str, *, dtype=None, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(dim_in, dim, dtype=dtype, rngs=rngs)
        self.linear_2 = nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.act = ACTIVATIONS[act_fn]

    def __call__(self, embedding: Float[Array, "batch dim_in"]) -> Float[Array, "batch dim"]:
        return self.linear_2(self.act(self.linear_1(embedding)))


class ResnetBlock2D(nnx.Module):
    """Two convolutions with group norms, the time embedding between them, and a residual.

    `dim_time` None leaves the time embedding out (autoencoder).
    """

    def __init__(
        self,
        features_in: int,
        features_out: int,
        dim_time: int | None,
        groups: int,
        eps: float,
        act_fn: str = "silu",
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.norm1 = nnx.GroupNorm(features_in, groups, epsilon=eps, dtype=dtype, rngs=rngs)
        self.conv1 = conv(features_in, features_out, dtype=dtype, rngs=rngs)
        if dim_time is not None:
            self.time_emb_proj = nnx.Linear(dim_time, features_out, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.GroupNorm(features_out, groups, epsilon=eps, dtype=dtype, rngs=rngs)
        self.conv2 = conv(features_out, features_out, dtype=dtype, rngs=rngs)
        if features_in != features_out:
            self.conv_shortcut = conv(features_in, features_out, 1, dtype=dtype, rngs=rngs)
        self.act = ACTIVATIONS[act_fn]

    def __call__(
        self, hidden: Float[Array, "b h w c"], temb: Float[Array, "b t"] | None = None
    ) -> Float[Array, "b h w d"]:
        residual = self.conv_shortcut(hidden) if hasattr(self, "conv_shortcut") else hidden
        hidden = self.conv1(self.act(self.norm1(hidden)))
        if temb is not None:
            hidden = hidden + self.time_emb_proj(self.act(temb))[:, None, None, :]
        return residual + self.conv2(self.act(self.norm2(hidden)))


class Downsample2D(nnx.Module):
    """Strided convolution. `padding` 0 pads right and below only, as the autoencoder does."""

    def __init__(self, features: int, padding: int = 1, *, dtype=None, rngs: nnx.Rngs):
        sides = (padding, padding) if padding else (0, 1)
        self.conv = Conv(
            features, features, (3, 3), strides=2, padding=(sides, sides), dtype=dtype, rngs=rngs
        )

    def __call__(self, hidden: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(hidden)


class Upsample2D(nnx.Module):
    """Nearest-neighbour enlargement to `size` (twice by default), then a convolution."""

    def __init__(self, features: int, *, dtype=None, rngs: nnx.Rngs):
        self.conv = conv(features, features, dtype=dtype, rngs=rngs)

    def __call__(
        self, hidden: Float[Array, "b h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "b h2 w2 c"]:
        b, h, w, c = hidden.shape
        if size is None or size == (2 * h, 2 * w):
            # Repeating by broadcast compiles to a copy; a general resize gathers.
            hidden = jnp.broadcast_to(hidden[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(
                b, 2 * h, 2 * w, c
            )
        else:
            rows = jnp.arange(size[0]) * h // size[0]
            columns = jnp.arange(size[1]) * w // size[1]
            hidden = hidden[:, rows][:, :, columns]
        return self.conv(hidden)


def cudnn_takes(q: Float[Array, "b n h d"]) -> bool:
    """Returns True if cuDNN's attention, which keeps the logits out of memory, can be used.

    It needs a CUDA device, and supports some types, lengths and head sizes.
    """
    fits = (
        q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[1] % 2 == 0
        and q.shape[-1] <= 128
        and q.shape[-1] % 8 == 0
    )
    return (
        fits
        and jax.default_backend() == "gpu"
        and "cuda" in jax.devices()[0].client.platform_version
    )


def attend(
    q: Float[Array, "b n h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]
) -> Float[Array, "b n h d"]:
    """Returns scaled dot-product attention, computed by cuDNN if possible."""
    if not cudnn_takes(q):
        return jax.nn.dot_product_attention(q, k, v)
    lengths = None
    # JAX supports cuDNN's gradients for even lengths only; CLIP's 77 tokens get one more, masked.
    if k.shape[1] % 2:
        lengths = jnp.full(k.shape[0], k.shape[1], jnp.int32)
        k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (k, v))
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


class Attention(nnx.Module):
    """Multi-head attention of a sequence to `context`, or to itself by default."""

    def __init__(
        self,
        dim: int,
        dim_context: int,
        heads: int,
        bias: bool = False,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.to_q = nnx.Linear(dim, dim, use_bias=bias, dtype=dtype, rngs=rngs)
        self.to_k = nnx.Linear(dim_context, dim, use_bias=bias, dtype=dtype, rngs=rngs)
        self.to_v = nnx.Linear(dim_context, dim, use_bias=bias, dtype=dtype, rngs=rngs)
        self.to_out = nnx.List([nnx.Linear(dim, dim, dtype=dtype, rngs=rngs)])

    def __call__(
        self, hidden: Float[Array, "b n c"], context: Float[Array, "b m d"] | None = None
    ) -> Float[Array, "b n c"]:
        context = hidden if context is None else context
        q = self._split(self.to_q(hidden))
        k = self._split(self.to_k(context))
        v = self._split(self.to_v(context))
        return self.to_out[0](attend(q, k, v).reshape(hidden.shape))

    def _split(self, x: Float[Array, "b n c"]) -> Float[Array, "b n h d"]:
        return x.reshape(*x.shape[:2], self.heads, -1)


class GEGLU(nnx.Module):
    """Linear layer gated by the exact GELU of its other half (Shazeer 2020)."""

    def __init__(self, dim: int, dim_out: int, *, dtype=None, rngs: nnx.Rngs):
        self.proj = nnx.Linear(dim, 2 * dim_out, dtype=dtype, rngs=rngs)

    def __call__(self, hidden: Float[Array, "b n c"]) -> Float[Array, "b n d"]:
        value, gate = jnp.split(self.proj(hidden), 2, -1)
        return value * jax.nn.gelu(gate, approximate=False)


class ReLU(nnx.Module):
    """ReLU as an entry of a list of layers."""

    def __call__(self, x):
        return jax.nn.relu(x)


class NoLayer(nnx.Module):
    """Holds the place of a dropout in a list, so that indices agree with the checkpoint's keys."""


class FeedForward(nnx.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, dim: int, *, dtype=None, rngs: nnx.Rngs):
        self.net = nnx.List(
            [
                GEGLU(dim, 4 * dim, dtype=dtype, rngs=rngs),
                NoLayer(),
                nnx.Linear(4 * dim, dim, dtype=dtype, rngs=rngs),
            ]
        )

    def __call__(self, hidden: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        return self.net[2](self.net[0](hidden))


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each after a layer norm."""

    def __init__(self, dim: int, dim_context: int, heads: int, *, dtype=None, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(dim, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(dim, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.norm3 = nnx.LayerNorm(dim, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.attn1 = Attention(dim, dim, heads, dtype=dtype, rngs=rngs)
        self.attn2 = Attention(dim, dim_context, heads, dtype=dtype, rngs=rngs)
        self.ff = FeedForward(dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, hidden: Float[Array, "b n c"], context: Float[Array, "b m d"]
    ) -> Float[Array, "b n c"]:
        hidden = hidden + self.attn1(self.norm1(hidden))
        hidden = hidden + self.attn2(self.norm2(hidden), context)
        return hidden + self.ff(self.norm3(hidden))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the pixels of a feature map, with a residual around all."""

    def __init__(
        self,
        features: int,
        dim_context: int,
        heads: int,
        groups: int,
        use_linear_projection: bool,
        layers: int = 1,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):

        def project():
            if use_linear_projection:
                return nnx.Linear(features, features, dtype=dtype, rngs=rngs)
            return conv(features, features, 1, dtype=dtype, rngs=rngs)

        self.norm = nnx.GroupNorm(features, groups, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.proj_in = project()
        self.transformer_blocks = nnx.List(
            [
                BasicTransformerBlock(features, dim_context, heads, dtype=dtype, rngs=rngs)
                for _ in range(layers)
            ]
        )
        self.proj_out = project()

    def __call__(
        self, hidden: Float[Array, "b h w c"], context: Float[Array, "b m d"]
    ) -> Float[Array, "b h w c"]:
        b, h, w, c = hidden.shape
        # A 1 x 1 convolution and a linear layer over the last axis are equivalent.
        inner = self.proj_in(self.norm(hidden)).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            inner = block(inner, context)
        return hidden + self.proj_out(inner.reshape(b, h, w, c))
