"""The user's list of X-rays and photographs: what its columns mean, and every row that can't be meant."""

import dataclasses
import pathlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from cranio_jax.errors import InputError
from data_builders.tables import SEXES, SPLITS, VIEWS, Problem, check_filled, number_of, one_of, path_of, read_table

NEEDED = ("subject", "xray", "xray_view", "face", "face_view", "age", "sex")
# Corners of eyes and mouth, tip of the nose: five points in pixels of the photograph, the picture's left first.
LANDMARKS = tuple(f"{name}_{axis}" for name in ("eye_1", "eye_2", "nose", "mouth_1", "mouth_2") for axis in "xy")
OPTIONAL = ("bmi", "bmi_change", "split", "xray_inverted", *LANDMARKS)
_TRUE = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclasses.dataclass(frozen=True)
class Xray:
    """A radiograph's file, its view, and whether bone is dark in it beyond what its header says."""

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
    """

    path: pathlib.Path
    view: str
    age: float
    bmi_change: float
    landmarks: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """A pair of an X-ray and a photograph.

    Attributes:
      number: of its line in the file; the header is line 1.
      subject: as the user calls them; it goes no further than the pseudonym made of it.
      sex: 'female' or 'male'.
      split: as the manifest says; empty where it does not.
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
    """What was read.

    Attributes:
      rows: those that can be used.
      problems: `(row number, words)` of those that can't.
      ignored: columns that mean nothing here.
    """

    rows: list[Row]
    problems: list[tuple[int, str]]
    ignored: list[str]


def read_manifest(path: pathlib.Path, root: pathlib.Path | None = None) -> Manifest:
    """Reads a CSV or Parquet file; paths in it are relative to `root`, by default its own folder, and stay within it.

    Raises InputError where the file as a whole is unusable: missing, empty, without a needed column, not UTF-8.
    """
    root = (root or path.parent).expanduser().resolve()
    names, lines = read_table(path, NEEDED)
    if "bmi" in names and "bmi_change" in names:
        raise InputError(f"{path.name} has both bmi and bmi_change; keep one")
    found = Manifest([], [], [name for name in names if name and name not in (*NEEDED, *OPTIONAL)])
    masses: list[float | None] = []
    for number, values in lines:
        try:
            row, mass = _row(number, values, root)
            found.rows.append(row)
            masses.append(mass)
        except Problem as problem:
            found.problems.append((number, str(problem)))
    if not found.rows and not found.problems:
        raise InputError(f"{path.name} holds no row below its header")
    found.rows = _changes(found.rows, masses)
    found.problems += _contradictions(found.rows)
    wrong = {number for number, _ in found.problems}
    found.rows = [row for row in found.rows if row.number not in wrong]
    found.problems.sort()
    return found


def _row(number: int, values: dict[str, str], root: pathlib.Path) -> tuple[Row, float | None]:
    """A row, and its body mass index where that is given. Raises Problem."""
    check_filled(values, NEEDED)
    given = lambda name: bool(values.get(name))
    change, mass = 0.0, None
    if given("bmi_change"):
        change = 100.0 * number_of(values, "bmi_change", -0.6, 2.0, "(a part of 1: 0.10 is ten percent more)")
    if given("bmi"):
        mass = number_of(values, "bmi", 8.0, 120.0, "kg/m2")
    points = [given(name) for name in LANDMARKS]
    if any(points) and not all(points):
        raise Problem(f"{LANDMARKS[points.index(False)]} is empty and other landmarks are not; give all ten or none")
    face = Face(
        path_of(values, "face", root),
        one_of(values, "face_view", VIEWS),
        number_of(values, "age", 0.0, 120.0, "years"),
        change,
        tuple(number_of(values, name, -1e5, 1e5, "pixels") for name in LANDMARKS) if all(points) else (),
    )
    inverted = given("xray_inverted") and _TRUE[one_of(values, "xray_inverted", _TRUE)]
    xray = Xray(path_of(values, "xray", root), one_of(values, "xray_view", VIEWS), inverted)
    split = one_of(values, "split", SPLITS) if given("split") else ""
    return Row(number, values["subject"], SEXES[one_of(values, "sex", SEXES)], split, xray, face), mass


def _changes(rows: list[Row], masses: list[float | None]) -> list[Row]:
    """Rows whose body mass index, where given, is turned into the change from the subject's own middle one."""
    known: dict[str, list[float]] = defaultdict(list)
    for row, mass in zip(rows, masses, strict=True):
        if mass is not None:
            known[row.subject].append(mass)

    def change(row: Row, mass: float | None) -> Row:
        if mass is None:
            return row
        of_subject = sorted(known[row.subject])
        middle = of_subject[len(of_subject) // 2]
        return dataclasses.replace(row, face=dataclasses.replace(row.face, bmi_change=100.0 * (mass / middle - 1.0)))

    return [change(row, mass) for row, mass in zip(rows, masses, strict=True)]


def _contradictions(rows: list[Row]) -> Iterator[tuple[int, str]]:
    """What only shows between rows: a pair twice, a subject of two sexes or in two splits, a picture of two people or ages."""
    first: dict[Any, Row] = {}
    for row in rows:
        met = lambda *key, row=row: first.setdefault(key, row)
        if (other := met("pair", row.xray.path, row.face.path)) is not row:
            yield row.number, f"the same X-ray and face as in row {other.number}"
        if (other := met("subject", row.subject)).sex != row.sex:
            yield row.number, f"the subject is {row.sex} here and {other.sex} in row {other.number}"
        elif other.split != row.split:
            yield row.number, f"the subject's split is {row.split or 'empty'!r} here and {other.split or 'empty'!r} in row {other.number}"
        for name, words in (("xray", "X-ray"), ("face", "face")):
            own = getattr(row, name)
            other = met(name, own.path)
            if other.subject != row.subject:
                yield row.number, f"its {words} is another subject's in row {other.number}"
                continue
            for field in dataclasses.fields(own):
                if getattr(own, field.name) != getattr(getattr(other, name), field.name):
                    yield row.number, f"its {words} has another {field.name.replace('_', ' ')} in row {other.number}"
