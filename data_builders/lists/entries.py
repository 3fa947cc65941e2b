"""What there is to look at before training: pairs of pictures and what is known of them, from records or from what will be records."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds


class Entry(NamedTuple):
    """A pair.

    Attributes:
      where: what the user may look up: 'row 7' of their list, or a record's id.
      key: of the X-ray, which may stand in several pairs.
      subject: pseudonym.
      split: the subject's.
      told: by name: sex, age, bmi_change, xray_view, face_view, as far as they are known.
      xray: reads its PNG file.
      face: reads the face's; None where there is none.
      shape: height and width of the X-ray's file; None where they are not known.
      boxes: where text was painted over in the X-ray, `(left, top, right, bottom)` in its pixels.
      masked: how much of its file's picture that is; None where it is not known.
      remarks: what was corrected when the X-ray was read.
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


TOLD = ("sex", "age", "bmi_change", "xray_view", "face_view")


def of_records(builder: tfds.core.DatasetBuilder) -> Iterator[Entry]:
    """The pairs of records on disk; no picture is decoded."""
    unread = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    plain = lambda value: value.decode() if isinstance(value, bytes) else float(value)
    for split in sorted(builder.info.splits):
        source = builder.as_data_source(split, decoders=unread)
        for i in range(len(source)):
            record = source[i]
            read = lambda name, source=source, i=i: bytes(source[i][name])
            yield Entry(
                plain(record["id"]),
                f"{plain(record['subject'])} {zlib.crc32(record['xray'])}",
                plain(record["subject"]),
                split,
                {name: plain(record[name]) for name in TOLD if name in record},
                lambda read=read: read("xray"),
                (lambda read=read: read("face")) if "face" in record else None,
                masked=plain(record["xray_masked"]) if "xray_masked" in record else None,
            )
