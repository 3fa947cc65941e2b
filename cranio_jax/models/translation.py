"""The networks of Pix2Pix, CycleGAN and CUT.

Isola et al. 2017, Zhu et al. 2017, Park et al. 2020. Attribute paths are the keys of the authors'
checkpoints. Pictures are in [-1, 1].
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from cranio_jax.models.layers import NoLayer, ReLU, batch_norm, conv, convolve

NORMS = ("batch", "instance")
_DRAWN = nnx.initializers.normal(0.02)  # of all weights; batch norms' scales add 1


def _conv(
    features_in: int,
    features: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    *,
    use_bias=True,
    dtype=None,
    rngs,
):
    return conv(
        features_in,
        features,
        kernel,
        stride,
        padding,
        use_bias=use_bias,
        kernel_init=_DRAWN,
        dtype=dtype,
        rngs=rngs,
    )


class InstanceNorm(nnx.Module):
    """Normalises each channel of each picture, without parameters or stored statistics."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = exact - exact.mean((1, 2), keepdims=True)
        variance = (centred**2).mean((1, 2), keepdims=True)
        return (centred * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)


def _norm(kind: str, features: int, *, dtype=None, rngs):
    if kind == "instance":
        return InstanceNorm()

    def around_one(key, shape, dtype):
        return 1.0 + _DRAWN(key, shape, dtype)

    return batch_norm(features, scale_init=around_one, dtype=dtype, rngs=rngs)


