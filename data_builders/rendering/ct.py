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
from data_builders.volumes.scan import MAX_VOXELS

AIR = plausible.AIR


class Head(NamedTuple):
    """A head, and what was corrected or is odd about it, in words that name nobody."""

    volume: Volume
    remarks: list[str]


def read_head(
    path: pathlib.Path, voxel: float, orientation: str = "", hu_offset: float = 0.0
) -> Volume:
    """Returns the volume of `examine_head` alone."""
    return examine_head(path, voxel, orientation, hu_offset).volume


def examine_head(
    path: pathlib.Path, voxel: float, orientation: str = "", hu_offset: float = 0.0
) -> Head:
    """A head in Hounsfield units, upright by its file's affine, in cubes of `voxel` mm.

    What does not touch the head (table, headrest, tubes, air) becomes air. `orientation`, three
    letters such as RAS, says where the axes lead if the file does not; `hu_offset` is added to all
    values. Raises UnreadableError where the file is no CT of a head.
    """
    with reading.refusals():
        return _examined(pathlib.Path(path), voxel, orientation, hu_offset)


def _examined(path: pathlib.Path, voxel: float, orientation: str, hu_offset: float) -> Head:
    scan = reading.read_scan(path, orientation)
    spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
    if min(scan.values.shape) < 16:
        raise UnreadableError(f"holds an array of shape {scan.values.shape} in place of a volume")
    remarks = list(scan.remarks)
    values = np.array(scan.values, np.float32, order="K")
    affine = scan.affine
    del scan
    if hu_offset:
        values += np.float32(hu_offset)
    values = plausible.hounsfield(values, spacing, remarks)
    plausible.check_size(spacing * values.shape)
    # The same tests for all sizes of cubes.
    coarse = _upright(values, affine, plausible.COARSE)
    coarse = coarse._replace(values=_alone(coarse.values))
    remarks += plausible.check_head(coarse.values, plausible.COARSE)
    if voxel == plausible.COARSE:
        return Head(coarse, remarks)
    head = _upright(values, affine, voxel)
    return Head(head._replace(values=_alone(head.values)), remarks)


def _read(path: pathlib.Path) -> tuple[Array, Float[Array, "4 4"]]:
    """Values, and the transform from their indices to mm on the RAS+ axes."""
    scan = reading.read_scan(path)
    return scan.values, scan.affine


def _upright(values: Float[Array, "i j k"], affine: Float[Array, "4 4"], voxel: float) -> Volume:
    """Resampled to cubes whose axes are right, front and top."""
    # Means of whole blocks first, where voxels are much finer than the cubes: interpolation alone
    # would skip some.
    blocks = plausible.block_counts(np.linalg.norm(affine[:3, :3], axis=0), voxel)
    blocks = np.minimum(blocks, values.shape)
    values = plausible.block_means(values, blocks)
    shift = ((blocks - 1) / 2)[:, None]
    affine = affine @ np.block([[np.diag(blocks), shift], [np.zeros((1, 3)), np.ones((1, 1))]])
    last = np.array(values.shape) - 1
    corners = np.array(np.meshgrid(*([0, n] for n in last), indexing="ij")).reshape(3, -1)
    places = affine[:3, :3] @ corners + affine[:3, 3:]
    low, high = places.min(1), places.max(1)
    shape = np.floor((high - low) / voxel + 1e-6).astype(int) + 1
    if shape.prod(dtype=np.int64) > MAX_VOXELS // 2:
        raise UnreadableError(f"is {(high - low).max():.0f} mm long; a head is expected")
    inverse = np.linalg.inv(affine)
    resampled = ndimage.affine_transform(
        values,
        inverse[:3, :3] * voxel,
        inverse[:3, :3] @ low + inverse[:3, 3],
        tuple(shape),
        order=1,
        mode="constant",
        cval=AIR,
    )
    return Volume(np.maximum(resampled, AIR), np.full(3, voxel, np.float32), low.astype(np.float32))


def _alone(values: Float[Array, "x y z"]) -> Float[Array, "x y z"]:
    """The largest body; all else is air."""
    # The erosion cuts thin contacts between head and headrest; they grow back within the head only.
    body = ndimage.binary_erosion(values > -300.0, iterations=2)
    labels, count = ndimage.label(body)
    if not count:
        raise UnreadableError("holds nothing but air")
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    head = ndimage.binary_dilation(largest, iterations=6)
    filled = head | np.stack([ndimage.binary_fill_holes(s) for s in np.moveaxis(head, 2, 0)], 2)
    return np.where(filled, values, AIR).astype(np.float32)


# Where a head lies in its box, in mm: the middle of its width, its foremost and its topmost point.
# Crown and nose then show at the same places of the picture as the procedural cohort's.
_BOX = (280.0, 300.0, 300.0)
_FRONT, _TOP = 114.0, 120.0
_CENTER = (0.0, 0.0, 0.0)
WIDTH = 264.0  # mm along a picture's side


def boxed(head: Volume) -> Volume:
    """A head in a box of one size for all heads, whose middle a picture shows."""
    solid = np.asarray(head.values) > -300.0
    spacing = float(head.spacing[0])
    slices, origin = [], []
    for axis, length in enumerate(_BOX):
        found = np.flatnonzero(solid.any(tuple(a for a in range(3) if a != axis)))
        # The voxel that lies in the middle of the box.
        middle = round(
            ((found[0] + found[-1]) / 2, found[-1] - _FRONT / spacing, found[-1] - _TOP / spacing)[
                axis
            ]
        )
        half = round(length / 2 / spacing)
        slices.append((middle - half, middle + half + 1))
        origin.append(-half * spacing)
    padding = [
        (max(0, -low), max(0, high - n)) for (low, high), n in zip(slices, solid.shape, strict=True)
    ]
    values = np.pad(head.values, padding, constant_values=AIR)
    whole = tuple(
        slice(low + before, high + before)
        for (low, high), (before, _) in zip(slices, padding, strict=True)
    )
    return Volume(values[whole], head.spacing, np.array(origin, np.float32))


def pictures(head: Volume, size: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """`(size, size)` X-rays and `(size, size, 3)` faces of a boxed head by view, in [0, 1]."""
    return jax.device_get(_pictures(head, size))


@functools.partial(jax.jit, static_argnums=1)
def _pictures(head: Volume, size: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    # Both views in one program, which blurs the volume once for both.
    frame = Frame(size, WIDTH, _CENTER)
    return tuple(
        {view: make(head, frame, view) for view in VIEWS}
        for make in (xray.radiograph, surface.isosurface_portrait)
    )


def main(path: str, folder: str, size: str = "256") -> None:
    """Writes `xray_VIEW.png` (16 bit) and `face_VIEW.png` of a head."""
    if "://" in folder:
        sys.exit(f"{folder}: pictures are written to a disk. Name a local folder.")
    head, remarks = examine_head(pathlib.Path(path), voxel_for(int(size)))
    print(*remarks, sep="\n", end="\n" * bool(remarks), file=sys.stderr)
    out = pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    xrays, faces = pictures(boxed(head), int(size))
    for view in VIEWS:
        Image.fromarray(np.round(xrays[view] * 65535).astype(np.uint16)).save(
            out / f"xray_{view}.png"
        )
        Image.fromarray(np.round(faces[view] * 255).astype(np.uint8)).save(out / f"face_{view}.png")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UnreadableError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
