"""The FID's Inception (Heusel et al. 2017): TensorFlow's graph of 2015-12-05.

Attribute paths are the keys of its PyTorch port. It differs from torchvision's Inception v3:
average pools exclude padding, the last block max-pools, there are 1008 classes, and pictures
are scaled as TensorFlow 1 scaled them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from cranio_jax.models.layers import Conv, batch_norm

SIDE = 299


def tensorflow_resize(
    x: Float[Array | np.ndarray, "b h w c"], size: int = SIDE
) -> Float[Array | np.ndarray, "b size size c"]:
    """Returns pictures scaled by TensorFlow 1's bilinear method, without antialiasing.

    Pictures on the host stay there.
    """
    for axis in (1, 2):
        count = x.shape[axis]
        place = np.arange(size, dtype=np.float32) * np.float32(count / size)
        low = np.floor(place)
        part = np.expand_dims(place - low, [other for other in range(4) if other != axis])
        first, second = (x.take(np.minimum(low + i, count - 1).astype(int), axis) for i in range(2))
        x = first * (1.0 - part) + second * part
    return x


class ConvNorm(nnx.Module):
    """Convolution, stored statistics, ReLU."""

    def __init__(
        self,
        features_in: int,
        features: int,
        kernel=(1, 1),
        stride: int = 1,
        padding=(0, 0),
        *,
        dtype=None,
        rngs: nnx.Rngs,
    ):
        sides = tuple((p, p) for p in padding)
        self.conv = Conv(
            features_in,
            features,
            kernel,
            strides=stride,
            padding=sides,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = batch_norm(features, epsilon=1e-3, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return jax.nn.relu(self.bn(self.conv(x)))


def _windows(x, combine, stride: int = 1):
    """Returns every three neighbours combined along rows, then columns.

    On a CPU, XLA's own windows take three to eight times as long.
    """
    for axis in (1, 2):
        last = x.shape[axis] - 2
        x = functools.reduce(
            combine, (jax.lax.slice_in_dim(x, i, i + last, stride, axis) for i in range(3))
        )
    return x


def _shrunk(x):
    return _windows(x, jnp.maximum, 2)


def _framed(x, value):
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


def _averaged(x):
    counts = _windows(_framed(np.ones((1, *x.shape[1:3], 1), np.float32), 0.0), jnp.add)
    return _windows(_framed(x, 0.0), jnp.add) / counts


def _greatest(x):
    return _windows(_framed(x, -jnp.inf), jnp.maximum)


def _branch(name: str, *links) -> list[list[tuple]]:
    """Returns the steps of a branch, each a list of `(key, features, kernel, stride, padding)`.

    Keys are the checkpoint's: NAME for a single link, else NAME_1, NAME_2, ... A list of two links
    is two parallel convolutions of the same input, such as NAME_3a and NAME_3b.
    """
    steps: list[list[tuple]] = []
    for i, link in enumerate(links, 1):
        key = name if len(links) == 1 else f"{name}_{i}"
        if isinstance(link, list):
            steps.append([(key + letter, *part) for letter, part in zip("ab", link, strict=True)])
        else:
            steps.append([(key, *link)])
    return steps


class Block(nnx.Module):
    """Parallel branches and a pooled one, concatenated.

    If `pooled` is not 0, a 1 x 1 convolution to so many channels follows the pooling.
    """

    def __init__(
        self, features_in: int, branches, pool, pooled: int = 0, *, dtype=None, rngs: nnx.Rngs
    ):
        self.pool = pool
        self.keys = tuple(
            tuple(tuple(key for key, *_ in step) for step in branch) for branch in branches
        )
        for branch in branches:
            width = features_in
            for step in branch:
                for key, features, kernel, stride, padding in step:
                    setattr(
                        self,
                        key,
                        ConvNorm(width, features, kernel, stride, padding, dtype=dtype, rngs=rngs),
                    )
                width = step[0][1]
        if pooled:
            self.branch_pool = ConvNorm(features_in, pooled, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        outputs = []
        for branch in self.keys:
            hidden = x
            for step in branch:
                hidden = jnp.concatenate([getattr(self, key)(hidden) for key in step], -1)
            outputs.append(hidden)
        pooled = self.pool(x)
        outputs.append(self.branch_pool(pooled) if hasattr(self, "branch_pool") else pooled)
        return jnp.concatenate(outputs, -1)


_POINT = ((1, 1), 1, (0, 0))
_SQUARE = ((3, 3), 1, (1, 1))
_HALVE = ((3, 3), 2, (0, 0))
_ROW, _COLUMN = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))


def _block_a(features_in, pooled, **kw):
    branches = [
        _branch("branch1x1", (64, *_POINT)),
        _branch("branch5x5", (48, *_POINT), (64, (5, 5), 1, (2, 2))),
    ]
    branches += [_branch("branch3x3dbl", (64, *_POINT), (96, *_SQUARE), (96, *_SQUARE))]
    return Block(features_in, branches, _averaged, pooled, **kw)


def _block_b(features_in, **kw):
    branches = [
        _branch("branch3x3", (384, *_HALVE)),
        _branch("branch3x3dbl", (64, *_POINT), (96, *_SQUARE), (96, *_HALVE)),
    ]
    return Block(features_in, branches, _shrunk, **kw)


def _block_c(features_in, width, **kw):
    row, column = (width, *_ROW), (width, *_COLUMN)
    branches = [
        _branch("branch1x1", (192, *_POINT)),
        _branch("branch7x7", (width, *_POINT), row, (192, *_COLUMN)),
    ]
    branches += [_branch("branch7x7dbl", (width, *_POINT), column, row, column, (192, *_ROW))]
    return Block(features_in, branches, _averaged, 192, **kw)


def _block_d(features_in, **kw):
    branches = [_branch("branch3x3", (192, *_POINT), (320, *_HALVE))]
    branches += [
        _branch("branch7x7x3", (192, *_POINT), (192, *_ROW), (192, *_COLUMN), (192, *_HALVE))
    ]
    return Block(features_in, branches, _shrunk, **kw)


def _block_e(features_in, pool, **kw):
    both = [(384, (1, 3), 1, (0, 1)), (384, (3, 1), 1, (1, 0))]
    branches = [_branch("branch1x1", (320, *_POINT)), _branch("branch3x3", (384, *_POINT), both)]
    branches += [_branch("branch3x3dbl", (448, *_POINT), (384, *_SQUARE), both)]
    return Block(features_in, branches, pool, 192, **kw)


class FIDInception(nnx.Module):
    """The network of FID, KID and the Inception score: 2048 features, 1008 logits without bias."""

    def __init__(self, *, dtype=None, rngs: nnx.Rngs):
        kw = dict(dtype=dtype, rngs=rngs)
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, *_HALVE, **kw)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3), **kw)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, *_SQUARE, **kw)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, **kw)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3), **kw)
        self.Mixed_5b = _block_a(192, 32, **kw)
        self.Mixed_5c = _block_a(256, 64, **kw)
        self.Mixed_5d = _block_a(288, 64, **kw)
        self.Mixed_6a = _block_b(288, **kw)
        for name, width in (("b", 128), ("c", 160), ("d", 160), ("e", 192)):
            setattr(self, f"Mixed_6{name}", _block_c(768, width, **kw))
        self.Mixed_7a = _block_d(768, **kw)
        self.Mixed_7b = _block_e(1280, _averaged, **kw)
        self.Mixed_7c = _block_e(2048, _greatest, **kw)
        self.fc = nnx.Linear(2048, 1008, **kw)

    def __call__(
        self, pictures: Num[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        """Returns features and logits of pictures of any size, in [0, 255]."""
        x = (tensorflow_resize(pictures.astype(jnp.float32)) - 128.0) / 128.0
        x = _shrunk(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _shrunk(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        features = x.mean((1, 2))
        return features, features @ self.fc.kernel.get_value()