class ConvTranspose(nnx.Module):
    """Doubles height and width, as torch's ConvTranspose2d does with stride 2 and padding 1.

    The kernel is 4, or 3 with an output padding of 1.
    """

    def __init__(
        self,
        features_in: int,
        features: int,
        kernel: int,
        *,
        use_bias: bool,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(
            _DRAWN(rngs.params(), (kernel, kernel, features, features_in), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros(features)) if use_bias else None
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w d"]:
        bias = None if self.bias is None else self.bias[...].reshape(1, 1, 1, -1)
        x, kernel, bias = nnx.nn.dtypes.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        missing = 4 - kernel.shape[0]
        kernel = jnp.pad(kernel, ((0, missing), (0, missing), (0, 0), (0, 0)))[::-1, ::-1]
        # From two neighbours x[u - 1] and x[u], an even row takes the weights 3 and 1, and the odd
        # row before it 2 and 0. So the four kinds of pixels are channels of one 2 x 2 convolution,
        # which multiplies no zeros between pixels.
        (batch, height, width, _), (features, features_in) = x.shape, kernel.shape[2:]
        phases = kernel.reshape(2, 2, 2, 2, features, features_in).transpose(0, 2, 5, 1, 3, 4)
        # On a CPU, XLA's gradient of a padded 2 x 2 convolution takes sixty times as long.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        kernel = phases.reshape(2, 2, features_in, 4 * features)
        pixels = convolve(x, kernel, 1, ((0, 0), (0, 0)))
        pixels = pixels.reshape(batch, height + 1, width + 1, 2, 2, features)
        rows = [
            jnp.stack([pixels[:, i : height + i, j : width + j, i, j] for j in range(2)], 3)
            for i in range(2)
        ]
        x = jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, features)
        return x if bias is None else x + bias


def dropped(x: Float[Array, "b h w c"], keys: Array, rate: float) -> Float[Array, "b h w c"]:
    """Returns `x` after dropout, which is drawn for each picture from its own key."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), 0.0)


class UnetSkipConnectionBlock(nnx.Module):
    """Halves the picture, applies the inner block, doubles, and concatenates the input."""

    def __init__(
        self,
        outer: int,
        inner: int,
        inside,
        norm: str,
        *,
        features_in: int = 0,
        dropout=False,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        """`inside` is None in the innermost block; only the outermost has `features_in`."""
        kw = dict(dtype=dtype, rngs=rngs)
        self.outermost = bool(features_in)
        self.dropout = dropout
        bias = norm == "instance"
        down = _conv(features_in or outer, inner, 4, 2, 1, use_bias=bias, **kw)
        up = ConvTranspose(
            inner * (1 if inside is None else 2), outer, 4, use_bias=bias or self.outermost, **kw
        )
        if self.outermost:
            layers = [down, inside, NoLayer(), up]
        elif inside is None:
            layers = [NoLayer(), down, NoLayer(), up, _norm(norm, outer, **kw)]
        else:
            layers = [
                NoLayer(),
                down,
                _norm(norm, inner, **kw),
                inside,
                NoLayer(),
                up,
                _norm(norm, outer, **kw),
            ]
        self.model = nnx.List(layers)

    def __call__(self, x: Float[Array, "b h w c"], keys: Array) -> Float[Array, "b h w d"]:
        """`keys` `(b,)` are for dropout, the only noise."""
        if self.outermost:
            down, inside, _, up = self.model
            return jnp.tanh(up(jax.nn.relu(inside(down(x), keys))))
        down, *inner, up, last = (layer for layer in self.model if not isinstance(layer, NoLayer))
        hidden = down(jax.nn.leaky_relu(x, 0.2))
        if inner:
            norm, inside = inner
            hidden = inside(norm(hidden), jax.vmap(jax.random.fold_in, (0, None))(keys, 0))
        hidden = last(up(jax.nn.relu(hidden)))
        return jnp.concatenate([x, dropped(hidden, keys, 0.5) if self.dropout else hidden], -1)


class UnetGenerator(nnx.Module):
    """Pix2Pix's U-Net of `levels` halvings: 8 for 256 pixels."""

    def __init__(
        self,
        levels: int,
        channels: int = 64,
        norm: str = "batch",
        dropout: bool = True,
        features_in: int = 3,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        kw = dict(dtype=dtype, rngs=rngs)
        block = UnetSkipConnectionBlock(8 * channels, 8 * channels, None, norm, **kw)
        for _ in range(levels - 5):
            block = UnetSkipConnectionBlock(
                8 * channels, 8 * channels, block, norm, dropout=dropout, **kw
            )
        for factor in (4, 2, 1):
            block = UnetSkipConnectionBlock(
                factor * channels, 2 * factor * channels, block, norm, **kw
            )
        self.model = UnetSkipConnectionBlock(
            3, channels, block, norm, features_in=features_in, **kw
        )

    def __call__(self, x: Float[Array, "b h w c"], keys: Array) -> Float[Array, "b h w 3"]:
        return self.model(x, keys)


class Reflected(nnx.Module):
    """Pads `count` mirrored pixels at each edge."""

    def __init__(self, count: int):
        self.count = count

    def __call__(self, x):
        return jnp.pad(x, ((0, 0), (self.count,) * 2, (self.count,) * 2, (0, 0)), "reflect")


class LeakyReLU(nnx.Module):
    def __call__(self, x):
        return jax.nn.leaky_relu(x, 0.2)


class Tanh(nnx.Module):
    def __call__(self, x):
        return jnp.tanh(x)


def _blurred(
    x: Float[Array, "b h w c"], taps: Sequence[float], stride: int
) -> Float[Array, "b h2 w2 c"]:
    """Returns `x` smoothed along rows and columns without padding, and strided."""
    for axis in (1, 2):
        fits = x.shape[axis] - len(taps) + 1
        parts: Any = (
            tap * jax.lax.slice_in_dim(x, i, i + fits, stride, axis) for i, tap in enumerate(taps)
        )
        x = sum(parts)
    return x


class Downsample(nnx.Module):
    """CUT's halving without aliasing (Zhang 2019)."""

    def __call__(self, x):
        return _blurred(Reflected(1)(x), (0.25, 0.5, 0.25), 2)


class Upsample(nnx.Module):
    """CUT's doubling: each pixel weighs the two nearest in each direction three to one."""

    def __call__(self, x):
        sides = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
        for axis, count in enumerate(sides, 1):
            before, here, after = (
                jax.lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(3)
            )
            both = jnp.stack([0.25 * before + 0.75 * here, 0.75 * here + 0.25 * after], axis + 1)
            x = both.reshape(*x.shape[:axis], 2 * count, *x.shape[axis + 1 :])
        return x


class ResnetBlock(nnx.Module):
    """Two convolutions and a residual."""

    def __init__(self, features: int, norm: str, *, dtype=None, rngs: nnx.Rngs):
        kw = dict(dtype=dtype, rngs=rngs)
        layers: list[nnx.Module] = []
        for last in (False, True):
            layers += [
                Reflected(1),
                _conv(features, features, 3, use_bias=norm == "instance", **kw),
                _norm(norm, features, **kw),
            ]
            if not last:
                layers.append(ReLU())
        self.conv_block = nnx.List(layers)

    def __call__(self, x):
        hidden = x
        for layer in self.conv_block:
            hidden = layer(hidden)
        return x + hidden


class ResnetGenerator(nnx.Module):
    """CycleGAN's generator: `blocks` residual blocks at a quarter of the size.

    `antialias` blurs at halvings and doublings, as CUT does.
    """

    def __init__(
        self,
        blocks: int = 9,
        channels: int = 64,
        norm: str = "instance",
        antialias: bool = False,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        kw = dict(dtype=dtype, rngs=rngs)
        bias = norm == "instance"

        def after(features):
            return [_norm(norm, features, **kw), ReLU()]

        # Halve twice.
        layers = [Reflected(3), _conv(3, channels, 7, use_bias=bias, **kw), *after(channels)]
        for width in (channels, 2 * channels):
            layers += [
                _conv(width, 2 * width, 3, 1 if antialias else 2, 1, use_bias=bias, **kw),
                *after(2 * width),
            ]
            if antialias:
                layers.append(Downsample())
        # Transform, then double twice.
        layers += [ResnetBlock(4 * channels, norm, **kw) for _ in range(blocks)]
        for width in (4 * channels, 2 * channels):
            if antialias:
                layers += [Upsample(), _conv(width, width // 2, 3, 1, 1, use_bias=bias, **kw)]
            else:
                layers += [ConvTranspose(width, width // 2, 3, use_bias=bias, **kw)]
            layers += after(width // 2)
        self.model = nnx.List([*layers, Reflected(3), _conv(channels, 3, 7, **kw), Tanh()])

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        for layer in self.model:
            x = layer(x)
        return x

    def features(
        self, x: Float[Array, "b h w 3"], places: Sequence[int]
    ) -> list[Float[Array, "b _ _ _"]]:
        """Returns the outputs of the layers at `places`; layers after the last are not computed."""
        features = []
        for place, layer in enumerate(list(self.model)[: max(places) + 1]):
            x = layer(x)
            if place in places:
                features.append(x)
        return features


class NLayerDiscriminator(nnx.Module):
    """PatchGAN: returns a map of logits; with 3 `layers`, each sees 70 x 70 pixels.

    `antialias` blurs at halvings, as CUT does.
    """

    def __init__(
        self,
        features_in: int = 3,
        channels: int = 64,
        layers: int = 3,
        norm: str = "batch",
        dropout: float = 0.0,
        antialias: bool = False,
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        """`dropout` follows each activation but the first; the study does not say where it is."""
        self.dropout = dropout
        kw = dict(dtype=dtype, rngs=rngs)
        bias = norm == "instance"
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        halving = 1 if antialias else 2
        less = [Downsample()] if antialias else []
        modules = [_conv(features_in, channels, 4, halving, 1, **kw), LeakyReLU(), *less]
        for i, (before, width) in enumerate(itertools.pairwise(widths), 1):
            last = i == layers
            modules += [
                _conv(before, width, 4, 1 if last else halving, 1, use_bias=bias, **kw),
                _norm(norm, width, **kw),
                LeakyReLU(),
            ]
            if not last:
                modules += less
        self.model = nnx.List([*modules, _conv(widths[-1], 1, 4, 1, 1, **kw)])

    def __call__(
        self, x: Float[Array, "b h w c"], keys: Array | None = None
    ) -> Float[Array, "b h2 w2 1"]:
        """`keys` `(b,)` are for dropout; without them there is none."""
        for place, layer in enumerate(self.model):
            x = layer(x)
            if self.dropout and keys is not None and place > 1 and isinstance(layer, LeakyReLU):
                x = dropped(x, jax.vmap(jax.random.fold_in, (0, None))(keys, place), self.dropout)
        return x


class PatchSampler(nnx.Module):
    """CUT's two-layer perceptrons, one for each layer of the generator.

    They turn features of patches into unit vectors.
    """

    def __init__(self, widths: Sequence[int], features: int = 256, *, dtype=None, rngs: nnx.Rngs):
        kw = dict(kernel_init=_DRAWN, dtype=dtype, rngs=rngs)
        self.count = len(widths)
        for i, width in enumerate(widths):
            setattr(
                self,
                f"mlp_{i}",
                nnx.List(
                    [
                        nnx.Linear(width, features, **kw),
                        NoLayer(),
                        nnx.Linear(features, features, **kw),
                    ]
                ),
            )

    def __call__(self, patches: Sequence[Float[Array, "b _ _"]]) -> list[Float[Array, "b _ d"]]:
        vectors = []
        for i, x in enumerate(patches):
            first, _, second = getattr(self, f"mlp_{i}")
            x = second(jax.nn.relu(first(x))).astype(jnp.float32)
            vectors.append(x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-7))
        return vectors


def levels_of(size: int) -> int:
    """Returns how many times Pix2Pix's U-Net halves pictures of `size` pixels, 8 times at most.

    Raises ValueError if the size is impossible.
    """
    levels = min(int(np.log2(size)), 8)
    if levels < 5 or size % 2**levels:
        raise ValueError(f"{size} is not a multiple of {2 ** max(levels, 5)}")
    return levels
