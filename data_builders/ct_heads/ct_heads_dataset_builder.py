"""TFDS builder of pairs from CT archives: a head's volume gives its X-ray and its face. See README.md beside this file."""

import dataclasses
import io
import pathlib
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds

from cranio_jax.errors import InputError
from data_builders.errors import UnreadableError
from data_builders.listed import ListedConfig
from data_builders.pseudonyms import alias
from data_builders.rendering import ct
from data_builders.rendering.volume import VIEWS, Volume, voxel_for
from data_builders.rendering.warp import virtual
from data_builders.shards import shards
from data_builders.tables import SEXES, SPLITS, Problem, check_filled, number_of, one_of, path_of, read_table

NEEDED = ("subject", "volume", "age", "sex")


@dataclasses.dataclass
class CtHeadsConfig(ListedConfig):
    """Settings of a cohort of CT heads, beside those of all lists.

    Attributes:
      manifest: with the columns NEEDED and perhaps `split`; volumes are NIfTI, MetaImage or NRRD files, or folders of one DICOM
        series each.
      pairing: 'matched' (X-ray and face of the same view) or 'all_views' (each X-ray with each face).
      variants: virtual subjects made of each training head, beside itself.
      turn, shift, bend: how different they are: degrees, mm, mm; see `rendering.warp.virtual`.
    """

    BLOCK = "ct_heads"

    variants: int = 0
    turn: float = 3.0
    shift: float = 3.0
    bend: float = 5.0

    def __post_init__(self):
        if not (self.variants >= 0 and 0 <= self.turn <= 15 and 0 <= self.shift <= 20 and 0 <= self.bend <= 12):
            raise ValueError("variants, turn, shift or bend is below 0, or above 15 degrees, 20 mm or 12 mm, where a head is none any more")
        super().__post_init__()


class Row(NamedTuple):
    """A head: its row in the manifest, whose it is, its file, years, 'female' or 'male', and the split that the manifest says."""

    number: int
    subject: str
    volume: pathlib.Path
    age: float
    sex: str
    split: str


class Builder(tfds.core.ShardBasedBuilder):
    """Skull X-rays and faces rendered from CT heads."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First layout."}

    def _info(self):
        size = self.builder_config.size
        return self.dataset_info_from_configs(
            description="CT heads under pseudonyms: X-rays by Beer-Lambert projection, faces by shading the skin.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "subject": tfds.features.Text(),
                    "head": tfds.features.Text(),  # whose CT it is: the subject itself, or whom a virtual one was made of
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
        rows, problems = read_rows(config)
        # Whatever is wrong with a volume shows before hours are spent on the others.
        problems += config.bad_rows(check_volumes(rows))
        wrong = {number for number, _ in problems}
        rows = [row for row in rows if row.number not in wrong]
        self.info.metadata.update(skipped_rows=sorted(wrong))
        split_of = config.split_of({row.subject: row.sex for row in rows}, {row.subject: row.split for row in rows})
        found, pairs = {}, len(VIEWS) ** (2 if config.pairing == "all_views" else 1)
        for name in sorted(set(split_of.values())):
            own, variants = [row for row in rows if split_of[row.subject] == name], config.variants if name == "train" else 0
            found[name] = shards(name, self._records(own, variants), len(own) * (1 + variants) * pairs, config.size)
        return found

    def _records(self, rows: list[Row], variants: int):
        config = self.builder_config
        secret = config.secret
        for row in rows:
            name = f"h{alias(secret, 'subject', row.subject)}"
            head = ct.boxed(ct.read_head(row.volume, voxel_for(config.size)))
            yield from _records(config, row, name, name, head)
            for number in range(1, variants + 1):
                seed = np.random.SeedSequence([config.seed, int(name[1:], 16), number])
                bent = virtual(head, seed, config.turn, config.shift, config.bend, outside=ct.AIR)
                yield from _records(config, row, name, f"{name}v{number:02d}", bent)


def read_rows(config: CtHeadsConfig) -> tuple[list[Row], list[tuple[int, str]]]:
    """The manifest's rows, and those that are left out. Raises InputError with all that can't be meant where these stop it."""
    _, lines = read_table(config.manifest_path, NEEDED)
    rows: list[Row] = []
    problems: list[tuple[int, str]] = []
    for number, values in lines:
        try:
            check_filled(values, (*NEEDED, "split") if config.split == "column" else NEEDED)
            age, sex = number_of(values, "age", 0.0, 120.0, "years"), SEXES[one_of(values, "sex", SEXES)]
            split = one_of(values, "split", SPLITS) if values.get("split") else ""
            row = Row(number, values["subject"], path_of(values, "volume", config.root_path), age, sex, split)
            for other in rows:
                if other.volume == row.volume:
                    raise Problem(f"the same volume as in row {other.number}")
                if other.subject == row.subject:
                    raise Problem(f"the same subject as in row {other.number}; one head a subject is expected")
            rows.append(row)
        except Problem as problem:
            problems.append((number, str(problem)))
    if not rows and not problems:
        raise InputError(f"{config.manifest_path.name} holds no row below its header")
    return rows, config.bad_rows(problems)


def check_volumes(rows: list[Row]) -> list[tuple[int, str]]:
    """Rows whose volumes are no heads."""
    problems = []
    for row in rows:
        try:
            ct.read_head(row.volume, voxel=4.0)
        except UnreadableError as error:
            problems.append((row.number, f"volume={row.volume.name!r}: {error}"))
    return problems


def _png(picture: np.ndarray) -> io.BytesIO:
    pixels = np.uint8(np.round(np.asarray(picture) * 255.0))
    return io.BytesIO(cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])[1].tobytes())


def _records(config: CtHeadsConfig, row: Row, head: str, subject: str, volume: Volume) -> list[tuple[str, dict[str, Any]]]:
    xrays, faces = ct.pictures(volume, config.size)
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
    """The configuration with these settings."""
    return CtHeadsConfig(**settings)
