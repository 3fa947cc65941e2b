"""TFDS builder of a user's own X-rays and photographs, from a manifest. See README.md beside this file."""

import dataclasses
import hashlib
import io
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from data_builders.errors import InputError
from data_builders.images.squares import moved
from data_builders.images.staging import TEXT, Job, Ready, stage
from data_builders.lists.entries import Entry
from data_builders.lists.listed import ListedConfig, rows_by_words
from data_builders.lists.pseudonyms import alias
from data_builders.local import LocalBuilder
from data_builders.shards import shards
from data_builders.skull_face.manifest import Face, Manifest, Row, Xray, read_manifest


@dataclasses.dataclass
class SkullFaceConfig(ListedConfig):
    """Settings of a cohort, beside those of all lists.

    Attributes:
      pairing: of a subject each X-ray with each face of the same view ('matched') or of any ('all_views'), or the pairs that
        the manifest lists and no other ('listed').
      align: whether frontal faces are turned, scaled and cut by their landmarks; otherwise photographs are kept whole.
      text: burned into X-rays: 'paint_over' it, 'refuse' X-rays with text, or 'keep' it.
    """

    BLOCK = "skull_face"
    PAIRINGS = ("matched", "all_views", "listed")

    align: bool = False
    text: str = "paint_over"

    def __post_init__(self):
        if self.text not in TEXT:
            raise ValueError(f"text={self.text!r} is not one of {', '.join(TEXT)}")
        super().__post_init__()

    def read(self) -> Manifest:
        """The manifest."""
        return read_manifest(self.manifest_path, self.root_path)


class Pair(NamedTuple):
    """A record before it is written.

    Attributes:
      row: of the manifest, where the X-ray is first listed.
      key: its id, made of pseudonyms.
      subject: pseudonym.
      split: the subject's.
      sex: the subject's.
      xray, face: as the manifest tells of them.
      ready_xray, ready_face: the pictures.
    """

    row: int
    key: str
    subject: str
    split: str
    sex: str
    xray: Xray
    face: Face
    ready_xray: Ready
    ready_face: Ready


class Builder(LocalBuilder):
    """Paired skull X-rays and photographs of a user's own cohort."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First layout."}

    def _info(self):
        size = self.builder_config.size
        transform = tfds.features.Tensor(shape=(2, 3), dtype=np.float32)
        return self.dataset_info_from_configs(
            description="Skull X-rays and photographs of real people under pseudonyms; text burned into X-rays is painted over.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "subject": tfds.features.Text(),
                    "xray": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "face": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "xray_view": tfds.features.Text(),
                    "face_view": tfds.features.Text(),
                    "sex": tfds.features.Text(),
                    "age": np.float32,
                    "bmi_change": np.float32,
                    "face_landmarks": tfds.features.Tensor(shape=(5, 2), dtype=np.float32),
                    "xray_transform": transform,
                    "face_transform": transform,
                    "xray_masked": np.float32,
                }
            ),
            metadata=tfds.core.MetadataDict(self.builder_config.told()),
        )

    def download_and_prepare(self, **options):
        """As TFDS's; refuses records whose files, as far as they are here, have changed since."""
        built = self.data_path.exists()
        super().download_and_prepare(**options)
        if (
            built
            and (now := _files_digest(self.builder_config.read()))
            and now != self.info.metadata["files"]
        ):
            raise InputError(
                f"files that {self.builder_config.manifest_path.name} lists have changed since {self.data_path} was built from them; "
                "remove that folder to build it again"
            )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        pairs, skipped, files = self.survey()
        # A list of rows is told, not what stood in them.
        remarks = rows_by_words(
            (pair.row, words) for pair in pairs for words in pair.ready_xray.remarks
        )
        self.info.metadata.update(
            skipped_rows=sorted({number for number, _ in skipped}), files=files, remarks=remarks
        )
        parts = {
            name: [pair for pair in pairs if pair.split == name]
            for name in sorted({pair.split for pair in pairs})
        }
        size = self.builder_config.size
        return {
            name: shards(name, ((pair.key, _record(pair)) for pair in part), len(part), size)
            for name, part in parts.items()
        }

    def entries(self) -> Iterator[Entry]:
        """What will be records, to look at; nothing but the pictures is made."""
        pairs, _, _ = self.survey()
        for pair in pairs:
            told = {"sex": pair.sex, "age": pair.face.age, "bmi_change": pair.face.bmi_change}
            yield Entry(
                f"row {pair.row}",
                pair.ready_xray.png.stem,
                pair.subject,
                pair.split,
                told | {"xray_view": pair.xray.view, "face_view": pair.face.view},
                pair.ready_xray.png.read_bytes,
                pair.ready_face.png.read_bytes,
                (pair.ready_xray.height, pair.ready_xray.width),
                pair.ready_xray.boxes,
                pair.ready_xray.masked,
                pair.ready_xray.remarks,
            )

    def survey(self) -> tuple[list[Pair], list[tuple[int, str]], str]:
        """All pairs with their pictures made ready, what is left out and why, and a digest of the files' sizes and times.

        Raises InputError with all bad rows where `on_bad_row` is 'stop': those of the list first, then those whose pictures
        are unusable.
        """
        config = self.builder_config
        manifest = config.read()
        name, problems = config.manifest_path.name, list(manifest.problems)
        if manifest.ignored:
            print(f"{name}: ignored columns: {', '.join(manifest.ignored)}", file=sys.stderr)
        problems += [
            (row.number, "split is empty")
            for row in manifest.rows
            if config.split == "column" and not row.split
        ]
        if config.align:
            problems += [
                (
                    row.number,
                    "a frontal face without landmarks, by which data.skull_face.align would lay it",
                )
                for row in manifest.rows
                if row.face.view == "frontal" and not row.face.landmarks
            ]
        problems = config.bad_rows(problems)
        wrong = {number for number, _ in problems}
        rows = [row for row in manifest.rows if row.number not in wrong]
        ready, more = self._ready(rows)
        problems += config.bad_rows(more)
        wrong |= {number for number, _ in more}
        rows = [row for row in rows if row.number not in wrong]
        split_of = config.split_of(
            {row.subject: row.sex for row in rows}, {row.subject: row.split for row in rows}
        )
        return _pairs(config, rows, ready, split_of), problems, _files_digest(manifest)

    def _ready(self, rows: list[Row]) -> tuple[dict[Any, Ready], list[tuple[int, str]]]:
        """Pictures by what the manifest tells of them, and the rows whose pictures are unusable."""
        config = self.builder_config
        xrays = {
            row.xray: Job("xray", row.xray.path, config.size, row.xray.inverted, config.text)
            for row in rows
        }
        by_landmarks = lambda face: (
            face.landmarks if config.align and face.view == "frontal" else ()
        )
        faces = {
            row.face: Job("face", row.face.path, config.size, landmarks=by_landmarks(row.face))
            for row in rows
        }
        folder = pathlib.Path(self._data_dir_root) / "skull_face_staged"
        jobs = xrays | faces
        found = dict(
            zip(jobs, stage(list(jobs.values()), folder, config.secret, "pictures"), strict=True)
        )
        ready = {told: made for told, made in found.items() if isinstance(made, Ready)}
        problems = [
            (row.number, f"{kind}={told.path.name!r}: {found[told]}")
            for row in rows
            for kind, told in (("xray", row.xray), ("face", row.face))
            if told not in ready
        ]
        painted = [ready[told] for told in xrays if told in ready and ready[told].boxes]
        if painted:
            print(
                f"text or markers painted over in {len(painted)} of {len(xrays)} X-rays, at most "
                f"{100 * max(made.masked for made in painted):.1f} % of one; --config.job=inspect shows them",
                file=sys.stderr,
            )
        counts = Counter(words for told in xrays if told in ready for words in ready[told].remarks)
        for words, count in counts.most_common():
            print(f"{count} of {len(xrays)} X-rays: {words}", file=sys.stderr)
        return ready, problems


