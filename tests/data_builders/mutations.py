"""Corrupted copies of valid files: each must be read, or refused in one sentence.

No file may cause a traceback or leave a partial output.
`python -m tests.data_builders.mutations [COUNT] [SEED]` tries COUNT files and prints the outcomes.
The tests try a few.
"""

import concurrent.futures
import csv
import gzip
import io
import json
import os
import pathlib
import re
import struct
import sys
import tempfile
import traceback
import warnings
import zlib
from collections import Counter

import cv2
import nibabel
import numpy as np
import openpyxl
import pydicom
import tifffile
from PIL import Image

from cranio_jax.errors import InputError
from data_builders.errors import UnreadableError
from data_builders.images import staging
from data_builders.rendering import ct
from data_builders.skull_face.manifest import read_manifest
from tests.data_builders.synthetic_xray import head

PATIENT = "Nobody^Synthetic"
_MISTAKE = re.compile(r"\((Attribute|Name|UnboundLocal|Assertion)Error\)")


def valid_files() -> dict[str, bytes]:
    """Contents by file name; the part before the dot names the reader."""
    values = np.rint(4000 * head(96, 80))
    grey = np.uint8(values // 16)
    made = {f"xray.{kind}.dcm": content for kind, content in _dicoms(values).items()}
    for name, pixels, kind in (
        ("8.png", grey, "PNG"),
        ("16.png", np.uint16(values * 16), "PNG"),
        ("8.jpg", grey, "JPEG"),
    ):
        made[f"xray.{name}"] = _saved(Image.fromarray(pixels), kind)
    for compression in (None, "lzw", "deflate"):
        buffer = io.BytesIO()
        tifffile.imwrite(
            buffer, np.uint16(values * 16), compression=compression, resolution=(100, 100)
        )
        made[f"xray.{compression}.tif"] = buffer.getvalue()
    colours = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    photograph = Image.fromarray(colours).resize((100, 120))
    made |= {f"face.{kind}": _saved(photograph, kind) for kind in ("JPEG", "PNG", "WEBP")}
    volume = nibabel.Nifti1Image(*_volume())
    made |= {
        "head.1.nii": volume.to_bytes(),
        "head.1.nii.gz": gzip.compress(volume.to_bytes(), 1, mtime=0),
    }
    rows = [["subject", "xray", "xray_view", "face", "face_view", "age", "sex", "bmi_change"]]
    rows += [
        [f"S{i}", "x.png", "frontal", "f.jpg", "frontal", str(30 + i), "f", "0.1"] for i in range(8)
    ]
    return made | _lists(rows)


def _dicoms(values: np.ndarray) -> dict[str, bytes]:
    made = {}
    for kind in (
        "ExplicitVRLittleEndian",
        "ImplicitVRLittleEndian",
        "RLELossless",
        "JPEG2000Lossless",
    ):
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = (
            pydicom.uid.DigitalXRayImageStorageForPresentation
        )
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
        data.Rows, data.Columns = values.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PatientName, data.PatientAge = PATIENT, "045Y"
        data.WindowCenter, data.WindowWidth, data.RescaleSlope, data.RescaleIntercept = (
            2000,
            4000,
            1,
            0,
        )
        data.PixelSpacing, data.PixelPaddingValue = [0.2, 0.2], 0
        data.PixelData = np.uint16(values).tobytes()
        if kind == "ImplicitVRLittleEndian":
            data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        elif kind != "ExplicitVRLittleEndian":
            data.compress(getattr(pydicom.uid, kind))
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        made[kind] = buffer.getvalue()
    return made


def _saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _volume() -> tuple[np.ndarray, np.ndarray]:
    """A shell of bone around a brain, in HU, and its affine."""
    spacing = np.array([4.0, 4.0, 4.0])
    x, y, z = (
        step * (np.indices((52, 64, 60))[i] - n / 2)
        for i, (n, step) in enumerate(zip((52, 64, 60), spacing, strict=True))
    )
    radius = np.sqrt((x / 75) ** 2 + (y / 95) ** 2 + (z / 105) ** 2)
    values = np.select([radius > 1, radius > 0.92, radius > 0.82], [-1000, 40, 900], 40)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -spacing * np.array(values.shape) / 2
    return values.astype(np.int16), affine


def _lists(rows: list[list[str]]) -> dict[str, bytes]:
    text, book = io.StringIO(), openpyxl.Workbook()
    csv.writer(text).writerows(rows)
    for row in rows:
        book.active.append(row)
    buffer = io.BytesIO()
    book.save(buffer)
    commas = text.getvalue().encode()
    return {
        "list.1.csv": commas,
        "list.2.csv": b"\xef\xbb\xbf" + commas.replace(b",", b";"),
        "list.3.csv": commas.decode().encode("utf-16"),
        "list.1.xlsx": buffer.getvalue(),
    }


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Returns the content with bytes flipped, cut off, zeroed or doubled, or two fields exchanged.

    Changes are more frequent near the beginning.
    """
    made = bytearray(content)
    size = len(made)
    reach = size if rng.random() < 0.5 else min(size, 1024)
    kind = rng.integers(6)
    if kind == 0:
        for place in rng.integers(0, reach, rng.integers(1, 9)):
            made[place] ^= 1 << rng.integers(8)
    elif kind == 1:
        del made[rng.integers(0, reach) :]
    elif kind == 2:
        place, length = rng.integers(0, reach), rng.integers(1, 64)
        made[place : place + length] = bytes(len(made[place : place + length]))
    elif kind == 3:
        place, length = rng.integers(0, reach), rng.integers(1, 64)
        made[place:place] = made[place : place + length]
    elif kind == 4:
        length = int(rng.choice([1, 2, 4, 8]))
        one, other = sorted(length * rng.integers(0, max(1, reach // length - 1), 2))
        made[one : one + length], made[other : other + length] = (
            made[other : other + length],
            made[one : one + length],
        )
    else:
        place = rng.integers(0, reach)
        made[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
    return bytes(made)


def sound(name: str, content: bytes) -> bool:
    """Returns True if the checksums in a file hold, or if it has none.

    They are checked without the program's readers.
    """
    if name.endswith(".gz"):
        try:
            gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return False
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        place, kind = 8, b""
        while place + 12 <= len(content) and kind != b"IEND":
            length, kind = struct.unpack(">I4s", content[place : place + 8])
            chunk = content[place + 4 : place + 8 + length]
            if content[place + 8 + length : place + 12 + length] != struct.pack(
                ">I", zlib.crc32(chunk)
            ):
                return False
            place += 12 + length
        return kind == b"IEND"
    return True


def outcome(name: str, content: bytes, folder: pathlib.Path) -> str:
    """Returns 'read', 'refused', or what went wrong for a file in an empty folder."""
    kind, path = name.partition(".")[0], folder / name
    path.write_bytes(content)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            words = {"xray": _staged, "face": _staged, "head": _head, "list": _list}[kind](
                path, kind
            )
    except Exception:
        return "TRACEBACK " + traceback.format_exc(limit=-2).strip().replace("\n", " | ")
    if any(PATIENT in str(said) for said in (words, *(warning.message for warning in told))):
        return f"NAMES THE PATIENT {words}"
    # Every exception becomes a sentence, which could hide a bug in the program.
    if mistake := _MISTAKE.search(words):
        return f"MISTAKE OF THE PROGRAM {mistake[0]}"
    if words:
        return (
            "refused"
            if len(words) < 1200 and str(folder.parent) not in words
            else f"NO SENTENCE {words[:200]}"
        )
    return "read" if sound(name, content) else "READ IN SPITE OF ITS CHECKSUM"


def _staged(path: pathlib.Path, kind: str) -> str:
    out = path.parent / "staged"
    out.mkdir()
    words = staging._make((out / "name", staging.Job(kind, path, 32, text="keep")))
    left = sorted(file.name for file in out.iterdir())
    if left != ([] if words else ["name.json", "name.png"]):
        raise AssertionError(f"half-written: {left}, {words}")
    if not words:
        assert cv2.imread(str(out / "name.png"), cv2.IMREAD_UNCHANGED).shape[:2] == (32, 32)
        json.loads((out / "name.json").read_text())
    return words


def _head(path: pathlib.Path, kind: str) -> str:
    try:
        volume = ct.read_head(path, 4.0)
    except UnreadableError as error:
        return str(error)
    assert np.isfinite(volume.values).all()
    return ""


def _list(path: pathlib.Path, kind: str) -> str:
    for name in ("x.png", "f.jpg"):
        (path.parent / name).write_bytes(b"picture")
    try:
        read_manifest(path)
    except InputError as error:
        return str(error).replace(str(path), path.name)
    return ""


def attempt(seed: int, count: int) -> tuple[Counter, list[str]]:
    """Returns the outcomes of `count` mutations by file kind, and all failures."""
    rng, files = np.random.default_rng(seed), valid_files()
    names, counts, wrong = list(files), Counter(), []
    for number in range(count):
        name = names[number % len(names)]
        content = mutated(files[name], rng)
        with tempfile.TemporaryDirectory() as folder:
            said = outcome(name, content, pathlib.Path(folder))
        counts[name, said.split()[0]] += 1
        if said not in ("read", "refused"):
            wrong.append(f"seed {seed}, number {number}, {name}: {said}")
    return counts, wrong


def main(count: str = "10000", seed: str = "0") -> None:
    """Tries `count` mutations on all cores and prints a table."""
    parts = max(1, int(count) // 250)
    with concurrent.futures.ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = list(
            pool.map(attempt, range(int(seed), int(seed) + parts), [int(count) // parts] * parts)
        )
    counts = sum((part for part, _ in found), Counter())
    for name in sorted({name for name, _ in counts}):
        print(
            name,
            ", ".join(
                f"{n} {said}" for (other, said), n in sorted(counts.items()) if other == name
            ),
        )
    wrong = [line for _, lines in found for line in lines]
    print(f"{sum(counts.values())} mutations, {len(wrong)} wrong", *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:])
