"""TFDS builder of a user's own X-rays and photographs, from a manifest.

See README.md beside this file.
"""

import dataclasses
import hashlib
import io
import pathlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float

from data_builders.errors import InputError
from data_builders.images.faces import HUB_ID, check_detector, detector_file
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
    """Settings of a cohort, in addition to those of all lists.

    Attributes:
      pairing: 'matched' pairs each X-ray of a subject with each face of the same view, 'all_views'
        with each face, and 'listed' makes the manifest's pairs only.
      align: whether faces are framed alike: frontal ones are turned, scaled and cropped by their
        landmarks, the list's or those found, and lateral ones scaled and cropped by the box found
        around them. Otherwise photographs are kept whole.
      detector: YuNet's .onnx file, or its hub id.
      text: what to do with text burned into X-rays: 'paint_over' it, 'refuse' X-rays with text, or
        'keep' it.
    """

    BLOCK = "skull_face"
    PAIRINGS = ("matched", "all_views", "listed")

    align: bool = False
    detector: str = HUB_ID
    text: str = "paint_over"

    def __post_init__(self):
        if self.text not in TEXT:
            raise ValueError(f"text={self.text!r} is not one of {', '.join(TEXT)}")
        super().__post_init__()

    def told(self) -> dict[str, Any]:
        """Returns the settings that determine the data; the detector by its name, if it is used."""
        settings = super().told()
        where = settings.pop("detector")
        return settings | ({"detector": pathlib.Path(where).name} if self.align else {})

    def read(self) -> Manifest:
        """Returns the manifest. Raises InputError where it is unusable as a whole."""
        return read_manifest(self.manifest_path, self.root_path)


