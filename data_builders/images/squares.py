"""Where a picture of any shape lies in a square, as a transform from the square's pixels to the picture's, and that square."""

import cv2
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

# Where aligned faces have the eyes, the tip of the nose and the corners of the mouth, as parts of the picture's side, the
# picture's left first: ArcFace's template in the middle three fifths, with room for hair, chin and neck. Ours.
PLACES = np.array([[0.405, 0.477], [0.594, 0.476], [0.5, 0.584], [0.423, 0.695], [0.579, 0.694]])

# `source = transform @ (column, row, 1)`, both counted from the middle of the first pixel.
Transform = Float[Array, "2 3"]


def padding(height: int, width: int, size: int) -> Transform:
    """That which puts a whole picture into the middle of a square of `size` pixels, its proportions kept."""
    step = max(height, width) / size
    first = lambda whole: (whole - 1) / 2 - step * (size - 1) / 2
    return np.array([[step, 0.0, first(width)], [0.0, step, first(height)]])


def fitting(landmarks: Float[Array, "5 2"], size: int) -> Transform:
    """That which brings a face's landmarks `(column, row)` to PLACES: turned, scaled and moved by least squares, never mirrored."""
    goal = PLACES * size - 0.5
    (x, y), (u, v) = (goal - goal.mean(0)).T, (landmarks - landmarks.mean(0)).T
    spread = (x**2 + y**2).sum()
    a, b = (x * u + y * v).sum() / spread, (x * v - y * u).sum() / spread
    turn = np.array([[a, -b], [b, a]])
    return np.concatenate([turn, (landmarks.mean(0) - turn @ goal.mean(0))[:, None]], 1)


def moved(points: Float[Array, "n 2"], transform: Transform) -> Float[Array, "n 2"]:
    """Where points of the picture lie in the square."""
    return np.linalg.solve(transform[:, :2], (points - transform[:, 2]).T).T


def take(picture: Array, transform: Transform, size: int) -> Array:
    """The square of `size` pixels that a transform takes from a picture, of 1 or 3 channels; black beyond it, no grain aliased."""
    transform = np.array(transform)
    step = int(np.hypot(*transform[:, 0]))
    if (
        step > 1
    ):  # the mean of whole blocks first: bilinear sampling looks at four pixels and would skip the others
        height, width = (n // step * step for n in picture.shape[:2])
        picture = cv2.resize(
            picture[:height, :width], (width // step, height // step), interpolation=cv2.INTER_AREA
        )
        transform[:, 2] -= (step - 1) / 2
        transform /= step
    scale = np.hypot(*transform[:, 0])
    if scale > 1.0:
        # What is left of the reduction, a factor below two, as a blur of the width that is missing.
        picture = cv2.GaussianBlur(picture, (0, 0), 0.45 * np.sqrt(scale**2 - 1.0) + 1e-3)
    return cv2.warpAffine(
        picture,
        transform,
        (size, size),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
    )
