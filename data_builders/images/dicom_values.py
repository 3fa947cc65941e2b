"""What the stored pixels of a DICOM object mean: bits, padding, units, polarity and windows."""

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
_TORN = 3.0  # times as much, that neighbours differ where the header's width is wrong


def meant(data: Dataset, array: Array, form: Form, remarks: list[str]) -> Grey:
    """Returns the picture of stored pixels, by the header where it can be meant."""
    if array.ndim != 2:
        raise UnreadableError(f"holds an array of shape {array.shape} in place of one picture")
    pixels, more = grey_pixels(array)
    remarks += more
    if pixels.table is not None and form.allocated > 1:
        pixels = _placed(data, pixels, form, remarks)
    if not form.syntax.is_encapsulated:
        _check_rows(pixels)
    pixels, rising = _modality(data, _padded(data, pixels, form, remarks), remarks)
    sign = _sign(data, form, rising, remarks)
    curves, windowed = _curves(data, pixels, remarks)
    outside = geometry.behind(data, "Shutter", form)
    if outside is not None:
        if outside.all():
            remarks.append(grey.SHUTTER_ODD)
        elif outside.any():
            pixels = pixels.without(outside)
            remarks.append(grey.SHUTTER)
    aside = geometry.behind(data, "Collimator", form)
    if aside is not None and aside.mean() > 0.9:
        aside = None
    aspect, ratios = geometry.pixel_aspect(data)
    return Grey(
        pixels, tuple(curves), windowed, sign, aside, aspect, (*dict.fromkeys(remarks), *ratios)
    )


def _check_rows(pixels: Pixels) -> None:
    """Raises UnreadableError where rows fit together only with Rows and Columns exchanged."""
    height, width = pixels.stored.shape
    if height == width:
        return
    stated = _step_down(pixels, pixels.stored)
    if stated > _TORN * _step_down(pixels, pixels.stored.reshape(width, height)):
        raise UnreadableError("its rows don't fit together; its header exchanges Rows and Columns")


