"""NIfTI-1, NIfTI-2 and Analyze files, alone or as pairs, plain or compressed."""

import pathlib
import warnings
from typing import BinaryIO, Literal, NamedTuple, cast

import nibabel
import numpy as np
from jaxtyping import Float
from nibabel.analyze import AnalyzeHeader
from nibabel.spatialimages import HeaderDataError
from nibabel.spm99analyze import Spm99AnalyzeHeader
from numpy import ndarray as Array

from data_builders.errors import UnreadableError
from data_builders.volumes import stored
from data_builders.volumes.scan import Scan

HEADER = 544  # bytes of the longest header
_ORDERS: tuple[Literal["little", "big"], ...] = ("little", "big")
UNITS = {1: ("metres", 1000.0), 3: ("micrometres", 0.001)}
TEMPLATES = (3, 4)  # sform codes of places in a template brain
MM = (80.0, 2500.0)  # the extent of a scan of a person


def is_nifti(head: bytes) -> bool:
    """Returns True if a file that begins with `head` has a NIfTI or Analyze header."""
    if len(head) < 348:
        return False
    return any(int.from_bytes(head[:4], order) in (348, 540) for order in _ORDERS)


def read_nifti(path: pathlib.Path) -> Scan:
    """Reads a file, or the header of a pair. Raises UnreadableError."""
    try:
        return _read(path)
    except UnreadableError as error:
        words = str(error)
        if not words.startswith(("holds an array", "unpacks to", "not a readable")):
            words = f"not a readable NIfTI file: it {words}"
        raise UnreadableError(words) from None
    except (HeaderDataError, ValueError, OverflowError, EOFError) as error:
        raise UnreadableError(f"not a readable NIfTI file ({type(error).__name__})") from None


def _read(path: pathlib.Path) -> Scan:
    """Reads a file. Raises any error of nibabel."""
    # The header, and the values behind it.
    with path.open("rb") as file:
        packing = packing_of(file)
        head, chunks = stored.beginning(stored.pieces(file, packing), HEADER)
        if not is_nifti(head):
            raise UnreadableError("has no NIfTI header")
        header, pair = _header(head)
        shape = stored.volume_shape(_shape(header))
        dtype = _dtype(header)
        offset = _offset(header, pair)
        if not pair:
            size = path.stat().st_size
            raw = stored.values_of(chunks, dtype, shape, skip=offset, packed=size)
    if pair:
        raw = _pair_values(path, dtype, shape, offset=offset)

    # Their units and place.
    slope, intercept = header.get_slope_inter()
    values = raw if slope is None else _scaled(raw, slope, intercept or 0.0)
    place = _place(header, shape)
    return Scan(values, place.affine, place.remarks, missing=place.missing)


def packing_of(file: BinaryIO) -> str:
    """Returns the compression of an open file by its first bytes, as `stored.pieces` takes it."""
    packed = file.read(2) == stored.GZIP
    file.seek(0)
    return "zlib" if packed else ""


def _header(head: bytes) -> tuple[AnalyzeHeader, bool]:
    """Returns the parsed header, and True if the values are in a second file."""
    sizes = {order: int.from_bytes(head[:4], order) for order in _ORDERS}
    endianness = "<" if sizes["little"] in (348, 540) else ">"
    if 540 in sizes.values():
        if head[4:7] not in (b"n+2", b"ni2"):
            raise UnreadableError("has a header without the letters n+2")
        return nibabel.Nifti2Header(head[:540], endianness, check=False), head[4:7] == b"ni2"
    if head[344:347] in (b"n+1", b"ni1"):
        return nibabel.Nifti1Header(head[:348], endianness, check=False), head[344:347] == b"ni1"
    return Spm99AnalyzeHeader(head[:348], endianness, check=False), True


def _shape(header: AnalyzeHeader) -> tuple[int, ...]:
    """Returns the lengths of the axes that the header states."""
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7:
        raise UnreadableError(f"has a damaged header: dim[0] is {dim[0]}")
    return tuple(dim[1 : 1 + dim[0]])


def _dtype(header: AnalyzeHeader) -> np.dtype:
    """Returns the type of the stored values. Raises UnreadableError for one that no CT has."""
    code = int(header["datatype"])
    try:
        dtype = cast(np.dtype, header._data_type_codes.dtype[code])
    except KeyError:
        raise UnreadableError(f"has a datatype ({code}) that is unknown") from None
    dtype = dtype.newbyteorder(header.endianness)
    if dtype.kind not in "iuf" or not dtype.itemsize:
        name = header._data_type_codes.label[code]
        raise UnreadableError(f"holds {name} values instead of CT numbers")
    return dtype


def _offset(header: AnalyzeHeader, pair: bool) -> int:
    """Returns the bytes before the values. Raises UnreadableError for an impossible number."""
    offset = float(header["vox_offset"])
    lowest = 0
    if isinstance(header, nibabel.Nifti1Header) and not pair:
        lowest = header.single_vox_offset
    if not offset:
        return lowest
    if not np.isfinite(offset) or offset != int(offset) or not lowest <= offset < 1e8:
        raise UnreadableError(f"has a damaged header: vox_offset is {offset:g}")
    return int(offset)


