"""Where the picture of a DICOM object is hidden by a shutter, and the proportions of its pixels."""

import cv2
import numpy as np
from jaxtyping import Bool
from numpy import ndarray as Array
from pydicom.dataset import Dataset

from data_builders.images import dicom_header as header
from data_builders.images import files
from data_builders.images.dicom_pixels import Form
from data_builders.images.grey_files import usable_aspect


def behind(data: Dataset, name: str, form: Form) -> Bool[Array, "h w"] | None:
    """Returns the pixels behind a shutter or a collimator, None without a usable one."""
    shapes = [shape.upper() for shape in header.strings(data, f"{name}Shape")]
    row, column = np.ogrid[1 : form.rows + 1, 1 : form.columns + 1]
    outside = None
    for shape in shapes:
        inside = _inside(data, name, shape, row, column)
        if inside is not None:
            outside = ~inside if outside is None else outside | ~inside
    return outside


def _inside(
    data: Dataset, name: str, shape: str, row: Array, column: Array
) -> Bool[Array, "h w"] | None:
    """Returns the pixels that one shape shows; rows and columns count from 1."""
    if shape == "RECTANGULAR":
        edges = [
            f"{name}{side}Edge"
            for side in ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
        ]
        limits = [(header.numbers(data, edge) or [np.nan])[0] for edge in edges]
        if not np.isfinite(limits).all():
            return None
        left, right, upper, lower = limits
        return (column >= left) & (column <= right) & (row >= upper) & (row <= lower)
    if shape == "CIRCULAR":
        centre = header.numbers(data, f"CenterOfCircular{name}")
        radius = header.numbers(data, f"RadiusOfCircular{name}")
        if len(centre) != 2 or not radius or not np.isfinite([*centre, radius[0]]).all():
            return None
        return (row - centre[0]) ** 2 + (column - centre[1]) ** 2 <= radius[0] ** 2
    if shape == "POLYGONAL":
        corners = header.numbers(data, f"VerticesOfThePolygonal{name}")
        if (
            len(corners) < 6
            or len(corners) % 2
            or not np.isfinite(corners).all()
            or np.abs(corners).max() > 1e6
        ):
            return None
        places = np.round(np.array(corners).reshape(-1, 2)[:, ::-1] - 1).astype(np.int32)
        mask = np.zeros((row.size, column.size), np.uint8)
        return cv2.fillPoly(mask, [places], 1).astype(bool)
    return None


def pixel_aspect(data: Dataset) -> tuple[float, tuple[str, ...]]:
    """Returns a pixel's height over its width, with remarks.

    All four elements name the distance between rows first.
    """
    stated = []
    for keyword in (
        "PixelSpacing",
        "ImagerPixelSpacing",
        "NominalScannedPixelSpacing",
        "PixelAspectRatio",
    ):
        sizes = header.numbers(data, keyword)
        if sizes:
            stated.append(files.density_aspect(*sizes) if len(sizes) == 2 else np.nan)
    return usable_aspect(stated)
