"""Reads the user's list: values by column, with a message for each value that is wrong."""

import functools
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from data_builders.errors import InputError
from data_builders.lists import columns
from data_builders.lists.table_files import Sheet, read_sheet

# Words for the sexes.
SEX_WORDS = {
    "f": "female",
    "female": "female",
    "m": "male",
    "male": "male",
    "w": "female",
    "woman": "female",
    "man": "male",
}
SPLITS = ("train", "validation", "test")
SHOWN = 50  # problems in one message
_FRONTAL = "frontal front pa ap posteroanterior anteroposterior posterioranterior anteriorposterior"
_LATERAL = (
    "lateral lat side profile ll rl llat rlat leftlateral rightlateral lateralleft lateralright"
)
# Other words for known values, by their letters and digits.
OTHER_WORDS = {
    **dict.fromkeys(_FRONTAL.split(), "frontal"),
    **dict.fromkeys(_LATERAL.split(), "lateral"),
    "training": "train",
    "val": "validation",
    "testing": "test",
}
_ABSENT = ("na", "n/a", "nan", "null", "none", "<na>", "#n/a", "#nv", "-", "?")
_FORMULA_ERROR = re.compile(r"#[¡¿]?[^\W\d_]+(?:/0)?[!?]", re.IGNORECASE)
# A long number as a spreadsheet rounds it.
_ROUNDED = re.compile(r"\d[.,]\d+[eE]\+?\d+|\d[eE]\+\d+")
_INVISIBLE = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2069\ufeff"
_SIGNS = str.maketrans("\u2212\u2013\uff0d\ufe63\uff0b\uff0c\uff0e\u066b", "----+,..")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)")
_TINY = re.compile(r"[+-]?[0-9](?:\.[0-9]+)?[eE]-[0-9]{1,3}")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}")  # or three decimals

Form = Callable[[str], str]  # normalises names before they are compared


class Problem(ValueError):
    """What is wrong with a row; callers put the row's number before the message."""


class Values(dict[str, str]):
    """A row's values by column.

    Attributes:
      problem: what is wrong with the row as a whole; `check_filled` raises it.
      decimals: signs that are decimal signs even before three digits; see `number_of`.
    """

    problem: str = ""
    decimals: str = "."


def read_table(
    path: pathlib.Path, needed: Sequence[str], optional: Sequence[str] = ()
) -> tuple[list[str], Iterator[tuple[int, Values]]]:
    """Returns the names of the columns, and `(row number, values by column)`; the header is row 1.

    Rows are counted as a spreadsheet shows them. Columns in another spelling get their name in
    `needed` or `optional`, and a remark is printed. A row that is wrong as a whole has a `problem`.

    Raises InputError where the file as a whole is unusable: missing, empty, without a needed
    column, not UTF-8.
    """
    # Find the columns.
    sheet = read_sheet(path, lambda names: columns.fit(names, needed, optional))
    try:
        places = columns.names_meant(sheet.names, needed, optional)
    except InputError as error:
        raise InputError(f"{path.name} {error}") from None
    if missing := [name for name in needed if name not in places]:
        unused = [name for i, name in enumerate(sheet.names) if i not in places.values()]
        near = columns.nearest(missing[0], unused)
        hint = f" (is it {near!r}?)" if near else ""
        raise InputError(
            f"{path.name} lacks the column {missing[0]!r}{hint}; it needs {', '.join(needed)}"
        )
    # Print remarks, and give columns their known names.
    names = [name.strip().lower() for name in sheet.names]
    renamed = [f"{names[i]!r} as {name}" for name, i in places.items() if names[i] != name]
    remarks = list(sheet.remarks)
    if renamed:
        remarks.append(f"{path.name}: read {', '.join(renamed)}")
    for remark in remarks:
        _print_once(path, remark)
    for name, place in places.items():
        names[place] = name
    if repeated := [name for name in names if names.count(name) > 1 and name]:
        raise InputError(f"{path.name} has two columns {repeated[0]!r}; keep one")
    return names, _rows(sheet, names, places)


