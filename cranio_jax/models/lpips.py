"""LPIPS: a distance of pictures in a classifier's features (Zhang et al. 2018).

The classifiers are torchvision's.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from cranio_jax.errors import InputError
from cranio_jax.models.layers import NoLayer, ReLU, conv

# The published heads were fitted with this scaling of pictures in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class MaxPool(nnx.Module):
    """Maximum of each window; `ceil` keeps a last window that is cut off by the edge."""

    def __init__(self, window: int, ceil: bool = False):
        self.window = window
        self.ceil = ceil

    def __call__(self, x):
        pad = [(0, (n - self.window) % 2 if self.ceil else 0) for n in x.shape[1:3]]
        return nnx.max_pool(x, (self.window,) * 2, strides=(2, 2), padding=pad)


class Fire(nnx.Module):
    """SqueezeNet's block: few channels, then two kinds of kernel side by side."""

    def __init__(self, features_in: int, squeeze: int, expand: int, *, dtype=None, rngs: nnx.Rngs):
        self.squeeze = conv(features_in, squeeze, 1, dtype=dtype, rngs=rngs)
        self.expand1x1 = conv(squeeze, expand, 1, dtype=dtype, rngs=rngs)
        self.expand3x3 = conv(squeeze, expand, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.relu(self.squeeze(x))
        return jax.nn.relu(jnp.concatenate([self.expand1x1(x), self.expand3x3(x)], -1))


def _vgg16(**kw) -> tuple[list, tuple[int, ...]]:
    layers, features_in = [], 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [conv(features_in, width, **kw), ReLU()]
            features_in = width
        layers.append(MaxPool(2))
    return layers[:-1], (3, 8, 15, 22, 29)


def _alexnet(**kw) -> tuple[list, tuple[int, ...]]:
    layers = [
        conv(3, 64, 11, 4, 2, **kw),
        ReLU(),
        MaxPool(3),
        conv(64, 192, 5, **kw),
        ReLU(),
        MaxPool(3),
    ]
    layers += [
        conv(192, 384, **kw),
        ReLU(),
        conv(384, 256, **kw),
        ReLU(),
        conv(256, 256, **kw),
        ReLU(),
    ]
    return layers, (1, 4, 7, 9, 11)


def _squeezenet(**kw) -> tuple[list, tuple[int, ...]]:
    layers = [conv(3, 64, 3, 2, 0, **kw), ReLU(), MaxPool(3, ceil=True)]
    layers += [Fire(64, 16, 64, **kw), Fire(128, 16, 64, **kw), MaxPool(3, ceil=True)]
    layers += [Fire(128, 32, 128, **kw), Fire(256, 32, 128, **kw), MaxPool(3, ceil=True)]
    layers += [
        Fire(256, 48, 192, **kw),
        Fire(384, 48, 192, **kw),
        Fire(384, 64, 256, **kw),
        Fire(512, 64, 256, **kw),
    ]
    return layers, (1, 4, 7, 9, 10, 11, 12)


# Each trunk's layers, and the channels of its taps.
TRUNKS: dict[str, tuple[Callable[..., tuple[list, tuple[int, ...]]], tuple[int, ...]]] = {
    "vgg": (_vgg16, (64, 128, 256, 512, 512)),
    "alex": (_alexnet, (64, 192, 384, 256, 256)),
    "squeeze": (_squeezenet, (64, 128, 256, 384, 384, 512, 512)),
}
# The shortest side, in pixels, of a picture that is not pooled away.
LEAST_SIDES = {"vgg": 16, "alex": 31, "squeeze": 17}


def check_side(trunk: str, height: int, width: int) -> None:
    """Raises InputError if pictures of that many pixels are too small for LPIPS with a trunk."""
    if min(height, width) < (least := LEAST_SIDES[trunk]):
        raise InputError(
            f"LPIPS with the trunk {trunk} needs pictures of at least {least} x {least} pixels, "
            f"not {height} x {width}. Use larger pictures, or leave this network out."
        )


def _unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Returns `x` scaled to length one along the channels."""
    # sqrt has an infinite slope at zero; a channel that is dead everywhere must not give NaN.
    square = (x**2).sum(-1, keepdims=True)
    length = jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
    return x / (length + 1e-10)


class Head(nnx.Module):
    """Learnt weights of a tap's channels."""

    def __init__(self, features: int, *, dtype=None, rngs: nnx.Rngs):
        # The published heads' keys are `linK.model.1.weight`, after a dropout.
        self.model = nnx.List(
            [NoLayer(), conv(features, 1, 1, dtype=dtype, rngs=rngs, use_bias=False)]
        )

    def __call__(self, x):
        return self.model[1](x)


class LPIPS(nnx.Module):
    """Distance of two pictures. Trunk keys are torchvision's, head keys the lpips package's."""

    def __init__(self, trunk: str, *, dtype=None, rngs: nnx.Rngs):
        """`trunk` is 'vgg', 'alex' or 'squeeze'."""
        self.trunk = trunk
        make, widths = TRUNKS[trunk]
        layers, self.taps = make(dtype=dtype, rngs=rngs)
        self.features = nnx.List(layers)
        for i, width in enumerate(widths):
            setattr(self, f"lin{i}", Head(width, dtype=dtype, rngs=rngs))

    def describe(self, picture: Float[Array, "b h w 3"]) -> list[Array]:
        """Returns the trunk's features at its taps, of pictures in [-1, 1].

        Raises InputError if the pictures are too small for the trunk.
        """
        check_side(self.trunk, *picture.shape[1:3])
        hidden = (picture - _SHIFT[None, None, None]) / _SCALE[None, None, None]
        taps = []
        for i, layer in enumerate(self.features):
            hidden = layer(hidden)
            if i in self.taps:
                taps.append(hidden)
        return taps

    def summary(self, taps: Sequence[Array]) -> Float[Array, "b c"]:
        """Returns the mean of the last tap over the picture.

        Before that, each place is scaled to a mean square of 1 over the channels.
        """
        return taps[-1].shape[-1] ** 0.5 * _unit(taps[-1]).mean((1, 2))

    def __call__(self, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]) -> Float[Array, "b"]:
        """Returns the distance of pictures in [-1, 1], 0 for equal ones."""
        return self.distance(self.describe(a), self.describe(b))

    def distance(self, a: Sequence[Array], b: Sequence[Array]) -> Float[Array, "b"]:
        """Returns the distance of two pictures from their taps, as `describe` returns them."""
        heads = (getattr(self, f"lin{i}") for i in range(len(self.taps)))
        return sum(
            head((_unit(x) - _unit(y)) ** 2).mean((1, 2, 3))
            for head, x, y in zip(heads, a, b, strict=True)
        )
