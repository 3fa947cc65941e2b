"""Interpreting a DICOM object's stored pixels: bits, padding, units, polarity and windows."""

from collections.abc import Callable

import numpy as np
from numpy import ndarray as Array
from pydicom.dataset import Dataset

from data_builders.errors import UnreadableError
from data_builders.images import dicom_geometry as geometry
from data_builders.images import dicom_header as header
from data_builders.images import grey
from data_builders.images.contrast import frame_of
from data_builders.images.dicom_pixels import Form
from data_builders.images.dicom_tables import table, windows
from data_builders.images.grey import Grey, Pixels
from data_builders.images.grey_files import grey_pixels

_NONE = -(1 << 40)  # no padding value
_TORN = 3.0  # how many times more neighbours differ where the header's width is wrong


def interpreted(data: Dataset, array: Array, form: Form, remarks: list[str]) -> Grey:
    """Returns the picture of stored pixels, by the header where it is plausible.

    Adds to `remarks`. Raises UnreadableError.
    """
    if array.ndim != 2:
        raise UnreadableError(f"holds an array of shape {array.shape} in place of one picture")

    # From bits to values and units.
    pixels, not_finite = grey_pixels(array)
    remarks += not_finite
    if pixels.table is not None and form.allocated > 1:
        pixels = _placed(data, pixels, form, remarks=remarks)
    if not form.syntax.is_encapsulated:
        _check_rows(pixels)
    pixels = _padded(data, pixels, form, remarks=remarks)
    pixels, rising = _modality(data, pixels, remarks)

    # Polarity, windows and tables.
    sign = _sign(data, form, rising, remarks=remarks)
    curves, windowed = _curves(data, pixels, remarks)

    # Shutters and collimators.
    outside = geometry.behind(data, "Shutter", form)
    if outside is not None and outside.all():
        remarks.append(grey.SHUTTER_ODD)
    elif outside is not None and outside.any():
        pixels = pixels.without(outside)
        remarks.append(grey.SHUTTER)
    aside = geometry.behind(data, "Collimator", form)
    if aside is not None and aside.mean() > 0.9:
        aside = None

    # Proportions.
    aspect, ratios = geometry.pixel_aspect(data)
    return Grey(
        pixels=pixels,
        curves=tuple(curves),
        windowed=windowed,
        sign=sign,
        aside=aside,
        aspect=aspect,
        remarks=(*dict.fromkeys(remarks), *ratios),
    )


def _check_rows(pixels: Pixels) -> None:
    """Raises UnreadableError where rows match only with Rows and Columns exchanged."""
    height, width = pixels.stored.shape
    if height == width:
        return
    stated = _step_down(pixels, pixels.stored)
    if stated > _TORN * _step_down(pixels, pixels.stored.reshape(width, height)):
        raise UnreadableError("its rows don't fit together; its header swaps Rows and Columns")