def _rows(
    sheet: Sheet, names: list[str], places: Mapping[str, int]
) -> Iterator[tuple[int, Values]]:
    """Yields the numbers and values of the rows; `places` are those of the known columns."""
    used = [
        line.values[place]
        for line in sheet.lines
        for place in places.values()
        if place < len(line.values)
    ]
    decimals = _decimals(used, sheet.separator)
    for line in sheet.lines:
        values = Values(zip(names, map(_cleaned, line.values), strict=False))
        values.decimals = decimals
        subject = re.sub(r"\s+", " ", unicodedata.normalize("NFC", values.get("subject", "")))
        if "subject" in values:
            values["subject"] = subject
        errors = [name for name in places if _FORMULA_ERROR.fullmatch(values.get(name, ""))]
        if line.problem:
            values.problem = line.problem
        elif errors:
            words = f"{errors[0]}={values[errors[0]]!r}"
            values.problem = f"{words} is a formula error; fix it in the spreadsheet"
        elif _ROUNDED.fullmatch(subject):
            words = f"subject={subject!r} is a long number that a spreadsheet has rounded"
            values.problem = f"{words}; store it as text"
        yield line.number, values


def _decimals(values: Iterable[str], separator: str) -> str:
    """Returns the list's decimal signs, judged by its numbers that can't be in thousands."""
    shapes = {
        re.sub(r"[^.,]", "", value)
        for value in values
        if re.fullmatch(r"\s*[+-]?\d+[.,](\d{1,2}|\d{4,})\s*", value)
    }
    points = "." in shapes or "," not in shapes
    commas = "." not in shapes and ("," in shapes or separator == ";")
    return "." * points + "," * commas


def _cleaned(value: str) -> str:
    """Returns a value without spaces and invisible signs around it; empty for `NA` and the like."""
    value = value.strip().strip(_INVISIBLE).strip()
    return "" if value.lower() in _ABSENT else value


@functools.cache
def _print_once(path: pathlib.Path, remark: str) -> None:
    """Prints a remark on a list, the first time only."""
    del path
    print(remark, file=sys.stderr)


def tell(problems: list[tuple[int, str]], name: str) -> str:
    """Returns a message with a line for each problem, up to SHOWN of them."""
    lines = [f"{name}, row {number}: {words}" for number, words in sorted(problems)[:SHOWN]]
    more = len(problems) - len(lines)
    rows = len({number for number, _ in problems})
    if more:
        lines.append(f"... and {more} more")
    return "\n".join([f"{rows} row{'s' if rows > 1 else ''} of {name} can't be used:", *lines])


def stop_or_skip(
    problems: list[tuple[int, str]], name: str, on_bad_row: str, field: str
) -> list[tuple[int, str]]:
    """Prints and returns the problems.

    Raises InputError with all of them where `on_bad_row`, the setting `field`, is 'stop'.
    """
    if problems:
        words = tell(problems, name)
        if on_bad_row == "stop":
            raise InputError(f"{words}\nfix them, or leave them out with --config.{field}=skip")
        print(words.replace("can't be used", "are left out"), file=sys.stderr)
    return problems


def one_of(values: dict[str, str], name: str, known: Iterable[str]) -> str:
    """Returns a word of `known`, also for other words (`PA`, `training`). Raises Problem."""
    value = values[name].lower()
    if value not in known:
        value = OTHER_WORDS.get(re.sub(r"[\W_]+", "", value).removesuffix("view"), value)
    if value not in known:
        raise Problem(f"{name}={values[name]!r} is not one of {', '.join(known)}")
    return value


