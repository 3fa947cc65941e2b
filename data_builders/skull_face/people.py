"""Assigns pictures to people: by patient IDs, by folders, by the first part of names."""

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from data_builders.skull_face.survey import Notes, Picture, is_generic

Key = TypeVar("Key", bound=Hashable)

# IDs that stand for no patient.
_NOBODY = re.compile(
    r"|0+|x+|\W+|anon\w*|de-?id\w*|unknown|none|null|nil|na|n/a|no ?(id|name|pid)"
    r"|test|patient|patientid|id|pid|default|temp|dummy"
)
# Names that cameras and programs give their files.
_COUNTED = re.compile(
    r"(?:img|im|image|dsc|dscn|dscf|pict|pic|pxl|scan|unnamed|untitled|screenshot"
    r"|whatsapp image.*)?\W?\d*|[\d.]{20,}"
)


def name_people(pictures: list[Picture], notes: Notes) -> None:
    """Sets the subject of each picture. Where it is unknown it stays empty, with a note.

    A folder is a subject, unless the patients' IDs in it say otherwise. Then the IDs count, and
    photographs belong to the only patient with X-rays in the same folder. An ID is ignored
    if it stands for no patient (`ANON`), or for people of different sex or date of birth.
    """
    # Name people folder by folder.
    _drop_shared(pictures, notes)
    homes = _grouped(pictures, _home)
    for home, members in homes.items():
        ids = {p.patient for p in members if p.patient}
        if not home:
            _name_loose(members)
        elif len(ids) > 1 and not _one_person(members):
            _name_apart(members)
        elif not ids and _contradict(members):
            _name_by_parts(home, members, notes)
        else:
            if len(ids) > 1:
                notes.remarks[
                    "folders with several patient IDs, treated as one subject by the date of birth"
                ].append(home)
            for picture in members:
                picture.subject = home
    _join(homes)
    # Note what is unknown or contradictory.
    unknown = [str(p.path) for p in pictures if not p.subject]
    if unknown:
        notes.remarks["files that may be of several people; fill in whose they are"] += unknown
    for members in _grouped((p for p in pictures if p.subject), _subject).values():
        if _contradict(members):
            words = "X-rays of one subject of different sex or date of birth; check whose they are"
            notes.remarks[words] += [str(p.path) for p in members if p.sex or p.birth]


def agreed(values: Iterable[str]) -> str:
    """Returns the only value that is not empty; an empty one if there are several or none."""
    known = {value for value in values if value}
    return known.pop() if len(known) == 1 else ""


def _drop_shared(pictures: list[Picture], notes: Notes) -> None:
    """Clears IDs that don't tell people apart."""
    # IDs that stand for no patient.
    dropped = []
    for picture in pictures:
        picture.patient = picture.patient.strip()
        if _NOBODY.fullmatch(picture.patient.casefold()):
            dropped += [picture] if picture.patient else []
            picture.patient = ""
    # IDs that stand for several.
    by_id = _grouped((p for p in pictures if p.patient), _patient)
    for members in by_id.values():
        # A single ID on all files says nothing, unless the dates of birth confirm it.
        unconfirmed = len(by_id) == 1 and not _born_alike(members) and _several(members, pictures)
        if _contradict(members) or unconfirmed:
            dropped += members
            for picture in members:
                picture.patient = ""
    if dropped:
        words = "X-rays with an ID that is no patient's or is shared; it is ignored"
        notes.remarks[words] += [str(picture.path) for picture in dropped]
    # One spelling for each ID.
    spelled = {picture.patient.casefold(): picture.patient for picture in pictures}
    for picture in pictures:
        picture.patient = spelled[picture.patient.casefold()]


def _several(members: list[Picture], pictures: list[Picture]) -> bool:
    """Returns True if one ID covers folders or names of several subjects."""
    if len({_home(p) for p in members if _home(p)}) > 1:
        return True
    others = {
        p.token for p in pictures if not p.patient and not _home(p) and not _is_counted(p.token)
    }
    return len({p.token for p in members if not _home(p)} & others) > 1


def _home(picture: Picture) -> str:
    """Returns the folder that may be a subject's: the first whose name isn't generic."""
    return next((name for name in picture.folders if not is_generic(name)), "")


def _patient(picture: Picture) -> str:
    return picture.patient.casefold()


def _subject(picture: Picture) -> str:
    return picture.subject


def _folders(picture: Picture) -> tuple[str, ...]:
    return picture.folders


def _token(picture: Picture) -> str:
    return picture.token.casefold()


def _grouped(
    pictures: Iterable[Picture], key: Callable[[Picture], Key]
) -> dict[Key, list[Picture]]:
    """Returns the pictures by a key, in their order."""
    groups: dict[Key, list[Picture]] = defaultdict(list)
    for picture in pictures:
        groups[key(picture)].append(picture)
    return dict(groups)


