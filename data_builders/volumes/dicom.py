"""DICOM files of a CT: selecting the slices of one series in a folder, and their elements."""

import collections
import dataclasses
import pathlib
import re
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import pydicom
from numpy import ndarray as Array
from pydicom.errors import InvalidDicomError

from data_builders.errors import UnreadableError

MODALITIES = frozenset(
    "CR DX ES IO KO MG MR NM OT PR PT PX RF RTDOSE RTSTRUCT SC SEG SR US XA XC".split()
)

SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
HIDDEN = ("DICOMDIR", "THUMBS.DB", "DESKTOP.INI")
# SOP classes.
IMAGES = "1.2.840.10008.5.1.4.1.1.2"  # CT
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # secondary captures
DIRECTORY = "1.2.840.10008.1.3.10"
SCOUTS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
FEW = 3  # maximum number of images at right angles to the slices that count as scouts


@dataclasses.dataclass
class Plane:
    """An image of a file: a slice, or a frame of an enhanced CT.

    Attributes:
      path: the file of its pixels.
      frame: the index of its pixels in the file.
      header: the file's elements except for the pixels.
      groups: the frame's functional groups, nearest first.
    """

    path: pathlib.Path
    frame: int
    header: pydicom.Dataset
    groups: tuple[pydicom.Dataset, ...] = ()

    def get(self, name: str) -> Any:
        """Returns the element's value for the frame, or else for the file.

        Returns None where the element is absent or empty.
        """
        for group in (*self.groups, self.header):
            for place in (group, *_parts(group, name)):
                if place.get(name) not in (None, ""):
                    return place.get(name)
        return None

    def numbers(self, name: str, count: int) -> Array | None:
        """Returns the element's numbers, None where they are not `count` finite ones."""
        try:
            values = np.atleast_1d(np.array(self.get(name), float))
        except (TypeError, ValueError):
            return None
        return values if values.size == count and np.isfinite(values).all() else None

    def required(self, name: str, count: int) -> Array:
        """Returns the element's `count` finite numbers. Raises UnreadableError without them."""
        values = self.numbers(name, count)
        if values is None:
            raise UnreadableError(f"has a slice without {name}")
        return values

    def words(self, name: str) -> str:
        """Returns the element as text in capitals, or ""."""
        value = self.get(name)
        return "" if value is None else str(value).strip().upper()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.header.Rows), int(self.header.Columns)

    @property
    def normal(self) -> Array:
        """The direction across the slice, in LPS."""
        axes = self.required("ImageOrientationPatient", 6)
        return np.cross(axes[:3], axes[3:])


# The functional group that holds an element of enhanced CT.
_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "FrameType": "CTImageFrameTypeSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
}


def _parts(group: pydicom.Dataset, name: str) -> list[pydicom.Dataset]:
    """Returns the functional group within `group` that holds an element, in a list."""
    sequence = group.get(_GROUPS.get(name, ""))
    return list(sequence or [])[:1]


def planes_of(path: pathlib.Path) -> tuple[list[Plane], list[str]]:
    """Returns the slices of the one CT series in a folder or file, and remarks.

    The remarks state what was left out. Raises UnreadableError where it is not certain which files
    belong to the series.
    """
    remarks: list[str] = []
    headers = _headers(path, remarks)
    planes = [plane for file, header in headers.items() for plane in _planes(file, header)]
    planes = _ct_images(planes, remarks)
    _check_patients(planes)
    return _one_series(planes, remarks), remarks


def read_header(path: pathlib.Path) -> pydicom.Dataset | None:
    """Returns the elements of a DICOM file before its pixels, None for any other file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pydicom.dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            pass
        except OSError as error:
            if error.errno:
                raise
        except Exception:
            return None
        # A file without preamble. Other files give elements that no image has.
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            known = "SOPClassUID" in header and ("Rows" in header or "Modality" in header)
            return header if known else None
        except Exception:
            return None


def _headers(path: pathlib.Path, remarks: list[str]) -> dict[pathlib.Path, pydicom.Dataset]:
    """Returns headers by file. Raises UnreadableError where a likely slice has no header."""
    # Read all files.
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if not _is_hidden(file.relative_to(path.parent))]
    headers = {file: read_header(file) for file in files}

    # Separate slices and other files.
    others = [file for file, header in headers.items() if header is None]
    slices = {
        file: header
        for file, header in headers.items()
        if header is not None and _class(header) != DIRECTORY
    }
    if not slices:
        raise UnreadableError("holds no DICOM series; name a folder that holds one")

    # A damaged slice is named like its neighbours.
    patterns = {_pattern(file) for file in slices}
    damaged = [
        file for file in others if file.suffix.lower() in SUFFIXES or _pattern(file) in patterns
    ]
    if damaged:
        raise UnreadableError(
            f"{len(damaged)} of {len(files)} files are damaged: they have slices' names and no "
            "DICOM header. Copy the series again"
        )
    if others:
        remarks.append(f"left out {counted(len(others), 'file')} without a DICOM header")
    return slices


def _is_hidden(file: pathlib.Path) -> bool:
    """Returns True for files of operating systems, by a path from the series' folder on."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in file.parts[1:])
    return hidden or file.name.upper() in HIDDEN


