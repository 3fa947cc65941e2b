"""Pictures made ready once, on all cores, and kept: the slow part of a build, which a build that was stopped need not repeat."""

import dataclasses
import hashlib
import hmac
import json
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import loky
import numpy as np
import tqdm

from data_builders.errors import InputError, UnreadableError
from data_builders.images.photograph import read_photograph
from data_builders.images.prepare import TEXT, prepare_xray
from data_builders.images.squares import Transform, fitting, padding, take

__all__ = ["TEXT", "Job", "Ready", "UnreadableError", "stage"]

_VERSION = 3  # to be raised whenever the same file gives another picture


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture to be made ready.

    Attributes:
      kind: 'xray' or 'face'.
      path: of the file.
      size: pixels along each side of the square.
      inverted: of an X-ray whether bone is dark in the file.
      text: of an X-ray what to do with text burned in: 'paint_over' it, 'refuse' the X-ray, or 'keep' it.
      landmarks: of a face to be aligned by them, LANDMARKS' ten numbers in pixels of the upright photograph.
    """

    kind: str
    path: pathlib.Path
    size: int
    inverted: bool = False
    text: str = "paint_over"
    landmarks: tuple[float, ...] = ()

    def key(self, salt: bytes) -> str:
        """Names the result: another file of that name, or another setting, is another. Nobody without the salt can guess from what."""
        stat = self.path.stat()
        told = [_VERSION, *dataclasses.astuple(self), stat.st_size, stat.st_mtime_ns]
        return hmac.new(salt, repr(told).encode(), hashlib.sha256).hexdigest()[:40]


class Ready(NamedTuple):
    """A picture that is ready.

    Attributes:
      png: its file.
      transform: from the square's pixels to the file's.
      height, width: of the file's picture.
      boxes: where text was painted over, `(left, top, right, bottom)` in the square.
      masked: the share of the picture that this is.
      remarks: what was corrected in reading it, in constant words.
    """

    png: pathlib.Path
    transform: Transform
    height: int
    width: int
    boxes: list[list[float]]
    masked: float
    remarks: tuple[str, ...] = ()


def stage(jobs: Sequence[Job], folder: pathlib.Path, salt: bytes, say: str) -> list[Ready | str]:
    """What each job made, or the words for why it made nothing; what `folder` holds already is not made again.

    Raises InputError where the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    refused: dict[Job, str] = {}
    names: dict[Job, pathlib.Path] = {}
    for job in jobs:
        try:
            names[job] = folder / job.key(salt)
        except OSError as error:
            refused[job] = f"can't be read ({error.strerror})"
    todo = {name: job for job, name in names.items() if not name.with_suffix(".json").exists()}
    if todo:
        try:
            refused |= _all_made(todo, say)
        except OSError as error:
            raise InputError(
                f"{folder} can't be written ({error.strerror}); make room and start again: what is finished is kept"
            ) from None
    return [refused.get(job) or _read(names[job]) for job in jobs]


def _all_made(todo: dict[pathlib.Path, Job], say: str) -> dict[Job, str]:
    """Makes pictures on all cores; returns why some can't be. Raises OSError where they can't be written."""
    cores = len(os.sched_getaffinity(0))
    refused: dict[Job, str] = {}
    bar = tqdm.tqdm(desc=say, total=len(todo), unit="pictures")
    with bar:
        try:
            with loky.ProcessPoolExecutor(min(cores, len(todo))) as pool:
                done = pool.map(
                    _make, todo.items(), chunksize=max(1, min(16, len(todo) // (4 * cores)))
                )
                for job, words in zip(todo.values(), done, strict=True):
                    bar.update()
                    if words:
                        refused[job] = words
        except loky.process_executor.TerminatedWorkerError:
            left = {
                name: job
                for name, job in todo.items()
                if not name.with_suffix(".json").exists() and job not in refused
            }
            bar.reset(len(left))
            refused |= _made_one_by_one(left, bar)
    return refused


def _made_one_by_one(todo: dict[pathlib.Path, Job], bar: tqdm.tqdm) -> dict[Job, str]:
    """As `_all_made`, after a worker died: in one process, so that it shows which picture ends it."""
    refused: dict[Job, str] = {}
    waiting = list(todo.items())
    while waiting:
        with loky.ProcessPoolExecutor(1) as pool:
            while waiting:
                item = waiting.pop(0)
                bar.update()
                try:
                    words = pool.submit(_make, item).result()
                except loky.process_executor.TerminatedWorkerError:
                    refused[item[1]] = "ends the program that decodes it, perhaps for memory"
                    break
                if words:
                    refused[item[1]] = words
    return refused


def _read(name: pathlib.Path) -> Ready:
    told = json.loads(name.with_suffix(".json").read_text())
    transform, remarks = np.array(told.pop("transform")), tuple(told.pop("remarks"))
    return Ready(name.with_suffix(".png"), transform, remarks=remarks, **told)


def _make(item: tuple[pathlib.Path, Job]) -> str:
    """Makes a picture ready; returns why it can't be, or nothing. Raises OSError where it can't be written."""
    name, job = item
    cv2.setNumThreads(1)  # the pool has a process for each core
    try:
        picture, told = (_xray if job.kind == "xray" else _face)(job)
    except UnreadableError as error:
        return str(error)
    except MemoryError:
        return "needs more memory than there is"
    except Exception as error:  # decoders raise many kinds; one file must not end the build
        return f"damaged, or in a form that can't be decoded ({type(error).__name__})"
    _write(name.with_suffix(".png"), cv2.imencode(".png", picture)[1].tobytes())
    _write(
        name.with_suffix(".json"), json.dumps(told).encode()
    )  # last: it says that the picture is whole
    return ""


def _write(path: pathlib.Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _xray(job: Job) -> tuple[np.ndarray, dict[str, Any]]:
    made = prepare_xray(job.path, job.size, job.inverted, job.text)._asdict()
    told = made | {
        "transform": made["transform"].tolist(),
        "boxes": made["boxes"].round(1).tolist(),
    }
    return told.pop("square"), told


def _face(job: Job) -> tuple[np.ndarray, dict[str, Any]]:
    picture, step = read_photograph(job.path, 0 if job.landmarks else job.size)
    height, width = picture.shape[:2]
    if job.landmarks:
        landmarks = np.array(job.landmarks).reshape(5, 2)
        if (landmarks < 0).any() or (landmarks > [width, height]).any():
            raise UnreadableError(
                f"its landmarks lie outside the photograph of {width} x {height} pixels (upright)"
            )
        if np.ptp(landmarks, 0).min() < 4 or landmarks[0, 0] >= landmarks[1, 0]:
            raise UnreadableError(
                "its landmarks are no face's: the picture's left eye comes first, then the right one, nose and mouth"
            )
        transform = fitting(landmarks, job.size)
    else:
        transform = padding(height, width, job.size)
    square = take(picture, transform, job.size)
    # As pixels of the file, of which the decoder may have made `step` one.
    whole = transform * step + np.array([[0, 0, (step - 1) / 2]] * 2)
    told = {
        "transform": whole.tolist(),
        "height": round(height * step),
        "width": round(width * step),
    }
    return cv2.cvtColor(square, cv2.COLOR_RGB2BGR), told | {
        "boxes": [],
        "masked": 0.0,
        "remarks": (),
    }
