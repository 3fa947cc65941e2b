"""Arrays of pixels from PNG, TIFF, JPEG and other files of pictures, at full depth and upright.

Pillow reads what it can read exactly. imagecodecs and tifffile read the rest, and they verify
checksums.
"""

import logging
import math
import pathlib
from typing import Any, NamedTuple, cast

import imagecodecs
import numpy as np
import tifffile
from jaxtyping import Bool
from numpy import ndarray as Array
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG

from data_builders.errors import UnreadableError
from data_builders.images import files

logging.getLogger("tifffile").disabled = True  # it repeats what is raised, and may quote names

_GREY_MODES = ("1", "L", "I", "F")
_MOST_PAGES = 1000
# Those whose values tifffile returns; Pillow converts others.
_PHOTOMETRICS = (
    PHOTOMETRIC.MINISWHITE,
    PHOTOMETRIC.MINISBLACK,
    PHOTOMETRIC.RGB,
    PHOTOMETRIC.PALETTE,
    PHOTOMETRIC.YCBCR,
)
_ALPHA = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
_PREVIEW_OR_MASK = 1 | 4  # bits of TIFF's NewSubfileType


class Raster(NamedTuple):
    """A picture as a file holds it, upright.

    Attributes:
      array: `(h, w)` grey, or `(h, w, 3)` red, green and blue, of any numeric type.
      transparent: which pixels are more than half transparent, or None.
      inverted: whether the file says that low values are bright.
      aspect: a pixel's height over its width, NaN where the file doesn't say.
    """

    array: Array
    transparent: Bool[Array, "h w"] | None = None
    inverted: bool = False
    aspect: float = np.nan


def raster(path: pathlib.Path, label: str) -> Raster:
    """Returns the one picture of a file; `label` names it in messages. Raises UnreadableError."""
    kind = files.kind(path)
    if kind == "dicom":
        raise UnreadableError(f"a DICOM file; a {label} in PNG, JPEG or TIFF is expected")
    with files.readable():
        if kind == "tiff":
            return _tiff(path, label)
        if kind == "jpeg" and _is_special_jpeg(path):
            return _special_jpeg(path)
        with files.opened(path) as file:
            files.check_single(file, label)
            picture = _decoded(path, file, kind)
            turn = files.exif_orientation(file)
            aspect = files.stated_aspect(file)
        return _turned(picture._replace(aspect=aspect), turn)


def _turned(picture: Raster, turn: int) -> Raster:
    """Returns a picture of an EXIF orientation upright.

    Raises UnreadableError where its array is not a picture.
    """
    shape = picture.array.shape
    if len(shape) not in (2, 3) or shape[2:] not in ((), (3,)) or 0 in shape:
        raise UnreadableError(f"holds an array of shape {shape} in place of one picture")
    transparent = picture.transparent
    if transparent is not None:
        transparent = files.upright(transparent, turn)
    aspect = 1.0 / picture.aspect if turn >= 5 else picture.aspect
    return Raster(
        array=files.upright(picture.array, turn),
        transparent=transparent,
        inverted=picture.inverted,
        aspect=aspect,
    )


def _decoded(path: pathlib.Path, file: Image.Image, kind: str) -> Raster:
    """Returns the pixels of an opened picture."""
    if kind == "png":
        return _with_channels(imagecodecs.png_decode(path.read_bytes()))
    if kind == "jpeg2000":
        return _with_channels(imagecodecs.jpeg2k_decode(path.read_bytes()))
    if file.mode in _GREY_MODES or file.mode.startswith("I;16"):
        return Raster(np.asarray(file))
    if "A" in file.mode or "a" in file.mode or "transparency" in file.info:
        return _with_channels(np.asarray(file.convert("RGBA")))
    return Raster(np.asarray(file if file.mode == "RGB" else file.convert("RGB")))