def _pattern(file: pathlib.Path) -> str:
    """Returns a file's name with 0 for all numbers."""
    return re.sub(r"\d+", "0", file.name.lower())


def _class(header: pydicom.Dataset) -> str:
    """Returns the SOP class of an object, or ""."""
    meta = getattr(header, "file_meta", None) or {}
    return str(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")


def _planes(path: pathlib.Path, header: pydicom.Dataset) -> list[Plane]:
    """Returns a file's images; a file without pixels counts as one plane."""
    frames = int(header.get("NumberOfFrames") or 1)
    of_frames = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if frames > 1 and len(of_frames) != frames:
        return [Plane(path, 0, header)]
    shared = tuple(header.get("SharedFunctionalGroupsSequence") or ())[:1]
    return [
        Plane(path, frame, header, groups=(*of_frames[frame : frame + 1], *shared))
        for frame in range(frames)
    ]


def _ct_images(planes: list[Plane], remarks: list[str]) -> list[Plane]:
    """Returns the CT slices among all images, without reports, screens and scouts."""
    # Reports.
    images = [plane for plane in planes if not _has_no_pixels(plane)]
    remarks += _left_out(len(planes) - len(images), "object", "without pixels (report or the like)")
    if not images:
        raise UnreadableError(
            "holds no DICOM images, only reports or the like; name the folder of the CT series"
        )
    broken = [plane for plane in images if not _has_size(plane)]
    if broken:
        raise UnreadableError(
            f"{len(broken)} of {len(images)} slices are damaged: they lack Rows and Columns"
        )

    # Other modalities.
    modalities = collections.Counter(plane.words("Modality") or "CT" for plane in images)
    if not modalities["CT"]:
        raise UnreadableError(
            f"holds images of the modality {_listed(modalities)}; a CT is expected"
        )
    of_ct = [plane for plane in images if not _is_other_modality(plane)]
    remarks += _left_out(len(images) - len(of_ct), "image", "of another modality than CT")

    # Screens.
    pictures = [plane for plane in of_ct if not _is_screen(plane)]
    if not pictures:
        raise UnreadableError(
            "holds pictures of a screen (secondary captures) in place of CT slices"
        )
    remarks += _left_out(len(of_ct) - len(pictures), "picture", "of a screen (secondary capture)")

    # Scouts.
    slices = [plane for plane in pictures if not _is_scout(plane)]
    if not slices:
        raise UnreadableError(
            "holds scouts only (ImageType LOCALIZER); name the folder of the CT series"
        )
    remarks += _left_out(len(pictures) - len(slices), "scout", "(ImageType LOCALIZER)")
    if any(int(p.header.get("NumberOfFrames") or 1) > 1 and not p.groups for p in slices):
        raise UnreadableError(
            "holds a file of many frames that does not say where each lies (functional groups)"
        )
    return slices


def _left_out(count: int, noun: str, words: str) -> list[str]:
    """Returns a remark on planes that were left out, if there are any."""
    return [f"left out {counted(count, noun)} {words}"] if count else []


def _has_no_pixels(plane: Plane) -> bool:
    """Returns True for a report. An image that is cut off before its size is a damaged one."""
    image = re.match(re.escape(IMAGES) + r"(\.|$)", _class(plane.header)) is not None
    return "Rows" not in plane.header and "Modality" in plane.header and not image


def _has_size(plane: Plane) -> bool:
    """Returns True for an image that states its rows and columns."""
    rows = plane.numbers("Rows", 1)
    columns = plane.numbers("Columns", 1)
    return rows is not None and columns is not None and min(rows[0], columns[0]) > 0


def _is_other_modality(plane: Plane) -> bool:
    """Returns True for an image that states another modality than CT."""
    return plane.words("Modality") not in ("CT", "")


def _is_screen(plane: Plane) -> bool:
    """Returns True for a picture in colours, or one without a place."""
    if int(plane.header.get("SamplesPerPixel") or 1) != 1:
        return True
    return _class(plane.header).startswith(CAPTURE) and plane.get("ImagePositionPatient") is None


def _is_scout(plane: Plane) -> bool:
    """Returns True for an image that says it is a scout."""
    kinds = plane.get("ImageType") or plane.get("FrameType") or ()
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return any(str(kind).strip().upper() in SCOUTS for kind in kinds)


def _check_patients(planes: list[Plane]) -> None:
    """Raises UnreadableError where slices are of more than one patient."""
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
        people = {re.sub(r"[\s^]+", " ", plane.words(name)).strip() for plane in planes} - {""}
        if len(people) > 1:
            raise UnreadableError(
                f"holds slices of {len(people)} patients ({name} differs); "
                "name the folder of one series"
            )


def _one_series(planes: list[Plane], remarks: list[str]) -> list[Plane]:
    """Returns the planes of the only series, all of one size and orientation.

    Raises UnreadableError where they differ.
    """
    # Scouts that do not say so lie across the slices.
    _check_geometry(planes)
    axis = _common_normal(planes)
    across = [plane for plane in planes if abs(plane.normal @ axis) < 0.5]
    if 0 < len(across) <= min(FEW, len(planes) // 4):
        remarks.append(f"left out {counted(len(across), 'image')} across the slices, as scouts lie")
        planes = [plane for plane in planes if abs(plane.normal @ axis) >= 0.5]

    # Checks that there is one of everything.
    _check_one_series(planes)
    turned = [plane for plane in planes if np.linalg.norm(plane.normal - axis) > 0.02]
    if turned:
        raise UnreadableError(
            f"{len(turned)} of {len(planes)} slices are rotated relative to the others "
            f"(ImageOrientationPatient; {places(turned)}); keep the slices of one reconstruction"
        )
    _check_one_size(planes)
    frames = {plane.words("FrameOfReferenceUID") for plane in planes} - {""}
    if len(frames) > 1:
        raise UnreadableError(
            f"its slices have {len(frames)} frames of reference (FrameOfReferenceUID): their "
            "positions can't be compared; name a folder of one scan"
        )
    return planes


def _check_one_series(planes: list[Plane]) -> None:
    """Raises UnreadableError where slices are of several series."""
    series = collections.Counter(plane.words("SeriesInstanceUID") for plane in planes)
    if len(series) > 1:
        counts = " and ".join(str(count) for _, count in series.most_common(5))
        more = " and more" if len(series) > 5 else ""
        raise UnreadableError(
            f"holds {len(series)} DICOM series (of {counts}{more} slices); "
            "name a folder that holds one"
        )


def _check_one_size(planes: list[Plane]) -> None:
    """Raises UnreadableError where slices have several sizes."""
    size = collections.Counter(plane.shape for plane in planes).most_common(1)[0][0]
    others = [plane for plane in planes if plane.shape != size]
    if others:
        raise UnreadableError(
            f"{len(others)} of {len(planes)} slices have another size, such as {others[0].shape} "
            f"in place of {size} ({places(others)}); keep the slices of one reconstruction"
        )


# Elements that a slice must have: name, count of numbers, tag.
NEEDED = (
    ("ImagePositionPatient", 3, "(0020,0032)"),
    ("ImageOrientationPatient", 6, "(0020,0037)"),
    ("PixelSpacing", 2, "(0028,0030)"),
)


def _check_geometry(planes: list[Plane]) -> None:
    """Raises UnreadableError where a slice does not say where it lies."""
    for name, count, tag in NEEDED:
        lacking = [plane for plane in planes if plane.numbers(name, count) is None]
        if lacking:
            raise UnreadableError(
                f"{len(lacking)} of {len(planes)} slices lack {name} {tag}, which says how they "
                "lie. Export the series with it, or convert it to NIfTI and state the list's "
                "column `orientation`"
            )
    if any((plane.required("PixelSpacing", 2) <= 0).any() for plane in planes):
        raise UnreadableError("has a PixelSpacing of 0 or less")
    for plane in planes:
        axes = plane.required("ImageOrientationPatient", 6).reshape(2, 3)
        if np.abs(axes @ axes.T - np.eye(2)).max() > 0.01:
            raise UnreadableError(
                "has an ImageOrientationPatient that is not a pair of orthogonal directions"
            )


def _common_normal(planes: list[Plane]) -> Array:
    """Returns the normal that most planes have, as the median of theirs."""
    normals = [tuple(np.round(plane.normal, 1) + 0.0) for plane in planes]
    most = collections.Counter(normals).most_common(1)[0][0]
    alike = [plane.normal for plane, normal in zip(planes, normals, strict=True) if normal == most]
    return np.median(alike, axis=0)


def places(planes: Iterable[Plane]) -> str:
    """Returns words that identify slices, by InstanceNumber where they have it."""
    numbers: list[int] = []
    for plane in planes:
        number = plane.numbers("InstanceNumber", 1)
        if number is None:
            return "no InstanceNumber"
        numbers.append(int(number[0]))
    return f"InstanceNumber {ranges(numbers)}"


def ranges(numbers: Iterable[int]) -> str:
    """Returns numbers in words: `3, 7 to 9`; `and more` after five ranges."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [str(low) if low == high else f"{low} to {high}" for low, high in runs[:5]]
    more = " and more" if len(runs) > 5 else ""
    return ", ".join(words) + more


def counted(count: int, noun: str) -> str:
    """Returns a count in words: `1 file`, `2 files`."""
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def _listed(names: Iterable[str]) -> str:
    """Returns the names that MODALITIES has; a damaged header may hold a person's name instead."""
    return ", ".join(sorted(set(names) & MODALITIES)) or "unknown"
