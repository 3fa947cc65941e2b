"""Reading values of DICOM elements from headers that violate the standard."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag


def groups(data: Dataset) -> Iterator[Dataset]:
    """Yields a data set, and the macros of an enhanced object's functional groups."""
    yield data
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in items(data, keyword)[:1]:
            for element in group:
                if element.VR == "SQ" and element.value:
                    yield element.value[0]


def items(data: Dataset, keyword: str) -> list[Dataset]:
    """Returns the items of a sequence; an empty list where it is missing or not a sequence."""
    value = _value(data, keyword)
    return list(value) if isinstance(value, Sequence) else []


def _value(data: Dataset, keyword: str) -> Any:
    """Returns an element's value, or its text where it can't be converted.

    None stands for an element that is missing or empty.
    """
    tag = _tag(keyword)
    for group in groups(data) if keyword.endswith(_GROUPED) else (data,):
        if tag in group:
            try:
                value = group[tag].value
            except Exception:
                raw = group.get_item(tag).value
                value = raw.decode("latin-1") if isinstance(raw, bytes) else raw
            if value is not None and value != "" and value != b"":
                return value
    return None


@functools.lru_cache
def _tag(keyword: str) -> BaseTag:
    """Returns the tag of a keyword."""
    return Tag(keyword)


# Elements that enhanced objects keep in functional groups.
_GROUPED = (
    "Window",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "Slope",
    "Intercept",
    "Spacing",
)


def strings(data: Dataset, keyword: str) -> list[str]:
    """Returns an element's values as stripped text."""
    value = _value(data, keyword)
    if value is None:
        return []
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, (MultiValue, list, tuple)):
        value = re.split(r"[\\/;|]", value) if isinstance(value, str) else [value]
    texts = [str(part).strip(" \0\t\r\n") for part in value]
    return texts if any(texts) else []


def text(data: Dataset, keyword: str) -> str:
    """Returns an element's first value as upper-case text, '' where there is none."""
    return (strings(data, keyword) or [""])[0].upper()


def numbers(data: Dataset, keyword: str) -> list[float]:
    """Returns an element's values, NaN for those that are not numbers.

    Commas are decimal points, or separate numbers that have points.
    """
    # Binary words of 16 bits.
    value = _value(data, keyword)
    if isinstance(value, bytes):
        if len(value) in (2, 4) and not re.fullmatch(rb"[\d.,+\- \0eE]+", value):
            return [
                float(int.from_bytes(value[i : i + 2], "little")) for i in range(0, len(value), 2)
            ]

    # Text.
    words: list[str] = []
    for part in strings(data, keyword):
        words += part.split(",") if "," in part and "." in part else [part.replace(",", ".")]
    return [_number(word) for word in words]


def _number(word: str) -> float:
    """Returns a word as a number, NaN where it is not one."""
    try:
        return float(word)
    except ValueError:
        return np.nan


def integer(data: Dataset, keyword: str, default: int) -> int:
    """Returns an element's first value as a whole number, or `default` where there is none."""
    value = (numbers(data, keyword) or [np.nan])[0]
    return int(value) if np.isfinite(value) else default
