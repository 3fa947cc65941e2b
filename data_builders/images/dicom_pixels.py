"""The form in which a DICOM object stores its pixels, and decoding them."""

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
from data_builders.images.rasters import check_end, jpeg_header

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREYS = ("MONOCHROME1", "MONOCHROME2")
_THREE_CHANNELS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_COLOURS = (*_THREE_CHANNELS, "PALETTE COLOR")


class Form(NamedTuple):
    """The form of an object's pixels, as its header states it where that is plausible.

    Attributes:
      rows: of the picture.
      columns: of the picture.
      samples: values a pixel, 1 or 3.
      photometric: PhotometricInterpretation.
      allocated: bits that a value takes.
      stored: bits of the value itself.
      high: number of its highest bit.
      signed: whether the highest bit is a sign.
      syntax: the transfer syntax.
    """

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
    """Returns the form of an object's pixels. Raises UnreadableError for one that can't be read."""
    # Size.
    rows = header.integer(data, "Rows", 0)
    columns = header.integer(data, "Columns", 0)
    if rows <= 0 or columns <= 0:
        raise UnreadableError("a DICOM file that does not state its size (Rows, Columns)")
    files.check_size(columns, rows)

    # Grey or colours.
    photometric = header.text(data, "PhotometricInterpretation")
    photometric = photometric.replace("MONOCHROME ", "MONOCHROME")
    three_channels = photometric in _THREE_CHANNELS
    samples = header.integer(data, "SamplesPerPixel", 3 if three_channels else 1)
    if photometric not in _GREYS + _COLOURS and samples == 1:
        photometric = "MONOCHROME2"
        remarks.append(grey.POLARITY_MISSING)
    known = photometric in _GREYS + _COLOURS and samples in (1, 3)
    if not known or (samples == 3) != three_channels:
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
    if high < 0:
        high = stored - 1
    if not stored - 1 <= high < allocated:
        high = stored - 1
        remarks.append(grey.BITS)
    return Form(
        rows=rows,
        columns=columns,
        samples=samples,
        photometric=photometric,
        allocated=allocated,
        stored=stored,
        high=high,
        signed=header.integer(data, "PixelRepresentation", 0) == 1,
        syntax=_syntax(data),
    )


def _syntax(data: Dataset) -> uid.UID:
    """Returns the transfer syntax that the header states, or else the pixel data's bytes show."""
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
    kind = jpeg_header(code).kind
    syntaxes = {
        0x51: uid.JPEG2000,
        0xF7: uid.JPEGLSNearLossless,
        0xC3: uid.JPEGLossless,
        0xC0: uid.JPEGBaseline8Bit,
    }
    return syntaxes.get(kind, uid.JPEGExtended12Bit)


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
    # Check the size.
    keyword = next(keyword for keyword in PIXELS if keyword in data)
    if form.syntax.is_encapsulated:
        _check_frame(_frame(data), form)
    else:
        _check_length(len(data[keyword].value), form)
    if form.allocated == 12:
        return _unpacked(data[keyword].value, form)

    # Decode a data set that holds only the elements that decoding needs.
    clean = Dataset()
    clean.file_meta = FileMetaDataset()
    clean.file_meta.TransferSyntaxUID = form.syntax
    clean.Rows = form.rows
    clean.Columns = form.columns
    clean.SamplesPerPixel = form.samples
    clean.PhotometricInterpretation = form.photometric
    clean.BitsAllocated = form.allocated
    clean.BitsStored = form.stored
    clean.HighBit = form.stored - 1
    clean.PixelRepresentation = int(form.signed)
    if form.samples > 1:
        clean.PlanarConfiguration = header.integer(data, "PlanarConfiguration", 0)
    clean.add(data[keyword])
    return pixel_array(clean, view_only=True, correct_unused_bits=False)


def _check_frame(code: bytes, form: Form) -> None:
    """Raises UnreadableError where a compressed picture is cut off or of another size."""
    if form.syntax == uid.RLELossless:
        return
    size = jpeg_header(code)
    if (size.height, size.width) != (form.rows, form.columns):
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
    length = 3 * -(-count // 2)
    triples = np.frombuffer(content[:length].ljust(length, b"\0"), np.uint8)
    low, middle, high = triples.reshape(-1, 3).T.astype(np.uint16)
    pairs = np.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], 1)
    return pairs.ravel()[:count].reshape(form.rows, form.columns)


def coloured(data: Dataset, array: Array) -> Array:
    """Returns three channels, from a palette where there is one."""
    if array.ndim == 3:
        return array
    little = data.original_encoding[1] is not False
    sample = array[::8, ::8].ravel().astype(np.float64)
    codes = np.arange(256**array.itemsize, dtype=f"u{array.itemsize}")
    channels = []
    for colour in ("Red", "Green", "Blue"):
        palette = table(data, sample, little, keyword=f"{colour}PaletteColorLookupTable")
        if palette is None:
            raise UnreadableError(
                "a DICOM file in colours whose palette can't be read; export it in grey"
            )
        values = palette(codes.astype(np.float64)).astype(np.uint16)
        channels.append(values[array.view(codes.dtype)])
    return np.stack(channels, -1)
