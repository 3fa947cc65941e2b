"""X-rays with words burned into them, and whether a word can still be read.

`python -m tests.data_builders.text_pictures FOLDER [COUNT] [SEED]` measures the detector on
cephalograms (JPEG files in FOLDER) and on rendered X-rays. The README of skull_face reports the
results.
"""

import functools
import pathlib
import sys
import time
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

import cv2
import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_builders.cranio_phantom import cohort, head
from data_builders.cranio_phantom.cranio_phantom_dataset_builder import PhantomConfig
from data_builders.images.burned_in import covered, find_text, paint_over
from data_builders.images.text_reader import read_line

NAMES = (
    "DOE^JANE",
    "Smith, John A.",
    "SYNTHETIC NOBODY",
    "GARCIA LOPEZ, M",
    "Anna Kowalska",
    "ST. MARY HOSPITAL",
    "Sharma R K",
)
DATES = (
    "12/03/1971",
    "2019-05-14 10:32",
    "14.05.2019",
    "ID: 0042317",
    "M 045Y",
    "03-Mar-2004",
    "8:41:07",
    "KV 73 mAs 10",
)
MARKERS = ("R", "L", "RT", "LT", "PA", "LAT")
STYLES = ("white", "grey", "label")
SIDES = (240, 320, 512, 768, 1024, 1600, 2400)
VISIBLE = 0.15  # smallest difference in brightness between a word and its background


class Word(NamedTuple):
    """A word in a picture.

    Attributes:
      words: its text.
      style: one of STYLES; 'label' is black on a white label.
      box: top, left, bottom and right in pixels of its picture, label included.
      contrast: difference in brightness from the background of most of its pixels.
    """

    words: str
    style: str
    box: tuple[int, int, int, int]
    contrast: float


@functools.cache
def phantoms(people: tuple[int, ...] = (1, 5)) -> list[np.ndarray]:
    """Returns a frontal and a lateral X-ray of 512 pixels for each procedural subject."""
    made = []
    with jax.numpy_rank_promotion("allow"):
        for index in people:
            skull, tissue, _ = cohort.appearance(
                cohort.draw(0, index), 45, 0, PhantomConfig().spread
            )
            made += [np.asarray(x).squeeze() for x in head.radiographs(skull, tissue, 512, 2.0)]
    return made


def scaled(picture: np.ndarray, side: int) -> np.ndarray:
    """Returns the picture resized to a longer side of `side` pixels."""
    factor = side / max(picture.shape)
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.clip(
        cv2.resize(np.float32(picture), None, fx=factor, fy=factor, interpolation=how), 0, 1
    )


