"""Job `reconstruct`: from X-ray files and a profile to faces, their mean and their spread."""

import glob
import os
import pathlib
import sys
import unicodedata
import zlib
from collections import Counter
from collections.abc import Sequence

import ml_collections
import numpy as np
from jaxtyping import Int32, UInt8

from cranio_jax.data.prompts import (
    check_profile,
    make_prompt,
    make_tokenizer,
    profile_numbers,
)
from cranio_jax.errors import InputError
from cranio_jax.evaluation.generation import Generator
from cranio_jax.files.atomic import write_json
from cranio_jax.files.pictures import write_png
from cranio_jax.methods import method_class
from cranio_jax.reporting import sheets
from cranio_jax.reporting.notice import NOTICE
from data_builders.errors import UnreadableError
from data_builders.images.prepare import PreparedXray, prepare_xray


def read_xray(path: pathlib.Path, size: int, inverted: bool = False) -> PreparedXray:
    """Reads an X-ray from any kind of file, paints over text, and pads it to a square.

    Args:
      path: of the file.
      size: of the square, in pixels.
      inverted: True if bone is dark in the file.

    Raises:
      InputError: the file is missing, unreadable or not an X-ray; the message names it.
    """
    try:
        return prepare_xray(path, size, inverted)
    except UnreadableError as error:
        raise InputError(f"{path}: {error}") from None


