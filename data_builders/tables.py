"""Lists that users write: CSV or Parquet, and a sentence for every value that can't be meant."""

import csv
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

from cranio_jax.errors import InputError

VIEWS = ("frontal", "lateral")
SEXES = {"f": "female", "female": "female", "m": "male", "male": "male"}
SPLITS = ("train", "validation", "test")
SHOWN = 50  # problems told at once


class Problem(ValueError):
    """Why a row can't be meant; the message starts with what is wrong and needs the row's number before it."""


def read_table(path: pathlib.Path, needed: Iterable[str]) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Names of the columns, and `(row number, values by column)`; the header is row 1.

    Raises InputError where the file as a whole is unusable: missing, empty, without a needed column, not UTF-8.
    """
    lines = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    names = next(lines)[1]
    if missing := [name for name in needed if name not in names]:
        raise InputError(f"{path.name} lacks the column {missing[0]!r}; it needs {', '.join(needed)}")
    if twice := [name for name in names if names.count(name) > 1 and name]:
        raise InputError(f"{path.name} has two columns {twice[0]!r}; keep one")
    return names, ((number, dict(zip(names, values, strict=False))) for number, values in lines)


def tell(problems: list[tuple[int, str]], name: str) -> str:
    """All problems, a line each, as many as anybody reads."""
    lines = [f"{name}, row {number}: {words}" for number, words in sorted(problems)[:SHOWN]]
    more = len(problems) - len(lines)
    rows = len({number for number, _ in problems})
    head = f"{rows} row{'s' if rows > 1 else ''} of {name} can't be used:"
    return "\n".join([head, *lines, *([f"... and {more} more"] if more else [])])


def stop_or_skip(problems: list[tuple[int, str]], name: str, on_bad_row: str, field: str) -> list[tuple[int, str]]:
    """The problems, after they were told; raises InputError with all of them where `on_bad_row`, a setting `field`, is 'stop'."""
    if problems:
        words = tell(problems, name)
        if on_bad_row == "stop":
            raise InputError(f"{words}\nmend them, or leave them out with --config.{field}=skip")
        print(words.replace("can't be used", "are left out"), file=sys.stderr)
    return problems


def one_of(values: dict[str, str], name: str, known: Iterable[str]) -> str:
    """A word, in small letters. Raises Problem."""
    value = values[name].lower()
    if value not in known:
        raise Problem(f"{name}={values[name]!r} is not one of {', '.join(known)}")
    return value


def number_of(values: dict[str, str], name: str, low: float, high: float, unit: str) -> float:
    """A number. Raises Problem."""
    text = values[name]
    if re.fullmatch(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}.*", text):
        raise Problem(f"{name}={text!r} is a date; expected {unit}")
    try:
        value = float(text)
    except ValueError:
        raise Problem(f"{name}={text!r} is not a number of {unit}") from None
    if not low <= value <= high:
        raise Problem(f"{name}={text} is outside {low:g} to {high:g} {unit}")
    return value


def path_of(values: dict[str, str], name: str, root: pathlib.Path) -> pathlib.Path:
    """What there is of that name within `root`. Raises Problem."""
    try:
        path = (root / values[name]).resolve()
    except (OSError, ValueError, RuntimeError):
        raise Problem(f"{name}={values[name]!r} is no path") from None
    if not path.is_relative_to(root):
        raise Problem(f"{name}={values[name]!r} lies outside the data's folder")
    if not path.exists():
        raise Problem(f"{name}={values[name]!r}: no such file")
    return path


def check_filled(values: dict[str, str], needed: Iterable[str]) -> None:
    """Raises Problem where a needed value is absent."""
    if lacking := [name for name in needed if not values.get(name)]:
        raise Problem(f"{lacking[0]} is empty")


def _csv(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'not readable'}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path.name}, row {line}: not UTF-8; save the file as UTF-8") from None
    reader = csv.reader(text.splitlines(keepends=True))
    try:
        header = next(reader, None)
        if not header:
            raise InputError(f"{path.name} is empty; its first row names the columns")
        yield 1, [name.strip().lower() for name in header]
        for values in reader:
            if any(value.strip() for value in values):
                yield reader.line_num, [value.strip() for value in values]
    except csv.Error as error:
        raise InputError(f"{path.name}, row {reader.line_num}: not CSV ({error})") from None


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
