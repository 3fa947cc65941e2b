"""The part of a picture that an embedder of faces sees: a fixed crop, or the face aligned by its landmarks."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cranio_jax.errors import InputError

# Where ArcFace's 112 x 112 crop has the eyes, the tip of the nose and the corners of the mouth: (column, row), the
# picture's left first.
TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    np.float32,
)


def check_crop(crop: tuple[float, float, float, float], name: str) -> None:
    """Raises InputError where a crop is none."""
    top, left, height, width = crop
    if not (0 <= top < top + height <= 1 and 0 <= left < left + width <= 1):
        raise InputError(
            f"{name}={tuple(crop)} is not (top, left, height, width) within the picture, as parts of 1"
        )


def crop_box(
    crop: tuple[float, float, float, float], height: int, width: int
) -> tuple[slice, slice]:
    """Returns the rows and the columns of a crop, which is given in parts of the picture.

    Raises InputError if a picture of that many pixels is so small that nothing is left of it.
    """
    top, left, tall, wide = (
        round(part * side) for part, side in zip(crop, (height, width) * 2, strict=True)
    )
    rows, columns = slice(top, top + tall), slice(left, left + wide)
    if not range(height)[rows] or not range(width)[columns]:
        raise InputError(
            f"an embedder of faces sees the part {tuple(crop)} of a picture, which is less than a "
            f"pixel of {height} x {width}. Use larger pictures, or a larger crop."
        )
    return rows, columns


def crop_face(
    faces: Float[Array, "b H W 3"], crop: tuple[float, float, float, float], height: int, width: int
) -> Float[Array, "b h w 3"]:
    """The fixed crop `(top, left, height, width)`, as parts of the picture, at the size an embedder takes."""
    rows, columns = crop_box(crop, *faces.shape[1:3])
    part = faces[:, rows, columns]
    return jax.image.resize(part, (faces.shape[0], height, width, 3), "linear")


def align_face(
    faces: Float[Array, "b H W 3"], landmarks: Float[Array, "b 5 2"], height: int, width: int
) -> Float[Array, "b h w 3"]:
    """Faces in [-1, 1] turned, scaled and moved until their landmarks meet TEMPLATE: least squares, never mirrored.

    Umeyama's fit (1991), in the plane a closed form; sampled bilinearly, black beyond the picture. A crop that is smaller
    than the template's is its middle.
    """
    middle, goal = landmarks.mean(1, keepdims=True), TEMPLATE.mean(0)
    x, y = jnp.moveaxis(landmarks - middle, -1, 0)
    u, v = jnp.asarray(TEMPLATE - goal)[None].transpose(2, 0, 1)
    # (a + ib)(x + iy) is nearest to u + iv.
    spread = (x**2 + y**2).sum(-1)
    a, b = (
        ((x * u + y * v).sum(-1) / spread)[:, None, None],
        ((x * v - y * u).sum(-1) / spread)[:, None, None],
    )
    columns, rows = jnp.meshgrid(
        jnp.arange(width) + (112 - width) / 2 - goal[0],
        jnp.arange(height) + (112 - height) / 2 - goal[1],
    )
    columns, rows, size = columns[None], rows[None], a**2 + b**2
    places = jnp.stack(
        [
            (a * rows - b * columns) / size + middle[..., 1:],
            (a * columns + b * rows) / size + middle[..., :1],
        ],
        1,
    )
    sample = lambda channel, place: jax.scipy.ndimage.map_coordinates(
        channel, tuple(place), order=1, mode="constant", cval=-1.0
    )
    return jax.vmap(jax.vmap(sample, (-1, None), -1))(faces, places)


def embedder_input(
    faces: Float[Array, "b H W 3"],
    landmarks: Float[Array, "b 5 2"] | None,
    crop: tuple[float, float, float, float],
    height: int,
    width: int,
) -> Float[Array, "b h w 3"]:
    """What an embedder sees: aligned where the landmarks are known (no NaN), else the fixed crop."""
    fixed = crop_face(faces, crop, height, width)
    if landmarks is None:
        return fixed
    known = jnp.isfinite(landmarks).all((1, 2))[:, None, None]
    aligned = align_face(faces, jnp.where(known, landmarks, TEMPLATE[None]), height, width)
    return jnp.where(known[..., None], aligned.astype(faces.dtype), fixed)


def cosine_distance(a: Float[Array, "b d"], b: Float[Array, "b d"]) -> Float[Array, "b"]:
    """1 - cos, 0 for the same direction."""
    dot = (a * b).sum(-1)
    # The square root has no slope at zero.
    return 1.0 - dot * jax.lax.rsqrt(jnp.maximum((a * a).sum(-1) * (b * b).sum(-1), 1e-12))
