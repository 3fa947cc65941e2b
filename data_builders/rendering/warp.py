"""One head made into another: moved a little, and bent by a smooth map that folds nothing."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy import ndimage

from data_builders.rendering.volume import Volume

_GRID = 8.0  # mm between the samples of a displacement
SMOOTHNESS = 30.0  # mm; standard deviation of the filter that makes noise a velocity
_SQUARINGS = 6


def displacement(
    seed: np.random.SeedSequence, extent: tuple[float, float, float], size: float
) -> Float[Array, "x y z 3"]:
    """A random displacement in mm, sampled every 8 mm: the flow of a smooth stationary velocity at time 1, so a diffeomorphism.

    Args:
      seed: of the noise.
      extent: mm along each axis.
      size: root mean square of the displacement's length in mm, before the flow bends it.
    """
    shape = tuple(int(np.ceil(length / _GRID)) + 1 for length in extent)
    noise = np.random.default_rng(seed).standard_normal((*shape, 3))
    velocity = ndimage.gaussian_filter(noise, (*[SMOOTHNESS / _GRID] * 3, 0), mode="reflect")
    velocity *= size / np.sqrt((velocity**2).sum(-1).mean())
    return exponential(velocity / _GRID) * _GRID


def exponential(velocity: Float[Array, "x y z 3"]) -> Float[Array, "x y z 3"]:
    """The displacement at time 1 of the flow of a velocity, both in grid steps, by scaling and squaring."""
    flow = velocity / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        flow = flow + at(flow, flow)
    return flow


def at(field: Float[Array, "x y z 3"], moved: Float[Array, "x y z 3"]) -> Float[Array, "x y z 3"]:
    """A field at the places of its grid plus `moved`, in grid steps; its edge goes on beyond it."""
    places = np.moveaxis(np.indices(field.shape[:3]), 0, -1) + moved
    sample = lambda values: ndimage.map_coordinates(
        values, np.moveaxis(places, -1, 0), order=1, mode="nearest"
    )
    return np.stack([sample(field[..., i]) for i in range(3)], -1)


def virtual(
    head: Volume,
    seed: np.random.SeedSequence,
    turn: float,
    shift: float,
    bend: float,
    outside: float,
) -> Volume:
    """A head turned, moved and bent at random.

    Args:
      head: the volume.
      seed: of what is drawn.
      turn: standard deviation in degrees of the rotation about each axis.
      shift: standard deviation in mm of the movement along each axis.
      bend: root mean square in mm of the displacement.
      outside: value beyond the volume's edge.
    """
    motion, warp = seed.spawn(2)
    rng = np.random.default_rng(motion)
    rotation = _rotation(np.deg2rad(turn) * rng.standard_normal(3))
    move = shift * rng.standard_normal(3)
    values, spacing = np.asarray(head.values, np.float32), np.asarray(head.spacing, np.float64)
    extent = np.array(values.shape) * spacing
    bent = displacement(warp, tuple(extent), bend).astype(np.float32)
    middle = (np.array(values.shape) - 1) / 2
    result = np.empty_like(values)
    # A slab at a time: coordinates take twelve times the memory of what they point at.
    for start in range(0, values.shape[0], 16):
        index = np.indices(
            (min(16, values.shape[0] - start), *values.shape[1:]), np.float32
        ).reshape(3, -1)
        index[0] += start
        coarse = index * (spacing / _GRID)[:, None].astype(np.float32)
        push = np.stack(
            [
                ndimage.map_coordinates(bent[..., i], coarse, order=1, mode="nearest")
                for i in range(3)
            ]
        )
        source = rotation.T @ ((index - middle[:, None]) * spacing[:, None] - move[:, None]) + push
        source = (source / spacing[:, None] + middle[:, None]).astype(np.float32)
        slab = ndimage.map_coordinates(values, source, order=1, mode="constant", cval=outside)
        result[start : start + 16] = slab.reshape(-1, *values.shape[1:])
    return head._replace(values=result)


def _rotation(angles: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """About the three axes, one after the other."""
    total = np.eye(3)
    for axis, angle in enumerate(angles):
        cos, sin = np.cos(angle), np.sin(angle)
        a, b = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = cos, -sin, sin, cos
        total = turn @ total
    return total
