"""Reads patient, view and age from DICOM headers and from names of files and folders."""

import dataclasses
import datetime
import pathlib
import re
import unicodedata
import warnings
from collections.abc import Iterable
from typing import Any

import pydicom
from pydicom import uid

from data_builders.errors import UnreadableError
from data_builders.images.radiograph import read_radiograph

SMALLEST = 64  # pixels along the longer side; smaller pictures are thumbnails
_FRONTAL = (
    "frontal front frontale frontalis frontalt frontaal frente pa ap posteroanterior "
    "anteroposterior posterioranterior anteriorposterior прямая 正面 正位"
)
_LATERAL = (
    "lateral lat side profile ll rl llat rlat lateralis lateralt lateraal laterale lateraux "
    "laterolaterale latero profil perfil profilo profiel seitlich seitl seitenbild "
    "fernrontgenseitenbild frs zijdelings sidobild boczne boczna bocni боковая 側面 侧位"
)
_OTHER = (
    "oblique obliq obl obliqua oblicua schrag rlo llo rao lao rpo lpo rld lld waters towne axial "
    "axiale tangential panoramic panorama panoramique panoramica opg opt orthopantomogram "
    "orthopantomogramm basal submentovertex smv tmj stenvers schuller hirtz worms blondeau "
    "occipitomental occlusal"
)
_VIEW_OF = {
    word: view
    for view, words in (("frontal", _FRONTAL), ("lateral", _LATERAL), ("other", _OTHER))
    for word in words.split()
}
_NAMED_VIEWS = {"sf": "frontal", "ss": "lateral"}  # only in files' names
# SNOMED's codes (and their older form) of views.
_CODES = {
    **dict.fromkeys(
        ("399348003", "R-10206", "272479007", "R-10214", "R-40888", "399033003", "R-10202"),
        "frontal",
    ),
    **dict.fromkeys(
        ("399067008", "R-102CD", "399198007", "R-10232", "399173006", "R-10236", "R-10228"),
        "lateral",
    ),
}
# "25y", "25-years" or "age_25" state an age; a number alone may count the pictures.
_AGED = re.compile(
    r"(?<![a-z0-9])(?:aged?[^a-z0-9]?(\d{1,3})(?!\d)|(\d{1,3})[^a-z0-9]?(?:y|yo|yrs?|years?)(?![a-z0-9]))"
)
_YEARS = {"y": 1.0, "": 1.0, "m": 1 / 12, "w": 7 / 365.25, "d": 1 / 365.25}  # of a unit
_DIRECTORY = "1.2.840.10008.1.3.10"
# CT and MR; each has further forms after a point.
_SLICES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.4",
)
_OTHER_MODALITIES = (
    "US",
    "NM",
    "PT",
    "SEG",
    "RTSTRUCT",
    "RTIMAGE",
    "RTDOSE",
    "ECG",
    "OCT",
    "OPT",
    "MG",
    "BI",
)
_PHOTOGRAPHS = ("XC", "GM", "ES", "OP", "SM", "DMS")
# Parts of the body other than the head.
_ELSEWHERE = (
    "ABDOMEN ANKLE ARM BREAST CHEST CLAVICLE COCCYX ELBOW EXTREMITY FEMUR FINGER FOOT FOREARM "
    "HAND HEART HIP HUMERUS KNEE LEG LSPINE "
    "LUMBAR PELVIS RIB SCAPULA SHOULDER SSPINE STERNUM THORAX THUMB TIBIA TOE TSPINE WRIST"
).split()
_DATES = ("AcquisitionDate", "ContentDate", "SeriesDate", "StudyDate")
_DESCRIPTIONS = ("SeriesDescription", "ProtocolName", "AcquisitionDeviceProcessingDescription")
# Descriptions that may name all views of a visit.
_WIDER = (
    "StudyDescription",
    "PerformedProcedureStepDescription",
    "BodyPartExamined",
)
_TAGS = [
    *(
        "SOPClassUID",
        "Modality",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "SamplesPerPixel",
        "BitsAllocated",
        "PixelData",
        "FloatPixelData",
    ),
    *(
        "PatientID",
        "IssuerOfPatientID",
        "PatientSex",
        "PatientBirthDate",
        "PatientAge",
        "SpecificCharacterSet",
    ),
    *("ViewPosition", "ViewCodeSequence", "PatientOrientation", *_DATES, *_DESCRIPTIONS, *_WIDER),
]