def _pair_values(path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...], offset: int) -> Array:
    """Returns the values of a header's pair, the .img file of the same name."""
    name = path.name.lower().removesuffix(".gz").removesuffix(".hdr")
    names = [f"{name}.img", f"{name}.img.gz"]
    images = sorted(other for other in path.parent.iterdir() if other.name.lower() in names)
    if not images:
        raise UnreadableError("is only a header; the .img file beside it is missing")
    with images[0].open("rb") as file:
        chunks = stored.pieces(file, packing_of(file))
        return stored.values_of(chunks, dtype, shape, skip=offset, packed=images[0].stat().st_size)


def _scaled(raw: Array, slope: float, intercept: float) -> Float[Array, "i j k"]:
    """Returns values in the header's units, as float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        return raw.astype(np.float32) * np.float32(slope) + np.float32(intercept)


class _Place(NamedTuple):
    """A volume's place.

    Attributes:
      affine: from indices to mm.
      missing: the field that should state the axes' directions and does not, or "".
      remarks: on contradictions.
    """

    affine: Float[Array, "4 4"]
    missing: str
    remarks: list[str]


def _place(header: AnalyzeHeader, shape: tuple[int, ...]) -> _Place:
    """Returns a volume's place in mm by its header."""
    zooms = np.abs(np.asarray(header["pixdim"][1:4], float))
    if not isinstance(header, nibabel.Nifti1Header):
        return _Place(np.diag([*zooms, 1.0]), "an Analyze header has no field for it", [])

    # The affine in the header's unit.
    remarks: list[str] = []
    sform = _sform(header)
    qform = _qform(header)
    missing = "" if sform is not None or qform is not None else "sform_code and qform_code are 0"
    affine = _chosen(sform, qform, code=int(header["sform_code"]), remarks=remarks)
    if affine is not None and qform is None and not _same_sizes(affine, zooms):
        remarks.append("pixdim and the sform have different voxel sizes; the sform was used")
    if affine is None:
        affine = np.diag([*zooms, 1.0])

    # In mm.
    extents = np.linalg.norm(affine[:3, :3], axis=0) * shape
    affine[:3] *= _unit(int(header["xyzt_units"]) & 7, extents, remarks)
    return _Place(affine, missing, remarks)


def _same_sizes(affine: Float[Array, "4 4"], zooms: Float[Array, "3"]) -> bool:
    """Returns True if an affine has the voxel sizes `zooms`, to 3 %."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.allclose(lengths, zooms, rtol=0.03))


def _sform(header: nibabel.Nifti1Header) -> Float[Array, "4 4"] | None:
    """Returns the sform, None where its code is 0."""
    return np.asarray(header.get_sform(), float) if header["sform_code"] > 0 else None


def _qform(header: nibabel.Nifti1Header) -> Float[Array, "4 4"] | None:
    """Returns the qform, None where its code is 0, or it is damaged and there is an sform."""
    if header["qform_code"] <= 0:
        return None
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1
    header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return np.asarray(header.get_qform(), float)
    except (ValueError, HeaderDataError):
        if header["sform_code"] > 0:
            return None
        raise UnreadableError(
            "has a damaged header: quatern_b, _c and _d are not a rotation"
        ) from None


def _chosen(
    sform: Float[Array, "4 4"] | None,
    qform: Float[Array, "4 4"] | None,
    code: int,
    remarks: list[str],
) -> Float[Array, "4 4"] | None:
    """Returns the sform, or the qform where the sform has a template's proportions."""
    # Only one of them.
    template = "places in a template brain (sform_code 3 or 4)"
    if sform is None:
        return qform
    if qform is None:
        if code in TEMPLATES:
            remarks.append(f"states {template} only: sizes and angles may be the template's")
        return sform
    lengths = [np.linalg.norm(matrix[:3, :3], axis=0) for matrix in (sform, qform)]
    if not np.isfinite(lengths).all() or np.min(lengths) <= 0:
        return sform if np.isfinite(sform).all() and lengths[0].min() > 0 else qform

    # Their angle.
    cosines = (sform[:3, :3] / lengths[0] * qform[:3, :3] / lengths[1]).sum(0)
    angle = np.rad2deg(np.arccos(np.clip(cosines.min(), -1, 1)))
    if angle > 45:
        raise UnreadableError(
            f"contradicts itself: sform and qform lie {angle:.0f} degrees apart. "
            "Set one of their codes to 0"
        )

    # Their voxel sizes.
    differ = np.abs(np.log(lengths[0] / lengths[1])).max() > np.log(1.03)
    if differ and code in TEMPLATES:
        remarks.append(f"states {template}; the scanner's (qform) were used")
        return qform
    if differ:
        raise UnreadableError(
            "contradicts itself: sform and qform have different voxel sizes. "
            "Set one of their codes to 0"
        )
    if angle > 3:
        remarks.append(f"sform and qform lie {angle:.0f} degrees apart; the sform was used")
    return sform


def _unit(unit: int, extents: Array, remarks: list[str]) -> float:
    """Returns the mm in the header's unit, or 1 where this unit gives an impossible size."""
    if unit not in UNITS:
        return 1.0
    name, factor = UNITS[unit]
    if MM[0] <= extents.max() * factor <= MM[1]:
        remarks.append(f"voxel sizes in {name} were converted to mm")
        return factor
    remarks.append(f"xyzt_units says {name}, but the voxel sizes are in mm; mm were used")
    return 1.0
