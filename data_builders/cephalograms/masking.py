"""Hides soft tissue in a lateral X-ray, so that it shows what a dry skull would."""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from data_builders.cephalograms.landmarks import LANDMARKS

# In front of these the face's soft tissue begins, from top to bottom.
FRONT = ("nasion", "ans", "a_point", "upper_incisor", "lower_incisor", "b_point", "pogonion")
BELOW = ("gnathion", "menton")
NEEDED = (*FRONT, *BELOW, "porion", "orbitale")
_MARGIN = 1.5  # mm of bone in front of the landmarks
_BRIDGE = (12.0, 20.0)  # mm in front of and below the nasion, where the nasal bones end
_BROW = 9.0  # mm in front of the nasion; the brow ridge and the forehead stay


def without_soft_tissue(
    square: UInt8[np.ndarray, "h w"], landmarks: Float[np.ndarray, "19 2"], mm: float
) -> UInt8[np.ndarray, "h w"]:
    """Returns an X-ray in which everything in front of and below the facial bones is even.

    The line runs through the landmarks. The skin of the forehead stays, since no landmark is there.

    Args:
      square: bone bright.
      landmarks: `(column, row)` in its pixels, in the order of LANDMARKS; NEEDED ones are known.
      mm: a pixel's side.
    """
    at = dict(zip(LANDMARKS, landmarks, strict=True))
    # The Frankfurt plane gives the directions to the front and upwards.
    front = (at["orbitale"] - at["porion"]) / np.linalg.norm(at["orbitale"] - at["porion"])
    up = np.array([front[1], -front[0]]) * np.sign(front[0])

    # The line along the bone, from above the picture to below it.
    far = 4.0 * max(square.shape)
    brow = at["nasion"] + front * _BROW / mm
    bridge = at["nasion"] + (front * _BRIDGE[0] - up * _BRIDGE[1]) / mm
    line = [brow + up * far, brow, bridge]
    line += [at[name] + front * _MARGIN / mm for name in FRONT[1:]]
    line += [at[name] + (front - up) / np.sqrt(2.0) * _MARGIN / mm for name in BELOW[:1]]
    menton = at[BELOW[1]] - up * _MARGIN / mm
    # Behind the menton, along the lower edge of the jaw.
    line += [menton, menton - front * far * 0.02, menton - front * far * 0.02 - up * far]
    outside = [line[-1] + front * 2 * far, line[0] + front * 2 * far]

    # Fill what is beyond it.
    beyond = np.zeros(square.shape, np.uint8)
    cv2.fillPoly(beyond, [np.int32(np.round(np.array(line + outside)))], 1)
    if not beyond.any():
        return square
    even = np.percentile(square[beyond > 0], 5)
    share = cv2.GaussianBlur(beyond.astype(np.float32), (0, 0), max(0.5, 0.5 / mm))
    share = np.maximum(share, beyond)
    return np.round(square + (even - square) * share).astype(np.uint8)
