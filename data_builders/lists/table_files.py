"""Reads the rows of a user's table as text, from CSV, Excel or Parquet; the content decides which.

Rows are counted as a spreadsheet shows them: blank rows count, a line break within quotes does not
start a row, and the line `sep=;` is not a row.
"""

import codecs
import csv
import datetime
import decimal
import io
import pathlib
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from xml.etree import ElementTree

from data_builders.errors import InputError

SEPARATORS = ",;\t|"
MAX_BYTES = 200_000_000  # of a list, and of what an Excel file unpacks to
MAX_ROWS = 1_100_000  # a spreadsheet has 1,048,576
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_EXCEL_ENDINGS = (".xlsx", ".xlsm", ".xltx", ".xltm")
_OTHER_FORMS = (
    (b"\xd0\xcf\x11\xe0", "an old Excel file (.xls) or one with a password"),
    (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "a compressed file"),
    (b"<", "a web page or XML"),
    (b"{\\rtf", "a text document"),
)
_SAVE = "save it as .xlsx or as CSV in UTF-8"
_UNCLOSED = (
    "a quote opens here and is not closed in its row; close it, or double the quotes within a value"
)


class Fit(NamedTuple):
    """How well a header fits: whether it has all needed columns, and its number of known ones."""

    complete: bool
    known: int


Fitness = Callable[[list[str]], Fit]  # rates a header, to choose the separator or the sheet


class Line(NamedTuple):
    """A row of the file: its number, its values, and what is wrong with it, if anything."""

    number: int
    values: list[str]
    problem: str = ""


class Sheet(NamedTuple):
    """The content of a table.

    Attributes:
      names: of the columns, as they are written.
      lines: the rows below the header, without blank ones.
      separator: of a CSV file, else empty.
      remarks: oddities that the user should know about.
    """

    names: list[str]
    lines: list[Line]
    separator: str = ""
    remarks: tuple[str, ...] = ()


def read_sheet(path: pathlib.Path, fit: Fitness) -> Sheet:
    """Returns the rows of a list. `fit` chooses the separator and the sheet.

    Raises InputError where the file as a whole can't be read.
    """
    content = _content(path)
    ending = path.suffix.lower()
    if content.startswith(b"PAR1"):
        return _parquet(content, path.name)
    if content.startswith(b"PK\x03\x04"):
        return _excel(content, path.name, fit)
    if ending in (".parquet", *_EXCEL_ENDINGS):
        kind = "Parquet" if ending == ".parquet" else "Excel"
        raise InputError(f"{path.name}: not a readable {kind} file; if it is text, name it .csv")
    return _csv(decoded(content, path.name), path.name, fit)


def read_text(path: pathlib.Path) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 with its mark. Raises InputError."""
    return decoded(_content(path), path.name)


def text_lines(text: str) -> list[str]:
    """Returns lines with their ends, which are `\\n`, `\\r` or `\\r\\n` and nothing else."""
    return list(io.StringIO(text, newline=""))


def decoded(content: bytes, name: str) -> str:
    """Returns text without its byte order mark. Raises InputError that names a row without text."""
    for start, words in _OTHER_FORMS:
        if content[:64].lstrip().startswith(start):
            raise InputError(f"{name} is {words}; {_SAVE}")
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    errors = "surrogateescape" if encoding == "utf-8" else "strict"
    try:
        text = content.decode(encoding, errors).removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise InputError(f"{name} starts like {encoding.upper()} but is not; {_SAVE}") from None
    if wrong := re.search("[\udc80-\udcff]", text):
        row = _row_at(text, wrong.start())
        raise InputError(
            f"{name}, row {row}: not UTF-8; save the file as UTF-8 (Excel's 'CSV UTF-8')"
        )
    if "\0" in text:
        raise InputError(
            f"{name}, row {_row_at(text, text.index(chr(0)))}: holds NUL bytes; {_SAVE}"
        )
    return text


def _content(path: pathlib.Path) -> bytes:
    """Returns the bytes of a list. Raises InputError where it can't be read or is too large."""
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name the list in it")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path.name} is larger than {MAX_BYTES / 1e6:.0f} MB, the limit")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or 'not readable'}") from None


def _row_at(text: str, position: int) -> int:
    """Returns the number of the row that holds a character."""
    try:
        return max(1, sum(1 for _ in csv.reader(text_lines(text[: position + 1]))))
    except csv.Error:
        return len(text_lines(text[: position + 1]))


