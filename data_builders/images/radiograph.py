"""A skull radiograph from any file that one comes in, as a picture with bone bright and nothing of its header."""

import contextlib
import pathlib
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from PIL import Image, ImageOps

from data_builders.errors import UnreadableError

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
MAX_PIXELS = 100_000_000  # of a picture; no X-ray and hardly a photograph has more, and a bomb would
_DEFLATED = "1.2.840.10008.1.2.1.99"


def read_radiograph(path: pathlib.Path, inverted: bool = False) -> Float[Array, "h w"]:
    """A radiograph in [0, 1], bone bright: DICOM, or PNG, JPEG or TIFF of 8 or 16 bit.

    A DICOM file's own window counts, else, as for the others, the values from a robust darkest to a robust brightest.

    Args:
      path: of the file; DICOM is known by its content, whatever its name.
      inverted: whether bone is dark in the file beyond what its header says.

    Raises:
      UnreadableError: no such file, damaged, several frames, colours, or one value all over.
    """
    if not path.is_file():
        raise UnreadableError("no such file")
    stored, table = _dicom(path) if is_dicom(path) else _picture(path)
    if table is None and not np.isfinite(stored.sum()):
        raise UnreadableError("holds pixels that are not numbers")
    brightness = lambda part: part if table is None else table[part]
    low, high = np.percentile(brightness(_thinned(stored)), [0.5, 99.8])
    if high <= low:
        whole = brightness(stored)
        low, high = float(whole.min()), float(whole.max())
        if not high > low:
            raise UnreadableError(f"all pixels have the value {low:g}; this is no X-ray")
    low, high = (high, low) if inverted else (low, high)
    values = (stored if table is None else table) - np.float32(low)
    values *= np.float32(1.0 / (high - low))
    np.clip(values, 0.0, 1.0, out=values)
    return values if table is None else cv2.LUT(stored, values[None])


# Pixels as they are stored, and the brightness of each value that they can have; or the brightness itself, and None.
Stored = tuple[Array, Float[Array, "values"] | None]


def _tabled(stored: Array, brightness: Callable[[Array], Array]) -> Stored:
    """Small integers with a table: few values, many pixels. Others are turned into brightness."""
    if stored.dtype.itemsize > 2:
        return np.asarray(brightness(stored), np.float32), None
    unsigned = np.dtype(f"u{stored.dtype.itemsize}")
    values = np.arange(256**unsigned.itemsize, dtype=unsigned).view(stored.dtype)
    return np.ascontiguousarray(stored).view(unsigned), np.asarray(brightness(values), np.float32)


def _thinned(values: Float[Array, "h w"]) -> Float[Array, "h2 w2"]:
    """Every so many pixels of a large picture: enough for its percentiles."""
    step = max(1, min(values.shape) // 250)
    return values[::step, ::step]


def is_dicom(path: pathlib.Path) -> bool:
    """Whether a file is DICOM, by its content or its name."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in DICOM_ENDINGS


def _dicom(path: pathlib.Path) -> Stored:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that bend the standard, as many do; they may quote names
            _check_size(path)
            data = pydicom.dcmread(path, force=True)
            _check_dicom(data)
            window = "WindowWidth" in data or "VOILUTSequence" in data
            shown = lambda values: apply_voi_lut(values, data) if window else values
            sign = -1.0 if data.PhotometricInterpretation == "MONOCHROME1" else 1.0
            stored, table = _tabled(data.pixel_array, lambda values: sign * shown(apply_modality_lut(values, data)))
    except UnreadableError:
        raise
    except Exception as error:  # pydicom and its decoders raise many kinds
        raise UnreadableError(f"damaged, or in a form that can't be decoded ({type(error).__name__})") from None
    if stored.ndim != 2:
        raise UnreadableError(f"holds an array of shape {stored.shape} in place of one picture")
    return stored, table


def _check_dicom(data: Any) -> None:
    """Raises UnreadableError where a DICOM data set is no single grey picture."""
    if "PixelData" not in data:
        raise UnreadableError("a DICOM file without a picture")
    if int(data.get("Rows") or 0) * int(data.get("Columns") or 0) > MAX_PIXELS:
        raise UnreadableError("unpacks to more pixels than any X-ray has")
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UnreadableError(f"a DICOM file of {frames} frames; one X-ray is expected")
    if int(data.get("SamplesPerPixel", 1)) != 1 or not str(data.get("PhotometricInterpretation", "")).startswith("MONOCHROME"):
        raise UnreadableError("a DICOM file in colours; an X-ray is grey")


def _check_size(path: pathlib.Path) -> None:
    """Raises UnreadableError where a deflated DICOM file is a bomb: a few bytes that unpack to as many as fit."""
    import pydicom

    with open(path, "rb") as file:
        file.seek(128)
        if file.read(4) != b"DICM":
            return
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == _DEFLATED:
            file.seek(132 + 12 + meta.FileMetaInformationGroupLength)
            unpack, room = zlib.decompressobj(-zlib.MAX_WBITS), 4 * MAX_PIXELS
            while room > 0 and (packed := unpack.unconsumed_tail or file.read(1 << 16)):
                room -= len(unpack.decompress(packed, 1 << 24))
            if room <= 0:
                raise UnreadableError("unpacks to more bytes than any X-ray has")


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """A picture's file by Pillow; whatever is wrong with it becomes an UnreadableError."""
    if not path.is_file():
        raise UnreadableError("no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise UnreadableError("unpacks to more pixels than any X-ray or photograph has")
                yield file
    except UnreadableError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableError("unpacks to more pixels than any X-ray or photograph has") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(f"not a readable picture ({type(error).__name__})") from None


def _picture(path: pathlib.Path) -> Stored:
    with opened(path) as file:
        if getattr(file, "n_frames", 1) > 1:
            raise UnreadableError(f"holds {file.n_frames} pictures; one X-ray is expected")
        ImageOps.exif_transpose(file, in_place=True)
        grey = file.mode in ("L", "I", "F") or file.mode.startswith("I;16")
        pixels = np.asarray(file if grey else file.convert("RGB"))
    if grey:
        return _tabled(pixels, lambda values: values)
    channels = pixels.astype(np.int16)
    # Grey that was stored in three channels differs by what JPEG makes of it.
    if np.percentile(np.ptp(channels, axis=-1), 99) > 24:
        raise UnreadableError("a picture in colours; an X-ray is grey")
    return channels.mean(-1, dtype=np.float32), None
