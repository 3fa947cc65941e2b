"""The user's list of X-rays and photographs: what its columns mean, and every row that can't be meant."""

import csv
import dataclasses
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from cranio_jax.errors import InputError

VIEWS = ("frontal", "lateral")
SEXES = {"f": "female", "female": "female", "m": "male", "male": "male"}
SPLITS = ("train", "validation", "test")
NEEDED = ("subject", "xray", "xray_view", "face", "face_view", "age", "sex")
# Corners of eyes and mouth, tip of the nose: five points in pixels of the photograph, the picture's left first.
LANDMARKS = tuple(f"{name}_{axis}" for name in ("eye_1", "eye_2", "nose", "mouth_1", "mouth_2") for axis in "xy")
OPTIONAL = ("bmi", "bmi_change", "split", "xray_inverted", *LANDMARKS)
SHOWN = 50  # problems told at once


@dataclasses.dataclass(frozen=True)
class Row:
    """A pair of an X-ray and a photograph.

    Attributes:
      number: of its line in the file; the header is line 1.
      subject: as the user calls them; it goes no further than the pseudonym made of it.
      xray, face: files.
      xray_view, face_view: of VIEWS.
      age: years.
      sex: 'female' or 'male'.
      bmi_change: percent of the subject's own middle body mass index.
      split: as the manifest says; empty where it does not.
      inverted: whether bone is dark in the file.
      landmarks: LANDMARKS' ten numbers; empty where not all are given.
    """

    number: int
    subject: str
    xray: pathlib.Path
    xray_view: str
    face: pathlib.Path
    face_view: str
    age: float
    sex: str
    bmi_change: float
    split: str
    inverted: bool
    landmarks: tuple[float, ...]


class Problem(ValueError):
    """Why a row can't be meant; the message starts with what is wrong and needs the row's number before it."""


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
    lines = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    names = next(lines)[1]
    if missing := [name for name in NEEDED if name not in names]:
        raise InputError(f"{path.name} lacks the column {missing[0]!r}; it needs {', '.join(NEEDED)}")
    if "bmi" in names and "bmi_change" in names:
        raise InputError(f"{path.name} has both bmi and bmi_change; keep one")
    found = Manifest([], [], [name for name in names if name not in (*NEEDED, *OPTIONAL)])
    masses: list[float | None] = []
    for number, values in lines:
        try:
            row, mass = _row(number, dict(zip(names, values, strict=False)), root)
            found.rows.append(row)
            masses.append(mass)
        except Problem as problem:
            found.problems.append((number, str(problem)))
    if not found.rows and not found.problems:
        raise InputError(f"{path.name} holds no row below its header")
    found.rows = _changes(found.rows, masses)
    for number, words in _contradictions(found.rows):
        found.problems.append((number, words))
    wrong = {number for number, _ in found.problems}
    found.rows = [row for row in found.rows if row.number not in wrong]
    found.problems.sort()
    return found


def tell(problems: list[tuple[int, str]], name: str) -> str:
    """All problems, a line each, as many as anybody reads."""
    lines = [f"{name}, row {number}: {words}" for number, words in problems[:SHOWN]]
    more = len(problems) - len(lines)
    return "\n".join([f"{len(problems)} rows of {name} can't be used:", *lines, *([f"... and {more} more"] if more else [])])