class _Lines:
    """Lines that can be read again from an earlier one, at `at`."""

    def __init__(self, lines: list[str]):
        self.lines = lines
        self.at = 0

    def __iter__(self):
        return self

    def __next__(self) -> str:
        if self.at >= len(self.lines):
            raise StopIteration
        self.at += 1
        return self.lines[self.at - 1]


def _csv(text: str, name: str, fit: Fitness) -> Sheet:
    """Returns the rows of a CSV file. Raises InputError where its header is wrong."""
    # Choose the separator.
    stated = re.match(r'"?sep=([,;\t|])"?[,;\t|]*(?:\r\n|\r|\n|$)', text, re.IGNORECASE)
    lines = text_lines(text[stated.end() :] if stated else text)
    if stated:
        separator = stated[1]
    else:
        separator = max(SEPARATORS, key=lambda sign: fit(_header(lines, sign).values))
    # Read the rows.
    header = _header(lines, separator)
    if not header.values:
        raise InputError(f"{name} is empty; its first row names the columns")
    if header.problem:
        raise InputError(f"{name}, row {header.number}: {header.problem}")
    below = [line for line in _rows(lines, separator, header) if line.number > header.number]
    return Sheet(header.values, below, separator)


def _header(lines: list[str], separator: str) -> Line:
    """Returns the first row that is not blank."""
    return next(_rows(lines, separator), Line(1, []))


def _rows(lines: list[str], separator: str, header: Line | None = None) -> Iterator[Line]:
    """Yields the rows that are not blank.

    A row that is wrong ends with its line, so that a stray quote does not swallow other rows.
    """
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=separator, strict=True, skipinitialspace=True)
    number = 0
    while (start := source.at) < len(lines):
        number += 1
        try:
            values = next(reader)
            problem = _row_problem(values, separator, header.values) if header else ""
            swallowed = header is not None and _holds_rows(values, separator, len(header.values))
        except csv.Error as error:
            values = ["?"]
            problem = f"text follows a closing quote ({error}); double the quotes within a value"
            swallowed = source.at - start > 1 or "unexpected end" in str(error)
        if swallowed:
            problem = _UNCLOSED
        if problem:
            source.at = start + 1
        if problem or any(value.strip() for value in values):
            yield Line(number, values, problem)


def _row_problem(values: list[str], separator: str, names: list[str]) -> str:
    """Returns what is wrong with a row that is longer than its header; empty for other rows."""
    width = len(names)
    while width and not names[width - 1].strip():
        width -= 1
    if len(values) <= len(names) and not any(value.strip() for value in values[width:]):
        return ""
    comma = " (or write decimal points: 21.9)" if separator == "," else ""
    return (
        f"holds {len(values)} values and the header {width} names; "
        f"put values that hold a {separator!r} in quotes{comma}"
    )


def _holds_rows(values: list[str], separator: str, width: int) -> bool:
    """Returns True if a quoted value spans lines that look like rows.

    Such lines have as many separators as a row, without a space after them.
    """
    within = (
        line
        for value in values
        if "\n" in value or "\r" in value
        for line in re.split(r"[\r\n]+", value)[1:]
    )
    return width > 1 and any(
        len(re.findall(re.escape(separator) + r"(?! )", line)) >= width - 1 for line in within
    )


