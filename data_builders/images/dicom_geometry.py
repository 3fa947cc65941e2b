"""The shutters and collimators of a DICOM object, and the proportions of its pixels."""

import cv2
import numpy as np
from jaxtyping import Bool
from numpy import ndarray as Array
from pydicom.dataset import Dataset

from data_builders.images import dicom_header as header
from data_builders.images import files
from data_builders.images.dicom_pixels import Form
from data_builders.images.grey_files import usable_aspect

# The most trusted first.
_ASPECTS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")


def behind(data: Dataset, name: str, form: Form) -> Bool[Array, "h w"] | None:
    """Returns the pixels behind a shutter or a collimator, None without a usable one."""
    shapes = [shape.upper() for shape in header.strings(data, f"{name}Shape")]
    row, column = np.ogrid[1 : form.rows + 1, 1 : form.columns + 1]
    outside = None
    for shape in shapes:
        inside = _inside(data, name, shape, row=row, column=column)
        if inside is None:
            continue
        outside = ~inside if outside is None else outside | ~inside
    return outside


def _inside(
    data: Dataset, name: str, shape: str, row: Array, column: Array
) -> Bool[Array, "h w"] | None:
    """Returns the pixels that one shape shows; rows and columns count from 1.

    Returns None where the header does not define the shape.
    """
    if shape == "RECTANGULAR":
        return _inside_rectangle(data, name, row=row, column=column)
    if shape == "CIRCULAR":
        return _inside_circle(data, name, row=row, column=column)
    if shape == "POLYGONAL":
        return _inside_polygon(data, name, row=row, column=column)
    return None


def _inside_rectangle(
    data: Dataset, name: str, row: Array, column: Array
) -> Bool[Array, "h w"] | None:
    """Returns the pixels within a rectangle, None without all of its edges."""
    sides = ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
    edges = [(header.numbers(data, f"{name}{side}Edge") or [np.nan])[0] for side in sides]
    if not np.isfinite(edges).all():
        return None
    left, right, upper, lower = edges
    return (column >= left) & (column <= right) & (row >= upper) & (row <= lower)


def _inside_circle(
    data: Dataset, name: str, row: Array, column: Array
) -> Bool[Array, "h w"] | None:
    """Returns the pixels within a circle, None without its centre and radius."""
    centre = header.numbers(data, f"CenterOfCircular{name}")
    radius = header.numbers(data, f"RadiusOfCircular{name}")
    if len(centre) != 2 or not radius or not np.isfinite([*centre, radius[0]]).all():
        return None
    return (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius[0] ** 2


def _inside_polygon(
    data: Dataset, name: str, row: Array, column: Array
) -> Bool[Array, "h w"] | None:
    """Returns the pixels within a polygon, None without plausible corners."""
    corners = header.numbers(data, f"VerticesOfThePolygonal{name}")
    if len(corners) < 6 or len(corners) % 2:
        return None
    if not np.isfinite(corners).all() or np.abs(corners).max() > 1e6:
        return None
    places = np.round(np.array(corners).reshape(-1, 2)[:, ::-1] - 1).astype(np.int32)
    mask = np.zeros((row.size, column.size), np.uint8)
    return cv2.fillPoly(mask, [places], 1).astype(bool)


def pixel_aspect(data: Dataset) -> tuple[float, tuple[str, ...]]:
    """Returns a pixel's height over its width, with remarks.

    All four elements name the distance between rows first.
    """
    stated = []
    for keyword in _ASPECTS:
        sizes = header.numbers(data, keyword)
        if sizes:
            stated.append(files.density_aspect(*sizes) if len(sizes) == 2 else np.nan)
    return usable_aspect(stated)
