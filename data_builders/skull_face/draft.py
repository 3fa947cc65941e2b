"""Drafts a manifest: `python -m data_builders.skull_face.draft FOLDER > FOLDER/people.csv`.

A second argument names YuNet's .onnx file, which is otherwise fetched from the hub.

Grey pictures and DICOM files are X-rays, colour pictures are photographs. A subfolder is a subject,
unless the patients' IDs in DICOM headers say otherwise. Without either, the subject is a file's
name up to its first _ or -. Views, ages and sexes come from headers and words in the names
(`front-25y`). Where these say nothing about a photograph's view, the face that YuNet finds in it
does. Unknown values stay empty, to be filled in by hand. Files that are left out are named on
stderr.
"""

import csv
import io
import pathlib
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator

from data_builders.errors import InputError, UnreadableError
from data_builders.images.faces import HUB_ID, check_detector, detector_file, find_faces
from data_builders.images.photograph import read_photograph
from data_builders.skull_face.manifest import NEEDED
from data_builders.skull_face.people import agreed, name_people
from data_builders.skull_face.survey import Notes, Picture, survey

# Photographs are read at about this size, in pixels of the longer side, to find their view.
_LOOKED_AT = 1600


def draft(folder: pathlib.Path, detector: str = HUB_ID) -> list[dict[str, str]]:
    """Returns rows of a manifest: each X-ray with each photograph of its subject and view.

    Files that are left out or need a look are named on stderr.

    Args:
      folder: of the pictures.
      detector: YuNet's .onnx file, or its hub id.

    Raises:
      InputError: the detector is a file that can't be used.
    """
    notes = Notes()
    pictures = survey(folder, notes)
    unknown = [picture for picture in pictures if picture.kind == "face" and not picture.view]
    if unknown:
        _guess_views(folder, unknown, detector, notes)
    name_people(pictures, notes)
    people: dict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        people[picture.subject].append(picture)
    rows = [row for subject, files in people.items() for row in _rows(subject, files, notes)]
    for line in notes.lines():
        print(line, file=sys.stderr)
    return rows


def _guess_views(
    folder: pathlib.Path, photographs: list[Picture], detector: str, notes: Notes
) -> None:
    """Sets the views of photographs that show one face, where that face has a clear view."""
    names = [str(picture.path) for picture in photographs]
    try:
        file = detector_file(detector, "DETECTOR")
        check_detector(file, "DETECTOR")
    except InputError as error:
        if detector != HUB_ID:
            raise
        notes.remarks[f"photographs of unknown view, since there is no detector ({error})"] += names
        return
    for picture, name in zip(photographs, names, strict=True):
        try:
            pixels, _ = read_photograph(folder / picture.path, _LOOKED_AT)
        except UnreadableError as error:
            notes.remarks[f"photographs that can't be used: {error}"].append(name)
            continue
        faces = find_faces(pixels, file)
        if len(faces) != 1:
            found = f"{len(faces)} faces were" if faces else "no face was"
            notes.remarks[f"photographs in which {found} found"].append(name)
            continue
        picture.view = faces[0].view
        if picture.view:
            words = "photographs whose view is that of the face found in them; check it"
        else:
            words = "photographs of a face that is turned halfway; their view is empty"
        notes.remarks[words].append(name)


def _rows(subject: str, files: list[Picture], notes: Notes) -> Iterator[dict[str, str]]:
    """Yields the rows of a subject. Files of unknown subjects are not paired."""
    # Pair the files.
    xrays = [picture for picture in files if picture.kind == "xray"]
    faces = [picture for picture in files if picture.kind == "face"]
    sex = agreed(picture.sex for picture in xrays)
    pairs: list[tuple[Picture | None, Picture | None]]
    if subject and xrays and faces:
        pairs = [
            (xray, face)
            for xray in xrays
            for face in faces
            if not xray.view or not face.view or xray.view == face.view
        ]
    else:
        pairs = [(xray, None) for xray in xrays]
        pairs += [(None, face) for face in faces]
    paired = {id(picture) for pair in pairs for picture in pair if picture}
    notes.left_out["pictures without a partner of the same view"] += [
        str(p.path) for p in files if id(p) not in paired
    ]
    # Fill the rows.
    for xray, face in pairs:
        row = dict.fromkeys(NEEDED, "")
        row["subject"] = subject
        row["sex"] = sex if subject else ""
        if xray:
            row |= {"xray": str(xray.path), "xray_view": xray.view, "age": xray.age}
            row["sex"] = sex if subject else xray.sex
        if face:
            ages = [other.age for other, partner in pairs if other and partner is face]
            age = face.age or agreed(ages)
            row |= {"face": str(face.path), "face_view": face.view, "age": age}
        yield row


def main(folder: str, detector: str = HUB_ID) -> None:
    """Prints the rows as CSV, and what is missing in them."""
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{folder} is not a folder")
    rows = draft(root, detector)
    if not rows:
        raise InputError(f"{folder} holds no picture that can be listed")
    text = io.StringIO()
    writer = csv.DictWriter(text, NEEDED, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    sys.stdout.write(text.getvalue())
    empty = Counter(name for row in rows for name, value in row.items() if not value)
    lacking = ", ".join(f"{name} in {count}" for name, count in empty.items())
    subjects = len({row["subject"] for row in rows} - {""})
    print(
        f"{len(rows)} rows of {subjects} subjects; to be filled in: {lacking or 'nothing'}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    # Lists are read as UTF-8, whatever the system's encoding.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        main(*sys.argv[1:])
    except (InputError, TypeError) as error:
        usage = "name a folder, and the detector's file if you have one"
        sys.exit(f"draft: {error if isinstance(error, InputError) else usage}")
