"""Picture files: reading them with clear errors, writing them atomically, finding them by name."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from cranio_jax.errors import InputError
from cranio_jax.files.atomic import whole_file


def open_picture(path: pathlib.Path) -> Image.Image:
    """Returns a picture, upright and read to its end.

    Raises InputError, naming the file, if it is missing or damaged.
    """
    try:
        with path.open("rb") as opened, Image.open(opened) as file:
            picture = ImageOps.exif_transpose(file)
            picture.load()
            return picture
    except FileNotFoundError:
        raise InputError(f"{path}: no such picture") from None
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:
        words = str(error).split(":")[0].split(str(path.parent))[0].strip() or "damaged file"
        raise InputError(f"{path}: not a readable picture ({words})") from None


def read_face(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a face in 8 bit RGB. Raises InputError if the file holds no usable picture."""
    picture = open_picture(path)
    if picture.mode in ("F", "I") or picture.mode.startswith("I;16"):
        values = np.asarray(picture, np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"{path}: holds pixels that are not numbers")
        if picture.mode == "F" or values.max(initial=0) > 65535:
            raise InputError(
                f"{path}: holds {picture.mode} pixels of an unknown range; store it in 8 or 16 bit"
            )
        grey = (values / 257.0 + 0.5).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)
    return np.asarray(picture.convert("RGB"))


def write_png(path: pathlib.Path, picture: UInt8[np.ndarray, "h w *c"]) -> None:
    """Writes a picture, completely or not at all."""
    with whole_file(path, "wb") as file:
        Image.fromarray(picture).save(file, "PNG")


class PairedFolders(Sequence):
    """Examples from two folders whose files have the same names.

    `face` comes from one folder, `generated` (a single sample) from the other. Subfolders are a
    part of the name, extensions are not.
    """

    def __init__(self, generated: pathlib.Path, reference: pathlib.Path, pattern: str = ""):
        """Pairs the files of two folders.

        `pattern` is a regular expression that finds `(?P<subject>...)`, and perhaps `view` and
        `variant`, in a name. Without it each name is its own subject. Raises InputError if folders,
        names or sizes do not match.
        """
        # Pair the names.
        ours = _named(generated, "evaluate.generated")
        theirs = _named(reference, "evaluate.reference")
        if ours.keys() != theirs.keys():
            alone = min(ours.keys() ^ theirs.keys())
            where, other = (generated, reference) if alone in ours else (reference, generated)
            raise InputError(
                f"{where} holds {alone!r}, {other} does not; both folders must hold the same names"
            )
        self._pairs = [(name, ours[name], theirs[name]) for name in sorted(ours)]
        # Find the subjects.
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"evaluate.names={pattern!r} is not a regular expression ({error})"
            ) from None
        if pattern and "subject" not in self._pattern.groupindex:
            raise InputError(f"evaluate.names={pattern!r} has no group (?P<subject>...)")
        self.who = [self._who(name) for name in sorted(ours)]
        # Compare the sizes.
        self.size: tuple[int, int] = picture_size(self._pairs[0][2])
        for path in (path for _, *pair in self._pairs for path in pair):
            if (size := picture_size(path)) != self.size:
                raise InputError(
                    f"{path} is {size}, {self._pairs[0][2].name} {self.size}; pictures that are "
                    "compared in pairs must be of one size. Scale them, or set "
                    "evaluate.paired=False to compare the folders as sets."
                )

    def _who(self, name: str) -> dict[str, str]:
        match = self._pattern.search(name)
        if not match:
            raise InputError(
                f"evaluate.names={self._pattern.pattern!r} finds no subject in {name!r}"
            )
        groups = {group: text or "" for group, text in match.groupdict().items()}
        return {
            "id": name,
            "subject": groups.get("subject", name),
            "view": groups.get("view", ""),
            "variant": groups.get("variant", name),
        }

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> dict[str, Any]:  # type: ignore[override]
        _, generated, reference = self._pairs[index]
        return {"face": read_face(reference), "generated": read_face(generated)[None]}


def find_pictures(folder: pathlib.Path, field: str) -> list[pathlib.Path]:
    """Returns the files in a folder and its subfolders, sorted, without hidden ones.

    Raises InputError, naming the setting `field`, if there is no folder or no file.
    """
    if not folder.is_dir():
        raise InputError(f"{field}={str(folder)!r} is not a folder")
    paths: list[pathlib.Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [pathlib.Path(where) / name for name in names if not name.startswith(".")]
    if not paths:
        raise InputError(f"{field}={str(folder)!r} holds no picture")
    return sorted(paths)


def name_of(path: pathlib.Path, folder: pathlib.Path) -> str:
    """Returns a picture's name within its folder, without its extension."""
    return path.relative_to(folder).with_suffix("").as_posix()


def _named(folder: pathlib.Path, field: str) -> dict[str, pathlib.Path]:
    paths: dict[str, pathlib.Path] = {}
    for path in find_pictures(folder, field):
        name = name_of(path, folder)
        if name in paths:
            raise InputError(f"{path} and {paths[name].name} have the same name; keep one")
        paths[name] = path
    return paths


def picture_size(path: pathlib.Path) -> tuple[int, int]:
    """Returns height and width, from the header. Raises InputError if it holds no picture."""
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return picture.size if turned else picture.size[::-1]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InputError(f"{path}: not a readable picture") from None
