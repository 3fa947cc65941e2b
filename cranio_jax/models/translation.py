"""The networks of Pix2Pix, CycleGAN and CUT, with attribute paths equal to the keys of the authors' checkpoints.

Isola et al. 2017, Zhu et al. 2017, Park et al. 2020. Pictures are in [-1, 1].
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from cranio_jax.models.layers import NoLayer, ReLU, batch_norm, conv, convolve

NORMS = ("batch", "instance")
_DRAWN = nnx.initializers.normal(0.02)  # of all weights; scales of batch norms around 1


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
    """Each channel of each picture to mean 0 and variance 1; nothing is learnt and nothing stored."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = exact - exact.mean((1, 2), keepdims=True)
        return (centred * jax.lax.rsqrt((centred**2).mean((1, 2), keepdims=True) + 1e-5)).astype(
            x.dtype
        )


def _norm(kind: str, features: int, *, dtype=None, rngs):
    if kind == "instance":
        return InstanceNorm()
    around_one = lambda key, shape, dtype: 1.0 + _DRAWN(key, shape, dtype)
    return batch_norm(features, scale_init=around_one, dtype=dtype, rngs=rngs)


class ConvTranspose(nnx.Module):
    """Doubles height and width as torch's ConvTranspose2d does with stride 2 and padding 1, of kernel 4, or 3 and output padding 1."""

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
        # Of two neighbours x[u - 1] and x[u] an even row takes the weights 3 and 1, the odd row before it 2 and 0: the four
        # kinds of pixels are channels of one convolution of 2 x 2, where zeros between pixels would be multiplied otherwise.
        (batch, height, width, _), (features, features_in) = x.shape, kernel.shape[2:]
        phases = kernel.reshape(2, 2, 2, 2, features, features_in).transpose(0, 2, 5, 1, 3, 4)
        # Padded here, for XLA's gradient of a kernel of 2 x 2 with padding takes sixty times as long on a CPU.
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        found = convolve(x, phases.reshape(2, 2, features_in, 4 * features), 1, ((0, 0), (0, 0)))
        found = found.reshape(batch, height + 1, width + 1, 2, 2, features)
        rows = [
            jnp.stack([found[:, i : height + i, j : width + j, i, j] for j in range(2)], 3)
            for i in range(2)
        ]
        x = jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, features)
        return x if bias is None else x + bias


def dropped(x: Float[Array, "b h w c"], keys: Array, rate: float) -> Float[Array, "b h w c"]:
    """Dropout, drawn for each picture from a key of its own."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1.0 - rate), 0.0)


class UnetSkipConnectionBlock(nnx.Module):
    """Halves, does what lies inside, doubles; what came in goes along beside the result."""

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
        """`inside` is None in the innermost block; `features_in` is not 0 in the outermost alone."""
        kw = dict(dtype=dtype, rngs=rngs)
        self.outermost, self.dropout, bias = bool(features_in), dropout, norm == "instance"
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
        """`keys` `(b,)` are those of the dropout, which is the only noise there is."""
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
        self.model = UnetSkipConnectionBlock(3, channels, block, norm, features_in=3, **kw)

    def __call__(self, x: Float[Array, "b h w 3"], keys: Array) -> Float[Array, "b h w 3"]:
        return self.model(x, keys)


class Reflected(nnx.Module):
    """Mirrors so many pixels beyond each edge."""

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
    """Smoothed along rows and columns, as far as the taps fit; of the result every so many pixels."""
    for axis in (1, 2):
        fits = x.shape[axis] - len(taps) + 1
        x = sum(
            tap * jax.lax.slice_in_dim(x, i, i + fits, stride, axis) for i, tap in enumerate(taps)
        )
    return x


class Downsample(nnx.Module):
    """CUT's halving without aliasing (Zhang 2019)."""

    def __call__(self, x):
        return _blurred(Reflected(1)(x), (0.25, 0.5, 0.25), 2)


