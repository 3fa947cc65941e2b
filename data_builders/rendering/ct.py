"""CT heads for the renderers: `python -m data_builders.rendering.ct HEAD OUT_FOLDER [SIZE]` writes a head's four pictures.

HEAD is a NIfTI, MetaImage or NRRD file, or a folder that holds one DICOM series.
"""

import functools
import pathlib
import sys

import jax
import nibabel
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from PIL import Image
from scipy import ndimage

from data_builders.errors import UnreadableError
from data_builders.rendering import surface, xray
from data_builders.rendering.volume import VIEWS, Frame, Volume, voxel_for

AIR = -1000.0  # HU
MAX_VOXELS = 1_000_000_000


def read_head(path: pathlib.Path, voxel: float) -> Volume:
    """A head in Hounsfield units, upright by its file's affine, in cubes of `voxel` mm.

    What does not touch the head (table, headrest, tubes, air) becomes air. Raises UnreadableError where the file is no CT of a
    head.
    """
    values, affine = _read(path)
    if values.ndim != 3 or min(values.shape) < 16:
        raise UnreadableError(f"holds an array of shape {values.shape} in place of a volume")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise UnreadableError("does not say how its voxels lie in space")
    head = _upright(np.asarray(values, np.float32), affine, voxel)
    if not (np.asarray(head.values) > 300.0).sum() * voxel**3 > 50_000:  # a skull has some 500 cm3 of bone
        raise UnreadableError("holds hardly anything as dense as bone; are these Hounsfield units?")
    return head._replace(values=_alone(head.values))


def _read(path: pathlib.Path) -> tuple[Array, Float[Array, "4 4"]]:
    """Values, and the transform from their indices to mm on the RAS+ axes."""
    if path.name.endswith((".nii", ".nii.gz")):
        try:
            image = nibabel.load(path)
            if np.prod(image.shape, dtype=np.int64) > MAX_VOXELS:
                raise UnreadableError("unpacks to more voxels than any CT has")
            return np.asarray(image.dataobj), image.affine
        except (OSError, EOFError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
            raise (
                error if isinstance(error, UnreadableError) else UnreadableError(f"not a readable NIfTI file ({type(error).__name__})")
            ) from None
    import SimpleITK

    SimpleITK.ProcessObject.GlobalWarningDisplayOff()
    try:
        if path.is_dir():
            series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
            if len(series) != 1:
                raise UnreadableError(f"holds {len(series) or 'no'} DICOM series; name a folder that holds one")
            reader = SimpleITK.ImageSeriesReader()
            reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0]))
        else:
            reader = SimpleITK.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            if np.prod(reader.GetSize(), dtype=np.float64) > MAX_VOXELS:
                raise UnreadableError("unpacks to more voxels than any CT has")
        image = reader.Execute()
    except RuntimeError:
        raise UnreadableError("not a readable volume") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise UnreadableError("holds no volume of one value a voxel")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    # ITK's axes run to the left, the back and the top.
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _upright(values: Float[Array, "i j k"], affine: Float[Array, "4 4"], voxel: float) -> Volume:
    """Resampled to cubes whose axes are right, front and top."""
    # Means of whole blocks first, where voxels are much finer than the cubes: interpolation alone would skip some.
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    blocks = np.maximum(1, np.floor(voxel / spacing)).astype(int)
    if (blocks > 1).any():
        whole = values[tuple(slice(n // b * b) for n, b in zip(values.shape, blocks, strict=True))]
        shape = [part for n, b in zip(whole.shape, blocks, strict=True) for part in (n // b, b)]
        values = whole.reshape(shape).mean((1, 3, 5))
        affine = affine @ np.block([[np.diag(blocks), ((blocks - 1) / 2)[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
    last = np.array(values.shape) - 1
    corners = np.array(np.meshgrid(*([0, n] for n in last), indexing="ij")).reshape(3, -1)
    places = affine[:3, :3] @ corners + affine[:3, 3:]
    low, high = places.min(1), places.max(1)
    shape = np.floor((high - low) / voxel + 1e-6).astype(int) + 1
    if shape.prod(dtype=np.int64) > MAX_VOXELS // 4:
        raise UnreadableError(f"is {(high - low).max():.0f} mm long; a head is expected")
    inverse = np.linalg.inv(affine)
    resampled = ndimage.affine_transform(
        values, inverse[:3, :3] * voxel, inverse[:3, :3] @ low + inverse[:3, 3], tuple(shape), order=1, mode="constant", cval=AIR
    )
    return Volume(np.maximum(resampled, AIR), np.full(3, voxel, np.float32), low.astype(np.float32))


def _alone(values: Float[Array, "x y z"]) -> Float[Array, "x y z"]:
    """The largest body; all else is air."""
    # Thin contacts between head and headrest are cut by the erosion, and grown back within the head only.
    body = ndimage.binary_erosion(values > -300.0, iterations=2)
    labels, count = ndimage.label(body)
    if not count:
        raise UnreadableError("holds nothing but air")
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    head = ndimage.binary_dilation(largest, iterations=6)
    filled = head | np.stack([ndimage.binary_fill_holes(s) for s in np.moveaxis(head, 2, 0)], 2)
    return np.where(filled, values, AIR).astype(np.float32)


# Where a head lies in its box, in mm: the middle of its width, its foremost and its topmost point. Crown and nose then show at
# the same places of the picture as the procedural cohort's.
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
        middle = round(((found[0] + found[-1]) / 2, found[-1] - _FRONT / spacing, found[-1] - _TOP / spacing)[axis])
        half = round(length / 2 / spacing)
        slices.append((middle - half, middle + half + 1))
        origin.append(-half * spacing)
    padding = [(max(0, -low), max(0, high - n)) for (low, high), n in zip(slices, solid.shape, strict=True)]
    values = np.pad(head.values, padding, constant_values=AIR)
    whole = tuple(slice(low + before, high + before) for (low, high), (before, _) in zip(slices, padding, strict=True))
    return Volume(values[whole], head.spacing, np.array(origin, np.float32))


def pictures(head: Volume, size: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """`(size, size)` X-rays and `(size, size, 3)` faces of a boxed head by view, in [0, 1]."""
    return jax.device_get(_pictures(head, size))


@functools.partial(jax.jit, static_argnums=1)
def _pictures(head: Volume, size: int) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    # Both views in one program, which blurs the volume once for both.
    frame = Frame(size, WIDTH, _CENTER)
    return tuple({view: make(head, frame, view) for view in VIEWS} for make in (xray.radiograph, surface.isosurface_portrait))


def main(path: str, folder: str, size: str = "256") -> None:
    """Writes `xray_VIEW.png` (16 bit) and `face_VIEW.png` of a head."""
    head, out = read_head(pathlib.Path(path), voxel_for(int(size))), pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    xrays, faces = pictures(boxed(head), int(size))
    for view in VIEWS:
        Image.fromarray(np.round(xrays[view] * 65535).astype(np.uint16)).save(out / f"xray_{view}.png")
        Image.fromarray(np.round(faces[view] * 255).astype(np.uint8)).save(out / f"face_{view}.png")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UnreadableError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