@dataclasses.dataclass(frozen=True)
class Header:
    """The facts in a header; a value is empty where its field is absent or damaged.

    Attributes:
      patient: the ID.
      sex: 'f' or 'm'.
      birth: digits of the date.
      issuer: of the ID.
      views: 'frontal', 'lateral' or 'other', of each field that names one.
      age: whole years.
    """

    patient: str
    sex: str
    birth: str
    issuer: str
    views: frozenset[str]
    age: str


def read_header(path: pathlib.Path) -> Header:
    """Returns the facts in the header of an X-ray in DICOM.

    Raises UnreadableError where the file is damaged or holds something other than one X-ray; the
    message is in the plural, for a list of such files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings may quote patients' names
        try:
            with open(path, "rb") as file:
                preamble = file.read(132)
            if preamble[128:] == b"DICM":
                meta = pydicom.filereader.read_file_meta_info(path)
                if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
                    read_radiograph(path)  # raises if it unpacks to more than a picture
            data = pydicom.dcmread(path, force=True, defer_size=4096, specific_tags=_TAGS)
            _check(data, path)
            return _header(data)
        except UnreadableError:
            raise
        except Exception:  # pydicom raises many kinds
            raise UnreadableError("damaged DICOM files") from None


def views_in(text: str) -> set[str]:
    """Returns the views that a text names: 'frontal', 'lateral' and 'other'."""
    words = _words(text)
    views = {_VIEW_OF[word] for word in words if word in _VIEW_OF}
    if "face" in words and words & {"crane", "de"}:  # French; in English it is the part of the body
        views.add("frontal")
    return {"other"} if "other" in views else views


def named_view(text: str) -> str:
    """Returns the view in a file's or folder's name; empty if it names none or several."""
    views = views_in(text) or {_NAMED_VIEWS[word] for word in _words(text) if word in _NAMED_VIEWS}
    return views.pop() if len(views) == 1 else ""


def named_age(text: str) -> str:
    """Returns the age in a file's name, in years; empty if it has none."""
    aged = _AGED.search(text.lower())
    return str(int(aged[1] or aged[2])) if aged else ""


