"""Reads the user's list of X-rays and photographs, with a message for each wrong row."""

import dataclasses
import pathlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from data_builders.conditions import AGES, BMI_CHANGES, VIEWS
from data_builders.errors import InputError
from data_builders.lists.tables import (
    SEX_WORDS,
    SPLITS,
    Problem,
    check_filled,
    file_of,
    number_of,
    one_of,
    read_table,
)

NEEDED = ("subject", "xray", "xray_view", "face", "face_view", "age", "sex")
# Eyes, tip of the nose, corners of the mouth: five points in pixels of the photograph, the
# picture's left first.
LANDMARKS = tuple(
    f"{name}_{axis}" for name in ("eye_1", "eye_2", "nose", "mouth_1", "mouth_2") for axis in "xy"
)
OPTIONAL = ("bmi", "bmi_change", "split", "xray_inverted", "synthetic", *LANDMARKS)
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclasses.dataclass(frozen=True)
class Xray:
    """A radiograph's file.

    Attributes:
      path: of it.
      view: of VIEWS.
      inverted: whether bone is dark in it once its header is applied.
    """

    path: pathlib.Path
    view: str
    inverted: bool


@dataclasses.dataclass(frozen=True)
class Face:
    """A photograph's file.

    Attributes:
      path: of it.
      view: of VIEWS.
      age: years.
      bmi_change: percent of the subject's own middle body mass index.
      landmarks: LANDMARKS' ten numbers; empty where they are not given.
      synthetic: whether the face was made from a photograph, not taken at this age and weight.
    """

    path: pathlib.Path
    view: str
    age: float
    bmi_change: float
    landmarks: tuple[float, ...]
    synthetic: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A pair of an X-ray and a photograph.

    Attributes:
      number: of its row in the file, as a spreadsheet shows it; the header is row 1.
      subject: the user's name for the person; records hold a pseudonym instead.
      sex: 'female' or 'male'.
      split: as the manifest says; empty where it says nothing.
      xray, face: the pictures.
    """

    number: int
    subject: str
    sex: str
    split: str
    xray: Xray
    face: Face


@dataclasses.dataclass
class Manifest:
    """The content of the user's list.

    Attributes:
      rows: those that can be used.
      problems: `(row number, words)` of the others.
      ignored: columns that have no meaning here.
    """

    rows: list[Row]
    problems: list[tuple[int, str]]
    ignored: list[str]


def read_manifest(path: pathlib.Path, root: pathlib.Path | None = None) -> Manifest:
    """Reads a CSV, Excel or Parquet file.

    Paths in it are relative to `root`, by default its own folder, and stay within it. Raises
    InputError where the file as a whole is unusable: missing, empty, without a needed column, not
    UTF-8.
    """
    # Read the rows.
    root = (root or path.parent).expanduser().resolve()
    names, lines = read_table(path, NEEDED, OPTIONAL)
    if "bmi" in names and "bmi_change" in names:
        raise InputError(f"{path.name} has both bmi and bmi_change; keep one")
    ignored = [name for name in names if name and name not in (*NEEDED, *OPTIONAL)]
    manifest = Manifest([], [], ignored)
    masses: list[float | None] = []
    for number, values in lines:
        try:
            row, mass = _row(number, values, root)
            manifest.rows.append(row)
            masses.append(mass)
        except Problem as problem:
            manifest.problems.append((number, str(problem)))
    if not manifest.rows and not manifest.problems:
        raise InputError(f"{path.name} holds no row below its header")
    # Compare them.
    manifest.rows = _with_bmi_changes(manifest.rows, masses)
    manifest.problems += _impossible_changes(manifest.rows)
    manifest.problems += _contradictions(manifest.rows)
    wrong = {number for number, _ in manifest.problems}
    manifest.rows = [row for row in manifest.rows if row.number not in wrong]
    manifest.problems.sort()
    return manifest


def _row(number: int, values: dict[str, str], root: pathlib.Path) -> tuple[Row, float | None]:
    """Returns a row, and its body mass index where that is given. Raises Problem."""
    # Read the numbers.
    check_filled(values, NEEDED)
    change = 0.0
    if values.get("bmi_change"):
        unit = "(a fraction: 0.10 is ten percent more)"
        least, most = (percent / 100.0 for percent in BMI_CHANGES)
        change = 100.0 * number_of(values, "bmi_change", least, most, unit)
    mass = number_of(values, "bmi", 8.0, 120.0, "kg/m2") if values.get("bmi") else None
    # Read the pictures' entries.
    face = Face(
        path=file_of(values, "face", root),
        view=one_of(values, "face_view", VIEWS),
        age=number_of(values, "age", *AGES, "years"),
        bmi_change=change,
        landmarks=_landmarks(values),
        synthetic=_truth(values, "synthetic"),
    )
    xray = Xray(
        path=file_of(values, "xray", root),
        view=one_of(values, "xray_view", VIEWS),
        inverted=_truth(values, "xray_inverted"),
    )
    # Read the subject's fields.
    split = one_of(values, "split", SPLITS) if values.get("split") else ""
    sex = SEX_WORDS[one_of(values, "sex", SEX_WORDS)]
    return Row(number, values["subject"], sex, split, xray, face), mass


def _truth(values: dict[str, str], name: str) -> bool:
    """Returns the value of a column of yes and no, False where it is empty. Raises Problem."""
    if not values.get(name):
        return False
    return _TRUTH[one_of(values, name, _TRUTH)]


def _landmarks(values: dict[str, str]) -> tuple[float, ...]:
    """Returns the ten numbers of LANDMARKS, or none. Raises Problem."""
    absent = [name for name in LANDMARKS if not values.get(name)]
    if len(absent) == len(LANDMARKS):
        return ()
    if absent:
        raise Problem(f"{absent[0]} is empty and other landmarks are not; give all ten or none")
    return tuple(number_of(values, name, -1e5, 1e5, "pixels") for name in LANDMARKS)


def _with_bmi_changes(rows: list[Row], masses: list[float | None]) -> list[Row]:
    """Returns rows with each body mass index as its change from the subject's own upper median."""
    known: dict[str, list[float]] = defaultdict(list)
    for row, mass in zip(rows, masses, strict=True):
        if mass is not None:
            known[row.subject].append(mass)
    changed = []
    for row, mass in zip(rows, masses, strict=True):
        if mass is not None:
            of_subject = sorted(known[row.subject])
            middle = of_subject[len(of_subject) // 2]
            face = dataclasses.replace(row.face, bmi_change=100.0 * (mass / middle - 1.0))
            row = dataclasses.replace(row, face=face)
        changed.append(row)
    return changed


def _impossible_changes(rows: list[Row]) -> Iterator[tuple[int, str]]:
    """Yields `(row number, words)` of rows whose `bmi` is too far from the subject's others."""
    least, most = BMI_CHANGES
    for row in rows:
        change = row.face.bmi_change
        if not least <= change <= most:
            yield (
                row.number,
                (
                    f"bmi differs by {change:+.0f} % from the subject's upper median, which is "
                    f"outside {least:.0f} to {most:.0f}"
                ),
            )


def _contradictions(rows: list[Row]) -> Iterator[tuple[int, str]]:
    """Yields `(row number, words)` of rows that contradict an earlier one.

    Examples are a pair listed twice, a subject of two sexes or in two splits, and a picture of two
    people or ages.
    """
    first: dict[Any, Row] = {}
    for row in rows:
        other = first.setdefault(("pair", row.xray.path, row.face.path), row)
        if other is not row:
            yield row.number, f"the same X-ray and face as in row {other.number}"
        other = first.setdefault(("subject", row.subject), row)
        if other.sex != row.sex:
            yield row.number, f"the subject is {row.sex} here and {other.sex} in row {other.number}"
        elif other.split != row.split:
            here, there = (each.split or "empty" for each in (row, other))
            words = f"the subject's split is {here!r} here and {there!r} in row {other.number}"
            yield row.number, words
        for name, words in (("xray", "X-ray"), ("face", "face")):
            picture = getattr(row, name)
            other = first.setdefault((name, picture.path), row)
            if other.subject != row.subject:
                yield row.number, f"its {words} is another subject's in row {other.number}"
                continue
            for field in _differences(picture, getattr(other, name)):
                yield row.number, f"its {words} has another {field} in row {other.number}"


def _differences(picture: Xray | Face, other: Xray | Face) -> list[str]:
    """Returns the names of the fields that differ between two rows of one file."""
    names = [field.name for field in dataclasses.fields(picture)]
    return [n.replace("_", " ") for n in names if getattr(picture, n) != getattr(other, n)]
