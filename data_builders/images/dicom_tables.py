"""DICOM's windows and tables of grey values (PS3.3 C.11.1 and C.11.2), as functions of arrays.

Tables are read here and not by pydicom, which trusts their descriptors.
"""

import dataclasses

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from pydicom.dataset import Dataset

from data_builders.images import dicom_header as header

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclasses.dataclass(frozen=True)
class Window:
    """A window from values to brightness in [0, 1]."""

    centre: float
    width: float
    function: str

    def __call__(self, values: Array) -> Array:
        """Returns the brightness of values, NaN for NaN."""
        if self.function == "SIGMOID":
            steepness = np.clip(-4.0 * (values - self.centre) / self.width, -500.0, 500.0)
            return 1.0 / (1.0 + np.exp(steepness))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.centre) / self.width + 0.5, 0.0, 1.0)
        if self.width <= 1.0:
            return np.where(np.isnan(values), np.nan, values > self.centre - 0.5)
        return np.clip((values - (self.centre - 0.5)) / (self.width - 1.0) + 0.5, 0.0, 1.0)

    @property
    def whole_range_to(self) -> float | None:
        """The last value of a window that shows all values of 7 to 15 bits, None for others."""
        bits = round(np.log2(self.width + 0.5))
        if not 7 <= bits <= 15:
            return None
        if abs(self.width - 2**bits) > 1 or abs(self.centre - self.width / 2) > 2:
            return None
        return float(2**bits - 1)


def windows(data: Dataset) -> tuple[list[Window], bool]:
    """Returns the usable windows of a header, and whether it states any."""
    centres = header.numbers(data, "WindowCenter")
    widths = header.numbers(data, "WindowWidth")
    function = header.text(data, "VOILUTFunction")
    if function not in _FUNCTIONS:
        function = "LINEAR"
    usable = [
        Window(centre, width, function)
        for centre, width in zip(centres, widths, strict=False)
        if np.isfinite(centre) and np.isfinite(width) and width > 0
    ]
    return usable, bool(centres or widths)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of grey values.

    The first entry belongs to the value `first` and all below it, the last to all above.
    """

    first: float
    entries: Float[Array, "entries"]
    short: bool = False

    def __call__(self, values: Array) -> Array:
        """Returns the entries of values, NaN for NaN."""
        missing = np.isnan(values)
        places = np.clip(np.where(missing, 0.0, values) - self.first, 0, len(self.entries) - 1)
        return np.where(missing, np.nan, self.entries[places.astype(np.int64)])

    def covers(self, values: Float[Array, "values"]) -> bool:
        """Returns True if most values have an entry of their own."""
        last = self.first + len(self.entries) - 1
        return bool(np.mean((values >= self.first) & (values <= last)) > 0.5)

    def spread(self) -> "Table":
        """Returns the same table with entries from 0 to 1."""
        low = self.entries.min()
        high = self.entries.max()
        return dataclasses.replace(self, entries=(self.entries - low) / max(high - low, 1.0))


def table(
    item: Dataset, values: Float[Array, "values"], little: bool, keyword: str = "LUT"
) -> Table | None:
    """Returns the table of an item, None where it can't be used.

    Args:
      item: with LUTDescriptor and LUTData, or others of that form.
      values: a sample of the values that will be looked up. It decides whether the first entry's
        place is signed.
      little: whether words are little-endian.
      keyword: the beginning of both elements' names.
    """
    descriptor = header.numbers(item, keyword + "Descriptor")
    content = _bytes(item, keyword + "Data", little)
    if len(descriptor) != 3 or not np.isfinite(descriptor).all() or not content:
        return None
    count, first, bits = (int(number) for number in descriptor)
    count = (count & 0xFFFF) or 65536
    entries = _entries(content, count=count, bits=bits, little=little)
    if entries.size == 0 or entries.min() == entries.max():
        return None
    return Table(_first(first, entries.size, values), entries, entries.size < count)


def _first(stated: int, count: int, values: Float[Array, "values"]) -> float:
    """Returns the value of the first entry: as stated, or its 16 bits with the other sign."""
    other = stated
    if stated >= 32768:
        other = stated - 65536
    elif stated < 0:
        other = stated + 65536
    covered = [np.mean((values >= first) & (values < first + count)) for first in (stated, other)]
    return float(other if covered[1] > covered[0] else stated)


def _bytes(item: Dataset, keyword: str, little: bool) -> bytes:
    """Returns a table's content as it was in the file, whatever its value representation."""
    if keyword not in item:
        return b""
    value = item[keyword].value
    if isinstance(value, bytes):
        return value
    if value is None:
        return b""
    words = np.atleast_1d(np.asarray(value, np.int64))
    return (words & 0xFFFF).astype("<u2" if little else ">u2").tobytes()


def _entries(content: bytes, count: int, bits: int, little: bool) -> Float[Array, "entries"]:
    """Returns a table's entries: words, or, with 8 bit, also bytes that are packed."""
    words = np.frombuffer(content[: len(content) // 2 * 2], "<u2" if little else ">u2")
    if bits <= 8:
        packed = len(content) <= count + 1 and words.size < count
        if packed and not (len(content) < count and words.max(initial=0) < 256):
            return _packed(content, little, words)[:count].astype(np.float64)
        if words.size < count and words.max(initial=0) >= 256:
            return _packed(content, little, words)[:count].astype(np.float64)
    return words[:count].astype(np.float64)


def _packed(content: bytes, little: bool, words: Array) -> Array:
    """Returns bytes in their order; big-endian files swap them within words."""
    if little:
        return np.frombuffer(content, np.uint8)
    return words.astype("<u2").view(np.uint8)
