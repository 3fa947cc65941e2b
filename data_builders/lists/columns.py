"""The names of a list's columns, in other spellings too where they are unambiguous."""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence

from data_builders.errors import InputError
from data_builders.lists.table_files import Fit

# Other names, without spaces and signs. An age may be in years only.
_SYNONYMS = {
    "subject": (
        "subjectid subjectno subjectnumber patient patientid patientno patientnumber person "
        "personid participant participantid"
    ),
    "xray": (
        "xraypath xrayfile xrayfilename xrayimage radiograph radiographpath radiographfile "
        "radiographimage"
    ),
    "xray_view": "radiographview xrayprojection radiographprojection",
    "face": (
        "facepath facefile facefilename faceimage facephoto photo photopath photofile photograph "
        "photographpath portrait"
    ),
    "face_view": "photoview photographview portraitview",
    "age": "ageyears ageinyears ageyrs patientage",
    "sex": "gender patientsex",
    "bmi": "bodymassindex bmikgm2",
    "volume": "volumepath volumefile ct ctpath ctfile ctvolume",
}
_UNITS = re.compile(r"[(\[]\s*(?:years?|yrs?|y|in years|kg/m\^?2|px|pixels?|f/m|m/f)\s*[)\]]")


def names_meant(
    names: list[str], needed: Sequence[str], optional: Iterable[str] = ()
) -> dict[str, int]:
    """Returns the index of each known column in the names.

    An exact name counts before other spellings of it. Raises InputError where two columns read as
    the same.
    """
    plain = [name.strip().lower() for name in names]
    keys = [_key(name) for name in names]
    places = {}
    for column in (*needed, *optional):
        spelled = [i for i, key in enumerate(keys) if key == _key(column)]
        others = [i for i, key in enumerate(keys) if key in _SYNONYMS.get(column, "").split()]
        matches = spelled or others
        if len(matches) > 1:
            first, second = (names[i].strip() for i in matches[:2])
            raise InputError(_twice(first, second, column))
        if matches:
            places[column] = matches[0]
    lacking = [column for column in needed if column.endswith("_view") and column not in places]
    if len(lacking) == 1 and plain.count("view") == 1:
        places[lacking[0]] = plain.index("view")
    return places


def fit(names: list[str], needed: Sequence[str], optional: Iterable[str] = ()) -> Fit:
    """Returns how many columns are known, and whether all that are needed are."""
    try:
        places = names_meant(names, needed, optional)
    except InputError:
        return Fit(True, len(names))  # the error is raised when the rows are read
    return Fit(all(column in places for column in needed), len(places))


def nearest(column: str, names: list[str]) -> str:
    """Returns the name that looks most like a column's; empty if none does."""
    plain = [name.strip().lower() for name in names if name.strip()]
    within = [name for name in plain if column in name or (name in column and len(name) > 2)]
    return (difflib.get_close_matches(column, plain, 1, 0.6) or within or [""])[0]


def _twice(first: str, second: str, column: str) -> str:
    """Returns the message for two columns that read as the same."""
    if first == second:
        return f"has two columns {column!r}; keep one"
    return f"has the columns {first!r} and {second!r}, which both read as {column!r}; keep one"


def _key(name: str) -> str:
    """Returns a name without its unit, capitals, spaces and signs."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return re.sub(r"[\W_]+", "", _UNITS.sub("", text))
