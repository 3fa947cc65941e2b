"""The input of a face embedder: a fixed crop, or the face aligned by its landmarks."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cranio_jax.errors import InputError

# Eyes, tip of the nose and corners of the mouth in ArcFace's 112 x 112 crop, as (column, row); the
# picture's left comes first.
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
    """Raises InputError if a crop is not a part of the picture."""
    top, left, height, width = crop
    if not (0 <= top < top + height <= 1 and 0 <= left < left + width <= 1):
        raise InputError(
            f"{name}={tuple(crop)}: it is not (top, left, height, width) within the picture. "
            "Give fractions of 1."
        )


def crop_box(
    crop: tuple[float, float, float, float], height: int, width: int
) -> tuple[slice, slice]:
    """Returns the rows and the columns of a crop, given as fractions of it.

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
    """Returns a crop of each picture, scaled to `height` x `width`.

    `crop` is `(top, left, height, width)` as fractions of the picture.
    """
    rows, columns = crop_box(crop, *faces.shape[1:3])
    part = faces[:, rows, columns]
    return jax.image.resize(part, (faces.shape[0], height, width, 3), "linear")


def align_face(
    faces: Float[Array, "b H W 3"], landmarks: Float[Array, "b 5 2"], height: int, width: int
) -> Float[Array, "b h w 3"]:
    """Returns faces in [-1, 1], turned, scaled and moved so that their landmarks meet TEMPLATE.

    The similarity is a least-squares fit without mirroring (Umeyama 1991), which has a closed form
    in the plane. Sampling is bilinear, and black outside of the picture. A size smaller than the
    template's 112 x 112 gives its centre.
    """
    # Fit the similarity.
    middle = landmarks.mean(1, keepdims=True)
    goal = TEMPLATE.mean(0)
    x, y = jnp.moveaxis(landmarks - middle, -1, 0)
    u, v = jnp.asarray(TEMPLATE - goal)[None].transpose(2, 0, 1)
    # (a + ib)(x + iy) is nearest to u + iv.
    spread = (x**2 + y**2).sum(-1)
    a = ((x * u + y * v).sum(-1) / spread)[:, None, None]
    b = ((x * v - y * u).sum(-1) / spread)[:, None, None]
    # Find the place of each pixel in the picture, and sample there.
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

    def sample(channel, place):
        return jax.scipy.ndimage.map_coordinates(
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
    """Returns faces aligned if all their landmarks are known (not NaN), else the fixed crop."""
    fixed = crop_face(faces, crop, height, width)
    if landmarks is None:
        return fixed
    known = jnp.isfinite(landmarks).all((1, 2))[:, None, None]
    aligned = align_face(faces, jnp.where(known, landmarks, TEMPLATE[None]), height, width)
    return jnp.where(known[..., None], aligned.astype(faces.dtype), fixed)


def cosine_distance(a: Float[Array, "b d"], b: Float[Array, "b d"]) -> Float[Array, "b"]:
    """Returns 1 - cosine, which is 0 for the same direction."""
    dot = (a * b).sum(-1)
    # sqrt has an infinite slope at zero.
    return 1.0 - dot * jax.lax.rsqrt(jnp.maximum((a * a).sum(-1) * (b * b).sum(-1), 1e-12))
