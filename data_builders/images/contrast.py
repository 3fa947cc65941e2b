"""The contrast of an X-ray: separating picture and frame, and choosing black and white.

Padding, shutters, collimators and scanned frames hold values far from those of the patient. They
must not decide which values are black and white, and padding is black.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from data_builders.errors import UnreadableError
from data_builders.images import grey
from data_builders.images.grey import Grey, Pixels

_DARKEST = 0.5  # percentile that becomes black
_BRIGHTEST = 99.8  # percentile that becomes white
_BINS = 256
_GAP = 0.1  # of the range of values, empty between a frame and the picture
_GAP_OF_PADDING = 0.25  # so wide that a bright frame of one value is not in the picture
_GAP_SQUEEZING = 0.5  # so wide that a dark frame deserves a remark
_SPARSE = 0.001  # of all pixels in one bin of a gap
_SHARE = 0.01  # minimum share of all pixels in a frame
_RING = 0.1  # minimum share of the picture's rim that a frame covers
_LEVELS = 16  # minimum number of different values for gaps to mean anything


def stretched(image: Grey, inverted: bool = False) -> tuple[Float[Array, "h w"], tuple[str, ...]]:
    """Returns a picture in [0, 1], bone bright, and the remarks on it.

    The header's window or table decides the contrast where one fits, else a robust window.

    Args:
      image: what the file holds.
      inverted: whether bone is dark beyond what the header says.

    Raises:
      UnreadableError: one value all over.
    """
    # Frames, and the header's window or table.
    bone = -image.sign if inverted else image.sign
    pixels, sample, remarks = _without_frames(image.pixels, _patient(image), bone)
    curve = next((curve for curve in image.curves if _fits(curve, sample[::2, ::2])), None)
    if curve is not None:
        pixels = pixels.mapped(curve)
        sample = curve(sample)
    elif image.windowed:
        remarks += (grey.WINDOW,)

    # Black and white.
    values = image.sign * sample[np.isfinite(sample)]
    low, high = np.percentile(values, [_DARKEST, _BRIGHTEST])
    if high <= low:
        low, high = _extremes(pixels, image.sign)
    black, white = (high, low) if inverted else (low, high)
    offset = image.sign * black
    factor = image.sign / (white - black)
    pixels = pixels.mapped(lambda values: np.clip((values - offset) * factor, 0.0, 1.0))
    return pixels.picture(), image.remarks + remarks


def _patient(image: Grey) -> Float[Array, "h2 w2"]:
    """Returns the sample of the pixels that decide the contrast, NaN elsewhere.

    Raises UnreadableError where there is none.
    """
    sample = image.pixels.sample()
    if image.aside is not None:
        step = image.pixels.step()
        sample = np.where(image.aside[::step, ::step], np.nan, sample)
    if not np.isfinite(sample).any():
        raise UnreadableError("all of its pixels are padding or hidden")
    return sample


def _extremes(pixels: Pixels, sign: float) -> tuple[float, float]:
    """Returns the lowest and the highest value of all pixels. Raises UnreadableError for one."""
    whole = pixels.stored if pixels.table is None else pixels.table[np.unique(pixels.stored)]
    whole = sign * whole[np.isfinite(whole)]
    low = float(whole.min())
    high = float(whole.max())
    if not high > low:
        raise UnreadableError(f"all pixels have the value {sign * low + 0.0:g}; not an X-ray")
    return low, high


# Windows and tables.


def _fits(curve: Callable[[Array], Array], sample: Float[Array, "h2 w2"]) -> bool:
    """Returns True if a curve shows the middle of the picture in several greys."""
    middle = _middle(sample)
    middle = middle[np.isfinite(middle)]
    whole = curve(sample[np.isfinite(sample)])
    if not whole.size:
        return False
    shown = curve(middle) if middle.size > 0.2 * sample.size / 4 else whole
    inside = np.mean((shown > 0.005) & (shown < 0.995))
    darkest, brightest = np.percentile(whole, [_DARKEST, 100 - _DARKEST])
    varied = bool(inside >= 0.2 and brightest - darkest >= 0.05)
    return varied and not _of_other_depth(curve, sample)


def _of_other_depth(curve: Callable[[Array], Array], sample: Float[Array, "h2 w2"]) -> bool:
    """Returns True if a window shows all values of fewer bits than the pixels have.

    Such a window (0 to 255 on values up to 4095) was left by a conversion.
    """
    end = getattr(curve, "whole_range_to", None)
    if end is None:
        return False
    return bool(np.mean(sample[np.isfinite(sample)] > end + 1) > 0.05)


# Frames.


class _Frame(NamedTuple):
    """Values at one end of the range, beyond a gap, along the picture's rim.

    Attributes:
      mask: its pixels in the sample.
      first: the value where it begins, with the sign that makes the frame's values high.
      gap: the gap's length as a part of the range of values.
      flat: whether the frame has one value.
    """

    mask: Bool[Array, "h2 w2"]
    first: float
    gap: float
    flat: bool


def _without_frames(
    pixels: Pixels, sample: Float[Array, "h2 w2"], bone: float
) -> tuple[Pixels, Float[Array, "h2 w2"], tuple[str, ...]]:
    """Returns the pixels with padding outside, the sample without frames, and remarks.

    There may be one frame within another: padding around a collimator's shadow.
    """
    remarks: tuple[str, ...] = ()
    for bright, frame in _frames(sample, bone):
        if not bright and not frame.flat and frame.gap < _GAP_SQUEEZING:
            continue  # the air around the head
        mask = frame.mask
        if bright:
            # Beyond its edge the frame is blurred.
            mask = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        rest = np.where(mask, np.nan, sample)
        if np.isfinite(rest).mean() < _SHARE:
            continue
        sample = rest
        if frame.flat and bright and frame.gap > _GAP_OF_PADDING:
            beyond = functools.partial(_reaches, sign=bone, first=frame.first)
            pixels = pixels.without(frame_of(pixels, beyond))
            remarks = (grey.PADDING,)
        elif frame.flat and frame.gap > _GAP_SQUEEZING:
            remarks = (grey.PADDING,)
    return pixels, sample, remarks


def _reaches(values: Array, sign: float, first: float) -> Array:
    """Returns which values, times `sign`, are at least `first`."""
    return sign * values >= first


def _frames(sample: Float[Array, "h2 w2"], bone: float) -> Iterator[tuple[bool, _Frame]]:
    """Yields whether each frame of a sample is bright, and the frame, from the outside inwards."""
    for _ in range(2):
        frames: list[tuple[bool, _Frame]] = []
        for side in _sides_with_gaps(sample):
            frame = _frame(side * sample)
            if frame is not None:
                frames.append((side == bone, frame))
        yield from frames
        if not frames:
            return
        for _, frame in frames:
            sample = np.where(frame.mask, np.nan, sample)


def _sides_with_gaps(sample: Float[Array, "h2 w2"]) -> list[float]:
    """Returns 1 and -1 for the upper and the lower end of the values where a gap is likely."""
    values = sample.ravel()[::4]
    counts = _counts(values[np.isfinite(values)])
    ends = ((1.0, counts[::-1]), (-1.0, counts))
    return [side for side, from_end in ends if _first_gap(from_end)[1]]


def _counts(values: Float[Array, "values"]) -> Int[Array, "bins"]:
    """Returns how many values lie in each part of their range."""
    if not values.size:
        return np.zeros(_BINS, np.int64)
    low = values.min()
    high = values.max()
    if not 0 < high - low < np.inf:
        return np.bincount([0] * values.size, minlength=_BINS)
    places = ((values - low) * (_BINS / (high - low))).astype(np.int64)
    return np.bincount(np.minimum(places, _BINS - 1), minlength=_BINS)


def frame_of(pixels: Pixels, chosen: Callable[[Array], Array]) -> Bool[Array, "h w"]:
    """Returns the pixels of chosen values that reach the rim or cover a large area.

    Others may be the patient's.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(pixels.where(chosen).astype(np.uint8))
    kept = stats[:, cv2.CC_STAT_AREA] >= _SHARE * labels.size
    kept[np.unique(_rim(labels))] = True
    kept[0] = False
    return kept[labels]


