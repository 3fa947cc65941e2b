"""How the pixels of a DICOM object are stored, and decoding them."""

from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_fragments
from pydicom.pixels import pixel_array

from data_builders.errors import UnreadableError
from data_builders.images import dicom_header as header
from data_builders.images import files, grey
from data_builders.images.dicom_tables import table
from data_builders.images.rasters import check_end, frame_size

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")


class Form(NamedTuple):
    """How an object's pixels are stored, as its header says where that can be meant."""

    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    stored: int
    high: int
    signed: bool
    syntax: uid.UID


def stated_form(data: Dataset, remarks: list[str]) -> Form:
    """Returns how an object's pixels are stored. Raises UnreadableError for what can't be read."""
    rows, columns = (header.integer(data, keyword, 0) for keyword in ("Rows", "Columns"))
    if rows <= 0 or columns <= 0:
        raise UnreadableError("a DICOM file that states no size of its picture (Rows, Columns)")
    files.check_size(columns, rows)

    # Grey or colours.
    photometric = header.text(data, "PhotometricInterpretation").replace(
        "MONOCHROME ", "MONOCHROME"
    )
    samples = header.integer(data, "SamplesPerPixel", 3 if photometric in _COLOURS[:5] else 1)
    if photometric not in _GREYS + _COLOURS and samples == 1:
        photometric = "MONOCHROME2"
        remarks.append(grey.POLARITY_MISSING)
    if (
        photometric not in _GREYS + _COLOURS
        or samples not in (1, 3)
        or (samples == 3) != (photometric in _COLOURS[:5])
    ):
        raise UnreadableError("a DICOM file in colours; an X-ray is grey")

    # Bits.
    floating = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
    default = next((bits for keyword, bits in floating.items() if keyword in data), 16)
    allocated = header.integer(data, "BitsAllocated", default)
    if allocated not in (1, 8, 12, 16, 32, 64):
        raise UnreadableError(
            f"a DICOM file of {allocated} bits a pixel (BitsAllocated); 8 or 16 are usual"
        )
    high = header.integer(data, "HighBit", -1)
    stored = header.integer(data, "BitsStored", high + 1 or allocated)
    if not 1 <= stored <= allocated:
        stored = allocated
        remarks.append(grey.BITS)
    high = stored - 1 if high < 0 else high
    if not stored - 1 <= high < allocated:
        high = stored - 1
        remarks.append(grey.BITS)
    signed = header.integer(data, "PixelRepresentation", 0) == 1
    return Form(rows, columns, samples, photometric, allocated, stored, high, signed, _syntax(data))


def _syntax(data: Dataset) -> uid.UID:
    """Returns how the pixel data are encoded: as the header says, else as their bytes show."""
    meta = getattr(data, "file_meta", None) or Dataset()
    stated = uid.UID((header.strings(meta, "TransferSyntaxUID") or [""])[0])
    known = stated.is_transfer_syntax
    wrapped = "PixelData" in data and data["PixelData"].value[:4] == b"\xfe\xff\x00\xe0"
    if known and stated.is_encapsulated == wrapped:
        return stated
    if wrapped:
        return _guessed(_frame(data))
    implicit, little = data.original_encoding
    if little is False:
        return uid.ExplicitVRBigEndian
    return uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian


def _guessed(code: bytes) -> uid.UID:
    """Returns the transfer syntax of a compressed picture by its first bytes."""
    if code[4:8] == b"\x40\0\0\0":
        return uid.RLELossless
    marker = frame_size(code)[0]
    syntaxes = {
        0x51: uid.JPEG2000,
        0xF7: uid.JPEGLSNearLossless,
        0xC3: uid.JPEGLossless,
        0xC0: uid.JPEGBaseline8Bit,
    }
    return syntaxes.get(marker, uid.JPEGExtended12Bit)


