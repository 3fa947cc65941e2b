"""Text and side markers burned into a radiograph: finding them, and painting over them.

Archived pictures show the patient's name, dates and an R or L. These identify the patient, and a
model can read them in place of the skull. A library finds and reads lines of text; this module
decides which of them are real. The library overlooks letters that stand alone. They are found by
their shape here, and the library only confirms them.
"""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray as Array

from data_builders.images.squares import to_bytes
from data_builders.images.text_reader import Line, read_letter, read_line, read_lines

# All thresholds were chosen on real cephalograms and rendered X-rays; skull_face/README.md has the
# figures. A side is the longer side of the picture.

# Lines of text.
_READING_SIDE = 640  # pixels of the side at which letters of 2 % of the height are read
_LEGIBLE = 1.25  # reading size relative to the record, in which letters may have 5 pixels
_SCORE = 0.5  # of the recogniser, for three letters and more
_LONE_SCORE = 0.75  # for one or two
_TALLEST = 0.15  # of the side, for two letters and more
_TALLEST_LONE = 0.1  # of the side, for one
_LEVELLING = 24.0  # pixels: over which mean and contrast are made equal
_LIKE_BONE = "01IOlmoQ"  # what teeth, notches of the film and edges of bone are misread as
_EXTENDED_SCORE = 0.9
_EXTENSIONS = 2  # by which a line is made longer at each end
_ROUNDS = 3  # text close to other text may be readable only once that is gone

# Lone letters.
_MARKER_SCORE = 0.85  # for a shape that may be a side marker
_SHAPE_SIDE = 1024  # pixels of the side at which lone letters are looked for
# Levels of contrast: a letter that touches bone stands alone at one of them.
_LEVELS = (0.06, 0.12, 0.25, 0.45)
_MOST_LONE = 12  # number of shapes that are read, crispest first

_RIM = 6  # minimum width in pixels of the rim that a box is filled from


class Box(NamedTuple):
    """Rows `top` to `bottom` and columns `left` to `right`, ends not included."""

    top: int
    left: int
    bottom: int
    right: int


def find_text(picture: Float[Array, "h w"], record: int = 512) -> list[Box]:
    """Returns boxes around lines of text and lone markers in a radiograph in [0, 1], bone bright.

    Args:
      picture: of any size.
      record: pixels along the longer side at which the picture will be kept. Text that is legible
        at this size is found.
    """
    all_boxes: list[Box] = []
    remaining = picture
    for number in range(_ROUNDS):
        boxes = _words(remaining, record)
        if number == 0:
            boxes += _lone_letters(remaining)
        if not boxes:
            break
        all_boxes += boxes
        remaining = paint_over(remaining, boxes)
    return all_boxes


def _words(picture: Float[Array, "h w"], record: int) -> list[Box]:
    """Returns boxes around the lines of text that pass `_is_text`."""
    longer = max(picture.shape)
    shorter = min(picture.shape)
    side = max(_READING_SIDE, min(longer, round(_LEGIBLE * record)))
    scale = max(side / longer, _READING_SIDE / 2 / shorter)
    levelled = _levelled(_scaled(picture, scale))
    boxes = []
    for line in read_lines(levelled):
        if not _is_text(line, scale * longer):
            line = _mirrored(line, levelled)
        if _is_text(line, scale * longer):
            for part in _parts(_extended(line, levelled)):
                boxes.append(_box(part / scale, picture.shape))
    return boxes


def _mirrored(line: Line, picture: UInt8[Array, "h w"]) -> Line:
    """Returns the line as it reads in a mirror, since some films are scanned from behind."""
    corners = line.corners[[1, 0, 3, 2]]
    if np.linalg.norm(corners[0] - corners[1]) < 2.0 * line.height:
        return line  # too short for a word
    words, score = read_line(picture, corners)
    return Line(corners, words, score)


def _levelled(picture: Float[Array, "h w"]) -> UInt8[Array, "h w"]:
    """Returns the picture with the same mean and contrast everywhere.

    Faint letters then stand out as bright ones do.
    """
    detail = picture - cv2.GaussianBlur(picture, (0, 0), _LEVELLING)
    spread = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), _LEVELLING))
    return to_bytes(0.5 + 0.2 * detail / (spread + 0.024))