class Upsample(nnx.Module):
    """CUT's doubling: each new pixel from the two nearest in each direction, three to one."""

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
        kw, layers = dict(dtype=dtype, rngs=rngs), []
        for last in (False, True):
            layers += [
                Reflected(1),
                _conv(features, features, 3, use_bias=norm == "instance", **kw),
                _norm(norm, features, **kw),
            ]
            layers += [] if last else [ReLU()]
        self.conv_block = nnx.List(layers)

    def __call__(self, x):
        hidden = x
        for layer in self.conv_block:
            hidden = layer(hidden)
        return x + hidden


class ResnetGenerator(nnx.Module):
    """CycleGAN's generator of `blocks` residual blocks at a quarter of the size; `antialias` as in CUT."""

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
        kw, bias = dict(dtype=dtype, rngs=rngs), norm == "instance"
        after = lambda features: [_norm(norm, features, **kw), ReLU()]
        layers = [Reflected(3), _conv(3, channels, 7, use_bias=bias, **kw), *after(channels)]
        for width in (channels, 2 * channels):
            layers += [
                _conv(width, 2 * width, 3, 1 if antialias else 2, 1, use_bias=bias, **kw),
                *after(2 * width),
            ]
            layers += [Downsample()] if antialias else []
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
    ) -> list[Float[Array, "b h2 w2 c"]]:
        """What the layers of these places in the list make of pictures; nothing behind the last is computed."""
        found = []
        for place, layer in enumerate(list(self.model)[: max(places) + 1]):
            x = layer(x)
            if place in places:
                found.append(x)
        return found


class NLayerDiscriminator(nnx.Module):
    """PatchGAN: pictures to a map of logits, each of which sees 70 x 70 pixels with `layers` 3; `antialias` as in CUT."""

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
        """`dropout` follows each activation but the first; ours, for where it stands in the study is not told."""
        kw, bias, self.dropout = dict(dtype=dtype, rngs=rngs), norm == "instance", dropout
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        halving = 1 if antialias else 2
        less = [Downsample()] if antialias else []
        made = [_conv(features_in, channels, 4, halving, 1, **kw), LeakyReLU(), *less]
        for i, (before, width) in enumerate(itertools.pairwise(widths), 1):
            last = i == layers
            made += [
                _conv(before, width, 4, 1 if last else halving, 1, use_bias=bias, **kw),
                _norm(norm, width, **kw),
                LeakyReLU(),
            ]
            made += [] if last else less
        self.model = nnx.List([*made, _conv(widths[-1], 1, 4, 1, 1, **kw)])

    def __call__(
        self, x: Float[Array, "b h w c"], keys: Array | None = None
    ) -> Float[Array, "b h2 w2 1"]:
        """`keys` `(b,)` are those of the dropout, of which there is none without them."""
        for place, layer in enumerate(self.model):
            x = layer(x)
            if self.dropout and keys is not None and place > 1 and isinstance(layer, LeakyReLU):
                x = dropped(x, jax.vmap(jax.random.fold_in, (0, None))(keys, place), self.dropout)
        return x


class PatchSampler(nnx.Module):
    """CUT's two-layer perceptrons: features of patches to unit vectors, one perceptron for each layer of the generator."""

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

    def __call__(self, patches: Sequence[Float[Array, "b n _"]]) -> list[Float[Array, "b n d"]]:
        found = []
        for i, x in enumerate(patches):
            first, _, second = getattr(self, f"mlp_{i}")
            x = second(jax.nn.relu(first(x))).astype(jnp.float32)
            found.append(x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-7))
        return found


def receptive_field(layers: int) -> int:
    """Pixels that a logit of NLayerDiscriminator sees."""
    field = 1
    for stride in (1, 1, *(2,) * layers):
        field = (field - 1) * stride + 4
    return field


def levels_of(size: int) -> int:
    """Halvings of Pix2Pix's U-Net for pictures of `size` pixels: 8 at most, which make one pixel of 256. Raises ValueError."""
    levels = min(int(np.log2(size)), 8)
    if levels < 5 or size % 2**levels:
        raise ValueError(f"{size} is not a multiple of {2 ** max(levels, 5)}")
    return levels