def _frame(data: Dataset) -> bytes:
    """Returns the compressed picture of an object. Raises UnreadableError for several."""
    fragments = list(generate_fragments(data["PixelData"].value))[1:]
    if not fragments:
        raise UnreadableError("damaged: its pixel data are empty")
    pictures = sum(
        part[:3] == b"\xff\xd8\xff" or part[:4] == b"\xff\x4f\xff\x51" for part in fragments
    )
    if pictures > 1:
        raise UnreadableError(f"a DICOM file of {pictures} frames; one X-ray is expected")
    return b"".join(fragments)


def decoded(data: Dataset, form: Form) -> Array:
    """Returns the pixels `(h, w)` or `(h, w, 3)` as they are stored."""
    keyword = next(keyword for keyword in PIXELS if keyword in data)
    if form.syntax.is_encapsulated:
        _check_frame(_frame(data), form)
    else:
        _check_length(len(data[keyword].value), form)
    if form.allocated == 12:
        return _unpacked(data[keyword].value, form)

    # A data set of what decides the decoding, and of nothing that could disturb it.
    clean = Dataset()
    clean.file_meta = FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = form.syntax
    clean.Rows, clean.Columns = form.rows, form.columns
    clean.SamplesPerPixel, clean.PhotometricInterpretation = form.samples, form.photometric
    clean.BitsAllocated, clean.BitsStored, clean.HighBit = (
        form.allocated,
        form.stored,
        form.stored - 1,
    )
    clean.PixelRepresentation = int(form.signed)
    if form.samples > 1:
        clean.PlanarConfiguration = header.integer(data, "PlanarConfiguration", 0)
    clean.add(data[keyword])
    return pixel_array(clean, view_only=True, correct_unused_bits=False)


def _check_frame(code: bytes, form: Form) -> None:
    """Raises UnreadableError where a compressed picture is cut off or of another size."""
    if form.syntax == uid.RLELossless:
        return
    _, _, height, width = frame_size(code)
    if (height, width) != (form.rows, form.columns):
        raise UnreadableError(
            "its compressed picture has another size than its header says (Rows, Columns)"
        )
    check_end(code)


def _check_length(length: int, form: Form) -> None:
    """Raises UnreadableError where there are fewer pixels than stated, or twice as many."""
    expected = -(-form.rows * form.columns * form.allocated // 8)
    if form.samples == 3:
        expected *= 2 if form.photometric == "YBR_FULL_422" else 3
    if length < expected and form.samples == 3:
        raise UnreadableError("a DICOM file in colours, and damaged; an X-ray is grey")
    if length < expected:
        raise UnreadableError(
            "damaged, or in a form that can't be decoded: its pixel data are cut off"
        )
    if length >= 2 * expected and length > expected + 2:
        raise UnreadableError(
            "holds more pixels than its header says (Rows, Columns, BitsAllocated)"
        )


def _unpacked(content: bytes, form: Form) -> Array:
    """Returns pixels of 12 bits, two in three bytes, the low bits first."""
    count = form.rows * form.columns
    triples = np.frombuffer(
        content[: -(-count // 2) * 3].ljust(-(-count // 2) * 3, b"\0"), np.uint8
    )
    low, middle, high = triples.reshape(-1, 3).T.astype(np.uint16)
    pairs = np.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], 1)
    return pairs.ravel()[:count].reshape(form.rows, form.columns)


def coloured(data: Dataset, array: Array) -> Array:
    """Returns three channels, from a palette where there is one."""
    if array.ndim == 3:
        return array
    little = data.original_encoding[1] is not False
    channels = []
    for colour in ("Red", "Green", "Blue"):
        found = table(
            data,
            array[::8, ::8].ravel().astype(np.float64),
            little,
            f"{colour}PaletteColorLookupTable",
        )
        if found is None:
            raise UnreadableError(
                "a DICOM file in colours whose palette can't be read; export it in grey"
            )
        codes = np.arange(256**array.itemsize, dtype=f"u{array.itemsize}")
        channels.append(found(codes.astype(np.float64))[array.view(codes.dtype)].astype(np.uint16))
    return np.stack(channels, -1)
