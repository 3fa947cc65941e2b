"""MetaImage and NRRD files, with their values in the file itself or in a second one."""

import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import nrrd
import numpy as np
from numpy import ndarray as Array

from data_builders.errors import UnreadableError
from data_builders.volumes import stored
from data_builders.volumes.scan import DEFAULT, LPS, Scan, affine_of, check_orientation

MAX_HEADER = 1 << 20
TYPES = {
    "CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4",
    "LONG": "i4", "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8",
    "FLOAT": "f4", "DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    name: kind
    for kind, names in {
        "i1": "signed char, int8, int8_t",
        "u1": "uchar, unsigned char, uint8, uint8_t",
        "i2": "short, short int, signed short, signed short int, int16, int16_t",
        "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
        "i4": "int, signed int, int32, int32_t",
        "u4": "uint, unsigned int, uint32, uint32_t",
        "i8": "longlong, long long, long long int, signed long long, int64, int64_t",
        "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(", ")
}
# Where an axis points, by where it starts.
FROM = dict(zip("RLAPIS", "LRPASI", strict=True))
PACKINGS = {"raw": "", "gzip": "zlib", "gz": "zlib", "bzip2": "bzip2", "bz2": "bzip2"}
TEXT = ("ascii", "text", "txt")


class Layout(NamedTuple):
    """The place and the form of stored values.

    Attributes:
      dtype: of the values.
      shape: of the values, first axis fastest.
      file: the name of another file in the same folder, or "".
      packing: as `stored.pieces` takes it, or "text".
      skip: bytes before the values; -1 if they end the file.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    file: str
    packing: str
    skip: int


def is_metaimage(head: bytes) -> bool:
    """Returns True if a file that begins with `head` has a MetaImage header."""
    text = head[:2000]
    first_line = text.split(b"\n", 1)[0]
    known = b"NDims" in text or b"DimSize" in text
    return b"=" in text and known and b"\0" not in first_line


def read_metaimage(path: pathlib.Path) -> Scan:
    """Reads an .mha or .mhd file. Raises UnreadableError."""
    with path.open("rb") as file:
        fields = _metaimage_fields(file)
        values = _values(path, file, _metaimage_layout(fields))
    return _metaimage_scan(fields, values)


def _metaimage_fields(file: BinaryIO) -> dict[str, str]:
    """Returns the header's fields, and leaves the file after the last one.

    The last field names the data.
    """
    fields: dict[str, str] = {}
    while "ElementDataFile" not in fields:
        line = file.readline(MAX_HEADER)
        if not line or b"=" not in line or file.tell() > MAX_HEADER:
            raise UnreadableError("not a readable volume: its MetaImage header breaks off")
        name, value = line.decode("latin-1").split("=", 1)
        fields[name.strip()] = value.strip()
    return fields


def _metaimage_layout(fields: dict[str, str]) -> Layout:
    """Returns the place and the form of the values. Raises UnreadableError."""
    # Shape and type.
    shape = _numbers(fields, "DimSize", int)
    kind = fields.get("ElementType", "").removeprefix("MET_")
    if kind not in TYPES or int(fields.get("ElementNumberOfChannels", 1)) != 1:
        raise UnreadableError(
            "is not a volume of one value per voxel (ElementType, ElementNumberOfChannels)"
        )
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False"))
    order = ">" if _true(big) else "<"

    # Packing and place.
    packing = "zlib" if _true(fields.get("CompressedData", "False")) else ""
    if not _true(fields.get("BinaryData", "True")):
        packing = "text"
    name = fields["ElementDataFile"]
    return Layout(
        dtype=np.dtype(order + TYPES[kind]),
        shape=shape,
        file="" if name.upper() == "LOCAL" else name,
        packing=packing,
        skip=int(fields.get("HeaderSize", 0)),
    )


def _metaimage_scan(fields: dict[str, str], values: Array) -> Scan:
    """Returns values with the affine that a MetaImage header states."""
    # Spacing.
    sizes = [name for name in ("ElementSpacing", "ElementSize") if name in fields]
    if not sizes:
        raise UnreadableError("does not state the size of its voxels (ElementSpacing)")
    spacing = np.array(_numbers(fields, sizes[0], float)[:3])

    # Directions by letters, or none.
    directions = [name for name in ("TransformMatrix", "Rotation", "Orientation") if name in fields]
    letters = "".join(FROM.get(c, "?") for c in fields.get("AnatomicalOrientation", "").upper())
    if not directions and len(letters) == 3 and "?" not in letters:
        return Scan(values, affine_of(check_orientation(letters), spacing), [])
    if not directions:
        return Scan(values, np.diag([*spacing, 1.0]), [], missing="TransformMatrix is absent")

    # Directions by a matrix, whose rows are the directions of the axes.
    affine = np.eye(4)
    matrix = np.array(_numbers(fields, directions[0], float))
    affine[:3, :3] = matrix.reshape(round(len(matrix) ** 0.5), -1)[:3, :3].T * spacing
    origins = [name for name in ("Offset", "Origin", "Position") if name in fields]
    if origins:
        affine[:3, 3] = _numbers(fields, origins[0], float)[:3]
    default = np.array_equal(affine, np.diag([*spacing, 1.0]))
    remarks = [DEFAULT] if default else []
    return Scan(values, LPS @ affine, remarks, default=default)


def read_nrrd(path: pathlib.Path) -> Scan:
    """Reads an .nrrd or .nhdr file. Raises UnreadableError."""
    with path.open("rb") as file:
        header = _nrrd_header(file)
        if missing := [name for name in ("sizes", "type", "encoding") if name not in header]:
            raise UnreadableError(f"not a readable volume: its NRRD header lacks {missing[0]!r}")
        values = _values(path, file, _nrrd_layout(header))
    return _nrrd_scan(header, values)


def _nrrd_header(file: BinaryIO) -> Mapping[str, Any]:
    """Returns the header, and leaves the file after it. Raises UnreadableError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return nrrd.read_header(file)
    except (nrrd.NRRDError, ValueError, KeyError, IndexError) as error:
        raise UnreadableError(
            f"not a readable volume: its NRRD header is damaged ({type(error).__name__})"
        ) from None


def _nrrd_layout(header: Mapping[str, Any]) -> Layout:
    """Returns the place and the form of the values. Raises UnreadableError."""
    # Type and encoding.
    encoding = str(header["encoding"]).lower()
    kind = _NRRD_TYPES.get(str(header["type"]).lower())
    if kind is None:
        raise UnreadableError("holds values of another `type` than CT numbers have")
    if encoding not in PACKINGS and encoding not in TEXT:
        raise UnreadableError("has an `encoding` that can't be read; save it as raw or gzip")
    ordered = np.dtype(kind).itemsize > 1 and encoding not in TEXT
    if ordered and header.get("endian") not in ("little", "big"):
        raise UnreadableError("does not state the order of its bytes (endian)")
    order = ">" if header.get("endian") == "big" else "<"

    # Place.
    if int(header.get("line skip", header.get("lineskip", 0))):
        raise UnreadableError("skips lines before its values (line skip); save it without")
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if skip and encoding not in ("raw", *TEXT):
        raise UnreadableError("skips bytes of compressed values (byte skip); save it without")
    return Layout(
        dtype=np.dtype(order + kind),
        shape=tuple(int(n) for n in header["sizes"]),
        file=str(header.get("data file", header.get("datafile", ""))),
        packing=PACKINGS.get(encoding, "text"),
        skip=skip,
    )


def _nrrd_scan(header: Mapping[str, Any], values: Array) -> Scan:
    """Returns values with the affine that an NRRD header states."""
    # The directions in which the space's axes lead.
    name = str(header.get("space", "")).lower()
    words = name.split("-")[:3] if "-" in name else list(name[:3])
    letters = "".join(word[:1].upper() for word in words)

    # Without directions of the array's axes.
    directions = header.get("space directions")
    spacings = header.get("spacings")
    if directions is None:
        if spacings is None:
            raise UnreadableError(
                "does not state the size of its voxels (spacings or space directions)"
            )
        missing = "`space directions` is absent" if name else "`space` is absent"
        return Scan(values, np.diag([*np.abs(spacings[:3]), 1.0]), [], missing=missing)

    # With them.
    affine = np.eye(4)
    affine[:3, :3] = np.array(directions, float)[:3, :3].T
    if header.get("space origin") is not None:
        affine[:3, 3] = np.asarray(header["space origin"], float)[:3]
    try:
        world = affine_of(check_orientation(letters), np.ones(3))
    except ValueError:
        missing = "`space` names no anatomical directions" if name else "`space` is absent"
        return Scan(values, affine, [], missing=missing)
    return Scan(values, world @ affine, [])


def _values(path: pathlib.Path, file: BinaryIO, layout: Layout) -> Array:
    """Returns the values that follow a header in `file`, or are in a file in the same folder."""
    if not layout.file:
        return _payload(file, layout, path.stat().st_size)
    # Only one plain name. Lists and patterns of files have a space or a percent sign.
    words = layout.file.split()
    if words[0].upper() == "LIST" or "%" in layout.file:
        raise UnreadableError("keeps its values in several files; save it as one")
    other = path.parent / layout.file
    if pathlib.PurePath(layout.file).name != layout.file or "\\" in layout.file:
        raise UnreadableError(
            "keeps its values outside of its folder; move them beside it and name only the file"
        )
    if not other.is_file():
        raise UnreadableError("keeps its values in a second file, which is missing beside it")
    with other.open("rb") as data:
        return _payload(data, layout, other.stat().st_size)


def _payload(file: BinaryIO, layout: Layout, size: int) -> Array:
    """Returns the values in an open file of `size` bytes."""
    shape = stored.volume_shape(layout.shape)
    if layout.packing == "text":
        return _text_values(file, shape, layout.dtype)
    skip = layout.skip
    if skip < 0:
        skip = size - file.tell() - int(np.prod(shape, dtype=np.int64)) * layout.dtype.itemsize
        if skip < 0:
            raise UnreadableError("is cut off: some of its values are missing; copy it again")
    chunks = stored.pieces(file, layout.packing)
    return stored.values_of(chunks, layout.dtype, shape, skip=skip, packed=size)


def _text_values(file: BinaryIO, shape: tuple[int, int, int], dtype: np.dtype) -> Array:
    """Returns values that are written as text."""
    try:
        values = np.array(file.read().split(), np.float64)
    except ValueError:
        raise UnreadableError("holds words instead of values") from None
    if values.size != np.prod(shape):
        raise UnreadableError(f"holds {values.size} values; its header says {shape}")
    return values.astype(dtype.newbyteorder("=")).reshape(shape, order="F")


def _numbers(fields: dict[str, str], name: str, kind: type) -> tuple:
    """Returns a field's three or more numbers. Raises UnreadableError."""
    try:
        values = tuple(kind(x) for x in fields[name].split())
    except (KeyError, ValueError):
        values = ()
    if len(values) < 3:
        raise UnreadableError(f"not a readable volume: its header lacks {name}")
    return values


def _true(word: str) -> bool:
    """Returns True for a MetaImage word that means true."""
    return word.strip().lower() in ("true", "t", "1", "yes")
