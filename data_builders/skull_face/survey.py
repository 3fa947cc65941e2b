"""Finds the X-rays and photographs of a folder, and notes which files are left out and why."""

import dataclasses
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image

from data_builders.errors import UnreadableError
from data_builders.images.files import kind
from data_builders.images.radiograph import is_dicom, opened, read_radiograph
from data_builders.skull_face.headers import SMALLEST, named_age, named_view, read_header

_SYSTEM_FILES = ("thumbs.db", "desktop.ini", "__macosx")
_LISTS = (".csv", ".xlsx", ".parquet", ".salt")  # the user's list and secret, often in the folder
_RAW = ".cr2 .cr3 .nef .nrw .arw .dng .raf .orf .rw2 .pef .srw".split()
_KINDS = {
    "volumes; the builder ct_heads makes X-rays from CT": ".nii .nii.gz .mha .mhd .nrrd",
    "videos": ".mp4 .mov .avi .mkv .wmv .mpg .mpeg .m4v .3gp .webm",
    "archives; unpack them first": ".zip .rar .7z .tar .gz .tgz",
    "documents; save pictures in them as JPEG or PNG": ".pdf .doc .docx .odt .rtf .ppt .pptx",
}
_PICTURES = tuple(".jpg .jpeg .jpe .jfif .png .tif .tiff .bmp .webp .gif .jp2 .j2k .avif".split())
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif")
# Words in names and folders.
_PHOTO_WORDS = set(
    (
        "photo photos foto fotos photograph photographs portrait portraits selfie passport face "
        "faces"
    ).split()
)
_XRAY_WORDS = set(
    (
        "xray xrays radiograph radiographs rontgen roentgen rx skull skulls ceph cephalogram "
        "schadel crane cranio"
    ).split()
)
_GENERIC = set(
    (
        "dicom dicoms dcm data files image images img imgs picture pictures pics frontal lateral "
        "front side profile pa ap"
    ).split()
)
GENERIC = _GENERIC | _PHOTO_WORDS | _XRAY_WORDS  # words that name contents, not a person


@dataclasses.dataclass
class Picture:
    """A file that is an X-ray or a photograph.

    Attributes:
      path: relative to the folder, with slashes.
      kind: 'xray' or 'face'.
      view, age: from its header and name; empty where they are unknown.
      patient, sex, birth, issuer: from its header.
      subject: the person; set when all files are known.
    """

    path: pathlib.PurePosixPath
    kind: str
    view: str = ""
    age: str = ""
    patient: str = ""
    sex: str = ""
    birth: str = ""
    issuer: str = ""
    subject: str = ""

    @property
    def folders(self) -> tuple[str, ...]:
        """The names of the folders that contain it, from the top."""
        return self.path.parts[:-1]

    @property
    def token(self) -> str:
        """The file's name up to its first _ or -."""
        return self.path.stem.replace("_", "-").partition("-")[0].strip()


class Notes:
    """Notes on files for the user: lists of names by their message."""

    def __init__(self) -> None:
        self.left_out: dict[str, list[str]] = defaultdict(list)
        self.remarks: dict[str, list[str]] = defaultdict(list)

    def lines(self) -> Iterator[str]:
        """Yields a line for each message, with a count and up to five names."""
        for kinds, head in ((self.left_out, "left out"), (self.remarks, "look at")):
            for words, names in sorted(kinds.items()):
                if not names:
                    continue
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                yield f"{head} ({len(names)}): {words}: {', '.join(names[:5])}{more}"


def survey(folder: pathlib.Path, notes: Notes) -> list[Picture]:
    """Returns the X-rays and photographs in a folder, and notes which files are left out.

    A file that can't be read does not affect the others.
    """
    pictures = []
    for path in _files(folder, notes):
        inside = pathlib.PurePosixPath(path.relative_to(folder).as_posix())
        try:
            _check_file(path, inside)
            pictures.append(_look_at(path, inside, notes))
        except UnreadableError as error:
            notes.left_out[str(error)].append(_shown(inside))
        except PermissionError:
            notes.left_out["files that you lack permission to read"].append(_shown(inside))
        except Exception as error:  # decoders raise many errors
            notes.left_out[f"damaged files ({type(error).__name__})"].append(_shown(inside))
    return pictures


