"""Bad X-rays: rotated, blurred, cropped or underexposed.

Each change is one that occurs in practice, and always the same, so that runs can be compared. The
true face stays where it is. `evaluate.radiograph` varies X-rays at random.
"""

import zlib
from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from cranio_jax.errors import InputError

Xray = UInt8[np.ndarray, "h w 1"]
PREFIX = "X-rays "  # of the names of rows
_VERSION = 1  # rises when a change changes X-rays in another way

_DEGREES = 10.0
_BLUR = 0.015  # standard deviation, as a fraction of the side
_EDGE = 0.1  # width of each edge that the film does not show, as a fraction of the side
# Of an underexposed X-ray: the contrast that is left, and the noise's standard deviation, of 1.
_CONTRAST, _NOISE = 0.4, 0.06


def _rotated(xray: Xray) -> Xray:
    height, width = xray.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), _DEGREES, 1.0)
    return cv2.warpAffine(xray, turn, (width, height))[..., None]


def _blurred(xray: Xray) -> Xray:
    return cv2.GaussianBlur(xray, None, _BLUR * len(xray))[..., None]


def _cropped(xray: Xray) -> Xray:
    rows, columns = (round(_EDGE * side) for side in xray.shape[:2])
    shown = np.zeros_like(xray)
    inside = (slice(rows, -rows or None), slice(columns, -columns or None))
    shown[inside] = xray[inside]
    return shown


def _underexposed(xray: Xray) -> Xray:
    rng = np.random.default_rng(zlib.crc32(xray.tobytes()))
    noise = 255.0 * _NOISE * rng.standard_normal(xray.shape)
    return np.clip(np.round(_CONTRAST * xray + noise), 0, 255).astype(np.uint8)


DISTURBANCES: dict[str, Callable[[Xray], Xray]] = {
    "rotated": _rotated,
    "blurred": _blurred,
    "cropped": _cropped,
    "underexposed": _underexposed,
}


def check(names: Iterable[str], keeps_faces: bool) -> None:
    """Raises InputError if a name is unknown, or faces are not kept."""
    for name in names:
        if name not in DISTURBANCES:
            raise InputError(
                f"evaluate.disturbances={name!r}: it is unknown. Use some of "
                f"{', '.join(DISTURBANCES)}."
            )
        if not keeps_faces:
            raise InputError("evaluate.disturbances: it needs evaluate.keep_faces=True. Set it.")


def row_of(name: str) -> str:
    """Returns the name of a disturbance's row."""
    return PREFIX + name


def folder_of(name: str) -> str:
    """Returns the name of the folder for a disturbance's faces."""
    return f"{name}_{_VERSION}"


def disturbed(examples: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Returns the examples with disturbed X-rays."""
    change = DISTURBANCES[name]
    return [example | {"xray": change(example["xray"])} for example in examples]
