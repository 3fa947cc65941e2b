"""The networks that ArcFace (Deng et al. 2019) is published with.

They turn a face into a vector whose direction is its identity.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cranio_jax.models.layers import batch_norm, conv


class PReLU(nnx.Module):
    """ReLU with a learnt slope of each channel for negative values."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.weight = nnx.Param(jnp.full((features,), 0.25))

    def __call__(self, x):
        slope = self.weight.get_value().astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
        return jnp.where(x >= 0, x, slope * x)


class IBasicBlock(nnx.Module):
    """IResNet's residual block."""

    def __init__(self, features_in: int, features: int, stride: int, *, dtype=None, rngs: nnx.Rngs):
        kw = dict(dtype=dtype, rngs=rngs)
        self.bn1 = batch_norm(features_in, **kw)
        self.conv1 = conv(features_in, features, use_bias=False, **kw)
        self.bn2 = batch_norm(features, **kw)
        self.prelu = PReLU(features, rngs=rngs)
        self.conv2 = conv(features, features, 3, stride, use_bias=False, **kw)
        self.bn3 = batch_norm(features, **kw)
        if stride != 1 or features_in != features:
            self.downsample = nnx.List(
                [
                    conv(features_in, features, 1, stride, use_bias=False, **kw),
                    batch_norm(features, **kw),
                ]
            )

    def __call__(self, x):
        short = self.downsample[1](self.downsample[0](x)) if hasattr(self, "downsample") else x
        return short + self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))


# Blocks of each stage.
IRESNET_LAYERS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}