def _check_file(path: pathlib.Path, inside: pathlib.PurePosixPath) -> None:
    """Raises UnreadableError where a file can't be listed, whatever its content."""
    if problem := _unusable_name(inside):
        raise UnreadableError(problem)
    if path.is_symlink():
        raise UnreadableError("links to other files; they may lead to the same picture twice")
    if not path.is_file():
        raise UnreadableError("not ordinary files")
    if not path.stat().st_size:
        raise UnreadableError("empty files")


def words_of(name: str) -> set[str]:
    """Returns the words of a file's or folder's name, with `x-ray` as one word."""
    plain = name.lower().replace("_", " ").replace("ö", "o").replace("ä", "a")
    plain = re.sub(r"\bx[\W_]ray", "xray", plain)
    return set(re.split(r"[\W_\d]+", plain)) - {""}


def is_generic(folder: str) -> bool:
    """Returns True if a folder's name describes its content, not a person."""
    words = words_of(folder)
    return bool(words) and words <= GENERIC


def _files(folder: pathlib.Path, notes: Notes) -> Iterator[pathlib.Path]:
    """Yields the files in a folder and below, in order, without hidden and system files."""

    def note(error: OSError) -> None:
        notes.left_out["folders that you lack permission to read"].append(
            _shown(os.path.relpath(error.filename, folder))
        )

    for where, folders, names in os.walk(folder, onerror=note):
        visible = [name for name in sorted(folders) if not _is_hidden(name)]
        folders[:] = [name for name in visible if not os.path.islink(os.path.join(where, name))]
        for name in set(visible) - set(folders):
            notes.left_out["links to folders, which are not followed"].append(_shown(name))
        for name in sorted(names):
            if not _is_hidden(name) and not name.lower().endswith(_LISTS):
                yield pathlib.Path(where) / name


def _is_hidden(name: str) -> bool:
    """Returns True for hidden files and those of operating systems."""
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _shown(path: object) -> str:
    """Returns a name as a terminal can show it."""
    shown = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "?" for c in shown)


