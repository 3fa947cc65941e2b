"""Draws how a head is X-rayed: the beam, dental metal, and whether soft tissue is there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_builders.cranio_phantom.skull import CROWNS, TEETH, Skull, from_template
from data_builders.rendering import xray
from data_builders.rendering.volume import Volume

# In cephalometry the focal point is 1,500 mm away. Elsewhere it is nearer, or very far.
_DISTANCES = (1000.0, 4000.0)  # mm
_CALCIUM = (0.007, 0.021)  # 1/mm; from 80 to 45 keV, about
_SCATTER = (0.002, 0.06)
_SHARPENING = (0.0, 0.9)
_METAL = 9000.0  # HU
_HARD = 1200.0  # HU; what metal takes the place of


class Exposure(NamedTuple):
    """How one X-ray is taken.

    Attributes:
      beam: as drawn.
      metal: `(teeth, 4)` balls in mm, in which teeth are of metal: x, y, z and radius; 0 for none.
    """

    beam: xray.Beam
    metal: Float[np.ndarray, "teeth 4"]


def draw(rng: np.random.Generator, skull: Skull) -> Exposure:
    """Returns a random exposure."""
    low, high = np.log(_DISTANCES)
    beam = xray.Beam(
        distance=np.exp(rng.uniform(low, high)),
        calcium=rng.uniform(*_CALCIUM),
        scatter=np.exp(rng.uniform(*np.log(_SCATTER))),
        sharpening=rng.uniform(*_SHARPENING),
    )
    beam = jax.tree.map(lambda number: np.asarray(number, np.float32), beam)
    return Exposure(beam, _metal(rng, skull))


def _metal(rng: np.random.Generator, skull: Skull) -> Float[np.ndarray, "teeth 4"]:
    """Returns fillings, of up to two teeth in five, in half of the heads; brackets in an eighth."""
    sides = np.array([1.0, -1.0])[:, None]
    x, y, z = (np.tile(a, (2, 1)) for a in CROWNS.T)
    out = np.tile([np.sin([t.angle for t in TEETH]), np.cos([t.angle for t in TEETH])], (1, 2))
    places = np.stack([(sides * x).ravel(), y.ravel(), z.ravel()], -1)
    radii = np.zeros(len(places))
    kind = rng.uniform()
    if kind < 0.5:
        filled = rng.uniform(size=len(places)) < 0.4 * rng.uniform()
        radii = np.where(filled, rng.uniform(2.5, 6.5, len(places)), 0.0)
    elif kind < 0.625:  # brackets, on the front of every tooth
        forward = 0.45 * np.tile([t.depth for t in TEETH], 2)
        places[:, 0] += forward * out[0] * np.repeat(sides.ravel(), len(TEETH))
        places[:, 1] += forward * out[1]
        radii = np.full(len(places), 2.6)
    there = np.stack(from_template(tuple(places.T.astype(np.float32)), skull), -1)
    return np.concatenate([np.asarray(there), radii[:, None]], -1).astype(np.float32)


def with_metal(head: Volume, metal: Float[Array | np.ndarray, "teeth 4"]) -> Volume:
    """Returns a head whose teeth are of metal within some balls."""
    axes = [head.origin[i] + head.spacing[i] * jnp.arange(head.values.shape[i]) for i in range(3)]
    nearest = jnp.full(head.values.shape, jnp.inf)
    for ball in metal:
        x, y, z = ((axis - ball[i]) ** 2 for i, axis in enumerate(axes))
        here = x[:, None, None] + y[:, None] + z - ball[3] ** 2
        nearest = jnp.where(ball[3] > 0, jnp.minimum(nearest, here), nearest)
    inside = (nearest < 0) & (head.values > _HARD)
    return head._replace(values=jnp.where(inside, _METAL, head.values))
