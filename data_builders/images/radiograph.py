"""A skull radiograph from any file that one comes in, as a picture with bone bright and nothing of its header."""

import pathlib
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from PIL import Image, ImageOps, UnidentifiedImageError

DICOM_ENDINGS = (".dcm", ".dicom", ".ima")


class UnreadableError(ValueError):
    """A file that holds no usable picture; the message says why, and names neither folder nor patient."""


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
    values = _dicom(path) if _is_dicom(path) else _picture(path)
    low, high = np.percentile(values, [0.5, 99.8])
    if not np.isfinite([low, high]).all():
        raise UnreadableError("holds pixels that are not numbers")
    if high <= low:
        low, high = float(values.min()), float(values.max())
        if not high > low:
            raise UnreadableError(f"all pixels have the value {low:g}; this is no X-ray")
    picture = np.clip((values - low) / (high - low), 0.0, 1.0)
    return 1.0 - picture if inverted else picture


def _is_dicom(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM" or path.suffix.lower() in DICOM_ENDINGS


def _dicom(path: pathlib.Path) -> Float[Array, "h w"]:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that bend the standard, as many do; they may quote names
            data = pydicom.dcmread(path, force=True)
            _check_dicom(data)
            values = apply_modality_lut(data.pixel_array, data)
            if "WindowWidth" in data or "VOILUTSequence" in data:
                values = apply_voi_lut(values, data)
    except UnreadableError:
        raise
    except Exception as error:  # pydicom and its decoders raise many kinds
        raise UnreadableError(f"damaged, or in a form that can't be decoded ({type(error).__name__})") from None
    values = np.asarray(values, np.float32)
    if values.ndim != 2:
        raise UnreadableError(f"holds an array of shape {values.shape} in place of one picture")
    return -values if data.PhotometricInterpretation == "MONOCHROME1" else values


def _check_dicom(data: Any) -> None:
    """Raises UnreadableError where a DICOM data set is no single grey picture."""
    if "PixelData" not in data:
        raise UnreadableError("a DICOM file without a picture")
    frames = int(data.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UnreadableError(f"a DICOM file of {frames} frames; one X-ray is expected")
    if int(data.get("SamplesPerPixel", 1)) != 1 or not str(data.get("PhotometricInterpretation", "")).startswith("MONOCHROME"):
        raise UnreadableError("a DICOM file in colours; an X-ray is grey")


def _picture(path: pathlib.Path) -> Float[Array, "h w"]:
    try:
        with Image.open(path) as file:
            if getattr(file, "n_frames", 1) > 1:
                raise UnreadableError(f"holds {file.n_frames} pictures; one X-ray is expected")
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except UnreadableError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(f"not a readable picture ({type(error).__name__})") from None
    except Image.DecompressionBombError:
        raise UnreadableError("unpacks to more pixels than any X-ray has") from None
    if picture.mode in ("L", "I", "F") or picture.mode.startswith("I;16"):
        return np.asarray(picture, np.float32)
    channels = np.asarray(picture.convert("RGB"), np.int16)
    # Grey that was stored in three channels differs by what JPEG makes of it.
    if np.percentile(np.ptp(channels, axis=-1), 99) > 24:
        raise UnreadableError("a picture in colours; an X-ray is grey")
    return channels.mean(-1, dtype=np.float32)


def squared(picture: Float[Array, "h w"], size: int) -> Float[Array, "size size"]:
    """A picture of any shape in a square of `size` pixels: black beside it, its proportions kept, no grain aliased."""
    height, width = picture.shape
    scale = size / max(height, width)
    small = max(1, round(height * scale)), max(1, round(width * scale))
    # Pillow's resize widens its filter when it shrinks; whole steps down first are as good and much faster.
    image = Image.fromarray(np.asarray(picture, np.float32)).resize(small[::-1], Image.Resampling.BICUBIC, reducing_gap=3.0)
    square = np.zeros((size, size), np.float32)
    top, left = (size - small[0]) // 2, (size - small[1]) // 2
    square[top : top + small[0], left : left + small[1]] = np.clip(np.asarray(image), 0.0, 1.0)
    return square
