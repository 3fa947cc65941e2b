"""TFDS builder of pairs from CT archives: X-ray and face are rendered from one head's volume.

See README.md beside this file.
"""

import dataclasses
import io
import pathlib
import sys
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import jax
import numpy as np
import tensorflow_datasets as tfds

from data_builders.conditions import AGES, VIEWS
from data_builders.errors import InputError, UnreadableError
from data_builders.lists.listed import ListedConfig, rows_by_words
from data_builders.lists.pseudonyms import alias
from data_builders.lists.tables import (
    SEX_WORDS,
    SPLITS,
    Problem,
    check_filled,
    number_of,
    one_of,
    path_of,
    read_table,
)
from data_builders.local import LocalBuilder
from data_builders.rendering import ct
from data_builders.rendering.volume import Volume, voxel_for
from data_builders.rendering.warp import virtual
from data_builders.shards import Record, shards
from data_builders.volumes import plausible
from data_builders.volumes.scan import check_orientation

NEEDED = ("subject", "volume", "age", "sex")
OPTIONAL = ("split", "orientation", "hu_offset")


@dataclasses.dataclass
class CtHeadsConfig(ListedConfig):
    """Settings of a cohort of CT heads, in addition to those of all lists.

    Attributes:
      manifest: a list with the columns NEEDED and perhaps those of OPTIONAL. Volumes are NIfTI,
        MetaImage, NRRD or enhanced DICOM files, or folders of one DICOM series each.
      pairing: 'matched' (X-ray and face of one view) or 'all_views' (each X-ray with each face).
      variants: virtual subjects made from each training head, in addition to itself.
      dry: share of the heads whose X-rays lack soft tissue, as of a dry skull.
      turn, shift, bend: how much they differ, in degrees, mm and mm; see `rendering.warp.virtual`.
    """

    BLOCK = "ct_heads"

    variants: int = 0
    dry: float = 0.0
    turn: float = 3.0
    shift: float = 3.0
    bend: float = 5.0

    def __post_init__(self):
        if self.variants < 0:
            raise ValueError(f"variants={self.variants} is below 0")
        if not 0 <= self.dry <= 1:
            raise ValueError(f"dry={self.dry} is not in 0..1")
        # Beyond these a head is no longer plausible.
        for name, most, unit in (("turn", 15, "degrees"), ("shift", 20, "mm"), ("bend", 12, "mm")):
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{name}={value} is out of range. Use 0 to {most} {unit}")
        super().__post_init__()


class Row(NamedTuple):
    """A head of the manifest.

    Attributes:
      number: of its row.
      subject: the person's name in the manifest.
      volume: its file or folder.
      age: years.
      sex: 'female' or 'male'.
      split: as the manifest says, or "".
      orientation: the directions of its axes where the file lacks them, such as `RAS`, or "".
      hu_offset: added to its values to make them Hounsfield units.
    """

    number: int
    subject: str
    volume: pathlib.Path
    age: float
    sex: str
    split: str
    orientation: str = ""
    hu_offset: float = 0.0

    def examine(self, voxel: float) -> ct.Head:
        """Returns the head in cubes of `voxel` mm, and remarks. Raises UnreadableError."""
        return ct.examine_head(self.volume, voxel, self.orientation, self.hu_offset)


