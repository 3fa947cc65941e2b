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

from cranio_jax.errors import InputError
from data_builders.images.burned_in import covered, find_text, paint_over
from data_builders.images.photograph import read_photograph
from data_builders.errors import UnreadableError
from data_builders.images.radiograph import read_radiograph
from data_builders.images.squares import Transform, fitting, moved, padding, take

TEXT = ("paint_over", "refuse", "keep")
_VERSION = 2  # to be raised whenever the same file gives another picture


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture to be made ready.

    Attributes:
      kind: 'xray' or 'face'.
      path: of the file.
      size: pixels along each side of the square.
      inverted: of an X-ray whether bone is dark in the file.
      text: of an X-ray what to do with text burned in: 'paint_over' it, or 'refuse' where some is still found after that,
        or 'keep' it.
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
      masked: how much of the picture that is.
    """

    png: pathlib.Path
    transform: Transform
    height: int
    width: int
    boxes: list[list[float]]
    masked: float


def stage(jobs: Sequence[Job], folder: pathlib.Path, salt: bytes, say: str) -> list[Ready | str]:
    """What each job made, or the words for why it made nothing; what `folder` holds already is not made again.

    Raises InputError where the disk is full, or a worker was killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [folder / job.key(salt) for job in jobs]
    todo = {name: job for name, job in zip(names, jobs, strict=True) if not name.with_suffix(".json").exists()}
    cores = len(os.sched_getaffinity(0))
    refused: dict[pathlib.Path, str] = {}
    if todo:
        try:
            with loky.ProcessPoolExecutor(min(cores, len(todo))) as pool:
                done = pool.map(_make, todo.items(), chunksize=max(1, min(16, len(todo) // (4 * cores))))
                for name, words in zip(todo, tqdm.tqdm(done, desc=say, total=len(todo), unit="pictures"), strict=True):
                    if words:
                        refused[name] = words
        except OSError as error:
            raise InputError(f"{folder} can't be written ({error.strerror}); make room and start again: what is finished is kept") from None
        except loky.process_executor.TerminatedWorkerError:
            raise InputError(
                "a process that reads pictures was killed, perhaps for memory; start again: what is finished is kept"
            ) from None
    return [refused.get(name) or _read(name) for name in names]


def _read(name: pathlib.Path) -> Ready:
    told = json.loads(name.with_suffix(".json").read_text())
    return Ready(name.with_suffix(".png"), np.array(told.pop("transform")), **told)


def _make(item: tuple[pathlib.Path, Job]) -> str:
    """Makes a picture ready; returns why it can't be, or nothing."""
    name, job = item
    cv2.setNumThreads(1)  # the pool has a process for each core
    try:
        picture, told = (_xray if job.kind == "xray" else _face)(job)
    except UnreadableError as error:
        return str(error)
    except MemoryError:
        return "needs more memory than there is"
    _write(name.with_suffix(".png"), cv2.imencode(".png", picture)[1].tobytes())
    _write(name.with_suffix(".json"), json.dumps(told).encode())  # last: it says that the picture is whole
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
    picture = read_radiograph(job.path, job.inverted)
    height, width = picture.shape
    boxes = [] if job.text == "keep" else find_text(picture)
    masked = 0.0
    if boxes:
        masked, picture = np.count_nonzero(covered(boxes, picture.shape)) / picture.size, paint_over(picture, boxes)
        if job.text == "refuse" and find_text(picture):
            raise UnreadableError("text is found in the X-ray after what was found has been painted over; crop it or paint it over by hand")
    transform = padding(height, width, job.size)
    corners = np.array([[[b.left, b.top], [b.right, b.bottom]] for b in boxes], np.float64).reshape(-1, 2) - 0.5
    told = {"transform": transform.tolist(), "height": height, "width": width, "masked": masked}
    told["boxes"] = (moved(corners, transform) + 0.5).reshape(-1, 4).round(1).tolist()
    square = take(np.asarray(picture, np.float32), transform, job.size)
    return np.uint8(np.rint(255.0 * np.clip(square, 0.0, 1.0))), told


def _face(job: Job) -> tuple[np.ndarray, dict[str, Any]]:
    picture, step = read_photograph(job.path, 0 if job.landmarks else job.size)
    height, width = picture.shape[:2]
    if job.landmarks:
        landmarks = np.array(job.landmarks).reshape(5, 2)
        if (landmarks < 0).any() or (landmarks > [width, height]).any():
            raise UnreadableError(f"its landmarks lie outside the photograph of {width} x {height} pixels (upright)")
        if np.ptp(landmarks, 0).min() < 4 or landmarks[0, 0] >= landmarks[1, 0]:
            raise UnreadableError("its landmarks are no face's: the picture's left eye comes first, then the right one, nose and mouth")
        transform = fitting(landmarks, job.size)
    else:
        transform = padding(height, width, job.size)
    square = take(picture, transform, job.size)
    # As pixels of the file, of which the decoder may have made `step` one.
    whole = transform * step + np.array([[0, 0, (step - 1) / 2]] * 2)
    told = {"transform": whole.tolist(), "height": round(height * step), "width": round(width * step)}
    return cv2.cvtColor(square, cv2.COLOR_RGB2BGR), told | {"boxes": [], "masked": 0.0}
