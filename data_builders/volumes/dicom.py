"""DICOM files of a CT: which of a folder's files are slices of one series, and what each says."""

import collections
import dataclasses
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import pydicom
from numpy import ndarray as Array
from pydicom.errors import InvalidDicomError

from data_builders.errors import UnreadableError

MODALITIES = frozenset(
    "CR DX ES IO KO MG MR NM OT PR PT PX RF RTDOSE RTSTRUCT SC SEG SR US XA XC".split()
)

SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
IMAGES = "1.2.840.10008.5.1.4.1.1.2"  # CT
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # secondary captures
DIRECTORY = "1.2.840.10008.1.3.10"
SCOUTS = {"LOCALIZER", "SCOUT", "TOPOGRAM"}
FEW = 3  # images at right angles to the slices that are taken for scouts


@dataclasses.dataclass
class Plane:
    """An image of a file: a slice, or a frame of an enhanced CT.

    Attributes:
      path, frame: where its pixels are.
      header: the file's elements but for the pixels.
      groups: the frame's functional groups, nearest first.
    """

    path: pathlib.Path
    frame: int
    header: pydicom.Dataset
    groups: tuple[pydicom.Dataset, ...] = ()

    def get(self, name: str):
        """The element's value, of the frame or else the file; None where it is absent or empty."""
        for group in (*self.groups, self.header):
            for place in (group, *_parts(group, name)):
                if place.get(name) not in (None, ""):
                    return place.get(name)
        return None

    def numbers(self, name: str, count: int) -> Array | None:
        """The element's `count` finite numbers, or None."""
        try:
            values = np.atleast_1d(np.array(self.get(name), float))
        except (TypeError, ValueError):
            return None
        return values if values.size == count and np.isfinite(values).all() else None

    def words(self, name: str) -> str:
        """The element as text in capitals, or ""."""
        value = self.get(name)
        return "" if value is None else str(value).strip().upper()

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.header.Rows), int(self.header.Columns)

    @property
    def normal(self) -> Array:
        """The direction across the slice, in LPS."""
        axes = self.numbers("ImageOrientationPatient", 6)
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
    sequence = group.get(_GROUPS.get(name, ""))
    return list(sequence or [])[:1]


def planes_of(path: pathlib.Path) -> tuple[list[Plane], list[str]]:
    """The slices of the one CT series in a folder, or of one file, and what was left out.

    Raises UnreadableError where it is not sure which files belong to it.
    """
    remarks: list[str] = []
    headers = _headers(path, remarks)
    planes = [plane for name, header in headers.items() for plane in _planes(name, header)]
    planes = _ct_images(planes, remarks)
    _check_patients(planes)
    return _one_series(planes, remarks), remarks


def read_header(path: pathlib.Path) -> pydicom.Dataset | None:
    """The elements of a DICOM file before its pixels, or None where it is not one."""
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
        # Without preamble; anything else gives elements that no image has.
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            known = "SOPClassUID" in header and ("Rows" in header or "Modality" in header)
            return header if known else None
        except Exception:
            return None


def _headers(path: pathlib.Path, remarks: list[str]) -> dict[pathlib.Path, pydicom.Dataset]:
    """Headers by file. Raises UnreadableError where one that looks like a slice has none."""
    names = [path] if path.is_file() else sorted(name for name in path.rglob("*") if name.is_file())
    hidden = ("DICOMDIR", "THUMBS.DB", "DESKTOP.INI")
    names = [
        name
        for name in names
        if not _hidden(name.relative_to(path.parent)) and name.name.upper() not in hidden
    ]
    headers = {name: read_header(name) for name in names}
    others = [name for name, header in headers.items() if header is None]
    slices = {name: header for name, header in headers.items() if header is not None}
    slices = {name: header for name, header in slices.items() if _class(header) != DIRECTORY}
    if not slices:
        raise UnreadableError("holds no DICOM series; name a folder that holds one")
    # A damaged slice is named like its neighbours.
    patterns = {_pattern(name) for name in slices}
    damaged = [
        name for name in others if name.suffix.lower() in SUFFIXES or _pattern(name) in patterns
    ]
    if damaged:
        raise UnreadableError(
            f"{len(damaged)} of {len(names)} files are damaged: they have slices' names and no DICOM header. Copy the series again"
        )
    if others:
        remarks.append(f"left out {counted(len(others), 'file')} without a DICOM header")
    return slices