def _step_down(pixels: Pixels, stored: Array) -> float:
    """Returns how much neighbours in a column differ, in the median row."""
    step = max(1, len(stored) // 64)
    above, below = stored[:-1:step], stored[1::step]
    if pixels.table is not None:
        above, below = pixels.table[above], pixels.table[below]
    return float(np.nanmedian(np.abs(below - above).mean(1)))


def _placed(data: Dataset, pixels: Pixels, form: Form, remarks: list[str]) -> Pixels:
    """Returns pixels with the values that their bits have.

    The header says where they are, or the pixels where they contradict it.
    """
    width = 8 * pixels.stored.itemsize
    if form.stored == width:
        return pixels
    codes = np.arange(len(pixels.table), dtype=np.int32)
    low, high = _code_range(pixels, form.signed)
    shift = form.high + 1 - form.stored
    if shift and (form.syntax.is_encapsulated or (0 <= low and high < 1 << form.stored)):
        # Decoders, and some writers, put the bits right.
        remarks += [] if form.syntax.is_encapsulated else [grey.BITS]
        shift = 0
    stated = _bits(codes, shift, form.stored, form.signed)
    half = 1 << (form.stored - 1)
    bottom, top = (-half, half - 1) if form.signed else (0, 2 * half - 1)
    if shift or (bottom <= low and high <= top):
        return pixels._replace(table=stated.astype(np.float64))

    # The values exceed what the header allows: by overlays, padding, a sign, or more bits.
    whole = _bits(codes, 0, width, form.signed)
    beyond = pixels.stored[pixels.where(lambda _: (whole < bottom) | (whole > top))]
    used = int(np.bitwise_or.reduce(beyond)) >> form.stored << form.stored
    if used and used & ~_overlay_bits(data) == 0:
        return pixels._replace(table=stated.astype(np.float64))
    if (beyond == beyond[0]).all():
        stated = np.where(codes == beyond[0], whole, stated)
        return pixels._replace(table=stated.astype(np.float64))
    best = stated
    others = [_bits(codes, 0, form.stored, False), whole, codes]
    if int(np.bitwise_or.reduce(pixels.stored, axis=None)) & ((1 << width - form.stored) - 1) == 0:
        best, others = whole, []  # they lie in the upper bits
    for other in others:
        best = _smoother(pixels, best, other)
    if best is not stated:
        remarks.append(grey.BITS)
    return pixels._replace(table=best.astype(np.float64))


def _code_range(pixels: Pixels, signed: bool) -> tuple[int, int]:
    """Returns the least (of unsigned integers 0) and the largest integer that is stored."""
    if not signed:
        return 0, int(pixels.stored.max())
    stored = pixels.stored.view(f"i{pixels.stored.itemsize}")
    return int(stored.min()), int(stored.max())


def _bits(codes: Array, shift: int, count: int, signed: bool) -> Array:
    """Returns the numbers that `count` bits from `shift` upwards mean."""
    values = (codes >> shift) & ((1 << count) - 1)
    if signed:
        values = np.where(values >> (count - 1), values - (1 << count), values)
    return values


def _smoother(pixels: Pixels, first: Array, second: Array) -> Array:
    """Returns the reading of the stored integers in which neighbours differ less.

    Values that wrap around and bits of overlays make large steps where two readings disagree.
    """
    rows = pixels.stored[:: max(1, len(pixels.stored) // 200)]
    steps = [np.abs(np.diff(values[rows], axis=1)) for values in (first, second)]
    differ = steps[0] != steps[1]
    if not differ.any() or np.median(steps[0][differ]) <= np.median(steps[1][differ]):
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

    # Which values are padding; their sign may be that of another type.
    values = pixels.values
    low, high = np.nanmin(values), np.nanmax(values)
    container = 1 << (32 if pixels.table is None else 8 * pixels.stored.itemsize)
    first, last = sorted(_in_range(end, container, low, high) for end in ends)
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

    # What is darker than the picture is padding anywhere. Other values the patient may have too.
    rest = cleared.sample()
    if form.photometric == "MONOCHROME1":
        dark = first > np.nanmax(rest)
    else:
        dark = last < np.nanmin(rest)
    if dark:
        return cleared
    return pixels.without(frame_of(flags, lambda flags: flags > 0))


def _in_range(end: int, container: int, low: float, high: float) -> int:
    """Returns a padding value, or what its bits mean with the other sign where only that occurs."""
    meant = (end, end - container, end + container)
    return next((value for value in meant if low <= value <= high), end)


def _modality(data: Dataset, pixels: Pixels, remarks: list[str]) -> tuple[Pixels, float]:
    """Returns pixels in the modality's units, and -1 where these fall with the stored values."""
    tables = header.items(data, "ModalityLUTSequence")
    if tables:
        sample = pixels.sample()
        sample = sample[np.isfinite(sample)]
        found = table(tables[0], sample, data.original_encoding[1] is not False)
        if found is None or not found.covers(sample):
            remarks.append(grey.MODALITY_TABLE)
            return pixels, 1.0
        remarks += [grey.TABLE_SHORT] if found.short else []
        return pixels.mapped(found), 1.0 if found.entries[-1] >= found.entries[0] else -1.0
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
    return keyword in data and not header.numbers(data, keyword)


def _sign(data: Dataset, form: Form, rising: float, remarks: list[str]) -> float:
    """Returns -1 where low values of the modality are bright, else 1.

    PhotometricInterpretation says it, and PresentationLUTShape only repeats it. Images FOR
    PROCESSING are not for display: PixelIntensityRelationshipSign says whether bone is high in
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


def _curves(data: Dataset, pixels: Pixels, remarks: list[str]) -> tuple[list, bool]:
    """Returns the tables and windows that the header offers, and whether it states any."""
    usable, stated = windows(data)
    offered = header.items(data, "VOILUTSequence")
    if not offered:
        return usable, stated
    little = data.original_encoding[1] is not False
    sample = pixels.sample()
    sample = sample[np.isfinite(sample)]
    tables = [
        found.spread() for item in offered if (found := table(item, sample, little)) is not None
    ]
    if any(found.short for found in tables):
        remarks.append(grey.TABLE_SHORT)
    return [*tables, *usable], True
