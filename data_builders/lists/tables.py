"""Lists that users write: their rows, and a sentence for every value that can't be meant."""

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

VIEWS = ("frontal", "lateral")
SEXES = {
    "f": "female",
    "female": "female",
    "m": "male",
    "male": "male",
    "w": "female",
    "woman": "female",
    "man": "male",
}
SPLITS = ("train", "validation", "test")
SHOWN = 50  # problems told at once
_FRONTAL = "frontal front pa ap posteroanterior anteroposterior posterioranterior anteriorposterior"
_LATERAL = (
    "lateral lat side profile ll rl llat rlat leftlateral rightlateral lateralleft lateralright"
)
# What one word means: letters and digits of a value.
OTHER_WORDS = {
    **dict.fromkeys(_FRONTAL.split(), "frontal"),
    **dict.fromkeys(_LATERAL.split(), "lateral"),
    "training": "train",
    "val": "validation",
    "testing": "test",
}
_ABSENT = ("na", "n/a", "nan", "null", "none", "<na>", "#n/a", "#nv", "-", "?")
_FORMULA_ERROR = re.compile(r"#[¡¿]?[^\W\d_]+(?:/0)?[!?]", re.IGNORECASE)
_ROUNDED = re.compile(
    r"\d[.,]\d+[eE]\+?\d+|\d[eE]\+\d+"
)  # what a spreadsheet makes of a long number
_UNSEEN = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2069\ufeff"
_SIGNS = str.maketrans("\u2212\u2013\uff0d\ufe63\uff0b\uff0c\uff0e\u066b", "----+,..")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)")
_TINY = re.compile(r"[+-]?[0-9](?:\.[0-9]+)?[eE]-[0-9]{1,3}")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}[.,][0-9]{3}")  # or three decimals

Form = Callable[[str], str]  # of names that are compared


class Problem(ValueError):
    """Why a row can't be meant; the message needs the row's number before it."""


class Values(dict[str, str]):
    """A row's values by column.

    Attributes:
      problem: why the row as a whole can't be meant; `check_filled` raises it.
      decimals: signs that stand before decimals where three digits follow; see `number_of`.
    """

    problem: str = ""
    decimals: str = "."


def read_table(
    path: pathlib.Path, needed: Sequence[str], optional: Sequence[str] = ()
) -> tuple[list[str], Iterator[tuple[int, Values]]]:
    """Returns the names of the columns, and `(row number, values by column)`; the header is row 1.

    Rows are counted as a spreadsheet shows them. Columns under another spelling come under their
    name in `needed` or `optional`, which a remark tells. A row that can't be meant has a `problem`.

    Raises InputError where the file as a whole is unusable: missing, empty, without a needed
    column, not UTF-8.
    """
    sheet = read_sheet(path, lambda names: columns.fit(names, needed, optional))
    try:
        places = columns.names_meant(sheet.names, needed, optional)
    except InputError as error:
        raise InputError(f"{path.name} {error}") from None
    if missing := [name for name in needed if name not in places]:
        near = columns.nearest(
            missing[0], [name for i, name in enumerate(sheet.names) if i not in places.values()]
        )
        near = f" (is it {near!r}?)" if near else ""
        raise InputError(
            f"{path.name} lacks the column {missing[0]!r}{near}; it needs {', '.join(needed)}"
        )
    names = [name.strip().lower() for name in sheet.names]
    forgiven = [f"{names[i]!r} as {name}" for name, i in places.items() if names[i] != name]
    for remark in [
        *sheet.remarks,
        *([f"{path.name}: read {', '.join(forgiven)}"] if forgiven else []),
    ]:
        _say(path, remark)
    for name, place in places.items():
        names[place] = name
    if twice := [name for name in names if names.count(name) > 1 and name]:
        raise InputError(f"{path.name} has two columns {twice[0]!r}; keep one")
    return names, _rows(sheet, names, places)


def _rows(
    sheet: Sheet, names: list[str], places: Mapping[str, int]
) -> Iterator[tuple[int, Values]]:
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
            values.problem = f"{words} is an error of a formula; mend it in the spreadsheet"
        elif _ROUNDED.fullmatch(subject):
            words = f"subject={subject!r} is what a spreadsheet makes of a long number"
            values.problem = f"{words}; store it as text"
        yield line.number, values


