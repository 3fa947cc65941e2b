"""Virtual heads: a head moved a little, and bent by a smooth map that does not fold space."""

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
    """Returns a random displacement in mm, sampled every 8 mm.

    It is the flow of a smooth stationary velocity at time 1, and so a diffeomorphism.

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
    """Returns the displacement at time 1 of the flow of a velocity, both in grid steps.

    The method is scaling and squaring.
    """
    flow = velocity / 2**_SQUARINGS
    for _ in range(_SQUARINGS):
        flow = flow + at(flow, flow)
    return flow


def at(field: Float[Array, "x y z 3"], moved: Float[Array, "x y z 3"]) -> Float[Array, "x y z 3"]:
    """Returns a field at the places of its grid plus `moved`, in grid steps.

    Its edge values are repeated beyond the grid.
    """
    places = np.moveaxis(np.indices(field.shape[:3]), 0, -1) + moved
    return np.stack(_sampled(field, np.moveaxis(places, -1, 0)), -1)


def _sampled(field: Float[Array, "x y z c"], places: Float[Array, "3 *n"]) -> list[Array]:
    """Returns trilinear samples of each channel of a field, edge values repeated."""
    return [
        ndimage.map_coordinates(field[..., channel], places, order=1, mode="nearest")
        for channel in range(field.shape[-1])
    ]


def virtual(
    head: Volume,
    seed: np.random.SeedSequence,
    turn: float,
    shift: float,
    bend: float,
    outside: float,
) -> Volume:
    """Returns a head turned, moved and bent at random.

    Args:
      head: the volume.
      seed: of the random draws.
      turn: standard deviation in degrees of the rotation about each axis.
      shift: standard deviation in mm of the movement along each axis.
      bend: root mean square in mm of the displacement.
      outside: value beyond the volume's edge.
    """
    # Draw the motion and the displacement.
    motion, warp = seed.spawn(2)
    rng = np.random.default_rng(motion)
    rotation = _rotation(np.deg2rad(turn) * rng.standard_normal(3))
    move = shift * rng.standard_normal(3)
    values = np.asarray(head.values, np.float32)
    spacing = np.asarray(head.spacing, np.float64)
    extent = np.array(values.shape) * spacing
    bent = displacement(warp, tuple(extent), bend).astype(np.float32)

    # Sample a slab at a time, since coordinates take twelve times the memory of their values.
    middle = (np.array(values.shape) - 1) / 2
    result = np.empty_like(values)
    for start in range(0, values.shape[0], 16):
        slab_shape = (min(16, values.shape[0] - start), *values.shape[1:])
        index = np.indices(slab_shape, np.float32).reshape(3, -1)
        index[0] += start
        coarse = index * (spacing / _GRID)[:, None].astype(np.float32)
        push = np.stack(_sampled(bent, coarse))
        source = rotation.T @ ((index - middle[:, None]) * spacing[:, None] - move[:, None]) + push
        source = (source / spacing[:, None] + middle[:, None]).astype(np.float32)
        slab = ndimage.map_coordinates(values, source, order=1, mode="constant", cval=outside)
        result[start : start + 16] = slab.reshape(slab_shape)
    return head._replace(values=result)


def _rotation(angles: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Returns the rotation about the three axes, one after the other."""
    total = np.eye(3)
    for axis, angle in enumerate(angles):
        cos = np.cos(angle)
        sin = np.sin(angle)
        a, b = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = cos, -sin, sin, cos
        total = turn @ total
    return total
