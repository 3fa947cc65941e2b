"""X-rays from PNG, TIFF, JPEG and other files of pictures."""

import pathlib

import numpy as np
from numpy import ndarray as Array

from data_builders.errors import UnreadableError
from data_builders.images import grey
from data_builders.images.grey import Grey, Pixels
from data_builders.images.rasters import raster

_MOST_NOT_FINITE = 0.01  # of all pixels
# Of the brightest value: how far JPEG moves the channels of grey apart.
_COLOUR = 0.094


def read(path: pathlib.Path) -> Grey:
    """Returns the grey picture of a file. Raises UnreadableError."""
    picture = raster(path, "X-ray")
    pixels, remarks = grey_pixels(picture.array)
    transparent = picture.transparent
    if transparent is not None and transparent.all():
        remarks += (grey.ALL_TRANSPARENT,)
    elif transparent is not None and transparent.any():
        pixels = pixels.without(transparent)
        remarks += (grey.TRANSPARENT,)
    aspect, ratios = usable_aspect([picture.aspect])
    sign = -1.0 if picture.inverted else 1.0
    return Grey(pixels, sign=sign, aspect=aspect, remarks=remarks + ratios)


def grey_pixels(array: Array) -> tuple[Pixels, tuple[str, ...]]:
    """Returns an array `(h, w)` as pixels, with remarks.

    The array may be `(h, w, 3)` with grey in three channels. Raises UnreadableError where it is in
    colours, or many pixels are not numbers.
    """
    if array.ndim == 3:
        array = _without_colours(array)
    if array.ndim != 2 or 0 in array.shape:
        raise UnreadableError(f"holds an array of shape {array.shape} in place of one picture")
    pixels = Pixels.of(array)
    if pixels.table is not None:
        return pixels, ()
    unusable = ~(np.abs(pixels.stored) < 1e300)
    share = unusable.mean()
    if share > _MOST_NOT_FINITE:
        raise UnreadableError(f"{100 * share:.0f} % of its pixels are not numbers")
    if not share:
        return pixels, ()
    return Pixels(np.where(unusable, np.nan, pixels.stored), None), (grey.NOT_FINITE,)


def _without_colours(array: Array) -> Array:
    """Returns the mean of three channels that differ little. Raises UnreadableError for others."""
    first, second, third = np.moveaxis(array, -1, 0)
    if np.array_equal(first, second) and np.array_equal(first, third):
        return first
    wide = array.astype(np.int32) if array.dtype.kind in "ui" else array
    brightest = 255 if array.dtype == np.uint8 else float(np.max(wide))
    if np.percentile(np.ptp(wide, axis=-1), 99) > _COLOUR * brightest:
        raise UnreadableError("a picture in colours; an X-ray is grey")
    return wide.mean(-1, dtype=np.float32)


def usable_aspect(stated: list[float]) -> tuple[float, tuple[str, ...]]:
    """Returns a pixel's height over its width from what a file states, with remarks.

    The most trusted statement comes first; NaN stands for one without a value. Pixels within 1 %
    of a square are square, and ratios beyond 1:4 are implausible.
    """
    usable = [ratio for ratio in stated if 0.25 <= ratio <= 4.0]
    remarks: tuple[str, ...] = ()
    if not usable:
        odd = any(np.isfinite(ratio) for ratio in stated)
        return 1.0, (grey.RATIO_ODD,) if odd else ()
    aspect = usable[0]
    if any(abs(ratio / aspect - 1.0) > 0.01 for ratio in usable):
        remarks += (grey.RATIOS_DIFFER,)
    if abs(aspect - 1.0) <= 0.01:
        return 1.0, remarks
    return aspect, remarks + (grey.NOT_SQUARE,)