def _decimals(values: Iterable[str], separator: str) -> str:
    """Returns the signs that stand before decimals: those that do so where it is certain."""
    shapes = {
        re.sub(r"[^.,]", "", value)
        for value in values
        if re.fullmatch(r"\s*[+-]?\d+[.,](\d{1,2}|\d{4,})\s*", value)
    }
    points = "." in shapes or "," not in shapes
    commas = "." not in shapes and ("," in shapes or separator == ";")
    return "." * points + "," * commas


def _cleaned(value: str) -> str:
    """Returns a value without spaces and unseen signs around it; empty where it stands for none."""
    value = value.strip().strip(_UNSEEN).strip()
    return "" if value.lower() in _ABSENT else value


@functools.cache
def _say(path: pathlib.Path, remark: str) -> None:
    """Prints a remark on a list, once."""
    del path
    print(remark, file=sys.stderr)


def tell(problems: list[tuple[int, str]], name: str) -> str:
    """All problems, a line each, as many as anybody reads."""
    lines = [f"{name}, row {number}: {words}" for number, words in sorted(problems)[:SHOWN]]
    more = len(problems) - len(lines)
    rows = len({number for number, _ in problems})
    head = f"{rows} row{'s' if rows > 1 else ''} of {name} can't be used:"
    return "\n".join([head, *lines, *([f"... and {more} more"] if more else [])])


def stop_or_skip(
    problems: list[tuple[int, str]], name: str, on_bad_row: str, field: str
) -> list[tuple[int, str]]:
    """Prints and returns the problems.

    Raises InputError with all of them where `on_bad_row`, the setting `field`, is 'stop'.
    """
    if problems:
        words = tell(problems, name)
        if on_bad_row == "stop":
            raise InputError(f"{words}\nmend them, or leave them out with --config.{field}=skip")
        print(words.replace("can't be used", "are left out"), file=sys.stderr)
    return problems


def one_of(values: dict[str, str], name: str, known: Iterable[str]) -> str:
    """Returns a word of `known`; other words for it count (`PA`, `training`). Raises Problem."""
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
            f"{name}={text!r} is in thousands or has three decimals; write it without the {sign!r}, or with a fourth decimal"
        )
    value = float(digits.replace(",", "."))
    if not low <= value <= high:
        raise Problem(f"{name}={text} is outside {low:g} to {high:g} {unit}")
    return value


def path_of(values: dict[str, str], name: str, root: pathlib.Path) -> pathlib.Path:
    """Returns what there is of that name within `root`: a file or a folder.

    A path counts as it is written; else without quotes around it, with Windows' backslashes as
    slashes, and with its accents in the other of Unicode's two forms. Raises Problem.
    """
    words = f"{name}={values[name]!r}"
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", values[name]):
        raise Problem(f"{words} is an address; write the path of a file")
    bare = values[name].strip("\"'\u201c\u201d\u201e\u2018\u2019 ")
    readings = dict.fromkeys((values[name], bare, bare.replace("\\", "/")))
    try:
        path = next((root / reading for reading in readings if (root / reading).exists()), None)
        path = path or _spelled(root, bare.replace("\\", "/"), _composed) or root / values[name]
        path = path.resolve()
        if not path.is_relative_to(root):
            raise Problem(f"{words} lies outside the data's folder")
        if path.exists():
            return path
        near = _spelled(root, bare.replace("\\", "/"), _folded)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, Problem):
            raise
        if isinstance(error, PermissionError):
            raise Problem(f"{words} can't be reached; you have no right to read it") from None
        raise Problem(f"{words} is no path") from None
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
        raise Problem(f"{words} is no ordinary file")
    if not path.stat().st_size:
        raise Problem(f"{words} is an empty file")
    if not os.access(path, os.R_OK):
        raise Problem(f"{words} can't be read; you have no right to")
    return path


def check_filled(values: dict[str, str], needed: Iterable[str]) -> None:
    """Raises Problem where the row can't be meant, or a needed value is absent."""
    if problem := getattr(values, "problem", ""):
        raise Problem(problem)
    if lacking := [name for name in needed if not values.get(name)]:
        raise Problem(f"{lacking[0]} is empty")


def _composed(name: str) -> str:
    """Returns a name with accents as one character with their letter."""
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    """Returns a name without its capitals."""
    return _composed(name).casefold()


def _spelled(root: pathlib.Path, reading: str, form: Form) -> pathlib.Path | None:
    """Returns the one path within `root` that is like `reading` in some form of its names."""
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
    """Returns the names in a folder by their form; `changed` is its time."""
    del changed
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(form(name), []).append(name)
    return names
