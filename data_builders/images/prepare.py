"""Preparing an X-ray for a record: reading, painting over text, padding to a square, 8 bit."""

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray as Array

from data_builders.errors import UnreadableError
from data_builders.images.burned_in import covered, find_text, paint_over
from data_builders.images.radiograph import Radiograph, load_radiograph
from data_builders.images.squares import Transform, moved, padding, take, to_bytes

TEXT = ("paint_over", "refuse", "keep")


class PreparedXray(NamedTuple):
    """An X-ray as a record holds it.

    Attributes:
      square: `(size, size)`, bone bright.
      transform: from the square's pixels to the file's.
      height: of the file's picture, in its pixels.
      width: of the file's picture, in its pixels.
      boxes: `(n, 4)`, where text was painted over: left, top, right, bottom in the square's pixels.
      masked: the share of the picture that was painted over.
      remarks: what was corrected, in constant words.
    """

    square: UInt8[Array, "size size"]
    transform: Transform
    height: int
    width: int
    boxes: Float[Array, "n 4"]
    masked: float
    remarks: tuple[str, ...]


def prepare_xray(
    path: pathlib.Path, size: int, inverted: bool = False, text: str = "paint_over"
) -> PreparedXray:
    """Returns the X-ray of a file as a square of `size` pixels.

    Args:
      path: of a file that `load_radiograph` reads.
      size: pixels along each side.
      inverted: whether bone is dark in the file beyond what its header says.
      text: what happens to text burned into it, one of TEXT; 'refuse' refuses any.

    Raises:
      UnreadableError: the file holds no X-ray, or text where that is refused.
    """
    return squared_xray(load_radiograph(path, inverted), size, text)


def squared_xray(xray: Radiograph, size: int, text: str = "paint_over") -> PreparedXray:
    """Returns the square of an X-ray that has been read already; see `prepare_xray`."""
    # Find text and paint it over.
    picture = xray.picture
    boxes = [] if text == "keep" else find_text(picture, size)
    masked = 0.0
    if boxes and text == "refuse":
        raise UnreadableError(
            "text or a marker is burned into the X-ray; crop it, paint it over by hand, "
            "or set text=paint_over"
        )
    if boxes:
        masked = np.count_nonzero(covered(boxes, picture.shape)) / picture.size
        picture = paint_over(picture, boxes)

    # Pad the picture to a square.
    height, width = picture.shape
    transform = padding(height, width, size)
    square = take(np.asarray(picture, np.float32), transform, size)

    # Move the boxes into the square, and the transform into the file.
    corners = np.array([[[b.left, b.top], [b.right, b.bottom]] for b in boxes], np.float64)
    places = moved(corners.reshape(-1, 2) - 0.5, transform) + 0.5
    rows, columns = xray.step
    return PreparedXray(
        square=to_bytes(square),
        transform=_in_file(transform, rows, columns),
        height=round(height * rows),
        width=round(width * columns),
        boxes=places.reshape(-1, 4),
        masked=masked,
        remarks=xray.remarks,
    )


def _in_file(transform: Transform, rows: float, columns: float) -> Transform:
    """Returns a transform to a picture's pixels as one to the pixels of its file.

    A pixel of the picture spans `(rows, columns)` pixels of the file.
    """
    step = np.array([columns, rows])
    scaled = transform * step[:, None]
    scaled[:, 2] += (step - 1.0) / 2.0
    return scaled
