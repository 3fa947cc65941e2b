"""A photograph of a face from any file, upright."""

import contextlib
import io
import pathlib

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import Image, ImageCms

from data_builders.errors import UnreadableError
from data_builders.images import files
from data_builders.images.files import opened
from data_builders.images.rasters import raster


def read_photograph(path: pathlib.Path, needed: int = 0) -> tuple[UInt8[Array, "h w 3"], float]:
    """Returns a photograph in sRGB, and how many pixels of the file one of its pixels spans.

    JPEG files of more than twice `needed` pixels are shrunk by a power of two while they are
    decoded, which is faster. Transparent parts become white. Raises UnreadableError.
    """
    kind = files.kind(path)
    if kind == "dicom":
        raise UnreadableError("a DICOM file; a photograph in JPEG, PNG or TIFF is expected")
    step = 1.0
    if kind == "tiff":
        pixels = _of_raster(path)
    else:
        pixels, step = _of_pillow(path, needed)
    if (pixels == pixels[0, 0]).all():
        raise UnreadableError("all pixels have one colour; this is not a photograph")
    return pixels, step


def _of_pillow(path: pathlib.Path, needed: int) -> tuple[UInt8[Array, "h w 3"], float]:
    """Returns what `read_photograph` does, for a file that Pillow reads."""
    with opened(path) as file:
        files.check_single(file, "photograph")
        width, height = file.size
        side = max(width, height)
        if needed:
            file.draft("RGB", (2 * needed * width // side, 2 * needed * height // side))
        turn = files.exif_orientation(file)
        pixels = files.upright(np.asarray(_srgb(file)), turn)
    return np.ascontiguousarray(pixels), side / max(pixels.shape)


def _srgb(file: Image.Image) -> Image.Image:
    """Returns a picture of any mode in RGB of 8 bit, by its colour profile if it is usable."""
    # Decide by the mode.
    profile = file.info.get("icc_profile")
    if file.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)).convert("RGB")
    if file.mode in ("I", "F"):
        raise UnreadableError("a photograph of more than 16 bits per channel; store it in 8")
    if "A" in file.mode or "a" in file.mode or "transparency" in file.info:
        whole = file.convert("RGBA")
        file = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    elif file.mode not in ("RGB", "L", "CMYK"):
        file = file.convert("RGB")

    # Follow the profile. Most profiles are sRGB's own and need no conversion.
    if profile and b"sRGB" not in profile.replace(b"\0", b""):
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(file, source, target, outputMode="RGB")
            if converted is not None:  # None is for conversion in place
                return converted
    return file if file.mode == "RGB" else file.convert("RGB")


def _of_raster(path: pathlib.Path) -> UInt8[Array, "h w 3"]:
    """Returns a TIFF photograph of 8 or 16 bit a colour in 8."""
    picture = raster(path, "photograph")

    # 8 bit.
    array = picture.array
    if array.dtype == bool:
        array = np.uint8(255) * array
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UnreadableError("a photograph of more than 16 bits per channel; store it in 8")

    # Polarity, channels and transparency.
    if picture.inverted:
        array = ~array
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if picture.transparent is not None:
        array = np.where(picture.transparent[..., None], np.uint8(255), array)
    return np.ascontiguousarray(array)