def _csv(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """`(line number, fields)`, the header first."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'not readable'}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path.name}, row {line}: not UTF-8; save the file as UTF-8") from None
    reader = csv.reader(text.splitlines())
    header = next(reader, None)
    if not header:
        raise InputError(f"{path.name} is empty; its first row names the columns")
    yield 1, [name.strip().lower() for name in header]
    for values in reader:
        if any(value.strip() for value in values):
            yield reader.line_num, [value.strip() for value in values]


def _parquet(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    try:
        from pyarrow import lib, parquet
    except ModuleNotFoundError:
        raise InputError(f"{path.name} is a Parquet file: install pyarrow to read it, or save it as CSV") from None
    try:
        table = parquet.read_table(path)
    except (OSError, lib.ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file ({type(error).__name__})") from None
    yield 1, [name.strip().lower() for name in table.column_names]
    for i, values in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True), 2):
        yield i, ["" if value is None else str(value).strip() for value in values]


def _row(number: int, values: dict[str, str], root: pathlib.Path) -> tuple[Row, float | None]:
    """A row, and its body mass index where that is given. Raises Problem."""

    def one_of(name: str, known: Iterable[str]) -> str:
        value = values[name].lower()
        if value not in known:
            raise Problem(f"{name}={values[name]!r} is not one of {', '.join(known)}")
        return value

    def number_of(name: str, low: float, high: float, unit: str) -> float:
        text = values[name]
        if re.fullmatch(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}", text):
            raise Problem(f"{name}={text!r} is a date; expected {unit}")
        try:
            value = float(text)
        except ValueError:
            raise Problem(f"{name}={text!r} is not a number of {unit}") from None
        if not low <= value <= high:
            raise Problem(f"{name}={text} is outside {low:g} to {high:g} {unit}")
        return value

    def file(name: str) -> pathlib.Path:
        path = (root / values[name]).resolve()
        if not path.is_relative_to(root):
            raise Problem(f"{name}={values[name]!r} lies outside the data's folder")
        if not path.is_file():
            raise Problem(f"{name}={values[name]!r}: no such file")
        return path

    if lacking := [name for name in NEEDED if not values.get(name)]:
        raise Problem(f"{lacking[0]} is empty")
    change, mass = 0.0, None
    if values.get("bmi_change"):
        change = 100.0 * number_of("bmi_change", -0.6, 2.0, "(a part of 1: 0.10 is ten percent more)")
    if values.get("bmi"):
        mass = number_of("bmi", 8.0, 120.0, "kg/m2")
    points = [values.get(name, "") for name in LANDMARKS]
    if any(points) and not all(points):
        raise Problem(f"{LANDMARKS[points.index('')]} is empty and other landmarks are not; give all ten or none")
    row = Row(
        number=number,
        subject=values["subject"],
        xray=file("xray"),
        xray_view=one_of("xray_view", VIEWS),
        face=file("face"),
        face_view=one_of("face_view", VIEWS),
        age=number_of("age", 0.0, 120.0, "years"),
        sex=SEXES[one_of("sex", SEXES)],
        bmi_change=change,
        split=one_of("split", SPLITS) if values.get("split") else "",
        inverted=one_of("xray_inverted", ("0", "1", "false", "true", "no", "yes")) in ("1", "true", "yes")
        if values.get("xray_inverted")
        else False,
        landmarks=tuple(number_of(name, -1e5, 1e5, "pixels") for name in LANDMARKS) if all(points) else (),
    )
    return row, mass


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
        return dataclasses.replace(row, bmi_change=100.0 * (mass / of_subject[len(of_subject) // 2] - 1.0))

    return [change(row, mass) for row, mass in zip(rows, masses, strict=True)]


def _contradictions(rows: list[Row]) -> Iterator[tuple[int, str]]:
    """What only shows between rows: a pair twice, a subject of two sexes or in two splits, an X-ray of two people."""
    first: dict[Any, Row] = {}

    def met(key: Any, row: Row) -> Row:
        return first.setdefault(key, row)

    for row in rows:
        if (other := met(("pair", row.xray, row.face), row)) is not row:
            yield row.number, f"the same X-ray and face as in row {other.number}"
        if (other := met(("subject", row.subject), row)).sex != row.sex:
            yield row.number, f"the subject is {row.sex} here and {other.sex} in row {other.number}"
        elif other.split != row.split:
            yield row.number, f"the subject's split is {row.split or 'empty'!r} here and {other.split or 'empty'!r} in row {other.number}"
        for name in ("xray", "face"):
            if (other := met((name, getattr(row, name)), row)).subject != row.subject:
                yield row.number, f"its {name} is another subject's in row {other.number}"
            elif getattr(other, f"{name}_view") != getattr(row, f"{name}_view"):
                yield row.number, f"its {name} is of another view in row {other.number}"
