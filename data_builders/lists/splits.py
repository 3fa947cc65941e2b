"""Splits data into training and test sets, by whole subjects."""

import hashlib
import pathlib
import re
import unicodedata
from collections.abc import Iterable

from data_builders.errors import InputError
from data_builders.lists.table_files import read_text, text_lines


def by_seed(sexes: dict[str, str], test_fraction: float, seed: int) -> dict[str, str]:
    """Returns 'train' or 'test' for each subject, in the same proportion for each sex.

    The order of the subjects doesn't matter. Raises InputError where 'train' would be empty.

    Args:
      sexes: of each subject.
      test_fraction: share of the subjects that is held out; it is at least one subject.
      seed: of the draw.
    """

    def sort_key(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    ranks: list[tuple[float, str]] = []
    for sex in sorted(set(sexes.values())):
        members = sorted((name for name in sexes if sexes[name] == sex), key=sort_key)
        ranks += [((place + 0.5) / len(members), name) for place, name in enumerate(members)]
    held_out = max(1, round(len(sexes) * test_fraction))
    if not held_out < len(sexes):
        raise InputError(
            f"test_fraction={test_fraction:g} of {len(sexes)} subjects leaves nobody to train on"
        )
    return {
        name: "test" if place < held_out else "train"
        for place, (_, name) in enumerate(sorted(ranks))
    }


def by_list(subjects: Iterable[str], path: pathlib.Path) -> dict[str, str]:
    """Returns 'test' for the subjects that a text file names, one per line, 'train' for the others.

    The text is UTF-8, or UTF-16 with its mark. Quotes around a name and a heading `subject` are
    ignored. Raises InputError where the file can't be read, names a subject that is not in the
    data, or leaves one of the two sets empty.
    """
    try:
        lines = text_lines(read_text(path))
    except InputError as error:
        raise InputError(f"split: the list of test subjects can't be read: {error}") from None
    known = {_plain(name): name for name in subjects}
    held_out = set()
    for number, line in enumerate(lines, 1):
        name = _plain(line)
        if name not in known and name.startswith('"') and name.endswith('"'):
            name = _plain(name[1:-1].replace('""', '"'))
        if name in known:
            held_out.add(known[name])
        elif name and (number > 1 or name.lower() != "subject"):
            raise InputError(f"{path.name}, line {number}: no subject of that name is in the data")
    if not held_out or len(held_out) == len(known):
        raise InputError(
            f"{path.name} names {'everybody' if held_out else 'nobody'}; "
            "list the test subjects, one per line"
        )
    return {name: "test" if name in held_out else "train" for name in sorted(known.values())}


def _plain(name: str) -> str:
    """Returns a name as lists are read: one space between words, accents composed."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", name)).strip()
