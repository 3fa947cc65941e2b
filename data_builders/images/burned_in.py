"""Text and side markers burned into a radiograph: where they are.

In archives the patient's name, dates and an R or L stand in the pixels. They tell who it is, and a model can read them in
place of the skull. What was drawn by a machine differs from what was X-rayed: its strokes are thin, they end within a
pixel or two, and all of a line are of one brightness. A lone letter has to stand out clearly; a faint line is believed
where it has several letters of the same brightness.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from scipy import sparse

WORKING_SIDE = 1024  # pixels; larger pictures are looked at on half or a third of their size
_LEVELS = (0.06, 0.12, 0.25, 0.45)  # of contrast: a letter that touches bone stands alone at one of them


class Box(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right`, ends not included."""

    top: int
    left: int
    bottom: int
    right: int


def find_text(picture: Float[Array, "h w"]) -> list[Box]:
    """Boxes around lines of text and lone markers in a radiograph in [0, 1], bone bright."""
    factor = max(1, -(-max(picture.shape) // WORKING_SIDE))
    height, width = (n // factor * factor for n in picture.shape)
    whole = np.asarray(picture[:height, :width], np.float32)
    small = cv2.resize(whole, (width // factor, height // factor), interpolation=cv2.INTER_AREA) if factor > 1 else whole
    # Rows and columns that did not fill a block belong to the last one.
    stretch = lambda edge, last, whole: whole if factor * edge >= last else factor * edge
    return [
        Box(factor * b.top, factor * b.left, stretch(b.bottom, height, picture.shape[0]), stretch(b.right, width, picture.shape[1]))
        for b in _lines(_shapes(small), small.shape)
    ]


class _Shapes(NamedTuple):
    """Bright shapes, an entry each.

    Attributes:
      boxes: `(n, 4)`, as Box.
      contrast: brightness over the surroundings, in [0, 1].
      slope: how steeply it ends, brightness a pixel.
      value: brightness.
      stroke: half the width of the thickest stroke, relative to the height.
      noise: of the whole picture.
    """

    boxes: Array
    contrast: Array
    slope: Array
    value: Array
    stroke: Array
    noise: float


def _shapes(picture: Float[Array, "h w"]) -> _Shapes:
    side = max(picture.shape)
    reach = max(7, side // 50) | 1
    contrast = picture - cv2.morphologyEx(picture, cv2.MORPH_OPEN, np.ones((reach, reach), np.uint8))
    # The largest step to a neighbour: a stroke of one pixel has no slope in its middle otherwise.
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    slope = np.maximum(cv2.dilate(picture, cross) - picture, picture - cv2.erode(picture, cross))
    # Grain makes shapes of its own.
    noise = np.percentile(np.abs((picture - cv2.blur(picture, (3, 3)))[::4, ::4]), 75)
    rows = []
    for level in (level for level in _LEVELS if level > 4.0 * noise):
        _, labels, found, _ = cv2.connectedComponentsWithStats(cv2.compare(contrast, level, cv2.CMP_GT))
        left, top, wide, high = found[:, :4].T
        fits = (high >= 3) & (high <= 0.13 * side) & (wide >= 2) & (wide <= 0.5 * side)
        fits[0] = False  # the background
        for label in np.flatnonzero(fits):
            box = Box(top[label], left[label], top[label] + high[label], left[label] + wide[label])
            where = slice(box.top, box.bottom), slice(box.left, box.right)
            own = labels[where] == label
            if slope[where][own].max() < 0.04:
                continue
            framed = cv2.copyMakeBorder(own.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
            depth = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
            deepest = depth.max()
            core, edge = depth >= min(2.0, deepest), own & (depth < 1.5)
            gain, steep = _ranked(contrast[where][core], 0.5), _ranked(slope[where][edge], 0.5)
            rows.append((*box, gain, steep, _ranked(picture[where][own], 0.9), deepest / high[label]))
    table = np.array(rows, np.float64).reshape(-1, 8)
    return _Shapes(table[:, :4].astype(int), *table[:, 4:].T, noise)


def _ranked(values: Float[Array, "n"], share: float) -> float:
    """The value that `share` of the others lie below; numpy's quantiles take ten times as long on a letter's pixels."""
    place = int(share * (len(values) - 1))
    return float(np.partition(values, place)[place])


def _lines(shapes: _Shapes, size: tuple[int, int]) -> list[Box]:
    """Boxes of what must be lines of text or markers."""
    top, left, bottom, right = shapes.boxes.T
    height = bottom - top
    glyph = (height >= max(4, 0.007 * max(size))) & (shapes.stroke < 0.32)
    glyph &= (shapes.slope > 0.35 * shapes.contrast) & (shapes.slope > 0.06)
    # Of a small picture's bones, those of the nose are nearly as steep.
    over_bone = (max(size) <= 640) & (shapes.value - shapes.contrast > 0.4)
    sure = glyph & (shapes.slope > np.where(over_bone, 0.28, 0.2)) & (shapes.contrast > 0.25)
    # Nothing X-rayed is this crisp in a picture of many pixels; one that was shrunk is crisp all over.
    sure |= (
        (max(size) > 640)
        & glyph
        & (height > 12)
        & (shapes.slope > 0.6 * shapes.contrast)
        & (shapes.contrast > max(0.12, 10.0 * shapes.noise))
    )
    places = np.flatnonzero(glyph)
    if not len(places):
        return []
    both = lambda pick, values: pick(values[places][:, None], values[places][None])
    overlap = both(np.minimum, bottom) - both(np.maximum, top)
    gap = both(np.maximum, left) - both(np.minimum, right)
    low, high = both(np.minimum, height), both(np.maximum, height)
    values = shapes.value[places]
    alike = np.abs(values[:, None] - values[None]) < np.where(high > 12, 0.12, 0.35)
    count, group = sparse.csgraph.connected_components((overlap >= 0.4 * low) & (high <= 2.3 * low) & (gap <= 1.7 * high) & alike)
    found = []
    for member in (np.flatnonzero(group == g) for g in range(count)):
        columns = np.unique(np.concatenate([np.arange(left[i], right[i]) for i in places[member]]))
        letters = 1 + np.count_nonzero(np.diff(columns) > 1)
        even = np.ptp(np.percentile(values[member], [10, 90])) < 0.05
        if sure[places[member]].any() or (letters >= 4 and even):
            line = places[member]
            found.append(_grown(shapes, line, size))
    return found


def _grown(shapes: _Shapes, line: Array, size: tuple[int, int]) -> Box:
    """The box of a line with its dots and dashes, and with letters of its brightness that go on in bone."""
    height, width = shapes.boxes[:, 2] - shapes.boxes[:, 0], shapes.boxes[:, 3] - shapes.boxes[:, 1]
    tall, value = int(np.median(height[line])), np.median(shapes.value[line])
    fits = (height <= 1.5 * tall) & (width <= 6 * tall) & (shapes.slope > 0.3 * shapes.contrast) & (shapes.slope > 0.05)
    # A stroke of a pixel or two is never quite as bright as it was meant.
    fits &= (np.abs(shapes.value - value) < (0.12 if tall > 12 else 0.35)) | (height < 0.5 * tall)
    # As (top, left, -bottom, -right), so that the outermost is always the least.
    edges = shapes.boxes * [1, 1, -1, -1]
    box = edges[line].min(0)
    while True:
        within = (edges[:, [0, 2]] >= box[[0, 2]] - 0.4 * tall).all(1)
        near = fits & within & (edges[:, 1] <= tall - box[3]) & (-edges[:, 3] >= box[1] - tall)
        grown = np.minimum(box, edges[near].min(0)) if near.any() else box
        if (grown == box).all():
            break
        box = grown
    margin = max(2, round(0.2 * tall))
    top, left, bottom, right = (int(edge) for edge in box * [1, 1, -1, -1] + np.array([-1, -1, 1, 1]) * margin)
    return Box(max(top, 0), max(left, 0), min(bottom, size[0]), min(right, size[1]))


def covered(boxes: list[Box], shape: tuple[int, int]) -> Bool[Array, "h w"]:
    """Which pixels of a picture of that height and width lie in a box."""
    hidden = np.zeros(shape, bool)
    for box in boxes:
        hidden[box.top : box.bottom, box.left : box.right] = True
    return hidden


def paint_over(picture: Float[Array, "h w"], boxes: list[Box]) -> Float[Array, "h w"]:
    """The picture with each box filled from what is around it: nothing of its inside goes into the filling."""
    hidden = covered(boxes, picture.shape)
    painted = picture.copy()
    painted[hidden] = 0.0
    for box in boxes:
        reach = 8
        around = slice(max(box.top - reach, 0), box.bottom + reach), slice(max(box.left - reach, 0), box.right + reach)
        inside, seen = hidden[around], painted[around]
        if inside.all():
            continue  # nothing to go by; black
        # The label of each pixel is that of the nearest one outside.
        _, labels = cv2.distanceTransformWithLabels(inside.view(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
        values = np.zeros(labels.max() + 1, seen.dtype)
        values[labels[~inside]] = seen[~inside]
        filled = cv2.GaussianBlur(values[labels], (0, 0), reach / 2)
        painted[around] = np.where(inside, filled, seen)
    return painted
