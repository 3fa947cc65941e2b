"""Lists the ISBI challenge.

python -m data_builders.cephalograms.challenge FOLDER > FOLDER/list.csv

FOLDER holds the unpacked files of the cephalometric challenge of 2014 and 2015: pictures whose
names are numbers, in any subfolders, and for each a text file of that number from one or two
annotators, with `x,y` of 19 landmarks in its first lines. Where there are two, the list has their
mean, as the challenge does.
"""

import csv
import pathlib
import sys

import numpy as np
from jaxtyping import Float

from data_builders.cephalograms.landmarks import LANDMARKS
from data_builders.errors import InputError

_PICTURES = (".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff")


def rows(folder: pathlib.Path) -> list[dict[str, str]]:
    """Returns a row of the list for each picture that is annotated.

    Raises InputError if there is none, a picture's number is there twice, or a file of landmarks is
    damaged.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    pictures: dict[str, pathlib.Path] = {}
    marks: dict[str, list[Float[np.ndarray, "19 2"]]] = {}
    for path in sorted(folder.rglob("*")):
        if not path.stem.isdigit():
            continue
        if path.suffix.lower() in _PICTURES:
            if path.stem in pictures:
                raise InputError(f"{path.name} is there twice; keep one")
            pictures[path.stem] = path
        elif path.suffix.lower() == ".txt":
            marks.setdefault(path.stem, []).append(_marks(path))
    if not set(pictures) & set(marks):
        raise InputError(
            f"{folder} holds no picture whose name is a number, with a text file of that name"
        )
    for words, names in (
        ("pictures without landmarks", set(pictures) - set(marks)),
        ("landmarks without a picture", set(marks) - set(pictures)),
    ):
        if names:
            print(f"{len(names)} {words}: {', '.join(sorted(names)[:10])}", file=sys.stderr)
    made = []
    for name in sorted(set(pictures) & set(marks)):
        row = {"file": pictures[name].relative_to(folder).as_posix()}
        for landmark, (x, y) in zip(LANDMARKS, np.mean(marks[name], 0), strict=True):
            row |= {f"{landmark}_x": f"{x:.6g}", f"{landmark}_y": f"{y:.6g}"}
        made.append(row)
    return made


def _marks(path: pathlib.Path) -> Float[np.ndarray, "19 2"]:
    """Returns the landmarks of a text file. Raises InputError."""
    lines = path.read_text(errors="replace").split()[: len(LANDMARKS)]
    try:
        return np.array([line.split(",") for line in lines], float).reshape(len(LANDMARKS), 2)
    except ValueError:
        raise InputError(
            f"{path.name}: expected `x,y` of {len(LANDMARKS)} landmarks, one in each line"
        ) from None


def main(folder: str) -> None:
    """Writes the list of a folder to stdout."""
    made = rows(pathlib.Path(folder).expanduser())
    writer = csv.DictWriter(sys.stdout, list(made[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(made)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
