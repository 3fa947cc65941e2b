"""A small network that finds the outline of the head, soft tissue included, in an X-ray.

It is a U-Net (Ronneberger et al. 2015) for segmentation. A ControlNet reads its picture through
three strided convolutions without normalization, and misses thin soft tissue between bone and air.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from cranio_jax.models.layers import conv
from cranio_jax.models.patches import PatchCodec

_GROUPS = 4
_PATCH = 2  # the first level sees blocks of 2 x 2 pixels as channels, for speed
_EPSILON = 1e-5


class _Level(nnx.Module):
    """Two convolutions, each with a group norm behind it."""

    def __init__(self, features_in: int, features: int, *, dtype=None, rngs: nnx.Rngs):
        self.conv1 = conv(features_in, features, dtype=dtype, rngs=rngs)
        self.norm1 = nnx.GroupNorm(features, _GROUPS, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.conv2 = conv(features, features, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.GroupNorm(features, _GROUPS, epsilon=_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, hidden: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        hidden = jax.nn.silu(self.norm1(self.conv1(hidden)))
        return jax.nn.silu(self.norm2(self.conv2(hidden)))


class OutlineNetwork(nnx.Module):
    """Turns an X-ray into the logit that a pixel is of the head, for each pixel."""

    def __init__(self, widths: Sequence[int], side: int, *, dtype=None, rngs: nnx.Rngs):
        """Args:
          widths: channels at a half of the resolution, at a quarter, and so on; multiples of 4.
          side: of the X-rays that it sees, in pixels; others are scaled to it.
          dtype: of the computation.
          rngs: of the parameters.

        Raises:
          ValueError: a number is impossible; the message begins with its name.
        """
        if not widths or any(width < 1 or width % _GROUPS for width in widths):
            raise ValueError(f"widths={tuple(widths)}: they must be positive multiples of 4")
        least = 2 ** len(widths)
        if side < 1 or side % least:
            raise ValueError(f"side={side}: {len(widths)} levels need a multiple of {least}")
        self.side = side
        self.dtype = dtype
        inputs = (_PATCH**2, *widths[:-1])
        self.down = nnx.List(
            [_Level(i, o, dtype=dtype, rngs=rngs) for i, o in zip(inputs, widths, strict=True)]
        )
        self.up = nnx.List(
            [
                _Level(below + here, here, dtype=dtype, rngs=rngs)
                for here, below in zip(widths[-2::-1], widths[:0:-1], strict=True)
            ]
        )
        self.conv_out = conv(widths[0], _PATCH**2, dtype=dtype, rngs=rngs)

    def __call__(self, xrays: UInt8[Array, "b h w 1"]) -> Float[Array, "b h w 1"]:
        """Returns logits, of the size of the X-rays, for squares with bone bright."""
        count, height, width, _ = xrays.shape
        pictures = xrays.astype(self.dtype or jnp.float32) / 127.5 - 1.0
        codec = PatchCodec(_PATCH)
        hidden = codec.encode(_scaled(pictures, self.side))
        # From fine to coarse.
        skipped: list[Array] = []
        for level in self.down:
            if skipped:
                hidden = nnx.max_pool(hidden, (2, 2), strides=(2, 2))
            hidden = level(hidden)
            skipped.append(hidden)
        # From coarse to fine, with what each level saw on the way there.
        for level, finer in zip(self.up, skipped[-2::-1], strict=True):
            hidden = _scaled(hidden, finer.shape[1])
            hidden = level(jnp.concatenate([hidden, finer], -1))
        logits = codec.decode(self.conv_out(hidden))
        return jax.image.resize(logits, (count, height, width, 1), "linear")


def _scaled(pictures: Float[Array, "b h w c"], side: int) -> Float[Array, "b h2 w2 c"]:
    """Returns pictures at another side. Pictures that shrink are smoothed first."""
    count, _, _, channels = pictures.shape
    return jax.image.resize(pictures, (count, side, side, channels), "linear")
