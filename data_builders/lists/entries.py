"""Pairs of pictures to inspect before training, from records or from a list not yet built."""

import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds


class Entry(NamedTuple):
    """A pair.

    Attributes:
      where: how the user finds it: 'row 7' of their list, or a record's id.
      key: of the X-ray, which may be part of several pairs.
      subject: pseudonym.
      split: the subject's.
      told: conditions by name, those of TOLD that are known.
      xray: reads the X-ray's PNG file.
      face: reads the face's PNG file; None where there is no face.
      shape: height and width of the X-ray's file; None where they are not known.
      boxes: where text was painted over in the X-ray, `(left, top, right, bottom)` in its pixels.
      masked: share of the X-ray that was painted over; None where it is not known.
      remarks: what was corrected when the X-ray was read.
      found: where a face was found, `(left, top, right, bottom)` in the face's pixels, or empty.
      xray_landmarks: `(column, row)` of known landmarks in the X-ray's pixels.
      landmarks: `(column, row)` of landmarks by which the face is aligned, in its pixels, or empty.
    """

    where: str
    key: str
    subject: str
    split: str
    told: dict[str, Any]
    xray: Callable[[], bytes]
    face: Callable[[], bytes] | None
    shape: tuple[int, int] | None = None
    boxes: Sequence[Sequence[float]] = ()
    masked: float | None = None
    remarks: Sequence[str] = ()
    found: Sequence[float] = ()
    landmarks: Sequence[Sequence[float]] = ()
    xray_landmarks: Sequence[Sequence[float]] = ()


TOLD = ("sex", "age", "bmi_change", "synthetic", "xray_view", "face_view")


def of_records(builder: tfds.core.DatasetBuilder) -> Iterator[Entry]:
    """Yields the pairs of records on disk; no picture is decoded."""
    unread = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    for split in sorted(builder.info.splits):
        source = builder.as_data_source(split, decoders=unread)
        for i in range(len(source)):
            record = source[i]
            subject = record["subject"].decode()
            has_face = "face" in record
            yield Entry(
                where=record["id"].decode(),
                key=f"{subject} {zlib.crc32(record['xray'])}",
                subject=subject,
                split=split,
                told={name: _plain(record[name]) for name in TOLD if _is_known(record.get(name))},
                xray=functools.partial(_read, source, i, "xray"),
                face=functools.partial(_read, source, i, "face") if has_face else None,
                masked=float(record["xray_masked"]) if "xray_masked" in record else None,
                xray_landmarks=_known_places(record.get("xray_landmarks", ())),
            )


def _known_places(places: Any) -> list[tuple[float, float]]:
    """Returns places `(column, row)` without those that are not known."""
    return [(float(x), float(y)) for x, y in places if np.isfinite(x + y)]


def _is_known(value: Any) -> bool:
    """Returns False for no value, no text and no number."""
    return value is not None and value != b"" and value == value


def _plain(value: Any) -> str | float:
    """Returns a record's text or number as Python's own."""
    return value.decode() if isinstance(value, bytes) else float(value)


def _read(source: Any, index: int, name: str) -> bytes:
    """Returns a field of a record, read again from disk."""
    return bytes(source[index][name])