def find_xrays(listed: str) -> list[pathlib.Path]:
    """Returns the files of a comma-separated list of paths and glob patterns.

    A part that is the name of a file means that file, even if it holds commas or brackets. Raises
    InputError if a part names no file.
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
    """Returns the file of that name, in either Unicode form; None if there is none."""
    for form in ("NFC", "NFD"):
        for spelling in (name, unicodedata.normalize(form, name)):
            path = pathlib.Path(spelling).expanduser()
            if name and path.is_file():
                return path
    return None


def _matches(pattern: str) -> list[pathlib.Path]:
    """Returns the files that a pattern matches. Raises InputError if there is none."""
    if pathlib.Path(pattern).expanduser().is_dir():
        raise InputError(
            f"reconstruct.xrays: {pattern} is a folder; name files, or {pattern.rstrip('/')}/*.png"
        )
    paths = map(pathlib.Path, sorted(glob.glob(os.path.expanduser(pattern))))
    files = [path for path in paths if path.is_file()]
    if not files:
        raise InputError(f"reconstruct.xrays={pattern}: no such file")
    return files


def reconstruct(
    config: ml_collections.ConfigDict, workdir: pathlib.Path | None
) -> list[pathlib.Path]:
    """Reconstructs faces from `config.reconstruct.xrays`.

    Without a workdir, published weights are used as they are, and the current folder takes its
    place. Returns a folder for each X-ray, under workdir/reconstructions. It holds `face_K.png`,
    `mean.png`, `spread.png` (the standard deviation of each pixel over the samples), `sheet.png`
    and `record.json`. With an outline network it holds `condition.png` too, what the ControlNet
    sees. It is named by the profile and the pixels, not by the file, whose name may be a patient's.
    The same job writes the same folder again, any other job a folder of its own.

    Raises InputError if a file or a setting is wrong.
    """
    # Read all X-rays before anything is generated.
    r = config.reconstruct
    method = method_class(config)
    if method.kind != "generator" or not method.reads_xrays:
        raise InputError(
            f"job=reconstruct makes faces of X-rays, which {config.method.name} does not read or "
            "make. Name the configuration of a method that does."
        )
    check_profile(r.view, r.sex, r.age, r.bmi_change)
    if r.num_samples < 1:
        raise InputError(f"reconstruct.num_samples={r.num_samples} must be 1 or more")
    paths = find_xrays(r.xrays)
    prepared = [read_xray(path, config.data.settings.size, r.inverted) for path in paths]
    _print_remarks(prepared)

    # Reconstruct one after the other.
    generator = Generator(config, workdir, "reconstruct")
    profile = (r.view, r.sex, r.age, r.bmi_change)
    prompt = make_prompt(config.prompt.template, *profile, config.prompt.known_ages)
    ids = make_tokenizer(config)([prompt])[0]
    home = workdir or pathlib.Path()
    squares = [xray.square[..., None] for xray in prepared]
    conditions = generator.conditions([{"xray": square} for square in squares])
    folders = []
    for number, square in enumerate(squares):
        title = f"X-ray {number + 1} of {len(squares)}"
        pictures = {"xray": np.repeat(square, 3, -1)}
        if conditions is not None:
            pictures["condition"] = conditions[number]
        folders.append(_one(config, home, generator, pictures, prompt, ids, title))
    return folders


def _print_remarks(prepared: Sequence[PreparedXray]) -> None:
    """Prints what was corrected in the X-rays when they were read."""
    painted = sum(xray.masked > 0 for xray in prepared)
    if painted:
        print(
            f"text or markers painted over in {painted} of {len(prepared)} X-rays", file=sys.stderr
        )
    counts = Counter(remark for xray in prepared for remark in xray.remarks)
    for remark, count in counts.items():
        print(f"{count} of {len(prepared)} X-rays: {remark}", file=sys.stderr)


def _one(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    generator: Generator,
    seen: dict[str, UInt8[np.ndarray, "h w 3"]],
    prompt: str,
    ids: Int32[np.ndarray, "length"],
    title: str,
) -> pathlib.Path:
    """Reconstructs the faces of one X-ray; returns its folder.

    Args:
      config, generator: of the job.
      workdir: in which the folder is made.
      seen: `xray`, and `condition` if the ControlNet sees more than that.
      prompt: with the profile.
      ids: its tokens.
      title: of the progress line.
    """
    r = config.reconstruct
    xray = seen["xray"][..., :1]
    # The pixels decide the noise, so an X-ray gives the same faces wherever its file is.
    digest = zlib.crc32(xray.tobytes())
    example = {
        "xray": xray,
        "face": np.zeros((*xray.shape[:2], 3), np.uint8),
        "prompt_ids": ids,
        "frontal": np.float32(r.view == "frontal"),
        "profile": profile_numbers(r.view, r.sex, r.age, r.bmi_change),
    }
    examples = [
        example | {"id": f"X-ray {digest:08x}", "id_hash": np.uint32((digest + k) % 2**32)}
        for k in range(r.num_samples)
    ]
    faces = generator.draw(examples, title=title)

    # Pictures.
    mean = faces.mean(0, dtype=np.float64)
    spread = (faces / 255.0).std(0).mean(-1)
    pictures = {f"face_{k}": face for k, face in enumerate(faces)}
    pictures |= seen
    pictures["mean"] = np.round(mean).astype(np.uint8)
    pictures["spread"] = sheets.heat(spread)
    pictures["sheet"] = sheets.sheet(
        prompt,
        xray=pictures["xray"],
        mean=pictures["mean"],
        spread=pictures["spread"],
        faces=list(faces),
    )
    name = f"{r.view}_{r.sex}_{r.age:g}_{r.bmi_change:+g}_{digest:08x}"
    folder = workdir / "reconstructions" / name
    for name, picture in pictures.items():
        write_png(folder / f"{name}.png", picture)
    if "condition" not in seen:
        (folder / "condition.png").unlink(missing_ok=True)
    for old in set(folder.glob("face_*.png")) - {folder / f"{name}.png" for name in pictures}:
        old.unlink()  # an earlier job had more samples

    record = {
        "notice": NOTICE,
        "xray_crc32": f"{digest:08x}",
        "view": r.view,
        "sex": r.sex,
        "age": r.age,
        "bmi_change": r.bmi_change,
        "prompt": prompt,
        "samples": r.num_samples,
        "step": generator.step,
        "seed": config.seed,
        "mean_spread": float(spread.mean()),
    }
    write_json(folder / "record.json", record)
    return folder
