"""The page of job `inspect`: counts, what looks wrong, and pictures."""

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import ml_collections
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from cranio_jax import data
from cranio_jax.reporting.document import document
from cranio_jax.reporting.notice import NOTICE
from data_builders.lists.entries import Entry

# How many pictures of a kind the page shows.
_SHOWN = 48
# The longer side of a picture on the page, in pixels.
_THUMBNAIL = 160
_OUTLINE = (230, 60, 40)
_DOT = 1.5  # pixels; the radius of a landmark

# Left, top, right, bottom, in pixels.
Box = tuple[float, float, float, float]


def decoded(png: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a picture of a record, in RGB."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def page(
    inspection: Mapping[str, Any],
    remarks: str,
    entries: Sequence[Entry],
    xrays: Sequence[Entry],
    text_boxes: Sequence[Sequence[Box]],
    augment: ml_collections.ConfigDict,
) -> str:
    """Returns the page as HTML.

    Args:
      inspection: the content of inspect.json.
      remarks: what was noticed, as text.
      entries: all pairs.
      xrays: one entry for each X-ray.
      text_boxes: what looks like text in each X-ray.
      augment: the settings of that name.
    """
    entry_of = {entry.where: entry for entry in xrays}
    notice = f"These may be pictures of patients: keep this page where you keep them. {NOTICE}"
    parts = [
        f"<p class=notice>{notice}</p>\n",
        _counts(inspection["counts"]),
        f'<pre style="white-space:pre-wrap">{html.escape(remarks)}</pre>',
    ]

    painted = [entry for entry in xrays if entry.boxes]
    if painted:
        parts.append(_painted(painted))
    pairs = zip(xrays, text_boxes, strict=True)
    suspects = [(entry, boxes) for entry, boxes in pairs if boxes]
    if suspects:
        parts.append(_suspects(suspects))
    if inspection["duplicates"]:
        pictures = [
            (
                _thumbnail(decoded(entry_of[d[which]].xray())),
                f"{d[which]}, cosine {d['cosine']:.3f}",
            )
            for d in inspection["duplicates"][: _SHOWN // 2]
            for which in ("first", "second")
        ]
        words = "X-rays of different subjects that look the same, in pairs."
        parts.append(_section("Near-duplicates", words, pictures))
    if inspection["odd_exposure"]:
        pictures = [
            (_thumbnail(decoded(entry_of[odd["xray"]].xray())), f"{odd['xray']}: {odd['why']}")
            for odd in inspection["odd_exposure"][:_SHOWN]
        ]
        parts.append(_section("Odd exposure", "Far from the others of their view.", pictures))
    parts.append(_pairs(entries))
    if pairs_of_training := [e for e in entries if e.split == "train" and e.face]:
        parts.append(_augmented(pairs_of_training, augment))
    name = inspection["data"]
    return document(name, name, "".join(parts))


def _counts(counts: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Returns a table for each kind of count, with a column for each split."""
    tables = ""
    for title, splits in counts.items():
        names = list(dict.fromkeys(name for counts in splits.values() for name in counts))
        rows = ""
        for name in names:
            cells = "".join(f"<td>{counts.get(name, 0)}</td>" for counts in splits.values())
            rows += f"<tr><td>{html.escape(name)}</td>{cells}</tr>"
        head = "".join(f"<th>{html.escape(split)}</th>" for split in splits)
        tables += f"<table><tr><th>{html.escape(title)}</th>{head}</tr>{rows}</table>"
    return f'<div class=curves style="align-items:flex-start">{tables}</div>'


def _painted(painted: Sequence[Entry]) -> str:
    most_first = sorted(painted, key=lambda entry: -(entry.masked or 0))
    pictures = [
        (
            _thumbnail(decoded(entry.xray()), entry.boxes),
            f"{entry.where}, {100 * (entry.masked or 0):.1f} %",
        )
        for entry in most_first[:_SHOWN]
    ]
    words = (
        f"{len(painted)} X-rays, the most painted first. Boxes show the text that was painted "
        "over; none of it may be legible."
    )
    return _section("Text painted over", words, pictures)


def _suspects(suspects: Sequence[tuple[Entry, Sequence[Box]]]) -> str:
    pictures = [
        (_thumbnail(decoded(entry.xray()), boxes), entry.where)
        for entry, boxes in suspects[:_SHOWN]
    ]
    words = f"{len(suspects)} X-rays as they would be trained on; boxes show suspected text."
    return _section("Text suspected", words, pictures)


def _pairs(entries: Sequence[Entry]) -> str:
    """Returns a spread of X-rays, each with its face if there is one."""
    chosen = _spread(entries)
    pictures = []
    for entry in chosen:
        told = entry.told
        words = [entry.subject, entry.split]
        if "sex" in told:
            words.append(told["sex"])
        if "age" in told:
            words.append(f"{told['age']:.0f} years")
        xray = _thumbnail(decoded(entry.xray()), points=entry.xray_landmarks)
        pictures.append((xray, ", ".join(words)))
        if entry.face:
            caption = f"{told['face_view']}, BMI {told.get('bmi_change', 0):+.0f} %"
            boxes = [entry.found] if entry.found else []
            pictures.append((_thumbnail(decoded(entry.face()), boxes, entry.landmarks), caption))
    line = f"{len(chosen)} of {len(entries)}."
    if any(entry.found or entry.landmarks for entry in chosen):
        line += " Boxes and dots show the face and the landmarks that it is framed by."
    if any(entry.xray_landmarks for entry in chosen):
        line += " Dots in X-rays are landmarks of the records."
    return _section("Pairs", line, pictures)


def _augmented(entries: Sequence[Entry], augment: ml_collections.ConfigDict) -> str:
    """Returns a spread of pairs as a step of training may see them."""
    rng = np.random.default_rng(0)
    chosen = _spread(entries)
    pictures = []
    for entry in chosen:
        assert entry.face is not None
        pair = {"xray": decoded(entry.xray())[..., :1], "face": decoded(entry.face())}
        seen = data.augment(pair | entry.told, rng, augment)
        pictures += [
            (_thumbnail(seen["xray"].repeat(3, -1)), entry.subject),
            (_thumbnail(seen["face"]), entry.told["face_view"]),
        ]
    words = f"{len(chosen)} of {len(entries)}, each augmented once; every step does it anew."
    return _section("As training sees them", words, pictures)


def _spread(entries: Sequence[Entry]) -> list[Entry]:
    """Returns entries from all of them, evenly."""
    if not entries:
        return []
    places = np.unique(np.linspace(0, len(entries) - 1, min(_SHOWN, len(entries))).round())
    return [entries[int(i)] for i in places]


def _section(title: str, words: str, pictures: Iterable[tuple[str, str]]) -> str:
    """Returns a heading, a line, and pictures with their captions."""
    figures = ""
    for source, caption in pictures:
        label = html.escape(caption)
        figures += f'<figure><img src="{source}" alt="{label}">'
        figures += f"<figcaption>{label}</figcaption></figure>"
    grid = "grid-template-columns:repeat(auto-fill,minmax(9rem,1fr))"
    return (
        f"<h2>{html.escape(title)}</h2><p class=small>{html.escape(words)}</p>"
        f'<div class=faces style="{grid}">{figures}</div>'
    )


def _thumbnail(
    picture: UInt8[np.ndarray, "h w 3"],
    boxes: Sequence[Sequence[float]] = (),
    points: Sequence[Sequence[float]] = (),
) -> str:
    """Returns a small picture as a data URI, with boxes outlined and points marked."""
    scale = _THUMBNAIL / max(picture.shape)
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    image = Image.fromarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=kind))
    draw = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes:
        corners = (scale * left - 1, scale * top - 1, scale * right, scale * bottom)
        draw.rectangle(corners, outline=_OUTLINE)
    for column, row in points:
        x = scale * (column + 0.5)
        y = scale * (row + 0.5)
        draw.ellipse((x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=_OUTLINE)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