def _excel(content: bytes, name: str, fit: Fitness) -> Sheet:
    """Returns the rows of an Excel file. Raises InputError where it can't be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_archive(archive, name)
            return _workbook(archive, content, name, fit)
    except InputError:
        raise
    except Exception as error:  # openpyxl raises many kinds for a damaged file
        words = f"a damaged Excel file ({type(error).__name__})"
        raise InputError(f"{name} is {words}; open it in a spreadsheet and save it again") from None


def _check_archive(archive: zipfile.ZipFile, name: str) -> None:
    """Raises InputError where a zip file is not an Excel file, or is too large when unpacked."""
    inside = archive.namelist()
    if "xl/workbook.xml" not in inside:
        forms = (
            ("mimetype", "an OpenDocument file"),
            ("Index/", "a Numbers file"),
            ("xl/workbook.bin", "an .xlsb file"),
        )
        kinds = [
            words for start, words in forms if any(entry.startswith(start) for entry in inside)
        ]
        raise InputError(f"{name} is {kinds[0] if kinds else 'a zip file'}; {_SAVE}")
    sizes = [
        entry.file_size
        for entry in archive.infolist()
        if entry.filename.endswith((".xml", ".rels"))
    ]
    if sum(sizes) > MAX_BYTES:
        raise InputError(f"{name} unpacks to more than {MAX_BYTES / 1e6:.0f} MB, the limit")


def _workbook(archive: zipfile.ZipFile, content: bytes, name: str, fit: Fitness) -> Sheet:
    """Returns the rows of the sheet that fits. Raises InputError where that is not clear."""
    import openpyxl

    book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    # Choose the sheet.
    rows = {
        sheet.title: list(_cells(sheet))
        for sheet in book.worksheets
        if sheet.sheet_state == "visible"
    }
    rows = {title: cells for title, cells in rows.items() if cells}
    if not rows:
        raise InputError(f"{name} is empty; its first row names the columns")
    fits: dict[str, Fit] = {
        title: fit([_text(value) for value in cells[0][1]]) for title, cells in rows.items()
    }
    complete = [title for title in rows if fits[title].complete]
    if len(complete) > 1:
        raise InputError(
            f"{name}: {len(complete)} of its {len(rows)} sheets have the needed columns; keep one"
        )
    title = max(rows, key=lambda title: fits[title])
    # Read it.
    (_, header), *below = rows[title]
    names = [_text(value) for value in header]
    hidden, formulas = _oddities(archive.read(book[title]._worksheet_path.lstrip("/")))
    lines = []
    for number, cells in below:
        lost = [
            names[i] for i in formulas.get(number, ()) if i < len(names) and fit([names[i]]).known
        ]
        problem = ""
        if lost:
            words = "is a formula without a result; open the list in a spreadsheet and save it"
            problem = f"{lost[0]} {words}"
        lines.append(Line(number, [_text(value) for value in cells[: len(names)]], problem))
    remarks = (f"{name}: {hidden} hidden rows count like the others",) if hidden else ()
    return Sheet(names, lines, remarks=remarks)


def _cells(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yields the rows of a sheet that hold anything, with their numbers."""
    sheet.reset_dimensions()  # the stated ones may be wrong
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        if any(value is not None and str(value).strip() for value in values):
            # Beyond 15 digits a spreadsheet rounds.
            yield number, [float(v) if type(v) is int and abs(v) >= 1e15 else v for v in values]


def _oddities(source: bytes) -> tuple[int, dict[int, list[int]]]:
    """Returns how many rows are hidden, and by row the columns of formulas without a result."""
    from openpyxl.utils.cell import coordinate_to_tuple

    hidden = 0
    formulas: dict[int, list[int]] = {}
    for _, element in ElementTree.iterparse(io.BytesIO(source)):
        tag = element.tag.rpartition("}")[2]
        if tag == "row":
            hidden += element.get("hidden") in ("1", "true")
            element.clear()
        elif tag == "c" and element.get("t") != "str":  # an empty text is a result
            parts = {part.tag.rpartition("}")[2]: part.text for part in element}
            if "f" in parts and not parts.get("v") and element.get("r"):
                row, column = coordinate_to_tuple(element.get("r"))
                formulas.setdefault(row, []).append(column - 1)
    return hidden, formulas


def _parquet(content: bytes, name: str) -> Sheet:
    """Returns the rows of a Parquet file. Raises InputError where it can't be read."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise InputError(
            f"{name} is a Parquet file: install pyarrow to read it, or save it as CSV"
        ) from None
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
        if file.metadata.num_rows > MAX_ROWS:
            raise InputError(f"{name} has more than {MAX_ROWS} rows, the limit")
        table = file.read()
        nested = [field.name for field in table.schema if pyarrow.types.is_nested(field.type)]
        columns = [
            [None] * table.num_rows if n in nested else table[n].to_pylist()
            for n in table.column_names
        ]
        names = [f"{n} (nested)" if n in nested else n for n in table.column_names]
    except InputError:
        raise
    except Exception as error:  # pyarrow raises many kinds for a damaged file
        raise InputError(f"{name}: not a readable Parquet file ({type(error).__name__})") from None
    rows = enumerate(zip(*columns, strict=True), 2)
    return Sheet(
        names, [Line(number, [_text(value) for value in values]) for number, values in rows]
    )


def _text(value: Any) -> str:
    """Returns a cell's value as CSV would hold it."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value)) if abs(value) < 1e15 else f"{value:.14E}"
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value).replace("_x000D_", "\r")