def _unusable_name(path: pathlib.PurePosixPath) -> str:
    """Returns why a list can't hold a path; empty if it can."""
    text = str(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "files with names that are not UTF-8, which no list can hold; rename them"
    if text != text.strip() or any(ord(c) < 32 or c in "\u2028\u2029\x7f" for c in text):
        return "files with line breaks or outer spaces in their names; rename them"
    return ""


def _look_at(path: pathlib.Path, inside: pathlib.PurePosixPath, notes: Notes) -> Picture:
    """Returns a file's kind, view and other facts. Raises UnreadableError where it is left out."""
    if path.suffix.lower() in _RAW:
        raise UnreadableError("raw files of a camera; convert them to JPEG or PNG")
    # Read the header, or look at the picture.
    if is_dicom(path):
        header = read_header(path)
        fields = ("patient", "sex", "birth", "issuer")
        picture = Picture(
            inside, "xray", age=header.age, **{name: getattr(header, name) for name in fields}
        )
        views = set(header.views) | ({named_view(_description(picture))} - {""})
        if len(views) > 1:
            notes.remarks[
                "X-rays whose fields or names contradict each other about the view; it is empty"
            ].append(_shown(inside))
    else:
        picture = Picture(inside, _kind(path, inside, notes))
        views = {named_view(_description(picture))} - {""}
    # Without a view in the file's name or header, the folders' names count.
    views = views or {view for name in _lower_folders(picture) if (view := named_view(name))}
    picture.view = views.pop() if len(views) == 1 and "other" not in views else ""
    picture.age = named_age(_description(picture)) or picture.age
    return picture


def _description(picture: Picture) -> str:
    """Returns a file's name without the part that names the person."""
    stem = picture.path.stem
    if picture.folders or is_generic(picture.token):
        return stem
    return stem[len(picture.token) :] if stem.startswith(picture.token) else stem


def _lower_folders(picture: Picture) -> list[str]:
    """Returns the folders that may name a view, all but the subject's; nearest first."""
    generic = [is_generic(name) for name in picture.folders]
    home = generic.index(False) if False in generic else -1
    return [name for i, name in enumerate(picture.folders) if i != home][::-1]


def _kind(path: pathlib.Path, inside: pathlib.PurePosixPath, notes: Notes) -> str:
    """Returns 'xray' or 'face' for a picture that is not DICOM. Raises UnreadableError."""
    # Open it.
    words = set[str]().union(*(words_of(part) for part in (*inside.parts[:-1], inside.stem)))
    says_xray = bool(words & _XRAY_WORDS) and not words & _PHOTO_WORDS
    says_photo = bool(words & _PHOTO_WORDS)
    try:
        with opened(path) as file:
            size = max(file.size)
            named_thumbnail = bool(words & {"thumb", "thumbs", "thumbnail", "thumbnails"})
            if size < SMALLEST or (size <= 320 and named_thumbnail):
                raise UnreadableError("thumbnails")
            several = getattr(file, "n_frames", 1) > 1 and file.format != "MPO"
            camera = any(file.getexif().get(tag) for tag in (271, 272))
            pixels = _sample(file)
    except UnreadableError as error:
        if kind(path) not in ("tiff", "jpeg", "jpeg2000"):
            raise UnreadableError(_reason(path, str(error))) from None
        return _kind_by_reader(path)
    if several:
        _kind_by_reader(path)
    if not len(pixels):
        raise UnreadableError("pictures that are fully transparent")
    # Judge it by its colours, its name and its camera.
    spread = np.ptp(pixels, axis=-1)
    if np.percentile(spread, 90) <= 12:
        if says_xray:
            return "xray"
        if says_photo or camera:
            notes.remarks[
                "grey pictures treated as photographs by name or camera; check them"
            ].append(_shown(inside))
            return "face"
        notes.remarks[
            "grey pictures treated as X-rays; if some are photographs, correct the list"
        ].append(_shown(inside))
        return "xray"
    if _is_tinted(pixels) and not says_photo:
        notes.remarks["bluish pictures of one hue treated as X-rays; save them in grey"].append(
            _shown(inside)
        )
        return "xray"
    if says_xray:
        raise UnreadableError("pictures in colours whose names say X-ray; save them in grey")
    if _hue(pixels)[1] > 0.985:
        notes.remarks["brownish pictures of one hue treated as photographs; check them"].append(
            _shown(inside)
        )
    return "face"


def _sample(file: Image.Image) -> UInt8[Array, "pixels 3"]:
    """Returns the opaque pixels of a picture that is shrunk to 64 by 64 pixels."""
    file.draft("RGB", (128, 128))
    transparent = "A" in file.getbands() or "transparency" in file.info
    picture = file.convert("RGBA" if transparent else "RGB")
    pixels = np.asarray(picture.resize((64, 64), Image.Resampling.BOX)).reshape(64 * 64, -1)
    return pixels[pixels[:, 3] >= 128, :3] if pixels.shape[1] == 4 else pixels


def _kind_by_reader(path: pathlib.Path) -> str:
    """Returns 'xray' or 'face' for a file in a rare format, by reading it as an X-ray.

    Raises UnreadableError.
    """
    try:
        read_radiograph(path)
        return "xray"
    except UnreadableError as error:
        words = str(error)
    if "colours" in words:
        return "face"
    if re.match(r"holds \d+ pictures", words):
        raise UnreadableError("files of several pictures; save the right one")
    raise UnreadableError(_reason(path, words))


def _hue(pixels: UInt8[Array, "pixels 3"]) -> tuple[np.ndarray, float]:
    """Returns the summed chroma, and how uniform the hue is: 1 if there is a single one."""
    chroma = pixels - pixels.mean(-1, keepdims=True)
    total = chroma.sum(0)
    return total, float(np.linalg.norm(total) / max(np.linalg.norm(chroma, axis=-1).sum(), 1e-9))


def _is_tinted(pixels: UInt8[Array, "pixels 3"]) -> bool:
    """Returns True if a picture has a single blue or green hue, as films do and skin does not."""
    total, unity = _hue(pixels)
    return unity > 0.95 and total[0] < 0


def _reason(path: pathlib.Path, words: str) -> str:
    """Returns why a file that can't be read as a picture is left out."""
    with open(path, "rb") as file:
        head = file.read(12)
    name = path.name.lower()
    if name.endswith((".heic", ".heif")) or (head[4:8] == b"ftyp" and head[8:12] in _HEIC):
        return "HEIC or AVIF pictures; convert them to JPEG or PNG"
    if head[4:8] == b"ftyp":
        return "videos"
    for reason, endings in _KINDS.items():
        if name.endswith(tuple(endings.split())):
            return reason
    if not words.startswith(("damaged", "not a readable")):
        return words
    return "damaged pictures" if name.endswith(_PICTURES) else "not pictures"
