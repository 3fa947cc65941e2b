"""Grey pictures before their contrast is decided, and remarks on how they were read."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

NOT_SQUARE = "its pixels are not square; stretched to the patient's proportions"
RATIO_ODD = "the ratio of its pixels' sides is implausible; they were treated as square"
RATIOS_DIFFER = (
    "its header states several ratios of the pixels' sides; the most trusted one was used"
)
PADDING = "padding values were set to black"
PADDING_ODD = "its padding value covers the whole picture; it was ignored"
NOT_FINITE = "pixels that are not numbers were set to black"
TRANSPARENT = "transparent pixels were set to black"
ALL_TRANSPARENT = "all of its pixels are transparent; transparency was ignored"
SHUTTER = "pixels behind its shutter were set to black"
SHUTTER_ODD = "its shutter leaves nothing of the picture; it was ignored"
WINDOW = "its window lies outside of the pixels' values; a robust one was used"
RESCALE = "its rescale slope or intercept is implausible; the stored values were used"
MODALITY_TABLE = "its modality table doesn't fit the pixels; the stored values were used"
TABLE_SHORT = "a table of grey values is shorter than it says; its last value was repeated"
BITS = "its bits are not where the header says; they were read as the pixels show"
POLARITY_MISSING = "its header doesn't say whether low values are dark; they were treated as dark"
POLARITY_CONFLICT = (
    "its header contradicts itself on whether bone is bright; it was shown as stated"
)
POLARITY_TURNED = "its values rise with the dose, so bone was dark; it was inverted"


class Pixels(NamedTuple):
    """A grey picture whose values can be mapped cheaply.

    A picture of small integers has a table with the value of each integer, so that few entries are
    mapped in place of many pixels. A value of NaN marks pixels outside of the picture.

    Attributes:
      stored: unsigned integers of 8 or 16 bit that index `table`, or the values themselves.
      table: the value of each integer, or None.
      outside: which pixels don't belong to the picture, or None.
    """

    stored: Array
    table: Float[Array, "values"] | None
    outside: Bool[Array, "h w"] | None = None

    @classmethod
    def of(cls, array: Array) -> "Pixels":
        """Returns the pixels of an array `(h, w)` of any numeric type."""
        if array.dtype == bool:
            array = array.astype(np.uint8)
        if array.dtype.kind not in "ui" or array.dtype.itemsize > 2:
            return cls(np.asarray(array, np.float64), None)
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        codes = np.arange(256**array.itemsize, dtype=f"u{array.itemsize}")
        return cls(array.view(codes.dtype), codes.view(array.dtype).astype(np.float64))

    @property
    def values(self) -> Array:
        """The table, or the values of the pixels where there is none."""
        return self.stored if self.table is None else self.table

    def mapped(self, function: Callable[[Array], Array]) -> "Pixels":
        """Returns the same pixels with `function` applied to their values."""
        if self.table is None:
            return self._replace(stored=function(self.stored))
        return self._replace(table=function(self.table))

    def without(self, outside: Bool[Array, "h w"]) -> "Pixels":
        """Returns the same pixels, with those of a mask marked as outside of the picture."""
        if self.outside is not None:
            outside = self.outside | outside
        return self._replace(outside=outside)

    def where(self, chosen: Callable[[Array], Array]) -> Bool[Array, "h w"]:
        """Returns the mask of the pixels whose value is `chosen`."""
        if self.table is None:
            return chosen(self.stored)
        return cv2.LUT(self.stored, chosen(self.table).astype(np.uint8)[None]).astype(bool)

    def sample(self) -> Float[Array, "h2 w2"]:
        """Returns the values of pixels in regular steps, NaN outside, for statistics."""
        step = self.step()
        values = self.stored[::step, ::step]
        if self.table is not None:
            values = self.table[values]
        if self.outside is not None:
            values = np.where(self.outside[::step, ::step], np.nan, values)
        return values

    def step(self) -> int:
        """Returns the distance in pixels between two pixels of the sample."""
        return max(1, min(self.stored.shape) // 250)

    def picture(self) -> Float[Array, "h w"]:
        """Returns the values of all pixels as float32, 0 outside."""
        if self.table is None:
            values = np.nan_to_num(self.stored, copy=False).astype(np.float32)
        else:
            values = cv2.LUT(self.stored, np.nan_to_num(self.table).astype(np.float32)[None])
        if self.outside is not None:
            values[self.outside] = 0.0
        return values


class Grey(NamedTuple):
    """A file's picture, before its contrast is decided.

    Attributes:
      pixels: its values.
      curves: from values to brightness in [0, 1], as the header offers them, the best first.
      windowed: whether the header offers any, usable or not.
      sign: -1 where low values are bright, else 1.
      aside: pixels of the picture that must not decide the contrast, or None.
      aspect: a pixel's height over its width.
      remarks: what was corrected so far.
    """

    pixels: Pixels
    curves: tuple[Callable[[Array], Array], ...] = ()
    windowed: bool = False
    sign: float = 1.0
    aside: Bool[Array, "h w"] | None = None
    aspect: float = 1.0
    remarks: tuple[str, ...] = ()