class Pair(NamedTuple):
    """A record before it is written.

    Attributes:
      row: of the manifest, where the X-ray is first listed.
      key: its id, made of pseudonyms.
      subject: pseudonym.
      split: the subject's.
      sex: the subject's.
      xray, face: the manifest's entries.
      ready_xray, ready_face: the prepared pictures.
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


class Pairs(NamedTuple):
    """All pairs of a manifest.

    Attributes:
      usable: those that can be used.
      problems: `(row number, words)` of rows that are left out.
      files: digest of the files' sizes and times; see `_files_digest`.
    """

    usable: list[Pair]
    problems: list[tuple[int, str]]
    files: str


class Builder(LocalBuilder):
    """Paired skull X-rays and photographs of a user's own cohort."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.0.0": "First layout.",
        "1.1.0": "Synthetic faces are told apart; landmarks and profiles are found.",
    }

    def _info(self):
        size = self.builder_config.size
        transform = tfds.features.Tensor(shape=(2, 3), dtype=np.float32)
        return self.dataset_info_from_configs(
            description=(
                "Skull X-rays and photographs of real people under pseudonyms; "
                "text burned into X-rays is painted over."
            ),
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
                    "synthetic": np.bool_,
                    "face_landmarks": tfds.features.Tensor(shape=(5, 2), dtype=np.float32),
                    "xray_transform": transform,
                    "face_transform": transform,
                    "xray_masked": np.float32,
                }
            ),
            metadata=tfds.core.MetadataDict(self.builder_config.told()),
        )

    def download_and_prepare(self, **options):
        """Builds the records as TFDS does.

        Raises InputError where they exist and their files have changed since. Files that are
        absent are not compared.
        """
        built = self.data_path.exists()
        super().download_and_prepare(**options)
        if not built:
            return
        digest = _files_digest(self.builder_config.read())
        if digest and digest != self.info.metadata["files"]:
            raise InputError(
                f"files that {self.builder_config.manifest_path.name} lists have changed since "
                f"{self.data_path} was built from them; remove that folder to build it again"
            )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        pairs, problems, files = self.pairs()
        # Metadata hold the numbers of rows, not their content.
        remarks = rows_by_words(
            (pair.row, words) for pair in pairs for words in pair.ready_xray.remarks
        )
        skipped = sorted({number for number, _ in problems})
        self.info.metadata.update(skipped_rows=skipped, files=files, remarks=remarks)
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
        """Yields the future records for inspection; only the pictures are prepared."""
        for pair in self.pairs().usable:
            yield Entry(
                where=f"row {pair.row}",
                key=pair.ready_xray.png.stem,
                subject=pair.subject,
                split=pair.split,
                told={
                    "sex": pair.sex,
                    "age": pair.face.age,
                    "bmi_change": pair.face.bmi_change,
                    "synthetic": pair.face.synthetic,
                    "xray_view": pair.xray.view,
                    "face_view": pair.face.view,
                },
                xray=pair.ready_xray.png.read_bytes,
                face=pair.ready_face.png.read_bytes,
                shape=(pair.ready_xray.height, pair.ready_xray.width),
                boxes=pair.ready_xray.boxes,
                masked=pair.ready_xray.masked,
                remarks=pair.ready_xray.remarks,
                found=pair.ready_face.found,
                landmarks=_landmarks(pair.ready_face).tolist(),
            )

    def pairs(self) -> Pairs:
        """Returns all pairs, with their pictures prepared.

        Raises InputError with all bad rows where on_bad_row='stop': those of the list first, then
        those whose pictures are unusable.
        """
        # Check the rows.
        config = self.builder_config
        manifest = config.read()
        if manifest.ignored:
            columns = ", ".join(manifest.ignored)
            print(f"{config.manifest_path.name}: ignored columns: {columns}", file=sys.stderr)
        problems = config.leave_out([*manifest.problems, *_missing_values(config, manifest.rows)])
        wrong = {number for number, _ in problems}
        rows = [row for row in manifest.rows if row.number not in wrong]
        # Prepare their pictures.
        ready, unusable = self._prepare(rows)
        problems += config.leave_out(unusable)
        wrong |= {number for number, _ in unusable}
        rows = [row for row in rows if row.number not in wrong]
        # Pair them.
        split_of = config.split_of(
            {row.subject: row.sex for row in rows}, {row.subject: row.split for row in rows}
        )
        pairs = _pairs(config, rows, ready, split_of)
        return Pairs(pairs, problems, _files_digest(manifest))

    def photographs(self) -> tuple[list[Row], dict[Face, Ready]]:
        """Returns the usable rows, and their prepared photographs; synthetic faces are left out.

        No X-ray is read. Raises InputError as `pairs` does.
        """
        config = self.builder_config
        manifest = config.read()
        config.leave_out(manifest.problems)
        rows = [row for row in manifest.rows if not row.face.synthetic]
        results = self._staged(dict(_face_jobs(config, [row.face for row in rows])), "photographs")
        ready = {face: result for face, result in results.items() if isinstance(result, Ready)}
        config.leave_out(
            [
                (row.number, f"face={row.face.path.name!r}: {results[row.face]}")
                for row in rows
                if row.face not in ready
            ]
        )
        return [row for row in rows if row.face in ready], ready

    def _staged(self, jobs: Mapping[Any, Job], label: str) -> dict[Any, Ready | str]:
        """Returns each picture prepared, or the reason why it can't be; see `stage`."""
        folder = pathlib.Path(self._data_dir_root) / "skull_face_staged"
        staged = stage(list(jobs.values()), folder, self.builder_config.secret, label)
        return dict(zip(jobs, staged, strict=True))

    def _prepare(self, rows: list[Row]) -> tuple[dict[Xray | Face, Ready], list[tuple[int, str]]]:
        """Returns the prepared pictures, and `(row number, words)` of unusable ones."""
        # Prepare each picture once.
        config = self.builder_config
        jobs: dict[Xray | Face, Job] = {row.xray: _xray_job(config, row.xray) for row in rows}
        xrays = list(jobs)
        jobs |= dict(_face_jobs(config, [row.face for row in rows]))
        results = self._staged(jobs, "pictures")
        ready = {source: result for source, result in results.items() if isinstance(result, Ready)}
        # Name the unusable ones.
        sources: list[tuple[int, str, Xray | Face]] = []
        for row in rows:
            sources += [(row.number, "xray", row.xray), (row.number, "face", row.face)]
        problems = [
            (number, f"{kind}={source.path.name!r}: {results[source]}")
            for number, kind, source in sources
            if source not in ready
        ]
        _print_remarks([ready[xray] for xray in xrays if xray in ready], len(xrays))
        return ready, problems


def _missing_values(config: SkullFaceConfig, rows: list[Row]) -> list[tuple[int, str]]:
    """Returns `(row number, words)` of rows that lack a value that these settings need."""
    problems = []
    if config.split == "column":
        problems += [(row.number, "split is empty") for row in rows if not row.split]
    return problems


def _xray_job(config: SkullFaceConfig, xray: Xray) -> Job:
    return Job("xray", xray.path, config.size, inverted=xray.inverted, text=config.text)


