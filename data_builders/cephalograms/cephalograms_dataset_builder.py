"""TFDS builder of lateral X-rays with landmarks, and no faces: to measure errors in millimetres.

See README.md beside this file.
"""

import dataclasses
import io
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float

from data_builders.cephalograms.landmarks import LANDMARKS
from data_builders.cephalograms.masking import NEEDED as OUTLINE
from data_builders.cephalograms.masking import without_soft_tissue
from data_builders.conditions import AGES
from data_builders.errors import InputError, UnreadableError
from data_builders.images.prepare import TEXT, PreparedXray, prepare_xray
from data_builders.images.squares import moved
from data_builders.lists.listed import ListedConfig, rows_by_words
from data_builders.lists.pseudonyms import alias
from data_builders.lists.tables import (
    SEX_WORDS,
    Problem,
    check_filled,
    file_of,
    number_of,
    one_of,
    read_table,
)
from data_builders.local import LocalBuilder
from data_builders.shards import Record, shards

NEEDED = ("file",)
_PLACES = tuple(f"{name}_{axis}" for name in LANDMARKS for axis in "xy")
OPTIONAL = ("subject", "sex", "age", "mm_per_pixel", *_PLACES)
SOFT_TISSUE = ("keep", "mask")
_MM = (0.01, 2.0)  # of a pixel; beyond, it is a mistake
_MOST_PIXELS = 30_000.0


@dataclasses.dataclass
class CephalogramsConfig(ListedConfig):
    """Settings of a set of cephalograms, in addition to those of all lists.

    All of them are test data. Only `manifest`, `root`, `size`, `salt` and `on_bad_row` of the
    settings of lists have an effect.

    Attributes:
      manifest: a list with the columns NEEDED and some of OPTIONAL.
      mm_per_pixel: the side of a file's pixel in mm, where the list does not say.
      soft_tissue: 'keep', or 'mask' what lies in front of the bone, as if the skull were dry.
      text: what to do with text burned into X-rays; see `skull_face`.
    """

    BLOCK = "cephalograms"

    mm_per_pixel: float = 0.1
    soft_tissue: str = "keep"
    text: str = "paint_over"

    def __post_init__(self):
        if self.soft_tissue not in SOFT_TISSUE:
            raise ValueError(
                f"soft_tissue={self.soft_tissue!r} is not one of {', '.join(SOFT_TISSUE)}"
            )
        if self.text not in TEXT:
            raise ValueError(f"text={self.text!r} is not one of {', '.join(TEXT)}")
        if not _MM[0] <= self.mm_per_pixel <= _MM[1]:
            raise ValueError(
                f"mm_per_pixel={self.mm_per_pixel} is outside {_MM[0]:g} to {_MM[1]:g} mm"
            )
        super().__post_init__()


class Row(NamedTuple):
    """An X-ray of the list.

    Attributes:
      number: of its row.
      subject: whose it is; its file if the list does not say.
      path: of the file.
      sex: 'female' or 'male', or "".
      age: years, or NaN.
      mm: a pixel's side.
      landmarks: `(column, row)` in the file's pixels, in the order of LANDMARKS; NaN if unknown.
    """

    number: int
    subject: str
    path: pathlib.Path
    sex: str
    age: float
    mm: float
    landmarks: Float[np.ndarray, "19 2"]