def _is_text(line: Line, side: float) -> bool:
    """Returns True if a line is text.

    Teeth, a film's notches and whole heads are read as digits and an O.
    """
    letters = [character for character in line.words if character.isalnum()]
    if len(letters) > 1:
        score = _SCORE if len(letters) > 2 else _LONE_SCORE
        return line.height <= _TALLEST * side and line.score >= score
    alone = len(letters) == 1 and letters[0] not in _LIKE_BONE
    return alone and line.height <= _TALLEST_LONE * side and line.score >= _LONE_SCORE


def _extended(line: Line, picture: UInt8[Array, "h w"]) -> Float[Array, "4 2"]:
    """Returns the line's corners, moved along the line for as long as more letters are read.

    Letters over bone are faint, and the library misses them.
    """
    corners = line.corners
    words = line.words
    along = line.height * (corners[1] - corners[0]) / np.linalg.norm(corners[1] - corners[0])
    for first, second, step in ((1, 2, along), (0, 3, -along)):
        for _ in range(_EXTENSIONS):
            wider = corners.copy()
            wider[[first, second]] += 1.5 * step
            wider_words, score = read_line(picture, wider)
            if score < _EXTENDED_SCORE or not _continues(words, wider_words):
                break
            corners = wider
            words = wider_words
    return corners


def _continues(words: str, longer: str) -> bool:
    """Returns True if `longer` is `words` plus a letter that bone is not misread as."""
    before = "".join(filter(str.isalnum, words))
    after = "".join(filter(str.isalnum, longer))
    return before in after and bool(set(after.replace(before, "", 1)) - set(_LIKE_BONE))


def _parts(corners: Float[Array, "4 2"]) -> list[Float[Array, "4 2"]]:
    """Returns a slanting line in pieces, whose upright boxes cover little around the line."""
    left, top = corners.min(0)
    right, bottom = corners.max(0)
    height = min(np.linalg.norm(corners[0] - corners[3]), np.linalg.norm(corners[0] - corners[1]))
    pieces = int(np.clip(min(right - left, bottom - top) / max(height, 1.0), 1, 8))
    if pieces == 1:
        return [corners]
    ends = np.linspace(0.0, 1.0, pieces + 1)
    upper = corners[0] + ends[:, None] * (corners[1] - corners[0])
    lower = corners[3] + ends[:, None] * (corners[2] - corners[3])
    return [np.concatenate([upper[i : i + 2], lower[i : i + 2]]) for i in range(pieces)]


def _box(corners: Float[Array, "n 2"], shape: tuple[int, int]) -> Box:
    """Returns the upright box around corners, a little larger.

    Accents and the ends of strokes reach beyond the reader's corners.
    """
    left, top = corners.min(0)
    right, bottom = corners.max(0)
    margin = 1.0 + 0.12 * min(bottom - top, right - left)
    return Box(
        top=max(int(top - margin), 0),
        left=max(int(left - margin), 0),
        bottom=min(int(np.ceil(bottom + margin)), shape[0]),
        right=min(int(np.ceil(right + margin)), shape[1]),
    )


def _lone_letters(picture: Float[Array, "h w"]) -> list[Box]:
    """Returns boxes around letters that stand alone, as side markers do."""
    scale = min(1.0, _SHAPE_SIDE / max(picture.shape))
    small = _scaled(picture, scale)
    boxes = []
    for box in _letter_shapes(small):
        margin = max(2, round(0.3 * (box.bottom - box.top)))
        rows = slice(max(box.top - margin, 0), box.bottom + margin)
        columns = slice(max(box.left - margin, 0), box.right + margin)
        words, score = read_letter(to_bytes(small[rows, columns]))
        if words.strip(" .:-") in ("R", "L") and score >= _MARKER_SCORE:
            corners = np.array([[box.left, box.top], [box.right, box.bottom]]) / scale
            boxes.append(_box(corners, picture.shape))
    return boxes