def _hidden(name: pathlib.Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.parts[1:])


def _pattern(name: pathlib.Path) -> str:
    return re.sub(r"\d+", "0", name.name.lower())


def _class(header: pydicom.Dataset) -> str:
    """What kind of object it is, by its SOP class."""
    meta = getattr(header, "file_meta", None) or {}
    return str(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")


def _planes(path: pathlib.Path, header: pydicom.Dataset) -> list[Plane]:
    """A file's images; one without pixels is one plane too."""
    frames = int(header.get("NumberOfFrames") or 1)
    own = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    if frames > 1 and len(own) != frames:
        return [Plane(path, 0, header)]
    shared = tuple(header.get("SharedFunctionalGroupsSequence") or ())[:1]
    return [Plane(path, k, header, (*own[k : k + 1], *shared)) for k in range(frames)]


def _ct_images(planes: list[Plane], remarks: list[str]) -> list[Plane]:
    """The CT slices among all images; reports, screens and scouts are left out."""
    planes = _without(
        planes, _has_no_pixels, "object", "without pixels (report or the like)", remarks
    )
    if not planes:
        raise UnreadableError(
            "holds no DICOM images, only reports or the like; name the folder of the CT series"
        )
    broken = [plane for plane in planes if not _has_size(plane)]
    if broken:
        raise UnreadableError(
            f"{len(broken)} of {len(planes)} slices are damaged: they lack Rows and Columns"
        )
    modalities = collections.Counter(plane.words("Modality") or "CT" for plane in planes)
    if not modalities["CT"]:
        raise UnreadableError(
            f"holds images of the modality {_listed(modalities)}; a CT is expected"
        )
    planes = _without(planes, _is_other_modality, "image", "of another modality than CT", remarks)
    screens = [plane for plane in planes if _is_screen(plane)]
    if len(screens) == len(planes):
        raise UnreadableError(
            "holds pictures of a screen (secondary captures) in place of CT slices"
        )
    planes = _without(planes, _is_screen, "picture", "of a screen (secondary capture)", remarks)
    if all(map(_is_scout, planes)):
        raise UnreadableError(
            "holds scouts only (ImageType LOCALIZER); name the folder of the CT series"
        )
    planes = _without(planes, _is_scout, "scout", "(ImageType LOCALIZER)", remarks)
    if any(int(p.header.get("NumberOfFrames") or 1) > 1 and not p.groups for p in planes):
        raise UnreadableError(
            "holds a file of many frames that does not say where each lies (functional groups)"
        )
    return planes


def _without(
    planes: list[Plane], wrong: Callable, noun: str, words: str, remarks: list[str]
) -> list[Plane]:
    left = [plane for plane in planes if not wrong(plane)]
    if len(left) < len(planes):
        remarks.append(f"left out {counted(len(planes) - len(left), noun)} {words}")
    return left


def _has_no_pixels(plane: Plane) -> bool:
    # An image that is cut off before its size is damaged, not a report.
    image = re.match(re.escape(IMAGES) + r"(\.|$)", _class(plane.header)) is not None
    return "Rows" not in plane.header and "Modality" in plane.header and not image


def _has_size(plane: Plane) -> bool:
    rows, columns = plane.numbers("Rows", 1), plane.numbers("Columns", 1)
    return rows is not None and columns is not None and min(rows[0], columns[0]) > 0


def _is_other_modality(plane: Plane) -> bool:
    return plane.words("Modality") not in ("CT", "")


def _is_screen(plane: Plane) -> bool:
    if int(plane.header.get("SamplesPerPixel") or 1) != 1:
        return True
    return _class(plane.header).startswith(CAPTURE) and plane.get("ImagePositionPatient") is None


def _is_scout(plane: Plane) -> bool:
    kinds = plane.get("ImageType") or plane.get("FrameType") or ()
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return any(str(kind).strip().upper() in SCOUTS for kind in kinds)


def _check_patients(planes: list[Plane]) -> None:
    """Raises UnreadableError where slices are of more than one patient."""
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex"):
        people = {re.sub(r"[\s^]+", " ", plane.words(name)).strip() for plane in planes} - {""}
        if len(people) > 1:
            raise UnreadableError(
                f"holds slices of {len(people)} patients ({name} differs); name the folder of one series"
            )


def _one_series(planes: list[Plane], remarks: list[str]) -> list[Plane]:
    """The planes of the only series, all of one size and orientation."""
    _check_geometry(planes)
    # A scout that does not say so lies across the slices.
    axis = _common_normal(planes)
    across = [plane for plane in planes if abs(plane.normal @ axis) < 0.5]
    if 0 < len(across) <= min(FEW, len(planes) // 4):
        remarks.append(f"left out {counted(len(across), 'image')} across the slices, as scouts lie")
        planes = [plane for plane in planes if abs(plane.normal @ axis) >= 0.5]
    series = collections.Counter(plane.words("SeriesInstanceUID") for plane in planes)
    if len(series) > 1:
        counts = " and ".join(str(count) for _, count in series.most_common(5))
        more = " and more" if len(series) > 5 else ""
        raise UnreadableError(
            f"holds {len(series)} DICOM series (of {counts}{more} slices); name a folder that holds one"
        )
    turned = [plane for plane in planes if np.linalg.norm(plane.normal - axis) > 0.02]
    if turned:
        raise UnreadableError(
            f"{len(turned)} of {len(planes)} slices are turned against the others "
            f"(ImageOrientationPatient; {places(turned)}); keep the slices of one reconstruction"
        )
    sizes = collections.Counter(plane.shape for plane in planes)
    (size, _), *others = sizes.most_common()
    if others:
        odd = [plane for plane in planes if plane.shape != size]
        raise UnreadableError(
            f"{len(odd)} of {len(planes)} slices have another size, such as {odd[0].shape} in "
            f"place of {size} ({places(odd)}); keep the slices of one reconstruction"
        )
    frames = {plane.words("FrameOfReferenceUID") for plane in planes} - {""}
    if len(frames) > 1:
        raise UnreadableError(
            f"its slices have {len(frames)} frames of reference (FrameOfReferenceUID): their "
            "positions can't be compared; name a folder of one scan"
        )
    return planes


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
    if any((plane.numbers("PixelSpacing", 2) <= 0).any() for plane in planes):
        raise UnreadableError("has a PixelSpacing of 0 or less")
    for plane in planes:
        axes = plane.numbers("ImageOrientationPatient", 6).reshape(2, 3)
        if np.abs(axes @ axes.T - np.eye(2)).max() > 0.01:
            raise UnreadableError(
                "has an ImageOrientationPatient that is no pair of directions at right angles"
            )


def _common_normal(planes: list[Plane]) -> Array:
    """The normal that most planes have."""
    normals = [tuple(np.round(plane.normal, 1) + 0.0) for plane in planes]
    most = collections.Counter(normals).most_common(1)[0][0]
    own = [plane.normal for plane, normal in zip(planes, normals, strict=True) if normal == most]
    return np.median(own, axis=0)


def places(planes: Iterable[Plane]) -> str:
    """Which slices they are, by InstanceNumber where they have it."""
    numbers = [plane.numbers("InstanceNumber", 1) for plane in planes]
    if any(number is None for number in numbers):
        return "no InstanceNumber"
    return f"InstanceNumber {ranges(int(number[0]) for number in numbers)}"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in words: `3, 7 to 9`; after five ranges `and more`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = [str(low) if low == high else f"{low} to {high}" for low, high in runs[:5]]
    return ", ".join(words) + (" and more" if len(runs) > 5 else "")


def counted(count: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _listed(names: Iterable[str]) -> str:
    """Those of MODALITIES: a damaged header may hold a person's name there."""
    return ", ".join(sorted(set(names) & MODALITIES)) or "unknown"