def _frame(values: Float[Array, "h2 w2"]) -> _Frame | None:
    """Returns the frame at the upper end of a sample's values, if there is one."""
    # A gap in the values.
    finite = values[np.isfinite(values)]
    low = finite.min()
    high = finite.max()
    start, length = _first_gap(_counts(finite)[::-1])
    if not length:
        return None

    # The pixels beyond the gap that are connected with the rim.
    first = high - (start + length / 2) / _BINS * (high - low)
    mask = values >= first
    labels = cv2.connectedComponents((mask | np.isnan(values)).astype(np.uint8))[1]
    mask &= np.isin(labels, np.unique(_rim(labels)))

    # Whether they make a frame, and the rest a picture.
    rest = finite[finite < first]
    if mask.mean() < _SHARE or _rim(mask | np.isnan(values)).mean() < _RING:
        return None
    if np.unique(rest[:: max(1, rest.size // 5000)]).size < _LEVELS:
        return None
    frame = values[mask]
    flat = bool(np.mean(frame == np.median(frame)) > 0.9)
    if not flat and _middle(mask).mean() > 0.5:
        return None  # the picture itself, within a frame at the other end
    return _Frame(mask=mask, first=first, gap=length / _BINS, flat=flat)


def _first_gap(counts: Int[Array, "bins"]) -> tuple[int, int]:
    """Returns where the first long run of sparse bins begins, and its length.

    The values before it are numerous enough for a frame. Returns (0, 0) without such a run.
    """
    sparse = counts < _SPARSE * counts.sum()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sparse.astype(np.int8), [0]])))
    lengths = edges[1::2] - edges[::2]
    long = np.flatnonzero(lengths >= _GAP * _BINS)
    if long.size and counts[: edges[2 * long[0]]].sum() >= _SHARE * counts.sum():
        return int(edges[2 * long[0]]), int(lengths[long[0]])
    return 0, 0


def _middle(values: Array) -> Array:
    """Returns the middle half of the rows and columns."""
    height, width = values.shape
    return values[height // 4 : height - height // 4, width // 4 : width - width // 4]


def _rim(values: Array) -> Array:
    """Returns the pixels of the first and last row and column."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