def _words(text: str) -> set[str]:
    """Returns the words of a text, in lower case without accents; `P.A.` is one word."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)", " ", text)
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
    plain = re.sub(r"(?<![^\W_])([ap])[\W_]([ap])(?![^\W_])", r"\1\2", plain)
    return set(re.split(r"[\W_]+", plain))


def _field(data: Any, name: str) -> str:
    """Returns a field as text; empty where it is absent or damaged."""
    try:
        value = data.get(name)
        if value is None:
            return ""
        if isinstance(value, Iterable) and not isinstance(value, str):
            return " ".join(map(str, value)).strip()
        return str(value).strip(" \0\t\r\n")
    except Exception:  # this element is damaged; the others may be fine
        return ""


def _check(data: Any, path: pathlib.Path) -> None:
    """Raises UnreadableError where a data set is not an X-ray."""
    # Check the kind of object.
    kind = _field(data, "SOPClassUID") or _field(
        getattr(data, "file_meta", {}), "MediaStorageSOPClassUID"
    )
    modality = _field(data, "Modality").upper()
    if kind == _DIRECTORY or path.name.upper() == "DICOMDIR":
        raise UnreadableError("tables of contents of a disc (DICOMDIR)")
    if not any(name in data for name in ("SOPClassUID", "Modality", "Rows", "PatientID")):
        raise UnreadableError("damaged, or not DICOM files despite their names")
    if modality in ("CT", "MR") or any(
        kind == start or kind.startswith(start + ".") for start in _SLICES
    ):
        raise UnreadableError(
            "slices of a volume (CT or MR), which are not X-rays; "
            "the builder ct_heads makes X-rays from CT"
        )
    if "PixelData" not in data and "FloatPixelData" not in data:
        raise UnreadableError("reports, settings or documents in DICOM, without a picture")
    if modality in _OTHER_MODALITIES:
        raise UnreadableError(
            "DICOM files of other kinds than X-rays (ultrasound, mammography, ...)"
        )
    if modality in _PHOTOGRAPHS:
        raise UnreadableError("photographs in DICOM; save them as JPEG or PNG")
    if set(re.split(r"[\W_]+", _field(data, "BodyPartExamined").upper())) & set(_ELSEWHERE):
        raise UnreadableError(
            "X-rays of another part of the body, by their header; add them by hand if it is wrong"
        )
    # Check the picture.
    if int(_field(data, "NumberOfFrames") or 1) > 1:
        raise UnreadableError("films of several frames; save the right one")
    height, width = (int(_field(data, name) or 0) for name in ("Rows", "Columns"))
    if not (height and width):
        raise UnreadableError("damaged DICOM files")
    syntax = getattr(data, "file_meta", {}).get("TransferSyntaxUID")
    bits = int(_field(data, "BitsAllocated") or 8)
    plain = syntax in (None, uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian)
    if plain and height * width * bits / 8 > path.stat().st_size:
        raise UnreadableError("damaged DICOM files")
    if max(height, width) < SMALLEST:
        raise UnreadableError(f"thumbnails, of less than {SMALLEST} pixels")
    if _field(data, "SamplesPerPixel") not in ("", "1"):
        try:
            read_radiograph(path)
        except UnreadableError:
            raise UnreadableError(
                "colour pictures in DICOM; save photographs as JPEG, X-rays in grey"
            ) from None


def _header(data: Any) -> Header:
    """Returns the facts in a data set."""
    sex = _field(data, "PatientSex").lower()[:1]
    views = _views(data)
    return Header(
        patient=_field(data, "PatientID"),
        sex=sex if sex in ("f", "m") else "",
        birth=re.sub(r"\D", "", _field(data, "PatientBirthDate")),
        issuer=_field(data, "IssuerOfPatientID"),
        views=frozenset(views),
        age=_age(data),
    )


def _views(data: Any) -> set[str]:
    """Returns the views that fields name; a field that names several does not count."""
    answers = [views_in(_field(data, name)) for name in ("ViewPosition", *_DESCRIPTIONS)]
    answers.append(_coded_view(data))
    answers.append(_oriented_view(_field(data, "PatientOrientation")))
    views = {view for answer in answers if len(answer) == 1 for view in answer}
    if views:
        return views
    return {
        view
        for name in _WIDER
        if len(answer := views_in(_field(data, name))) == 1
        for view in answer
    }


def _coded_view(data: Any) -> set[str]:
    """Returns the view in ViewCodeSequence."""
    try:
        code = data.get("ViewCodeSequence")[0]
    except Exception:  # absent, empty or damaged
        return set()
    value = _field(code, "CodeValue")
    return {_CODES[value]} if value in _CODES else views_in(_field(code, "CodeMeaning"))


def _oriented_view(orientation: str) -> set[str]:
    """Returns the view from the directions of rows and columns: to the left, the feet, ..."""
    axes = {"L": "side", "R": "side", "A": "depth", "P": "depth", "H": "height", "F": "height"}
    directions = re.split(r"[\s\\]+", orientation.upper())
    if len(directions) != 2 or any(len(direction) > 1 for direction in directions):
        return set()
    plane = frozenset(axes.get(direction, "") for direction in directions)
    views = {
        frozenset(("side", "height")): "frontal",
        frozenset(("depth", "height")): "lateral",
        frozenset(("side", "depth")): "other",
    }
    return {views[plane]} if plane in views else set()


def _age(data: Any) -> str:
    """Returns the age in whole years, as stated or from the dates of birth and of the picture.

    It is empty where these disagree by more than a year.
    """
    stated = re.fullmatch(r"0*(\d{1,4})\s*([ymwd]?)\w*\.?", _field(data, "PatientAge").lower())
    ages = {}
    if stated and int(stated[1]):
        ages["stated"] = int(int(stated[1]) * _YEARS[stated[2]] + 1e-6)
    birth = _date(_field(data, "PatientBirthDate"))
    taken = next((date for name in _DATES if (date := _date(_field(data, name)))), None)
    if birth and taken and birth <= taken:
        before_birthday = (taken.month, taken.day) < (birth.month, birth.day)
        ages["counted"] = taken.year - birth.year - before_birthday
    ages = {source: age for source, age in ages.items() if age <= 120}
    if not ages or max(ages.values()) - min(ages.values()) > 1:
        return ""
    return str(ages.get("stated", ages.get("counted")))


def _date(text: str) -> datetime.date | None:
    """Returns the date of a field; None where it has none."""
    digits = re.sub(r"\D", "", text)
    try:
        return datetime.datetime.strptime(digits, "%Y%m%d").date() if len(digits) == 8 else None
    except ValueError:
        return None
