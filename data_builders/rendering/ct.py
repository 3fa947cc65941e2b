"""A CT head through the same renderers: `python -m data_builders.rendering.ct HEAD.nii.gz OUT_FOLDER [SIZE]`."""

import pathlib
import sys

import jax
import nibabel
import numpy as np
from PIL import Image
from scipy import ndimage

from data_builders.rendering import surface, xray
from data_builders.rendering.volume import VIEWS, Frame, Volume

AIR = -1000.0  # HU


def read_head(path: pathlib.Path) -> Volume:
    """Reads a NIfTI volume in Hounsfield units into RAS+ axes; what does not touch the head (headrest, air) becomes air."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(image.dataobj, np.float32)
    spacing = np.array(image.header.get_zooms()[:3], np.float32)
    # Thin contacts between head and headrest are cut by the erosion, and grown back within the head only.
    body = ndimage.binary_erosion(values > -300.0, iterations=2)
    labels, count = ndimage.label(body)
    if not count:
        raise ValueError(f"{path.name}: nothing denser than -300 HU; are these Hounsfield units?")
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    head = ndimage.binary_dilation(largest, iterations=6)
    filled = head | np.stack([ndimage.binary_fill_holes(s) for s in np.moveaxis(head, 2, 0)], 2)
    return Volume(np.where(filled, np.maximum(values, AIR), AIR), spacing, np.asarray(image.affine[:3, 3], np.float32))


def frame_of(head: Volume, size: int, width: float = 264.0) -> Frame:
    """A frame that shows a head as the procedural cohort's does: crown and nose at the same places of the picture."""
    solid = np.argwhere(np.asarray(head.values) > -300.0) * np.asarray(head.spacing) + np.asarray(head.origin)
    low, high = solid.min(0), solid.max(0)
    nose, crown = 114.0, 120.0  # mm from the middle of the cohort's pictures
    return Frame(size, width, (float(low[0] + high[0]) / 2, float(high[1]) - nose, float(high[2]) - crown))


def main(path: str, folder: str, size: str = "256") -> None:
    """Writes `xray_VIEW.png` (16 bit) and `face_VIEW.png` of a head."""
    head, out = read_head(pathlib.Path(path)), pathlib.Path(folder)
    frame = frame_of(head, int(size))
    out.mkdir(parents=True, exist_ok=True)
    for view in VIEWS:
        picture = np.asarray(jax.jit(xray.radiograph, static_argnums=(1, 2))(head, frame, view))
        Image.fromarray(np.round(picture * 65535).astype(np.uint16)).save(out / f"xray_{view}.png")
        face = np.asarray(jax.jit(surface.isosurface_portrait, static_argnums=(1, 2))(head, frame, view))
        Image.fromarray(np.round(face * 255).astype(np.uint8)).save(out / f"face_{view}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