def _files_digest(manifest: Manifest) -> str:
    """SHA-256 of the sizes and times of all files, in the manifest's order; empty where some are absent."""
    digest = hashlib.sha256()
    for row in manifest.rows:
        for picture in (row.xray, row.face):
            stat = picture.path.stat()  # the manifest's problems name what is not there
            digest.update(f"{stat.st_size} {stat.st_mtime_ns};".encode())
    return (
        "" if any("no such file" in words for _, words in manifest.problems) else digest.hexdigest()
    )


def _pairs(
    config: SkullFaceConfig, rows: list[Row], ready: dict[Any, Ready], split_of: dict[str, str]
) -> list[Pair]:
    secret, root, pairing = config.secret, config.root_path, config.pairing
    if pairing == "listed":
        wanted = [(row.subject, row.sex, row.xray, row.face) for row in rows]
    else:
        of_subject: dict[tuple[str, str], tuple[dict, dict]] = {}
        for row in rows:
            xrays, faces = of_subject.setdefault((row.subject, row.sex), ({}, {}))
            xrays[row.xray] = faces[row.face] = None
        wanted = [
            (*who, xray, face)
            for who, (xrays, faces) in of_subject.items()
            for xray in xrays
            for face in faces
            if pairing == "all_views" or xray.view == face.view
        ]
    pairs, listed = [], {row.xray: row.number for row in reversed(rows)}
    for subject, sex, xray, face in wanted:
        name = f"s{alias(secret, 'subject', subject)}"
        files = alias(
            secret, "pair", *(path.relative_to(root).as_posix() for path in (xray.path, face.path))
        )
        key = f"{name}-{xray.view}-{face.view}-{face.age:g}-{face.bmi_change:+.0f}-{files}"
        pairs.append(
            Pair(
                listed[xray],
                key,
                name,
                split_of[subject],
                sex,
                xray,
                face,
                ready[xray],
                ready[face],
            )
        )
    return pairs


def _record(pair: Pair) -> dict[str, Any]:
    landmarks = np.full((5, 2), np.nan)
    if pair.face.landmarks:
        landmarks = moved(np.array(pair.face.landmarks).reshape(5, 2), pair.ready_face.transform)
    return {
        "id": pair.key,
        "subject": pair.subject,
        "xray": io.BytesIO(pair.ready_xray.png.read_bytes()),
        "face": io.BytesIO(pair.ready_face.png.read_bytes()),
        "xray_view": pair.xray.view,
        "face_view": pair.face.view,
        "sex": pair.sex,
        "age": np.float32(pair.face.age),
        "bmi_change": np.float32(pair.face.bmi_change),
        "face_landmarks": np.float32(landmarks),
        "xray_transform": np.float32(pair.ready_xray.transform),
        "face_transform": np.float32(pair.ready_face.transform),
        "xray_masked": np.float32(pair.ready_xray.masked),
    }


def make_config(**settings) -> SkullFaceConfig:
    """The configuration with these settings."""
    return SkullFaceConfig(**settings)