class Builder(LocalBuilder):
    """Skull X-rays and faces rendered from CT heads."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First layout."}

    def _info(self):
        size = self.builder_config.size
        return self.dataset_info_from_configs(
            description=(
                "CT heads under pseudonyms: X-rays by Beer-Lambert projection, "
                "faces by shading the skin."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "subject": tfds.features.Text(),
                    # The subject whose CT it is: itself, or the source of a virtual subject.
                    "head": tfds.features.Text(),
                    "virtual": np.bool_,
                    "xray": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "face": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "xray_view": tfds.features.Text(),
                    "face_view": tfds.features.Text(),
                    "sex": tfds.features.Text(),
                    "age": np.float32,
                    "bmi_change": np.float32,
                }
            ),
            metadata=tfds.core.MetadataDict(self.builder_config.told()),
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        config = self.builder_config
        # Examine all volumes before hours are spent on rendering.
        rows, problems = read_rows(config)
        examination = examine_volumes(rows)
        remarks = examination.remarks
        problems += config.leave_out(examination.problems)
        for number, words in sorted(remarks.items()):
            for remark in words:
                print(f"{config.manifest_path.name}, row {number}: {remark}", file=sys.stderr)
        wrong = {number for number, _ in problems}
        rows = [row for row in rows if row.number not in wrong]
        row_remarks = ((number, words) for number in remarks for words in remarks[number])
        self.info.metadata.update(skipped_rows=sorted(wrong), remarks=rows_by_words(row_remarks))
        # Divide the rest.
        split_of = config.split_of(
            {row.subject: row.sex for row in rows}, {row.subject: row.split for row in rows}
        )
        pairs = len(VIEWS) ** (2 if config.pairing == "all_views" else 1)
        parts = {}
        for name in sorted(set(split_of.values())):
            members = [row for row in rows if split_of[row.subject] == name]
            variants = config.variants if name == "train" else 0
            count = len(members) * (1 + variants) * pairs
            parts[name] = shards(name, self._records(members, variants), count, config.size)
        return parts

    def _records(self, rows: list[Row], variants: int) -> Iterator[Record]:
        """Yields the records of heads, and of virtual subjects made from each."""
        config = self.builder_config
        secret = config.secret
        for row in rows:
            name = f"h{alias(secret, 'subject', row.subject)}"
            head = ct.boxed(row.examine(voxel_for(config.size)).volume)
            yield from _head_records(config, row, name, name, volume=head)
            for number in range(1, variants + 1):
                seed = np.random.SeedSequence([config.seed, int(name[1:], 16), number])
                bent = virtual(head, seed, config.turn, config.shift, config.bend, outside=ct.AIR)
                subject = f"{name}v{number:02d}"
                yield from _head_records(config, row, name, subject, volume=bent)


def read_rows(config: CtHeadsConfig) -> tuple[list[Row], list[tuple[int, str]]]:
    """Returns the manifest's rows, and the problems of those that are left out.

    Raises InputError with all problems where on_bad_row='stop'.
    """
    _, lines = read_table(config.manifest_path, NEEDED, OPTIONAL)
    rows: list[Row] = []
    problems: list[tuple[int, str]] = []
    for number, values in lines:
        try:
            row = _row(number, values, config)
            _check_distinct(row, rows)
            rows.append(row)
        except Problem as problem:
            problems.append((number, str(problem)))
    if not rows and not problems:
        raise InputError(f"{config.manifest_path.name} holds no row below its header")
    return rows, config.leave_out(problems)


def _row(number: int, values: dict[str, str], config: CtHeadsConfig) -> Row:
    """Returns a row of the manifest. Raises Problem."""
    check_filled(values, (*NEEDED, "split") if config.split == "column" else NEEDED)
    row = Row(
        number=number,
        subject=values["subject"],
        age=number_of(values, "age", *AGES, "years"),
        sex=SEX_WORDS[one_of(values, "sex", SEX_WORDS)],
        split=one_of(values, "split", SPLITS) if values.get("split") else "",
        volume=path_of(values, "volume", config.root_path),
    )
    if values.get("hu_offset"):
        offset = number_of(values, "hu_offset", -70_000.0, 70_000.0, "HU")
        row = row._replace(hu_offset=offset)
    if values.get("orientation"):
        try:
            row = row._replace(orientation=check_orientation(values["orientation"]))
        except ValueError as error:
            raise Problem(str(error)) from None
    return row


def _check_distinct(row: Row, rows: list[Row]) -> None:
    """Raises Problem where a row has the volume or the subject of an earlier one."""
    for other in rows:
        if other.volume == row.volume:
            raise Problem(f"the same volume as in row {other.number}")
        if other.subject == row.subject:
            raise Problem(
                f"the same subject as in row {other.number}; one head a subject is expected"
            )


class Examination(NamedTuple):
    """The result of examining all volumes.

    Attributes:
      problems: `(row number, words)` of volumes that are not heads.
      remarks: on the others, by row number.
    """

    problems: list[tuple[int, str]]
    remarks: dict[int, list[str]]


def examine_volumes(rows: list[Row]) -> Examination:
    """Reads all volumes coarsely and returns their problems and remarks."""
    problems: list[tuple[int, str]] = []
    remarks: dict[int, list[str]] = {}
    for row in rows:
        try:
            if words := row.examine(plausible.COARSE).remarks:
                remarks[row.number] = words
        except UnreadableError as error:
            problems.append((row.number, f"volume={row.volume.name!r}: {error}"))
        except Exception as error:  # readers raise many errors; one volume must not end a build
            problems.append(
                (row.number, f"volume={row.volume.name!r}: not readable ({type(error).__name__})")
            )
    return Examination(problems, remarks)


def _png(picture: np.ndarray | jax.Array) -> io.BytesIO:
    """Returns the PNG file of a grey or RGB picture in [0, 1]."""
    pixels = np.round(np.asarray(picture) * 255.0).astype(np.uint8)
    if pixels.ndim == 3:
        pixels = pixels[..., ::-1]  # OpenCV expects blue first
    return io.BytesIO(cv2.imencode(".png", pixels)[1].tobytes())


def _head_records(
    config: CtHeadsConfig, row: Row, head: str, subject: str, volume: Volume
) -> list[Record]:
    """Returns the records of one volume; `head` and `subject` are pseudonyms."""
    digits = [config.seed, zlib.crc32(subject.encode())]
    dry = bool(np.random.default_rng(digits).uniform() < config.dry)
    xrays, faces = ct.pictures(volume, config.size, dry)
    records = []
    for xray_view in VIEWS:
        for face_view in VIEWS if config.pairing == "all_views" else (xray_view,):
            key = f"{subject}-{xray_view}-{face_view}"
            record = {
                "id": key,
                "subject": subject,
                "head": head,
                "virtual": subject != head,
                "xray": _png(xrays[xray_view]),
                "face": _png(faces[face_view]),
                "xray_view": xray_view,
                "face_view": face_view,
                "sex": row.sex,
                "age": np.float32(row.age),
                "bmi_change": np.float32(0.0),
            }
            records.append((key, record))
    return records


def make_config(**settings) -> CtHeadsConfig:
    """Returns the configuration with these settings."""
    return CtHeadsConfig(**settings)