def number_of(values: dict[str, str], name: str, low: float, high: float, unit: str) -> float:
    """Returns a number, of `low` to `high` units, with a decimal point or comma. Raises Problem."""
    text = values[name]
    if re.fullmatch(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}.*", text):
        raise Problem(f"{name}={text!r} is a date; expected {unit}")
    digits = re.sub(r"\d", lambda digit: str(unicodedata.decimal(digit[0])), text.translate(_SIGNS))
    # Software writes changes of nearly 0 in this form; years in it are a mistake.
    if not (_NUMBER.fullmatch(digits) or (low < 0 and _TINY.fullmatch(digits))):
        raise Problem(f"{name}={text!r} is not a number of {unit}")
    sign = "," if "," in digits else "."
    if _THOUSANDS.fullmatch(digits) and sign not in getattr(values, "decimals", "."):
        raise Problem(
            f"{name}={text!r} is in thousands or has three decimals; "
            f"write it without the {sign!r}, or with a fourth decimal"
        )
    value = float(digits.replace(",", "."))
    if not low <= value <= high:
        raise Problem(f"{name}={text} is outside {low:g} to {high:g} {unit}")
    return value


def path_of(values: dict[str, str], name: str, root: pathlib.Path) -> pathlib.Path:
    """Returns the file or folder of that name within `root`.

    A path that does not exist as written is tried without quotes around it, with Windows'
    backslashes as slashes, and with its accents in the other of Unicode's two forms. Raises
    Problem.
    """
    words = f"{name}={values[name]!r}"
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", values[name]):
        raise Problem(f"{words} is a URL; write the path of a file")
    bare = values[name].strip("\"'\u201c\u201d\u201e\u2018\u2019 ")
    slashed = bare.replace("\\", "/")
    try:
        # Look for it.
        readings = [root / reading for reading in (values[name], bare, slashed)]
        path = next((reading for reading in readings if reading.exists()), None)
        path = path or _spelled(root, slashed, _composed) or readings[0]
        path = path.resolve()
        if not path.is_relative_to(root):
            raise Problem(f"{words} lies outside the data's folder")
        if path.exists():
            return path
        near = _spelled(root, slashed, _folded)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, Problem):
            raise
        if isinstance(error, PermissionError):
            raise Problem(f"{words} can't be read; you lack the permission") from None
        raise Problem(f"{words} is not a path") from None
    # Say what is wrong.
    if re.match(r"[a-zA-Z]:[\\/]", bare):
        raise Problem(
            f"{words} is a path on a Windows drive; write it relative to the data's folder"
        )
    hint = f"; there is {near.relative_to(root).as_posix()!r}" if near else ""
    raise Problem(f"{words}: no such file{hint}")


def file_of(values: dict[str, str], name: str, root: pathlib.Path) -> pathlib.Path:
    """Returns a file within `root` that is not empty; see `path_of`. Raises Problem."""
    path = path_of(values, name, root)
    words = f"{name}={values[name]!r}"
    if path.is_dir():
        raise Problem(f"{words} is a folder; write the path of a file")
    if not path.is_file():
        raise Problem(f"{words} is not an ordinary file")
    if not path.stat().st_size:
        raise Problem(f"{words} is an empty file")
    if not os.access(path, os.R_OK):
        raise Problem(f"{words} can't be read; you lack the permission")
    return path


def check_filled(values: dict[str, str], needed: Iterable[str]) -> None:
    """Raises Problem where the row is wrong as a whole, or a needed value is absent."""
    if problem := getattr(values, "problem", ""):
        raise Problem(problem)
    if lacking := [name for name in needed if not values.get(name)]:
        raise Problem(f"{lacking[0]} is empty")


def _composed(name: str) -> str:
    """Returns a name whose accents are one character with their letter."""
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    """Returns a name in lower case."""
    return _composed(name).casefold()


def _spelled(root: pathlib.Path, reading: str, form: Form) -> pathlib.Path | None:
    """Returns the path in `root` that equals `reading` after `form`; None unless it is unique."""
    here = root
    for part in pathlib.PurePosixPath(reading).parts:
        if part in ("/", "..") or not here.is_dir():
            return None
        if not (here / part).exists():
            alike = _names(here, here.stat().st_mtime_ns, form).get(form(part), [])
            if len(alike) != 1:
                return None
            part = alike[0]
        here = here / part
    return here


@functools.lru_cache(maxsize=64)
def _names(folder: pathlib.Path, changed: int, form: Form) -> dict[str, list[str]]:
    """Returns the names in a folder by their form. Its time `changed` is in the cache's key."""
    del changed
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(form(name), []).append(name)
    return names