def _step_down(pixels: Pixels, stored: Array) -> float:
    """Returns how much neighbours in a column differ, in the median row."""
    step = max(1, len(stored) // 64)
    above = stored[:-1:step]
    below = stored[1::step]
    if pixels.table is not None:
        above = pixels.table[above]
        below = pixels.table[below]
    return float(np.nanmedian(np.abs(below - above).mean(1)))


def _placed(data: Dataset, pixels: Pixels, form: Form, remarks: list[str]) -> Pixels:
    """Returns integer pixels with the values of their bits.

    The header states where these bits are. The pixels decide where they contradict it.
    """
    width = 8 * pixels.stored.itemsize
    if form.stored == width:
        return pixels

    # The values as the header states them.
    codes = np.arange(256**pixels.stored.itemsize, dtype=np.int32)
    low, high = _code_range(pixels, form.signed)
    shift = form.high + 1 - form.stored
    if shift and (form.syntax.is_encapsulated or (0 <= low and high < 1 << form.stored)):
        # Decoders, and some writers, move the bits to the right place.
        if not form.syntax.is_encapsulated:
            remarks.append(grey.BITS)
        shift = 0
    stated = _bits(codes, shift=shift, count=form.stored, signed=form.signed)
    half = 1 << (form.stored - 1)
    bottom, top = (-half, half - 1) if form.signed else (0, 2 * half - 1)
    if shift or (bottom <= low and high <= top):
        return _with_table(pixels, stated)

    # The pixels exceed these values: by overlays, padding, a sign, or more bits.
    whole = _bits(codes, shift=0, count=width, signed=form.signed)
    beyond = pixels.stored[pixels.where(lambda _: (whole < bottom) | (whole > top))]
    used = int(np.bitwise_or.reduce(beyond)) >> form.stored << form.stored
    if used and used & ~_overlay_bits(data) == 0:
        return _with_table(pixels, stated)
    if (beyond == beyond[0]).all():
        return _with_table(pixels, np.where(codes == beyond[0], whole, stated))

    # The reading in which neighbours differ least.
    best = stated
    unsigned = _bits(codes, shift=0, count=form.stored, signed=False)
    others = [unsigned, whole, codes]
    lower = (1 << width - form.stored) - 1
    if int(np.bitwise_or.reduce(pixels.stored, axis=None)) & lower == 0:
        best = whole  # they lie in the upper bits
        others = []
    for other in others:
        best = _smoother(pixels, best, other)
    if best is not stated:
        remarks.append(grey.BITS)
    return _with_table(pixels, best)


def _with_table(pixels: Pixels, values: Array) -> Pixels:
    """Returns pixels with the value of each stored integer."""
    return pixels._replace(table=values.astype(np.float64))


def _code_range(pixels: Pixels, signed: bool) -> tuple[int, int]:
    """Returns the smallest and the largest integer that is stored; 0 is the smallest unsigned."""
    if not signed:
        return 0, int(pixels.stored.max())
    stored = pixels.stored.view(f"i{pixels.stored.itemsize}")
    return int(stored.min()), int(stored.max())


def _bits(codes: Array, shift: int, count: int, signed: bool) -> Array:
    """Returns the numbers that `count` bits from `shift` upwards encode."""
    values = (codes >> shift) & ((1 << count) - 1)
    if signed:
        values = np.where(values >> (count - 1), values - (1 << count), values)
    return values


def _smoother(pixels: Pixels, first: Array, second: Array) -> Array:
    """Returns the reading of the stored integers in which neighbours differ less.

    Values that wrap around and bits of overlays make large steps where two readings disagree.
    """
    rows = pixels.stored[:: max(1, len(pixels.stored) // 200)]
    first_steps = np.abs(np.diff(first[rows], axis=1))
    second_steps = np.abs(np.diff(second[rows], axis=1))
    differ = first_steps != second_steps
    if not differ.any() or np.median(first_steps[differ]) <= np.median(second_steps[differ]):
        return first
    return second


def _overlay_bits(data: Dataset) -> int:
    """Returns the bits of the pixels in which the header places overlays."""
    places = [data.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2)]
    numbers = [place.value for place in places if place is not None]
    return sum({1 << int(n) for n in numbers if isinstance(n, int) and 0 < n < 16})


def _padded(data: Dataset, pixels: Pixels, form: Form, remarks: list[str]) -> Pixels:
    """Returns pixels without those of PixelPaddingValue, or up to PixelPaddingRangeLimit."""
    ends = [header.integer(data, "PixelPaddingValue", _NONE)]
    ends.append(header.integer(data, "PixelPaddingRangeLimit", ends[0]))
    if ends[0] == _NONE:
        return pixels

    # The values that are padding. They may have the sign of another type.
    values = pixels.values
    low = np.nanmin(values)
    high = np.nanmax(values)
    container = 1 << (32 if pixels.table is None else 8 * pixels.stored.itemsize)
    first, last = sorted(_in_range(end, container, low=low, high=high) for end in ends)
    chosen = (values >= first) & (values <= last)
    if pixels.table is not None:
        chosen[ends[0] % container] = True  # a value beyond the stored bits is known by its code
    cleared = pixels.mapped(lambda values: np.where(chosen, np.nan, values))
    flags = pixels.mapped(lambda _: chosen.astype(np.float64))
    sample = flags.sample() > 0
    if not sample.any():
        return cleared
    if sample.all():
        remarks.append(grey.PADDING_ODD)
        return pixels
    remarks.append(grey.PADDING)

    # Values darker than the picture are padding anywhere. The patient may have others, too.
    rest = cleared.sample()
    if form.photometric == "MONOCHROME1":
        dark = first > np.nanmax(rest)
    else:
        dark = last < np.nanmin(rest)
    if dark:
        return cleared
    return pixels.without(frame_of(flags, lambda flags: flags > 0))


def _in_range(end: int, container: int, low: float, high: float) -> int:
    """Returns a padding value, or that of its bits with the other sign if only that occurs."""
    readings = (end, end - container, end + container)
    return next((value for value in readings if low <= value <= high), end)


def _modality(data: Dataset, pixels: Pixels, remarks: list[str]) -> tuple[Pixels, float]:
    """Returns pixels in the modality's units, and -1 where these fall with the stored values."""
    # By a table.
    tables = header.items(data, "ModalityLUTSequence")
    if tables:
        sample = pixels.sample()
        sample = sample[np.isfinite(sample)]
        lookup = table(tables[0], sample, data.original_encoding[1] is not False)
        if lookup is None or not lookup.covers(sample):
            remarks.append(grey.MODALITY_TABLE)
            return pixels, 1.0
        if lookup.short:
            remarks.append(grey.TABLE_SHORT)
        return pixels.mapped(lookup), 1.0 if lookup.entries[-1] >= lookup.entries[0] else -1.0

    # By a slope and an intercept.
    slope = (header.numbers(data, "RescaleSlope") or [1.0])[0]
    intercept = (header.numbers(data, "RescaleIntercept") or [0.0])[0]
    if not (0 < abs(slope) < 1e30 and abs(intercept) < 1e30):
        remarks.append(grey.RESCALE)
        return pixels, 1.0
    if _empty(data, "RescaleSlope") or _empty(data, "RescaleIntercept"):
        remarks.append(grey.RESCALE)
    if (slope, intercept) == (1.0, 0.0):
        return pixels, 1.0
    return pixels.mapped(lambda values: values * slope + intercept), float(np.sign(slope))


def _empty(data: Dataset, keyword: str) -> bool:
    """Returns True if an element is there without a value."""
    return keyword in data and not header.numbers(data, keyword)


def _sign(data: Dataset, form: Form, rising: float, remarks: list[str]) -> float:
    """Returns -1 where low values of the modality are bright, else 1.

    PhotometricInterpretation decides, and PresentationLUTShape only repeats it. Images FOR
    PROCESSING are not for display: PixelIntensityRelationshipSign states whether bone is high in
    them (PS3.3 C.8.11.3.1.2).
    """
    sign = -1.0 if form.photometric == "MONOCHROME1" else 1.0
    shape = header.text(data, "PresentationLUTShape")
    if shape in ("INVERSE", "IDENTITY") and (shape == "INVERSE") != (sign < 0):
        remarks.append(grey.POLARITY_CONFLICT)
    dose = header.integer(data, "PixelIntensityRelationshipSign", 0)
    bone = -dose * rising  # 1 where bone has high values
    if abs(dose) != 1 or bone == sign:
        return sign
    if header.text(data, "PresentationIntentType") == "FOR PROCESSING":
        remarks.append(grey.POLARITY_TURNED)
        return bone
    remarks.append(grey.POLARITY_CONFLICT)
    return sign


def _curves(
    data: Dataset, pixels: Pixels, remarks: list[str]
) -> tuple[list[Callable[[Array], Array]], bool]:
    """Returns the tables and windows that the header offers, and whether it states any."""
    usable, stated = windows(data)
    offered = header.items(data, "VOILUTSequence")
    if not offered:
        return [*usable], stated
    little = data.original_encoding[1] is not False
    sample = pixels.sample()
    sample = sample[np.isfinite(sample)]
    lookups = [table(item, sample, little) for item in offered]
    tables = [lookup.spread() for lookup in lookups if lookup is not None]
    if any(lookup.short for lookup in tables):
        remarks.append(grey.TABLE_SHORT)
    return [*tables, *usable], True