def _letter_shapes(picture: Float[Array, "h w"]) -> list[Box]:
    """Returns boxes around bright shapes of a letter's proportions, the crispest first.

    Their strokes are thin and end crisply.
    """
    # Contrast with the background, and the largest step to a neighbour. In the middle of a stroke
    # of one pixel, a slope would be zero.
    side = max(picture.shape)
    reach = max(7, side // 50) | 1
    background = cv2.morphologyEx(picture, cv2.MORPH_OPEN, np.ones((reach, reach), np.uint8))
    contrast = picture - background
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    slope = np.maximum(cv2.dilate(picture, cross) - picture, picture - cv2.erode(picture, cross))
    noise = np.percentile(np.abs((picture - cv2.blur(picture, (3, 3)))[::4, ::4]), 75)

    # Connected shapes at each level that noise does not reach.
    crispness_of: dict[Box, float] = {}
    for level in _LEVELS:
        if level <= 4.0 * noise:
            continue
        _, labels, statistics, _ = cv2.connectedComponentsWithStats(
            (contrast > level).astype(np.uint8)
        )
        for label in _letter_sized(statistics, side):
            left, top, width, height = statistics[label, :4]
            box = Box(top=top, left=left, bottom=top + height, right=left + width)
            window = slice(box.top, box.bottom), slice(box.left, box.right)
            crispness = _crispness(labels[window] == label, contrast[window], slope[window])
            if crispness > 0:
                crispness_of[box] = max(crispness, crispness_of.get(box, 0.0))
    return sorted(crispness_of, key=lambda box: -crispness_of[box])[:_MOST_LONE]


def _letter_sized(statistics: Int[Array, "labels 5"], side: int) -> Int[Array, "fits"]:
    """Returns the labels of the shapes that have a letter's size and proportions.

    Args:
      statistics: left, top, width, height and area of each shape; the background comes first.
      side: pixels along the picture's longer side.
    """
    width, height = statistics[:, 2:4].T
    fits = (height >= max(5, 0.012 * side)) & (height <= 0.08 * side)
    fits &= (width >= 0.3 * height) & (width <= 1.2 * height)
    fits[0] = False
    return np.flatnonzero(fits)


def _crispness(
    shape: Bool[Array, "h w"], contrast: Float[Array, "h w"], slope: Float[Array, "h w"]
) -> float:
    """Returns how steeply a shape ends, relative to its contrast.

    The value is 0 for a shape that is too soft or too thick for a letter.
    """
    framed = cv2.copyMakeBorder(shape.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    core = shape & (depth >= min(2.0, depth.max()))
    edge = shape & (depth < 1.5)
    gain = float(np.median(contrast[core]))
    steepness = float(np.median(slope[edge]))
    thin = depth.max() < 0.34 * shape.shape[0]
    crisp = steepness > 0.05 and steepness > 0.3 * gain
    return steepness / gain if thin and crisp else 0.0


def _scaled(picture: Float[Array, "h w"], scale: float) -> Float[Array, "h2 w2"]:
    """Returns the picture at `scale` times its size, as float32."""
    if scale == 1.0:
        return np.asarray(picture, np.float32)
    interpolation = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_CUBIC
    return cv2.resize(
        np.asarray(picture, np.float32), None, fx=scale, fy=scale, interpolation=interpolation
    )


def covered(boxes: list[Box], shape: tuple[int, int]) -> Bool[Array, "h w"]:
    """Returns the mask of the pixels that lie in a box, for a picture of the height and width."""
    hidden = np.zeros(shape, bool)
    for box in boxes:
        hidden[box.top : box.bottom, box.left : box.right] = True
    return hidden


def paint_over(picture: Float[Array, "h w"], boxes: list[Box]) -> Float[Array, "h w"]:
    """Returns the picture with each box filled smoothly from its rim.

    No pixel inside of a box is used.
    """
    hidden = covered(boxes, picture.shape)
    painted = np.where(hidden, 0.0, picture).astype(picture.dtype)
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(hidden.view(np.uint8))
    for label, (left, top, width, height, _) in enumerate(statistics[1:], 1):
        rim = max(_RIM, height // 6)
        rows = slice(max(top - rim, 0), top + height + rim)
        columns = slice(max(left - rim, 0), left + width + rim)
        seen = ~hidden[rows, columns]
        if seen.any():  # else there is no rim, and the box stays black
            window = painted[rows, columns]
            filling = _spread((window * seen).astype(np.float32), seen.astype(np.float32))
            painted[rows, columns] = np.where(labels[rows, columns] == label, filling, window)
    return painted


def _spread(sums: Float[Array, "h w"], weights: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """Returns weighted values spread to places without any, through ever smaller pictures."""
    values = sums / np.maximum(weights, 1e-6)
    if min(sums.shape) <= 2:
        return np.where(weights > 1e-3, values, sums.sum() / max(weights.sum(), 1e-6))
    coarse = _spread(cv2.pyrDown(sums), cv2.pyrDown(weights))
    share = np.minimum(2.0 * weights, 1.0)
    return share * values + (1.0 - share) * cv2.pyrUp(coarse, dstsize=sums.shape[::-1])