class Builder(LocalBuilder):
    """Lateral X-rays of real people, with cephalometric landmarks."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First layout."}

    def _info(self):
        size = self.builder_config.size
        return self.dataset_info_from_configs(
            description="Cephalograms under pseudonyms, with landmarks on bone and skin.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "subject": tfds.features.Text(),
                    "xray": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "xray_view": tfds.features.Text(),
                    "xray_masked": np.float32,
                    # (column, row) in pixels, in the order of landmarks.LANDMARKS; NaN if unknown.
                    "xray_landmarks": tfds.features.Tensor(
                        shape=(len(LANDMARKS), 2), dtype=np.float32
                    ),
                    "mm_per_pixel": np.float32,
                    "sex": tfds.features.Text(),  # empty if unknown
                    "age": np.float32,  # NaN if unknown
                }
            ),
            metadata=tfds.core.MetadataDict(self.builder_config.told()),
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        config = self.builder_config
        rows = read_rows(config)
        # Prepare all pictures before one is written, so that all problems are told at once.
        prepared: list[tuple[Row, PreparedXray]] = []
        problems: list[tuple[int, str]] = []
        for row in rows:
            try:
                xray = prepare_xray(row.path, config.size, text=config.text)
                _check_within(row, xray)
                prepared.append((row, xray))
            except UnreadableError as error:
                problems.append((row.number, f"file={row.path.name!r}: {error}"))
            except Problem as problem:
                problems.append((row.number, str(problem)))
        skipped = config.leave_out(problems)
        remarks = ((row.number, words) for row, xray in prepared for words in xray.remarks)
        self.info.metadata.update(
            skipped_rows=sorted(number for number, _ in skipped), remarks=rows_by_words(remarks)
        )
        records = self._records(prepared)
        return {"test": shards("test", records, len(prepared), config.size)}

    def _records(self, prepared: list[tuple[Row, PreparedXray]]) -> Iterator[Record]:
        config = self.builder_config
        secret = config.secret
        for row, xray in prepared:
            subject = f"c{alias(secret, 'subject', row.subject)}"
            key = f"{subject}-{alias(secret, 'file', row.path.name)}"
            landmarks = moved(row.landmarks, xray.transform)
            mm = row.mm * float(np.hypot(*xray.transform[:, 0]))
            square = xray.square
            if config.soft_tissue == "mask":
                square = without_soft_tissue(square, landmarks, mm)
            record = {
                "id": key,
                "subject": subject,
                "xray": io.BytesIO(cv2.imencode(".png", square)[1].tobytes()),
                "xray_view": "lateral",
                "xray_masked": np.float32(xray.masked),
                "xray_landmarks": landmarks.astype(np.float32),
                "mm_per_pixel": np.float32(mm),
                "sex": row.sex,
                "age": np.float32(row.age),
            }
            yield key, record


def _check_within(row: Row, xray: PreparedXray) -> None:
    """Raises Problem if a landmark lies outside of the X-ray, as those of another size would."""
    last = np.array([xray.width, xray.height]) - 1
    for name, place in zip(LANDMARKS, row.landmarks, strict=True):
        if (place < 0).any() or (place > last).any():
            raise Problem(f"{name} lies outside the X-ray of {xray.width} x {xray.height} pixels")


def read_rows(config: CephalogramsConfig) -> list[Row]:
    """Returns the rows of the list. Raises InputError with all problems if on_bad_row='stop'."""
    names, lines = read_table(config.manifest_path, NEEDED, OPTIONAL)
    if not set(names) & set(_PLACES):
        raise InputError(
            f"{config.manifest_path.name} names no landmark; its columns are such as sella_x and "
            "sella_y, in pixels"
        )
    rows: list[Row] = []
    problems: list[tuple[int, str]] = []
    for number, values in lines:
        try:
            row = _row(number, values, config)
            if twin := next((other for other in rows if other.path == row.path), None):
                raise Problem(f"the same file as in row {twin.number}")
            rows.append(row)
        except Problem as problem:
            problems.append((number, str(problem)))
    config.leave_out(problems)
    if not rows:
        raise InputError(f"{config.manifest_path.name} holds no row that can be used")
    return rows


def _row(number: int, values: dict[str, str], config: CephalogramsConfig) -> Row:
    """Returns a row of the list. Raises Problem."""
    check_filled(values, NEEDED)
    path = file_of(values, "file", config.root_path)
    mm = config.mm_per_pixel
    if values.get("mm_per_pixel"):
        mm = number_of(values, "mm_per_pixel", *_MM, "mm")
    landmarks = np.full((len(LANDMARKS), 2), np.nan)
    for place, name in enumerate(LANDMARKS):
        given = [f"{name}_{axis}" for axis in "xy" if values.get(f"{name}_{axis}")]
        if len(given) == 1:
            raise Problem(f"{given[0]} is given without the other of {name}_x and {name}_y")
        if given:
            landmarks[place] = [number_of(values, c, 0.0, _MOST_PIXELS, "pixels") for c in given]
    at = dict(zip(LANDMARKS, landmarks, strict=True))
    if at["orbitale"][0] < at["porion"][0]:
        raise Problem("the head looks to the left; mirror the X-ray and its landmarks")
    if config.soft_tissue == "mask":
        lacking = [n for n in OUTLINE if np.isnan(landmarks[LANDMARKS.index(n)]).any()]
        if lacking:
            raise Problem(f"{lacking[0]}_x is empty, and soft_tissue=mask needs it")
    return Row(
        number=number,
        subject=values.get("subject") or path.name,
        path=path,
        sex=SEX_WORDS[one_of(values, "sex", SEX_WORDS)] if values.get("sex") else "",
        age=number_of(values, "age", *AGES, "years") if values.get("age") else float("nan"),
        mm=mm,
        landmarks=landmarks,
    )


def make_config(**settings) -> CephalogramsConfig:
    """Returns the configuration with these settings; without faces, `pairing` has no effect."""
    settings.pop("pairing", None)
    return CephalogramsConfig(**settings)
