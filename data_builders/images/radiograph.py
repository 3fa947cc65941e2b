"""Reading a skull radiograph from a file of any kind, as a picture with bone bright."""

import pathlib
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from data_builders.errors import UnreadableError
from data_builders.images import files, grey_files
from data_builders.images.contrast import stretched
from data_builders.images.files import is_dicom, opened
from data_builders.images.grey import Grey

__all__ = [
    "Radiograph",
    "UnreadableError",
    "is_dicom",
    "load_radiograph",
    "opened",
    "read_radiograph",
]


class Radiograph(NamedTuple):
    """An X-ray, and what was done to it.

    Attributes:
      picture: `(h, w)`, in [0, 1], bone bright, with square pixels.
      step: how many pixels of the upright file one pixel of `picture` spans, `(rows, columns)`. A
        place `p` in `picture`, counted from the middle of the first pixel, is
        `(p + 0.5) * step - 0.5` in the file.
      remarks: what was corrected; constant words, so that equal remarks can be counted.
    """

    picture: Float[Array, "h w"]
    step: tuple[float, float]
    remarks: tuple[str, ...]


def load_radiograph(path: pathlib.Path, inverted: bool = False) -> Radiograph:
    """Returns the X-ray of a DICOM file, or of a picture's file of any depth.

    Pixels that are not square are made so by enlarging the coarser axis, which keeps all detail.

    Args:
      path: of the file, whose kind is decided by its content.
      inverted: whether bone is dark in the file beyond what its header says.

    Raises:
      UnreadableError: no such file, damaged, several pictures, colours, one value all over, or no
        X-ray.
    """
    image = _read(pathlib.Path(path))
    with files.readable():
        picture, remarks = stretched(image, inverted)

    # Make the pixels square.
    height, width = picture.shape
    if image.aspect == 1.0:
        return Radiograph(picture, (1.0, 1.0), remarks)
    size = (width, round(height * image.aspect))
    if image.aspect < 1.0:
        size = (round(width / image.aspect), height)
    files.check_size(*size)
    picture = np.clip(cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC), 0.0, 1.0)
    return Radiograph(picture, (height / size[1], width / size[0]), remarks)


def _read(path: pathlib.Path) -> Grey:
    """Returns what the file holds, before its contrast is decided."""
    if not is_dicom(path):
        return grey_files.read(path)
    from data_builders.images import dicom  # importing pydicom takes a third of a second

    return dicom.read(path)


def read_radiograph(path: pathlib.Path, inverted: bool = False) -> Float[Array, "h w"]:
    """Returns the picture of `load_radiograph` alone."""
    return load_radiograph(path, inverted).picture
