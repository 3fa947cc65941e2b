"""CT heads for the renderers.

`python -m data_builders.rendering.ct HEAD OUT_FOLDER [SIZE]` writes a head's four pictures. HEAD
is a NIfTI, MetaImage, NRRD or enhanced DICOM file, or a folder that holds one DICOM series.
"""

import functools
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from PIL import Image
from scipy import ndimage

from data_builders.errors import UnreadableError
from data_builders.rendering import surface, xray
from data_builders.rendering.volume import VIEWS, Frame, Volume, voxel_for
from data_builders.volumes import plausible, reading
from data_builders.volumes.scan import AIR, MAX_VOXELS


class Head(NamedTuple):
    """A head, and remarks on it.

    Attributes:
      volume: in Hounsfield units.
      remarks: what was corrected or is odd, in words that identify nobody.
    """

    volume: Volume
    remarks: list[str]


def read_head(
    path: pathlib.Path, voxel: float, orientation: str = "", hu_offset: float = 0.0
) -> Volume:
    """Returns the volume of `examine_head` alone."""
    return examine_head(path, voxel, orientation=orientation, hu_offset=hu_offset).volume


def examine_head(
    path: pathlib.Path, voxel: float, orientation: str = "", hu_offset: float = 0.0
) -> Head:
    """Returns a head in Hounsfield units, upright by its file's affine, in cubes of `voxel` mm.

    Objects that do not touch the head (table, headrest, tubes) become air.

    Args:
      path: of a file, or of a folder that holds one DICOM series.
      voxel: mm along each side of the cubes.
      orientation: three letters such as RAS that state where the axes lead if the file does not.
      hu_offset: is added to all values.

    Raises:
      UnreadableError: this is no CT of a head.
    """
    with reading.refusals():
        return _examined(pathlib.Path(path), voxel, orientation=orientation, hu_offset=hu_offset)


def _examined(path: pathlib.Path, voxel: float, orientation: str, hu_offset: float) -> Head:
    """Returns what `examine_head` does, and raises any error of a decoder."""
    # Read.
    scan = reading.read_scan(path, orientation)
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    if min(scan.values.shape) < 16:
        raise UnreadableError(f"holds an array of shape {scan.values.shape} in place of a volume")
    remarks = list(scan.remarks)
    values = np.array(scan.values, np.float32, order="K")
    affine = scan.affine
    del scan

    # Bring the values to Hounsfield units.
    if hu_offset:
        values += np.float32(hu_offset)
    values = plausible.hounsfield(values, spacing, remarks)
    plausible.check_size(spacing * values.shape)

    # Check the head in coarse cubes, so that the result does not depend on `voxel`.
    coarse = _isolated(_upright(values, affine, plausible.COARSE))
    remarks += plausible.check_head(np.asarray(coarse.values), plausible.COARSE)
    if voxel == plausible.COARSE:
        return Head(coarse, remarks)
    return Head(_isolated(_upright(values, affine, voxel)), remarks)


def _upright(values: Float[Array, "i j k"], affine: Float[Array, "4 4"], voxel: float) -> Volume:
    """Returns values resampled to cubes whose axes are right, front and top."""
    # Average whole blocks where voxels are much finer than the cubes; interpolation alone would
    # skip some of them.
    blocks = plausible.block_counts(np.linalg.norm(affine[:3, :3], axis=0), voxel)
    blocks = np.minimum(blocks, values.shape)
    values = plausible.block_means(values, blocks)
    shift = ((blocks - 1) / 2)[:, None]
    affine = affine @ np.block([[np.diag(blocks), shift], [np.zeros((1, 3)), np.ones((1, 1))]])

    # The box around the volume.
    last = np.array(values.shape) - 1
    corners = np.array(np.meshgrid(*([0, n] for n in last), indexing="ij")).reshape(3, -1)
    places = affine[:3, :3] @ corners + affine[:3, 3:]
    low = places.min(1)
    high = places.max(1)
    shape = np.floor((high - low) / voxel + 1e-6).astype(int) + 1
    if shape.prod(dtype=np.int64) > MAX_VOXELS // 2:
        raise UnreadableError(f"is {(high - low).max():.0f} mm long; a head is expected")

    # Resample.
    inverse = np.linalg.inv(affine)
    resampled = ndimage.affine_transform(
        values,
        inverse[:3, :3] * voxel,
        offset=inverse[:3, :3] @ low + inverse[:3, 3],
        output_shape=tuple(shape),
        order=1,
        mode="constant",
        cval=AIR,
    )
    spacing = np.full(3, voxel, np.float32)
    return Volume(np.maximum(resampled, AIR), spacing, low.astype(np.float32))