def _is_counted(token: str) -> bool:
    """Returns True if the first part of a name comes from a camera or names a kind of picture."""
    return is_generic(token) or (not token.isdigit() and bool(_COUNTED.fullmatch(token.casefold())))


def _contradict(pictures: Iterable[Picture]) -> bool:
    """Returns True if these can't be one person's."""
    pictures = list(pictures)
    return any(
        len({value for p in pictures if (value := getattr(p, name))}) > 1
        for name in ("sex", "birth", "issuer")
    )


def _born_alike(pictures: Iterable[Picture]) -> bool:
    """Returns True if all have one date of birth, other than 1 January, a usual placeholder."""
    births = {p.birth for p in pictures}
    return len(births) == 1 and not births & {""} and not births.pop().endswith("0101")


def _one_person(members: list[Picture]) -> bool:
    """Returns True if several IDs in a folder are one person's, by sex and date of birth."""
    identified = [p for p in members if p.patient]
    differ = any(
        len({getattr(p, name) for p in identified if getattr(p, name)}) > 1
        for name in ("sex", "birth")
    )
    return _born_alike(identified) and not differ


def _name_loose(members: list[Picture]) -> None:
    """Names the people of files outside subjects' folders: by ID, else by the name's first part."""
    # Files with an ID.
    for picture in members:
        picture.subject = picture.patient
    ids = {_patient(p): p.patient for p in members if p.patient}
    tokens = {
        token: agreed(p.patient for p in group)
        for token, group in _grouped(members, _token).items()
    }
    # Other files: an informative name counts; else the only patient of the same folder.
    near = _grouped(members, _folders)
    strangers = {
        folders: any(not p.patient and not _is_counted(p.token) for p in group)
        for folders, group in near.items()
    }
    alone = {folders: agreed(p.patient for p in group) for folders, group in near.items()}
    for picture in members:
        if picture.patient:
            continue
        if _is_counted(picture.token):
            picture.subject = "" if strangers[picture.folders] else alone[picture.folders]
        else:
            token = _token(picture)
            picture.subject = ids.get(token) or tokens[token] or picture.token


def _name_apart(members: list[Picture]) -> None:
    """Names the people of a folder with several IDs.

    A file without an ID belongs to the only patient with files in the same folder.
    """
    # Find the patients by ID, by name and by folder.
    identified = [p for p in members if p.patient]
    ids = {_patient(p): p.patient for p in identified}
    tokens = {
        token: agreed(p.patient for p in group)
        for token, group in _grouped(identified, _token).items()
    }
    below: dict[tuple[str, ...], set[str]] = defaultdict(set)  # patients by folder
    for picture in identified:
        for depth in range(1, len(picture.folders) + 1):
            below[picture.folders[:depth]].add(picture.patient)
    # Name the files: by ID, by the nearest folder of a single patient, by name.
    for picture in members:
        picture.subject = picture.patient or ids.get(_token(picture), "")
        depths = range(len(picture.folders), 0, -1)
        nearest = next((d for d in depths if picture.folders[:d] in below), 0)
        if nearest and not picture.subject:
            picture.subject = agreed(below[picture.folders[:nearest]])
        if not picture.subject and not _is_counted(picture.token):
            picture.subject = tokens.get(_token(picture), "")


def _name_by_parts(home: str, members: list[Picture], notes: Notes) -> None:
    """Names the people of a folder without IDs: by the next folder, else by the names."""
    below = members[0].folders.index(home) + 1
    parts = _grouped(members, lambda p: p.folders[below] if len(p.folders) > below else "")
    if len(parts) < 2 or any(_contradict(group) for group in parts.values()):
        parts = _grouped(members, _token)
    notes.remarks[
        "folders of several people, told apart by the next folder or by the names; check them"
    ].append(home)
    for part, group in parts.items():
        clear = part and not _contradict(group) and not _is_counted(part)
        for picture in group:
            picture.subject = f"{home}/{part}" if clear else ""


def _join(homes: dict[str, list[Picture]]) -> None:
    """Gives a patient one name in all folders.

    It is the folder's name if that is the only folder and at the top, else the ID.
    """
    ids = {home: {p.patient for p in members if p.patient} for home, members in homes.items()}
    for home, members in homes.items():
        if not home or not all(p.subject == home for p in members) or len(ids[home]) != 1:
            continue
        (patient,) = ids[home]
        elsewhere = any(patient in others for other, others in ids.items() if other != home)
        if elsewhere or any(p.folders[0] != home for p in members):
            for picture in members:
                picture.subject = patient
