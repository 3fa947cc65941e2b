"""X-rays from DICOM files."""

import pathlib
import zlib

import pydicom
from pydicom import uid
from pydicom.dataset import Dataset

from data_builders.errors import UnreadableError
from data_builders.images import dicom_header as header
from data_builders.images import files
from data_builders.images.dicom_geometry import pixel_aspect
from data_builders.images.dicom_pixels import PIXELS, coloured, decoded, stated_form
from data_builders.images.dicom_values import interpreted
from data_builders.images.grey import Grey
from data_builders.images.grey_files import grey_pixels

_SLICES = {
    "CT": "a CT slice, not an X-ray; CT series are read as volumes by ct_heads",
    "MR": "an MR slice, not an X-ray",
    "PT": "a PET slice, not an X-ray",
    "NM": "a nuclear medicine picture, not an X-ray",
    "US": "an ultrasound picture, not an X-ray",
    "IVUS": "an ultrasound picture, not an X-ray",
    "OCT": "an optical tomography, not an X-ray",
    "OPT": "an optical tomography, not an X-ray",
    "SEG": "a segmentation, not an X-ray",
    "RTDOSE": "a dose, not an X-ray",
    "MG": "a mammogram, not an X-ray of a head",
}
_CLASSES = {
    "CT Image": "CT",
    "MR Image": "MR",
    "MR Color": "MR",
    "Positron": "PT",
    "PET Image": "PT",
    "Nuclear": "NM",
    "Ultrasound": "US",
    "Tomography Image": "OPT",
    "Segmentation": "SEG",
    "RT Dose": "RTDOSE",
    "Mammography": "MG",
}


def read(path: pathlib.Path) -> Grey:
    """Returns the X-ray of a DICOM file. Raises UnreadableError."""
    with files.readable():
        # Decode.
        _check_deflated(path)
        data = pydicom.dcmread(path, force=True)
        _check_xray(data)
        remarks: list[str] = []
        form = stated_form(data, remarks)
        array = decoded(data, form)

        # Grey that is stored in colours has values that need no interpretation.
        if form.samples > 1 or form.photometric == "PALETTE COLOR":
            pixels, channels = grey_pixels(coloured(data, array))
            aspect, ratios = pixel_aspect(data)
            return Grey(pixels, aspect=aspect, remarks=(*remarks, *channels, *ratios))
        return interpreted(data, array, form, remarks=remarks)


# Checks that an object is an X-ray.


def _check_deflated(path: pathlib.Path) -> None:
    """Raises UnreadableError where a deflated file is a decompression bomb, or cut off."""
    with open(path, "rb") as file:
        if uid.DeflatedExplicitVRLittleEndian.encode() not in file.read(4096):
            return
    meta = pydicom.filereader.read_file_meta_info(path)
    with open(path, "rb") as file:
        file.seek(132 + 12 + meta.FileMetaInformationGroupLength)
        unpack = zlib.decompressobj(-zlib.MAX_WBITS)
        room = 4 * files.MAX_PIXELS
        while room > 0 and (packed := unpack.unconsumed_tail or file.read(1 << 16)):
            room -= len(unpack.decompress(packed, 1 << 24))
    if room <= 0:
        raise UnreadableError("unpacks to more bytes than any X-ray has")
    if not unpack.eof:
        raise UnreadableError("damaged: its compressed content is cut off")


def _check_xray(data: Dataset) -> None:
    """Raises UnreadableError where a data set is not a single X-ray."""
    name = _class_name(data)
    if not any(keyword in data for keyword in PIXELS):
        of_class = f" ({name})" if name else ""
        raise UnreadableError(f"a DICOM file without a picture{of_class}")
    frames = header.integer(data, "NumberOfFrames", 1)
    if frames > 1:
        raise UnreadableError(f"a DICOM file of {frames} frames; one X-ray is expected")
    modality = header.text(data, "Modality")
    if not modality:
        modality = next((value for words, value in _CLASSES.items() if words in name), "")
    scout = modality == "CT" and "LOCALIZER" in map(str.upper, header.strings(data, "ImageType"))
    if modality in _SLICES and not scout:
        raise UnreadableError(_SLICES[modality])


def _class_name(data: Dataset) -> str:
    """Returns the standard's name of an object's class, '' where it has none."""
    stated = header.strings(data, "SOPClassUID")
    if not stated and getattr(data, "file_meta", None) is not None:
        stated = header.strings(data.file_meta, "MediaStorageSOPClassUID")
    # Only a name that the standard lists, since a damaged header may hold the patient's there.
    return uid.UID(stated[0]).name if stated and stated[0] in uid.UID_dictionary else ""
