"""X-ray files and a biometric profile to faces, their mean, their spread and a record."""

import glob
import os
import pathlib
import sys
import unicodedata
import zlib
from collections import Counter

import ml_collections
import numpy as np

from cranio_jax.data.prompts import check_profile, make_prompt, make_tokenizer
from cranio_jax.errors import InputError
from cranio_jax.evaluation.generation import Generator
from cranio_jax.files.atomic import write_json
from cranio_jax.files.pictures import write_png
from cranio_jax.reporting.notice import NOTICE
from data_builders.errors import UnreadableError
from data_builders.images.prepare import PreparedXray, prepare_xray


def read_xray(path: pathlib.Path, size: int, inverted: bool = False) -> PreparedXray:
    """An X-ray of any kind of file, text painted over, padded to a square of `size` pixels.

    Raises InputError, naming the file, where it is missing, unreadable or no X-ray.
    """
    try:
        return prepare_xray(path, size, inverted)
    except UnreadableError as error:
        raise InputError(f"{path}: {error}") from None


def find_xrays(listed: str) -> list[pathlib.Path]:
    """Files of a comma-separated list of paths and glob patterns.

    What is there under its literal name is taken by it, commas and brackets included. Raises InputError.
    """
    parts = listed.split(",")
    paths: list[pathlib.Path] = []
    while parts:
        # The longest literal name first: it may hold commas.
        for count in range(len(parts), 0, -1):
            if (path := _literal(",".join(parts[:count]).strip())) is not None:
                paths.append(path)
                break
        else:
            count = 1
            if pattern := parts[0].strip():
                paths += _matches(pattern)
        parts = parts[count:]
    if not paths:
        raise InputError("reconstruct.xrays is empty; name one or more X-ray files")
    return list(dict.fromkeys(paths))


def _literal(name: str) -> pathlib.Path | None:
    """The file of that name, its umlauts composed or not; None where there is none."""
    for form in ("NFC", "NFD"):
        for spelling in (name, unicodedata.normalize(form, name)):
            path = pathlib.Path(spelling).expanduser()
            if name and path.is_file():
                return path
    return None


def _matches(pattern: str) -> list[pathlib.Path]:
    """The files that a pattern finds. Raises InputError where there is none."""
    if pathlib.Path(pattern).expanduser().is_dir():
        raise InputError(
            f"reconstruct.xrays: {pattern} is a folder; name files, or {pattern.rstrip('/')}/*.png"
        )
    found = [
        path
        for path in map(pathlib.Path, sorted(glob.glob(os.path.expanduser(pattern))))
        if path.is_file()
    ]
    if not found:
        raise InputError(f"{pattern}: no such X-ray")
    return found


def heat(spread: np.ndarray) -> np.ndarray:
    """A spread in [0, 1] as black-red-yellow-white, uint8; white is a quarter of the range."""
    level = np.clip(spread * 4.0, 0.0, 1.0)[..., None]
    return np.round(
        255 * np.clip(level * np.array([3.0, 3.0, 3.0]) - np.array([0.0, 1.0, 2.0]), 0, 1)
    ).astype(np.uint8)


def reconstruct(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> list[pathlib.Path]:
    """Reconstructs faces from `config.reconstruct.xrays`; returns a folder for each X-ray, under workdir/reconstructions.

    A folder holds `face_K.png`, `mean.png`, `spread.png` (standard deviation of each pixel over the samples),
    `sheet.png` and `record.json`. It is named by the profile and the pixels, not by the file, whose name may be a
    patient's: the same job writes the same folder again, any other job a folder of its own.
    """
    r = config.reconstruct
    check_profile(r.view, r.sex, r.age, r.bmi_change)
    if r.num_samples < 1:
        raise InputError(f"reconstruct.num_samples={r.num_samples} must be 1 or more")
    paths = find_xrays(r.xrays)
    size = config.data.settings.size
    prepared = [read_xray(path, size, r.inverted) for path in paths]
    xrays = [made.square[..., None] for made in prepared]
    if painted := sum(made.masked > 0 for made in prepared):
        print(f"text or markers painted over in {painted} of {len(paths)} X-rays", file=sys.stderr)
    for words, count in Counter(words for made in prepared for words in made.remarks).items():
        print(f"{count} of {len(paths)} X-rays: {words}", file=sys.stderr)
    generator = Generator(config, workdir, "reconstruct")
    prompt = make_prompt(
        config.prompt.template, r.view, r.sex, r.age, r.bmi_change, config.prompt.known_ages
    )
    ids = make_tokenizer(config)([prompt])[0]
    nothing = np.zeros((size, size, 3), np.uint8)
    folders = []
    for number, xray in enumerate(xrays):
        # The pixels decide the noise, so the same X-ray gives the same faces wherever it lies.
        digest = zlib.crc32(xray.tobytes())
        example = {
            "xray": xray,
            "face": nothing,
            "prompt_ids": ids,
            "frontal": np.float32(r.view == "frontal"),
        }
        examples = [
            example | {"id": f"X-ray {digest:08x}", "id_hash": np.uint32((digest + k) % 2**32)}
            for k in range(r.num_samples)
        ]
        faces = generator.draw(examples, title=f"X-ray {number + 1} of {len(xrays)}")
        mean = faces.mean(0, dtype=np.float64)
        spread = (faces / 255.0).std(0).mean(-1)
        folder = (
            workdir
            / "reconstructions"
            / f"{r.view}_{r.sex}_{r.age:g}_{r.bmi_change:+g}_{digest:08x}"
        )
        pictures = {f"face_{k}": face for k, face in enumerate(faces)}
        pictures |= {
            "xray": np.repeat(xray, 3, -1),
            "mean": np.round(mean).astype(np.uint8),
            "spread": heat(spread),
        }
        order = ["xray", "mean", "spread", *(f"face_{k}" for k in range(len(faces)))]
        pictures["sheet"] = np.concatenate([pictures[name] for name in order], 1)
        for name, picture in pictures.items():
            write_png(folder / f"{name}.png", picture)
        for old in set(folder.glob("face_*.png")) - {folder / f"{name}.png" for name in pictures}:
            old.unlink()  # of an earlier job with more samples
        record = {
            "notice": NOTICE, "xray_crc32": f"{digest:08x}", "view": r.view, "sex": r.sex, "age": r.age,
            "bmi_change": r.bmi_change, "prompt": prompt, "samples": r.num_samples, "step": generator.step, "seed": config.seed,
            "mean_spread": float(spread.mean()), "sheet": order,
        }  # fmt: skip
        write_json(folder / "record.json", record)
        folders.append(folder)
    return folders