def _with_channels(array: Array) -> Raster:
    """Returns an array of 1, 3, or with transparency 2 or 4 channels as a raster."""
    if array.ndim == 2:
        return Raster(array)
    channels = array.shape[2]
    colours = array[..., 0] if channels < 3 else array[..., :3]
    if channels % 2:
        return Raster(colours)
    opaque = array[..., -1]
    return Raster(colours, opaque <= np.iinfo(opaque.dtype).max // 2)


# JPEG that Pillow doesn't read: 12 bit, lossless, JPEG-LS.


class JpegHeader(NamedTuple):
    """The header of a JPEG stream.

    Attributes:
      kind: the last byte of its SOF marker, or 0x51 for JPEG 2000.
      precision: bits a value.
      height: in pixels.
      width: in pixels.
    """

    kind: int
    precision: int
    height: int
    width: int


def jpeg_header(code: bytes) -> JpegHeader:
    """Returns the header of a JPEG stream. Raises UnreadableError where it has none."""
    # JPEG 2000.
    start = code[:4096].find(b"\xff\x4f\xff\x51")
    if start >= 0:
        right, bottom, left, top = (
            int.from_bytes(code[start + i : start + i + 4], "big") for i in (8, 12, 16, 20)
        )
        precision = (code[start + 42] & 0x7F) + 1
        return JpegHeader(0x51, precision, height=bottom - top, width=right - left)

    # JPEG and JPEG-LS: skip the segments before the frame's.
    place = 2
    while place + 9 < len(code):
        marker = code[place + 1]
        if marker == 0xFF:
            place += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            height, width = (int.from_bytes(code[place + i : place + i + 2], "big") for i in (5, 7))
            return JpegHeader(marker, code[place + 4], height=height, width=width)
        else:
            place += 2 + int.from_bytes(code[place + 2 : place + 4], "big")
    raise UnreadableError("damaged: its JPEG stream has no header")


def check_end(code: bytes) -> None:
    """Raises UnreadableError where a JPEG stream lacks its end, as one that was cut off does."""
    if code[-64:].rstrip(b"\0\xff")[-2:] != b"\xff\xd9":
        raise UnreadableError("damaged: its JPEG stream is cut off")


def _is_special_jpeg(path: pathlib.Path) -> bool:
    """Returns True if a file is neither baseline nor progressive JPEG of 8 bit."""
    with open(path, "rb") as file:
        header = jpeg_header(file.read(1 << 20))
    return header.precision != 8 or header.kind not in (0xC0, 0xC1, 0xC2)


def _special_jpeg(path: pathlib.Path) -> Raster:
    """Returns a JPEG picture that Pillow doesn't read."""
    content = path.read_bytes()
    header = jpeg_header(content)
    files.check_size(header.width, header.height)
    check_end(content)
    decode = imagecodecs.jpegls_decode if header.kind == 0xF7 else imagecodecs.jpeg8_decode
    return _turned(Raster(decode(content)), 1)


# TIFF.


def _tiff(path: pathlib.Path, label: str) -> Raster:
    """Returns the one picture of a TIFF file."""
    with tifffile.TiffFile(path) as file:
        page = _main_page(file, label)
        files.check_size(page.imagewidth, page.imagelength * max(1, page.imagedepth))
        if page.imagedepth > 1:
            raise UnreadableError(f"holds {page.imagedepth} pictures; one {label} is expected")
        counts = page.databytecounts
        if not all(counts) or not all(page.dataoffsets) or len(counts) < math.prod(page.chunked):
            raise UnreadableError("damaged: parts of its picture are missing")
        picture = _page(page)
        turn = files.orientation(_tag(page, 274))
        aspect = files.density_aspect(_ratio(_tag(page, 282)), _ratio(_tag(page, 283)))
    return _turned(picture._replace(aspect=aspect), turn)


def _main_page(file: tifffile.TiffFile, label: str) -> tifffile.TiffPage:
    """Returns the picture that the others are thumbnails or masks of."""
    # Stacks.
    stacked = (file.imagej_metadata or {}).get("images", 1)
    if stacked > 1:
        raise UnreadableError(f"holds {stacked} pictures; one {label} is expected")
    if len(file.pages) > _MOST_PAGES:
        raise UnreadableError(f"holds {len(file.pages)} pictures; one {label} is expected")

    # The largest page, and others that are nearly as large.
    pages = [page.aspage() for page in file.pages]
    full = [page for page in pages if not page.subfiletype & _PREVIEW_OR_MASK] or pages
    main = max(full, key=_area)
    others = [page for page in full if page is not main and _area(page) > _area(main) / 2]
    if others:
        raise UnreadableError(f"holds {len(others) + 1} pictures; one {label} is expected")
    return main


def _area(page: tifffile.TiffPage) -> int:
    """Returns how many pixels a page has."""
    return page.imagewidth * page.imagelength


def _page(page: tifffile.TiffPage) -> Raster:
    """Returns a page's pixels: grey, or in colours that its palette or its channels give."""
    # Decode.
    subsampled = page.photometric == PHOTOMETRIC.YCBCR
    jpeg = page.compression in (COMPRESSION.OJPEG, COMPRESSION.JPEG)
    if page.photometric not in _PHOTOMETRICS or (subsampled and not jpeg):
        return _by_pillow(page)
    array = page.asarray(maxworkers=1)
    if page.planarconfig == PLANARCONFIG.SEPARATE and page.samplesperpixel > 1:
        array = np.moveaxis(array, 0, -1)

    # Separate colours and transparency.
    if page.photometric == PHOTOMETRIC.PALETTE:
        if page.colormap is None:
            raise UnreadableError("damaged: its palette is missing")
        return Raster(np.moveaxis(page.colormap[:, array], 0, -1))
    colours = 3 if page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR) else 1
    transparent = None
    if array.ndim == 3:
        extra = [i for i, meaning in enumerate(page.extrasamples) if meaning in _ALPHA]
        if extra:
            opaque = array[..., colours + extra[0]]
            half = np.iinfo(opaque.dtype).max // 2 if opaque.dtype.kind in "ui" else 0.5
            transparent = opaque <= half
        array = array[..., :3] if colours == 3 else array[..., 0]
    return Raster(array, transparent, inverted=page.photometric == PHOTOMETRIC.MINISWHITE)


def _by_pillow(page: tifffile.TiffPage) -> Raster:
    """Returns a page in CMYK, Lab or uncompressed YCbCr as red, green and blue."""
    with Image.open(page.parent.filehandle.path) as file:
        file.seek(page.index)
        turn = files.orientation(cast(TiffImageFile, file).tag_v2.get(274))
        array = np.asarray(file.convert("RGB"))
    # Pillow has turned it upright. Turn it back, since the caller turns it upright, too.
    back = {6: 8, 8: 6}.get(turn, turn)
    return Raster(files.upright(array, back))


def _tag(page: tifffile.TiffPage, code: int) -> Any:
    """Returns the value of a page's tag, None without it."""
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def _ratio(value: Any) -> Any:
    """Returns a resolution that TIFF stores as a fraction as a number, None for a zero divisor."""
    if isinstance(value, tuple) and len(value) == 2:
        return value[0] / value[1] if value[1] else None
    return value