class IResNet(nnx.Module):
    """insightface's network: a face as 512 numbers.

    It is published for 112 x 112 pixels and 64 channels.
    """

    def __init__(
        self,
        layers: int,
        channels: int = 64,
        height: int = 112,
        width: int = 112,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        """`layers` is one of IRESNET_LAYERS; `height` and `width` are multiples of 16."""
        kw = dict(dtype=dtype, rngs=rngs)
        self.height, self.width = height, width
        self.conv1 = conv(3, channels, use_bias=False, **kw)
        self.bn1 = batch_norm(channels, **kw)
        self.prelu = PReLU(channels, rngs=rngs)
        features_in = channels
        for i, count in enumerate(IRESNET_LAYERS[layers]):
            features = channels * 2**i
            blocks = []
            for j in range(count):
                blocks.append(IBasicBlock(features_in, features, 2 if j == 0 else 1, **kw))
                features_in = features
            setattr(self, f"layer{i + 1}", nnx.List(blocks))
        self.bn2 = batch_norm(features, **kw)
        self.fc = nnx.Linear(features * (height // 16) * (width // 16), 512, **kw)
        self.features = batch_norm(512, **kw)

    def __call__(self, face: Float[Array, "b h w 3"]) -> Float[Array, "b 512"]:
        """Embeds aligned RGB faces in [-1, 1]."""
        x = self.prelu(self.bn1(self.conv1(face)))
        for i in range(4):
            for block in getattr(self, f"layer{i + 1}"):
                x = block(x)
        x = self.bn2(x).transpose(0, 3, 1, 2)  # the checkpoint's order of axes
        return self.features(self.fc(x.reshape(x.shape[0], -1)))


class ConvBlock(nnx.Module):
    """Convolution, batch norm and, unless `linear`, PReLU."""

    def __init__(
        self,
        features_in,
        features,
        kernel,
        stride=1,
        padding=0,
        groups=1,
        linear=False,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            features_in,
            features,
            kernel,
            stride,
            padding=padding,
            feature_group_count=groups,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = batch_norm(features, dtype=dtype, rngs=rngs)
        if not linear:
            self.prelu = PReLU(features, rngs=rngs)

    def __call__(self, x):
        x = self.bn(self.conv(x))
        return self.prelu(x) if hasattr(self, "prelu") else x


class Bottleneck(nnx.Module):
    """MobileNetV2's inverted residual with PReLU."""

    def __init__(
        self,
        features_in: int,
        features: int,
        stride: int,
        expansion: int,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        kw = dict(dtype=dtype, rngs=rngs)
        inner = features_in * expansion
        self.conv = nnx.List(
            [
                conv(features_in, inner, 1, use_bias=False, **kw),
                batch_norm(inner, **kw),
                PReLU(inner, rngs=rngs),
                conv(inner, inner, 3, stride, use_bias=False, feature_group_count=inner, **kw),
                batch_norm(inner, **kw),
                PReLU(inner, rngs=rngs),
                conv(inner, features, 1, use_bias=False, **kw),
                batch_norm(features, **kw),
            ]
        )
        self.connect = stride == 1 and features_in == features

    def __call__(self, x):
        hidden = x
        for layer in self.conv:
            hidden = layer(hidden)
        return x + hidden if self.connect else hidden


class MobileFaceNet(nnx.Module):
    """MobileFaceNet (Chen et al. 2018): a face as 128 numbers.

    It is published for 112 x 96 pixels and 64 channels.
    """

    scale = 127.5 / 128.0  # of pictures in [-1, 1]; the checkpoint's (x - 127.5) / 128

    def __init__(
        self, channels: int = 64, height: int = 112, width: int = 96, *, dtype=None, rngs: nnx.Rngs
    ):
        """`height` and `width` are multiples of 16."""
        kw = dict(dtype=dtype, rngs=rngs)
        self.height, self.width = height, width
        self.conv1 = ConvBlock(3, channels, (3, 3), 2, 1, **kw)
        self.dw_conv1 = ConvBlock(channels, channels, (3, 3), 1, 1, groups=channels, **kw)
        blocks, features_in = [], channels
        for expansion, widening, count, stride in (
            (2, 1, 5, 2),
            (4, 2, 1, 2),
            (2, 2, 6, 1),
            (4, 2, 1, 2),
            (2, 2, 2, 1),
        ):
            for i in range(count):
                blocks.append(
                    Bottleneck(
                        features_in, widening * channels, stride if i == 0 else 1, expansion, **kw
                    )
                )
                features_in = widening * channels
        self.blocks = nnx.List(blocks)
        inner = 8 * channels
        self.conv2 = ConvBlock(features_in, inner, (1, 1), **kw)
        self.linear7 = ConvBlock(
            inner, inner, (height // 16, width // 16), groups=inner, linear=True, **kw
        )
        self.linear1 = ConvBlock(inner, 128, (1, 1), linear=True, **kw)

    def __call__(self, face: Float[Array, "b h w 3"]) -> Float[Array, "b 128"]:
        """Embeds aligned RGB faces in [-1, 1]."""
        x = self.dw_conv1(self.conv1(face * self.scale))
        for block in self.blocks:
            x = block(x)
        return self.linear1(self.linear7(self.conv2(x))).reshape(x.shape[0], -1)


EMBEDDERS = {
    f"iresnet{layers}": functools.partial(IResNet, layers) for layers in IRESNET_LAYERS
} | {"mobilefacenet": MobileFaceNet}


def make_embedder(settings: Mapping[str, Any], dtype=None) -> Callable[..., nnx.Module]:
    """Returns a function that builds a network from `rngs`, those of its layers.

    `settings` has its `network`, and its `channels`, `height` and `width` if they differ from the
    published ones. Raises ValueError if there is no such network.
    """
    sizes = dict(settings)
    name = sizes.pop("network")
    if name not in EMBEDDERS:
        raise ValueError(f"network={name!r} is not one of {', '.join(EMBEDDERS)}")
    for side in ("height", "width"):
        if (value := sizes.get(side, 112)) < 16 or value % 16:
            raise ValueError(f"{side}={value} is not a multiple of 16")
    return functools.partial(EMBEDDERS[name], **sizes, dtype=dtype)