def letters(words: str, height: int, font: str) -> np.ndarray:
    """Returns the words in white on black, uint8, in Pillow's font or one of OpenCV's."""
    if font == "strokes":
        scale, thick = height / 30, max(1, round(height / 16))
        (width, above), below = cv2.getTextSize(words, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
        picture = np.zeros((above + below + 6, width + 6), np.uint8)
        return cv2.putText(
            picture, words, (3, above + 3), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA
        )
    kind = ImageFont.load_default(height)
    left, top, right, bottom = kind.getbbox(words)
    image = Image.new("L", (round(right - left) + 4, round(bottom - top) + 4), 0)
    ImageDraw.Draw(image).text((2 - left, 2 - top), words, font=kind, fill=255)
    return np.asarray(image)


def burn(
    picture: np.ndarray,
    words: str,
    *,
    height: float,
    style: str,
    place: tuple[float, float],
    font: str = "pillow",
):
    """Writes words into a picture; returns the picture and the Word.

    Args:
      picture: in [0, 1].
      words: what to write.
      height: height of the font, as a fraction of the picture's.
      style: one of STYLES.
      place: row and column of the upper left corner, as fractions of the free space.
      font: 'pillow' or 'strokes'.
    """
    rows, columns = picture.shape
    size = max(9, round(height * rows))
    while (mask := letters(words, size, font)).shape[1] > 0.95 * columns:
        size = round(0.8 * size)
    margin = max(2, round(0.15 * size)) if style == "label" else 0
    high, wide = (n + 2 * margin for n in mask.shape)
    top, left = round(place[0] * (rows - high)), round(place[1] * (columns - wide))
    box = slice(top, top + high), slice(left, left + wide)
    behind = float(np.median(picture[box]))
    made = np.array(picture, np.float32)
    ink = 0.05 if style == "label" else 0.97 if style == "white" else min(behind + 0.35, 0.85)
    if style == "label":
        made[box], behind = 0.95, 0.95
    inner = slice(top + margin, top + high - margin), slice(left + margin, left + wide - margin)
    share = mask / np.float32(255)
    made[inner] = made[inner] * (1 - share) + share * ink
    # Measured over the pixels behind the strokes: a word may lie half on bone.
    contrast = (
        abs(ink - behind)
        if style == "label"
        else float(np.median(np.abs(ink - picture[inner][mask > 127])))
    )
    return made, Word(words, style, (top, left, top + high, left + wide), contrast)


def drawn(
    sources: list[np.ndarray], count: int, seed: int = 0
) -> Iterator[tuple[np.ndarray, list[Word]]]:
    """Yields pictures with one to three words in them, drawn from a seed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        picture = scaled(sources[rng.integers(len(sources))], int(rng.choice(SIDES)))
        picture = np.clip(picture + rng.uniform(0, 0.02) * rng.standard_normal(picture.shape), 0, 1)
        found: list[Word] = []
        for _ in range(rng.integers(1, 4)):
            kind = (NAMES, DATES, MARKERS)[rng.choice(3, p=(0.4, 0.35, 0.25))]
            settings = {
                "height": rng.uniform(0.02 if kind is not MARKERS else 0.03, 0.07),
                "style": str(rng.choice(STYLES, p=(0.5, 0.25, 0.25))),
                # In a corner or anywhere: over soft tissue, over bone.
                "place": tuple(
                    rng.choice([0.02, 0.98], 2) if rng.random() < 0.4 else rng.uniform(0, 1, 2)
                ),
                "font": str(rng.choice(["pillow", "strokes"])),
            }
            made, word = burn(picture, str(rng.choice(kind)), **settings)
            if not any(_overlap(word.box, other.box) for other in found):
                picture, found = made, [*found, word]
        yield np.float32(picture), found


def _overlap(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def legible(picture: np.ndarray, word: Word) -> bool:
    """Returns True if at least half of a word's letters can be read in its box."""
    top, left, bottom, right = word.box
    margin = max(2, round(0.15 * (bottom - top)))
    corners = np.array([[left - margin, top - margin], [right + margin, top - margin]], np.float64)
    corners = np.concatenate([corners, corners[::-1] + [0, bottom - top + 2 * margin]])
    said, score = read_line(np.uint8(255 * np.clip(picture, 0, 1)), corners)
    wanted, got = ("".join(filter(str.isalnum, text.upper())) for text in (word.words, said))
    blocks = SequenceMatcher(None, wanted, got, autojunk=False).get_matching_blocks()
    matched = sum(block.size for block in blocks if block.size >= min(2, len(wanted)))
    return score > 0.4 and matched >= 0.5 * len(wanted)


def remaining(picture: np.ndarray, words: list[Word]) -> tuple[list[Word], float]:
    """Returns the words still legible after painting, and the painted share outside all words."""
    boxes = find_text(picture)
    painted, hidden = paint_over(picture, boxes), covered(boxes, picture.shape)
    for top, left, bottom, right in (word.box for word in words):
        margin = (bottom - top) // 2
        hidden[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin] = (
            False
        )
    left = [word for word in words if legible(picture, word) and legible(painted, word)]
    return left, float(hidden.mean())


def visible(words: list[Word]) -> list[Word]:
    """Returns the words that stand out from their background."""
    return [word for word in words if word.contrast >= VISIBLE]


def main(folder: str, count: str = "500", seed: str = "0") -> None:
    """Prints the painted share of X-rays without text, and the words left in the others."""
    files = sorted(pathlib.Path(folder).glob("*.jpg"))
    cephalograms = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) / np.float32(255) for file in files]
    cv2.setNumThreads(1)
    for side in (2400, 1024, 512, 240):
        begun = time.process_time()
        pictures = [scaled(picture, side) for picture in cephalograms]
        shares = np.array(
            [covered(find_text(picture), picture.shape).mean() for picture in pictures]
        )
        spent = (time.process_time() - begun) / len(shares)
        print(
            f"{side} px: {np.mean(shares > 0.02):.0%} over 2 % painted, {np.mean(shares > 0.1):.0%}"
            f" over 10 %, worst {shares.max():.2%}, {spent:.2f} s of one core a picture",
            flush=True,
        )
    left, wide, total = [], [], 0
    for picture, words in drawn([*cephalograms, *phantoms((1, 5, 9, 12))], int(count), int(seed)):
        total += 1
        lost, share = remaining(picture, words)
        wide.append(share)
        if lost:
            left.append(lost)
            print(f"picture {total}, {max(picture.shape)} px: {lost}", flush=True)
    beside = np.mean(np.array(wide) > 0.02)
    standing_out = sum(bool(visible(words)) for words in left)
    print(
        f"{len(left)} of {total} pictures with a legible word left, {standing_out} with one that"
        " stands out;",
        end=" ",
    )
    print(f"over 2 % painted beside words in {beside:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
