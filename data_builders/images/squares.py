"""Square pictures, and the transforms from their pixels to those of the pictures they show."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

# Where aligned faces have eyes, the tip of the nose and the corners of the mouth, as fractions of
# the picture's side, the picture's left first. This is ArcFace's template in the middle three
# fifths of the picture, with room for hair, chin and neck; the margin is our choice.
PLACES = np.array([[0.405, 0.477], [0.594, 0.476], [0.5, 0.584], [0.423, 0.695], [0.579, 0.694]])

# The height of a profile's box, from forehead to chin, as a share of the picture's side. Profiles
# then have about the size of frontal faces. Our choice, as are the other two.
_BOX_HEIGHT = 0.5
# How far the middle of a profile's box is before and below the picture's middle, as shares of the
# side: the back of the head and the hair need room.
_BEFORE = 0.16
_BELOW = 0.06

# `source = transform @ (column, row, 1)`, both counted from the middle of the first pixel.
Transform = Float[Array, "2 3"]


def padding(height: int, width: int, size: int) -> Transform:
    """Returns the transform that centres a whole picture in a square of `size` pixels.

    The picture keeps its proportions.
    """
    step = max(height, width) / size
    middle = step * (size - 1) / 2
    return np.array([[step, 0.0, (width - 1) / 2 - middle], [0.0, step, (height - 1) / 2 - middle]])


def fitting(landmarks: Float[Array, "5 2"], size: int) -> Transform:
    """Returns the transform that brings a face's landmarks `(column, row)` to PLACES.

    It turns, scales and moves the face by least squares, and never mirrors it.
    """
    goal = PLACES * size - 0.5
    goal_middle = goal.mean(0)
    middle = landmarks.mean(0)
    x, y = (goal - goal_middle).T
    u, v = (landmarks - middle).T
    spread = (x**2 + y**2).sum()
    cosine = (x * u + y * v).sum() / spread
    sine = (x * v - y * u).sum() / spread
    turn = np.array([[cosine, -sine], [sine, cosine]])
    return np.concatenate([turn, (middle - turn @ goal_middle)[:, None]], 1)


def framing(box: Float[Array, "4"], looks_right: bool, size: int) -> Transform:
    """Returns the transform that frames a profile with room for the rest of its head.

    It scales and moves the picture, and neither turns nor mirrors it.

    Args:
      box: left, top, right, bottom of the face from forehead to chin, in pixels.
      looks_right: the side that the nose is on.
      size: pixels of the square.
    """
    left, top, right, bottom = box
    side = (bottom - top) / _BOX_HEIGHT
    step = side / size
    before = _BEFORE if looks_right else -_BEFORE
    middle = np.array([(left + right) / 2 - before * side, (top + bottom) / 2 - _BELOW * side])
    corner = middle - step * (size - 1) / 2
    return np.array([[step, 0.0, corner[0]], [0.0, step, corner[1]]])


def moved(points: Float[Array, "n 2"], transform: Transform) -> Float[Array, "n 2"]:
    """Returns where points of the picture lie in the square."""
    return np.linalg.solve(transform[:, :2], (points - transform[:, 2]).T).T


def take(picture: Array, transform: Transform, size: int) -> Array:
    """Returns the square of `size` pixels that a transform takes from a picture.

    The picture has 1 or 3 channels. Places beyond it are black, and fine grain does not alias.
    """
    # Average whole blocks: bicubic sampling looks at few pixels and would skip the others.
    transform = np.array(transform)
    step = int(np.hypot(*transform[:, 0]))
    if step > 1:
        height, width = (n // step * step for n in picture.shape[:2])
        picture = cv2.resize(
            picture[:height, :width], (width // step, height // step), interpolation=cv2.INTER_AREA
        )
        transform[:, 2] -= (step - 1) / 2
        transform /= step

    # Blur by the width that the rest of the reduction, a factor below two, still lacks.
    scale = np.hypot(*transform[:, 0])
    if scale > 1.0:
        picture = cv2.GaussianBlur(picture, (0, 0), 0.45 * np.sqrt(scale**2 - 1.0) + 1e-3)

    # Sample.
    return cv2.warpAffine(
        picture,
        transform,
        (size, size),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )


def to_bytes(picture: Float[Array, "h w"]) -> UInt8[Array, "h w"]:
    """Returns a picture in [0, 1] as uint8, with values beyond that range clipped."""
    return np.rint(255.0 * np.clip(picture, 0.0, 1.0)).astype(np.uint8)
