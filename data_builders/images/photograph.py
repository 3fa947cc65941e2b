"""A photograph of a face from any file, upright."""

import pathlib

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray as Array
from PIL import ImageOps

from data_builders.errors import UnreadableError
from data_builders.images.radiograph import opened


def read_photograph(path: pathlib.Path, needed: int = 0) -> tuple[UInt8[Array, "h w 3"], float]:
    """A photograph in RGB, and how many pixels of the file one of its own is wide.

    JPEG files of more than twice `needed` pixels come shrunk by a power of two, which spares most of the decoding.
    Raises UnreadableError.
    """
    with opened(path) as file:
        if getattr(file, "n_frames", 1) > 1:
            raise UnreadableError(f"holds {file.n_frames} pictures; one photograph is expected")
        side = max(file.size)
        if needed:
            file.draft("RGB", tuple(2 * needed * n // side for n in file.size))
        if file.mode in ("I", "F") or file.mode.startswith("I;16"):
            raise UnreadableError("a photograph of more than 8 bit a colour; store it in 8")
        ImageOps.exif_transpose(file, in_place=True)
        pixels = np.asarray(file if file.mode == "RGB" else file.convert("RGB"))
    if (pixels == pixels[0, 0]).all():
        raise UnreadableError("all pixels have one colour; this is no photograph")
    return pixels, side / max(pixels.shape)
