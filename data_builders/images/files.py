"""Files of pictures: their kinds, and opening them so that each fault becomes one sentence."""

import contextlib
import pathlib
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy import ndarray as Array
from PIL import Image, UnidentifiedImageError

from data_builders.errors import UnreadableError

# Of a picture. No X-ray and hardly any photograph has more; decompression bombs do.
MAX_PIXELS = 100_000_000
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
TOO_LARGE = "unpacks to more pixels than any X-ray or photograph has"
# Without TGA, which has no signature and accepts any file, and EPS, which runs a program.
_ALLOWED = "AVIF BMP DIB GIF JPEG JPEG2000 MPO PCX PNG PPM SGI TIFF WEBP".split()
Image.init()
_FORMATS = [name for name in _ALLOWED if name in Image.OPEN]

_KINDS = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"\0\0\0\x0cjP  ": "jpeg2000",
    b"\xff\x4f\xff\x51": "jpeg2000",
    b"BM": "other",
    b"GIF8": "other",
    b"RIFF": "other",
    b"P5": "other",
    b"P6": "other",
}
# How files that are not pictures begin, and what to do with them.
_STRANGERS = {
    rb"%PDF": "a PDF document; export its picture as PNG",
    rb"PK\x03\x04|7z\xbc\xaf|Rar!": "an archive; unpack it",
    rb"\x1f\x8b|BZh|\xfd7zXZ": "a compressed file; unpack it",
    rb"version https://git-lfs": "a Git LFS pointer; fetch the file with `git lfs pull`",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml)": "a web page; download it again",
    rb"(?s)....ftyp(?!avif|avis)(?!.{4,48}avif)": "a HEIC picture or a film; convert it to JPEG",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "a JPEG XL picture; convert it to PNG",
}


def start_of(path: pathlib.Path) -> bytes:
    """Returns the first bytes of a file. Raises UnreadableError."""
    with readable(), open(path, "rb") as file:
        return file.read(132)


def kind(path: pathlib.Path) -> str:
    """Returns 'dicom', 'png', 'jpeg', 'jpeg2000', 'tiff' or 'other'.

    The content decides, and the name only where the content is unknown. Raises UnreadableError
    where there is no file that can be read.
    """
    start = start_of(path)
    if start[128:] == b"DICM":
        return "dicom"
    known = next((name for signature, name in _KINDS.items() if start.startswith(signature)), None)
    if known:
        return known
    if _bare_dicom(start) or (path.suffix.lower() in DICOM_ENDINGS and not _stranger(start)):
        return "dicom"
    return "other"


def is_dicom(path: pathlib.Path) -> bool:
    """Returns True if a file is DICOM. Raises UnreadableError where it can't be read."""
    return kind(path) == "dicom"


def _bare_dicom(start: bytes) -> bool:
    """Returns True if a file begins with a DICOM element, without the preamble."""
    if len(start) < 12:
        return False
    order = "<" if start[1] == 0 else ">"
    group, element, length = struct.unpack(order + "HHI", start[:8])
    if group not in (2, 8) or element > 0x0100:
        return False
    explicit = re.match(rb"(AE|CS|DA|IS|LO|OB|PN|SH|SQ|TM|UI|UL|US)", start[4:6])
    return bool(explicit) or length < 1000


def _stranger(start: bytes) -> str:
    """Returns what a file that is not a picture is, and what to do with it; '' for others."""
    if not start:
        return "an empty file"
    return next((words for pattern, words in _STRANGERS.items() if re.match(pattern, start)), "")


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """Turns any error of reading and decoding into an UnreadableError, except MemoryError.

    Warnings about files that violate their standard are dropped, since they may quote names.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UnreadableError, MemoryError):
        raise
    except FileNotFoundError:
        raise UnreadableError("no such file") from None
    except (IsADirectoryError, NotADirectoryError):
        raise UnreadableError("a folder, where a file is expected") from None
    except PermissionError:
        raise UnreadableError("can't be read; change its permissions") from None
    except Image.DecompressionBombError:
        raise UnreadableError(TOO_LARGE) from None
    except UnidentifiedImageError as error:
        raise UnreadableError(f"not a readable picture ({type(error).__name__})") from None
    except Exception as error:
        name = type(error).__name__
        raise UnreadableError(f"damaged, or in a form that can't be decoded ({name})") from None


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """Opens a picture by Pillow at its first frame, as it is stored. Raises UnreadableError."""
    words = _stranger(start_of(path))
    if words:
        raise UnreadableError(words)
    with readable():
        if kind(path) == "png":
            check_png(path)
        with Image.open(path, formats=_FORMATS) as file:
            check_size(*file.size)
            yield file


def check_size(width: int, height: int) -> None:
    """Raises UnreadableError where a picture is larger than any X-ray or photograph."""
    if width * height > MAX_PIXELS:
        raise UnreadableError(TOO_LARGE)


def check_single(file: Image.Image, label: str) -> None:
    """Raises UnreadableError where a file holds several pictures, not counting previews."""
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format != "MPO":
        raise UnreadableError(f"holds {frames} pictures; one {label} is expected")


def check_png(path: pathlib.Path) -> None:
    """Raises UnreadableError where a chunk's checksum is wrong or the last chunk is missing."""
    content = path.read_bytes()
    place = 8
    name = b""
    while name != b"IEND":
        head = content[place : place + 8]
        if len(head) < 8:
            raise UnreadableError("damaged: its end is missing")
        length, name = struct.unpack(">I4s", head)
        end = place + 8 + length
        stated = content[end : end + 4]
        checksum = zlib.crc32(memoryview(content)[place + 4 : end])
        if not stated or checksum != int.from_bytes(stated, "big"):
            raise UnreadableError("damaged: a checksum in it is wrong")
        place = end + 4


# Orientation and the proportions of pixels.


def orientation(value: Any) -> int:
    """Returns one of EXIF's and TIFF's orientations 1 to 8; 1, upright, for any other value."""
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def exif_orientation(file: Image.Image) -> int:
    """Returns an opened picture's orientation 1 to 8; 1 where its EXIF block is damaged."""
    try:
        return orientation(file.getexif().get(0x0112))
    except Exception:
        return 1


def upright(pixels: Array, turn: int) -> Array:
    """Returns pixels `(h, w, ...)` of one of EXIF's orientations as they should be seen."""
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def density_aspect(across: Any, down: Any) -> float:
    """Returns a pixel's height over its width from two resolutions, NaN without them."""
    try:
        across = float(across)
        down = float(down)
        return across / down if across > 0 and down > 0 else np.nan
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return np.nan


def stated_aspect(file: Image.Image) -> float:
    """Returns a pixel's height over its width as an opened picture states it, else NaN."""
    for name in ("jfif_density", "aspect"):
        if name in file.info:
            return density_aspect(*file.info[name])
    try:
        exif = file.getexif()
        across = exif.get(0x011A)
        down = exif.get(0x011B)
    except Exception:  # a damaged EXIF block
        across = down = None
    if across is None or down is None:
        across, down = file.info.get("dpi") or (None, None)
    return density_aspect(across, down)
