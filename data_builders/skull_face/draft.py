"""A first manifest from a folder of files: `python -m data_builders.skull_face.draft FOLDER > FOLDER/people.csv`.

A subfolder is a subject; without subfolders the patient's ID in a DICOM header, or a file's name up to its first _ or -. Grey
pictures and DICOM files are X-rays, colour pictures photographs. Views, ages and sexes come from DICOM headers and words in the
names (`front-25y`). What nobody tells stays empty, to be filled in by hand.
"""

import csv
import os
import pathlib
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
from PIL import Image

from cranio_jax.errors import InputError
from data_builders.errors import UnreadableError
from data_builders.images.radiograph import is_dicom, opened
from data_builders.skull_face.manifest import NEEDED

_VIEWS = {"frontal": "frontal front pa ap sf", "lateral": "lateral lat side profile ll rl ss"}
_VIEW_OF = {word: view for view, words in _VIEWS.items() for word in words.split()}
# "25y", "25-years" or "age_25" tell an age; a number alone may count the pictures.
_AGED = re.compile(r"(?<![a-z0-9])(?:aged?[^a-z0-9]?(\d{1,3})(?!\d)|(\d{1,3})[^a-z0-9]?(?:y|yo|yrs?|years?)(?![a-z0-9]))")


def draft(folder: pathlib.Path) -> list[dict[str, str]]:
    """Rows of a manifest: each subject's X-rays with each of their photographs of the same view."""
    people: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: {"xray": [], "face": []})
    for path in _files(folder):
        try:
            inside = path.relative_to(folder)
            named, _, rest = path.stem.replace("_", "-").partition("-")
            kind, told = _look_at(path, path.stem if len(inside.parts) > 1 else rest)
        except UnreadableError:
            continue
        subject = inside.parts[0] if len(inside.parts) > 1 else told.pop("id", "") or named
        people[subject][kind].append(told | {"path": inside.as_posix()})
    rows = []
    for subject, files in people.items():
        sex = next((f["sex"] for f in files["xray"] if f.get("sex")), "")
        for xray in files["xray"] or [{}]:
            for face in files["face"] or [{}]:
                views = xray.get("view", ""), face.get("view", "")
                if not all(views) or views[0] == views[1]:
                    age = face.get("age") or xray.get("age", "")
                    values = (subject, xray.get("path", ""), views[0], face.get("path", ""), views[1], age, sex)
                    rows.append(dict(zip(NEEDED, values, strict=True)))
    return rows


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (pathlib.Path(where) / name for name in sorted(names) if not name.startswith("."))


def _look_at(path: pathlib.Path, name: str) -> tuple[str, dict[str, str]]:
    """'xray' or 'face', and what its header and `name` tell. Raises UnreadableError where it is no picture."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    told = {"view": next((_VIEW_OF[word] for word in words if word in _VIEW_OF), "")}
    aged = _AGED.search(name.lower())
    told["age"] = str(int(aged[1] or aged[2])) if aged else ""
    if is_dicom(path):
        import pydicom

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        text = lambda name: str(header.get(name) or "").strip()
        years = re.fullmatch(r"0*(\d+)Y", text("PatientAge"))
        told["view"] = _VIEW_OF.get(text("ViewPosition").lower(), told["view"])
        told["age"] = years[1] if years else told["age"]
        return "xray", told | {"sex": text("PatientSex").lower() if text("PatientSex") in ("F", "M") else "", "id": text("PatientID")}
    with opened(path) as file:
        file.draft("RGB", (128, 128))
        channels = np.asarray(file.convert("RGB").resize((64, 64), Image.Resampling.BOX), np.int16)
    return "face" if np.percentile(np.ptp(channels, axis=-1), 90) > 12 else "xray", told


def main(folder: str) -> None:
    """Prints the rows as CSV, and what is missing in them."""
    root = pathlib.Path(folder).expanduser()
    if not root.is_dir():
        raise InputError(f"{folder} is not a folder")
    rows = draft(root)
    if not rows:
        raise InputError(f"{folder} holds no picture")
    writer = csv.DictWriter(sys.stdout, NEEDED, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    empty = Counter(name for row in rows for name, value in row.items() if not value)
    told = ", ".join(f"{name} in {count}" for name, count in empty.items())
    print(f"{len(rows)} rows of {len({row['subject'] for row in rows})} subjects; to be filled in: {told or 'nothing'}", file=sys.stderr)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (InputError, TypeError) as error:
        sys.exit(f"draft: {error if isinstance(error, InputError) else 'name one folder'}")