def _isolated(head: Volume) -> Volume:
    """Returns the largest body of a volume; all else is air."""
    # The erosion cuts thin contacts between head and headrest. The dilation restores them only
    # within the head.
    values = np.asarray(head.values)
    body = ndimage.binary_erosion(values > plausible.BODY, iterations=2)
    labels, count = ndimage.label(body)
    if not count:
        raise UnreadableError("holds nothing but air")
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    grown = ndimage.binary_dilation(largest, iterations=6)
    filled = grown | np.stack([ndimage.binary_fill_holes(s) for s in np.moveaxis(grown, 2, 0)], 2)
    return head._replace(values=np.where(filled, values, AIR).astype(np.float32))


# A head's place in its box, in mm: the middle of its width, its foremost and its topmost point.
# Crown and nose then show at the same places of the picture as the procedural cohort's.
_BOX = (280.0, 300.0, 300.0)
_FRONT = 114.0
_TOP = 120.0
_CENTER = (0.0, 0.0, 0.0)
WIDTH = 264.0  # mm along a picture's side


def boxed(head: Volume) -> Volume:
    """Returns a head in a box of one size for all heads, whose middle a picture shows."""
    # The box, in voxels of the volume.
    spacing = float(head.spacing[0])
    solid = np.asarray(head.values) > plausible.BODY
    lows = []
    highs = []
    origin = []
    for axis, length in enumerate(_BOX):
        occupied = np.flatnonzero(solid.any(tuple(a for a in range(3) if a != axis)))
        middle = round(_middle(axis, first=occupied[0], last=occupied[-1], spacing=spacing))
        half = round(length / 2 / spacing)
        lows.append(middle - half)
        highs.append(middle + half + 1)
        origin.append(-half * spacing)

    # Cut it out, with air beyond the volume.
    before = [max(0, -low) for low in lows]
    after = [max(0, high - n) for high, n in zip(highs, solid.shape, strict=True)]
    padded = np.pad(head.values, [*zip(before, after, strict=True)], constant_values=AIR)
    box = tuple(
        slice(low + pad, high + pad) for low, high, pad in zip(lows, highs, before, strict=True)
    )
    return Volume(padded[box], head.spacing, np.array(origin, np.float32))


def _middle(axis: int, first: int, last: int, spacing: float) -> float:
    """Returns the box's middle along an axis, from the head's first and last voxel on it."""
    if axis == 0:
        return (first + last) / 2
    return last - (_FRONT if axis == 1 else _TOP) / spacing


def pictures(
    head: Volume, size: int, dry: bool = False
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns the X-rays and the faces of a boxed head by view, in [0, 1].

    X-rays are `(size, size)`, faces `(size, size, 3)`. With `dry`, X-rays lack soft tissue.
    """
    return jax.device_get(_pictures(head, size, dry))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pictures(
    head: Volume, size: int, dry: bool
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Returns what `pictures` does, in one program that blurs the volume once for both views."""
    frame = Frame(size, WIDTH, _CENTER)
    seen = xray.bare_bone(head) if dry else head
    xrays = {view: xray.radiograph(seen, frame, view) for view in VIEWS}
    faces = {view: surface.isosurface_portrait(head, frame, view) for view in VIEWS}
    return xrays, faces


def main(path: str, folder: str, size: str = "256") -> None:
    """Writes `xray_VIEW.png` (16 bit) and `face_VIEW.png` of a head."""
    # Read.
    if "://" in folder:
        sys.exit(f"{folder}: pictures are written to a disk. Name a local folder.")
    head, remarks = examine_head(pathlib.Path(path), voxel_for(int(size)))
    print(*remarks, sep="\n", end="\n" * bool(remarks), file=sys.stderr)

    # Render and write.
    out = pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    xrays, faces = pictures(boxed(head), int(size))
    for view in VIEWS:
        xray_pixels = np.round(xrays[view] * 65535).astype(np.uint16)
        Image.fromarray(xray_pixels).save(out / f"xray_{view}.png")
        face_pixels = np.round(faces[view] * 255).astype(np.uint8)
        Image.fromarray(face_pixels).save(out / f"face_{view}.png")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UnreadableError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
