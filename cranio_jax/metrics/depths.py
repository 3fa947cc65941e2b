"""The depth of soft tissue in a face, measured from points on bone to its profile line."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

_SAMPLES = 512
_RAYS = 13  # within the spread
_INSIDE = 0.07  # share of a ray, from the bone, where the colour is that of the head
_LEAST = 24.0  # difference in colour, of 255, between a head and what is behind it


def depths(
    faces: Num[Array, "b h w 3"],
    bone: Float[Array, "b k 2"],
    skin: Float[Array, "b k 2"],
    reach: Float[Array, "b"],
    spread: Float[Array, "k"],
) -> Float[Array, "b k"]:
    """Returns how far it is from points on bone to the profile of a lateral face, in pixels.

    From each point rays run towards a point on the skin and further. The profile is where the
    colour is half that of the head and half that of what is behind it, to a fraction of a pixel.
    The shortest ray counts. A depth is 0 where there is no head at the bone, and `reach` where no
    ray leaves it.

    Args:
      faces: in [0, 255], before an even background.
      bone: `(column, row)` of the points, counted from the middle of the first pixel.
      skin: where the true skin is; only the direction counts.
      reach: length of the rays in pixels.
      spread: largest angle of a ray with that direction, in radians; 0 is one ray. It is meant for
        the corner below the nose: a ray that misses its bottom by a pixel runs along the nose.
    """
    angles = spread[:, None] * jnp.linspace(-1.0, 1.0, _RAYS)[None]
    rays = jax.vmap(_along, in_axes=(0, None))(skin - bone, angles)
    measure = jax.vmap(jax.vmap(_of_face, in_axes=(None, None, 1, None)), in_axes=(0, 0, 0, 0))
    return measure(faces.astype(jnp.float32), bone, rays, reach).min(axis=1)


def _along(direction: Float[Array, "k 2"], angles: Float[Array, "k r"]) -> Float[Array, "k r 2"]:
    """Returns directions of length 1, turned by angles."""
    length = jnp.linalg.norm(direction, axis=-1, keepdims=True)
    x, y = jnp.moveaxis(direction / jnp.maximum(length, 1e-6), -1, 0)[..., None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _of_face(
    face: Float[Array, "h w 3"],
    bone: Float[Array, "k 2"],
    along: Float[Array, "k 2"],
    reach: Float[Array, ""],
) -> Float[Array, "k"]:
    """Returns the depths along one ray from each point."""
    height, width, _ = face.shape
    # The background is the colour of the rim that the face looks at.
    looks_right = along[:, 0].mean() > 0
    rim = jnp.where(looks_right, face[: height // 2, -2:], face[: height // 2, :2])
    behind = jnp.median(rim.reshape(-1, 3), axis=0)
    difference = jnp.linalg.norm(face - behind[None, None], axis=-1)

    # Sample it along the rays.
    steps = jnp.linspace(0.0, reach, _SAMPLES)
    places = bone[:, None] + along[:, None] * steps[None, :, None]
    sampled = jax.vmap(
        lambda ray: jax.scipy.ndimage.map_coordinates(
            difference, [ray[:, 1], ray[:, 0]], order=1, mode="nearest"
        )
    )(places)
    last = jnp.array([width - 1.0, height - 1.0])[None, None]
    in_picture = jnp.all((places >= 0) & (places <= last), axis=-1)

    # Find the first place from the bone on where half of the head's colour is gone.
    head = jnp.median(sampled[:, : int(_INSIDE * _SAMPLES)], axis=-1)
    gone = (sampled < 0.5 * head[:, None]) & in_picture
    first = jnp.argmax(gone, axis=-1)
    rows = jnp.arange(len(bone))
    before, after = sampled[rows, jnp.maximum(first - 1, 0)], sampled[rows, first]
    drop = before - after
    share = jnp.where(drop > 0, (before - 0.5 * head) / jnp.where(drop > 0, drop, 1.0), 0.0)
    found = (first - 1 + share) * (steps[1] - steps[0])
    found = jnp.where(gone.any(-1), found, reach)
    nothing = (head < _LEAST) | (gone.any(-1) & (first == 0))
    return jnp.where(nothing, 0.0, found)