def _face_jobs(config: SkullFaceConfig, faces: list[Face]) -> Iterator[tuple[Face, Job]]:
    """Yields each face with its job. Raises InputError where a detector is needed and absent."""
    # Synthetic faces are framed already. A list's landmarks say nothing about a profile's frame.
    given = {face: face.landmarks if face.view == "frontal" else () for face in faces}
    framed = {face for face in faces if config.align and not face.synthetic}
    detector = None
    if not all(given[face] for face in framed):
        field = "data.skull_face.detector"
        detector = detector_file(config.detector, field)
        check_detector(detector, field)
    for face in faces:
        how: dict[str, Any] = {}
        if face in framed:
            how = {"view": face.view, "landmarks": given[face]}
            how |= {} if given[face] else {"detector": detector}
        yield face, Job("face", face.path, config.size, **how)


def _print_remarks(xrays: list[Ready], count: int) -> None:
    """Prints what was changed in how many of `count` X-rays."""
    masked = [xray.masked for xray in xrays if xray.boxes]
    if masked:
        print(
            f"text or markers painted over in {len(masked)} of {count} X-rays, at most "
            f"{100 * max(masked):.1f} % of one; --config.job=inspect shows them",
            file=sys.stderr,
        )
    remarks = Counter(words for xray in xrays for words in xray.remarks)
    for words, number in remarks.most_common():
        print(f"{number} of {count} X-rays: {words}", file=sys.stderr)


def _files_digest(manifest: Manifest) -> str:
    """Returns the SHA-256 of all files' sizes and times, in the manifest's order.

    It is empty where files are absent.
    """
    digest = hashlib.sha256()
    for row in manifest.rows:
        for picture in (row.xray, row.face):
            stat = picture.path.stat()  # absent files are in the manifest's problems
            digest.update(f"{stat.st_size} {stat.st_mtime_ns};".encode())
    if any("no such file" in words for _, words in manifest.problems):
        return ""
    return digest.hexdigest()


def _pairs(
    config: SkullFaceConfig,
    rows: list[Row],
    ready: dict[Xray | Face, Ready],
    split_of: dict[str, str],
) -> list[Pair]:
    """Returns the pairs of usable rows, under pseudonyms."""
    secret = config.secret
    root = config.root_path
    first_row = {row.xray: row.number for row in reversed(rows)}
    pairs = []
    for match in _matches(rows, config.pairing):
        xray = match.xray
        face = match.face
        subject = f"s{alias(secret, 'subject', match.subject)}"
        paths = [picture.path.relative_to(root).as_posix() for picture in (xray, face)]
        files = alias(secret, "pair", *paths)
        key = f"{subject}-{xray.view}-{face.view}-{face.age:g}-{face.bmi_change:+.0f}-{files}"
        pair = Pair(
            row=first_row[xray],
            key=key,
            subject=subject,
            split=split_of[match.subject],
            sex=match.sex,
            xray=xray,
            face=face,
            ready_xray=ready[xray],
            ready_face=ready[face],
        )
        pairs.append(pair)
    return pairs


class _Match(NamedTuple):
    """An X-ray and a face of one subject; `subject` is the manifest's name."""

    subject: str
    sex: str
    xray: Xray
    face: Face


def _matches(rows: list[Row], pairing: str) -> list[_Match]:
    """Returns the X-rays and faces that are paired, without repetitions, in the rows' order."""
    if pairing == "listed":
        return [_Match(row.subject, row.sex, row.xray, row.face) for row in rows]
    by_subject: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_subject.setdefault((row.subject, row.sex), []).append(row)
    return [
        _Match(subject, sex, xray, face)
        for (subject, sex), members in by_subject.items()
        for xray in dict.fromkeys(row.xray for row in members)
        for face in dict.fromkeys(row.face for row in members)
        if pairing == "all_views" or xray.view == face.view
    ]


def _landmarks(face: Ready) -> Float[np.ndarray, "n 2"]:
    """Returns a photograph's landmarks in the square's pixels; none where they are not known."""
    points = np.array(face.landmarks).reshape(-1, 2)
    return moved(points, face.transform) if len(points) else points


def _record(pair: Pair) -> dict[str, Any]:
    """Returns the record of a pair."""
    # The list's are kept of photographs that are not aligned, too.
    face = pair.ready_face
    landmarks = _landmarks(face._replace(landmarks=face.landmarks or pair.face.landmarks))
    if not len(landmarks):
        landmarks = np.full((5, 2), np.nan)
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
        "synthetic": pair.face.synthetic,
        "face_landmarks": np.float32(landmarks),
        "xray_transform": np.float32(pair.ready_xray.transform),
        "face_transform": np.float32(pair.ready_face.transform),
        "xray_masked": np.float32(pair.ready_xray.masked),
    }


def make_config(**settings) -> SkullFaceConfig:
    """Returns the configuration with these settings."""
    return SkullFaceConfig(**settings)
