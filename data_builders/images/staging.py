"""Preparing pictures once, on all cores, and keeping them.

This is the slow part of a build. A build that was stopped continues with what is finished.
"""

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
from jaxtyping import Float

from data_builders.errors import InputError, UnreadableError
from data_builders.images.faces import only_face
from data_builders.images.photograph import read_photograph
from data_builders.images.prepare import TEXT, prepare_xray
from data_builders.images.squares import Transform, fitting, framing, moved, padding, take

__all__ = ["TEXT", "Job", "Ready", "UnreadableError", "stage"]

_VERSION = 3  # increase it whenever the same file gives another picture


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture to be prepared.

    Attributes:
      kind: 'xray' or 'face'.
      path: of the file.
      size: pixels along each side of the square.
      inverted: for an X-ray, whether bone is dark in the file.
      text: for an X-ray, what happens to text burned in: 'paint_over' it, 'refuse' the X-ray, or
        'keep' it.
      view: of a face to be aligned; empty where the photograph is kept whole.
      landmarks: of a face to be aligned, LANDMARKS' ten numbers in pixels of the upright
        photograph; empty where they are to be found.
      detector: the file of the network that finds faces; needed where landmarks are.
    """

    kind: str
    path: pathlib.Path
    size: int
    inverted: bool = False
    text: str = "paint_over"
    view: str = ""
    landmarks: tuple[float, ...] = ()
    detector: pathlib.Path | None = None

    def key(self, salt: bytes) -> str:
        """Returns a name for the result, which changes with the file and with each setting.

        Nobody without the salt can guess from which file it was made.
        """
        stat = self.path.stat()
        inputs = [_VERSION, *dataclasses.astuple(self), stat.st_size, stat.st_mtime_ns]
        return hmac.new(salt, repr(inputs).encode(), hashlib.sha256).hexdigest()[:40]


class Ready(NamedTuple):
    """A prepared picture.

    Attributes:
      png: its file.
      transform: from the square's pixels to the file's.
      height: of the file's picture.
      width: of the file's picture.
      boxes: where text was painted over, `(left, top, right, bottom)` in the square.
      masked: the share of the picture that was painted over.
      remarks: what was corrected while reading it, in constant words.
      landmarks: LANDMARKS' ten numbers in pixels of the upright photograph, given or found; empty
        where the photograph is kept whole, and in profiles.
      found: the box of a face that was found, `(left, top, right, bottom)` in the square; empty
        where none was looked for.
    """

    png: pathlib.Path
    transform: Transform
    height: int
    width: int
    boxes: list[list[float]]
    masked: float
    remarks: tuple[str, ...] = ()
    landmarks: tuple[float, ...] = ()
    found: tuple[float, ...] = ()


def stage(jobs: Sequence[Job], folder: pathlib.Path, salt: bytes, label: str) -> list[Ready | str]:
    """Returns each job's prepared picture, or the reason why it can't be prepared.

    Pictures that `folder` holds already are not prepared again.

    Args:
      jobs: the pictures.
      folder: holds a PNG and a JSON file for each of them.
      salt: of the files' names; see `Job.key`.
      label: of the progress bar.

    Raises:
      InputError: the folder can't be written; its disk may be full.
    """
    folder.mkdir(parents=True, exist_ok=True)

    # Name the results.
    refused: dict[Job, str] = {}
    names: dict[Job, pathlib.Path] = {}
    for job in jobs:
        try:
            names[job] = folder / job.key(salt)
        except OSError as error:
            refused[job] = f"can't be read ({error.strerror})"

    # Prepare those that are missing.
    todo = {name: job for job, name in names.items() if not _is_finished(name)}
    if todo:
        try:
            refused |= _prepare_all(todo, label)
        except OSError as error:
            raise InputError(
                f"{folder} can't be written ({error.strerror}); make room and start again: "
                "what is finished is kept"
            ) from None
    return [refused.get(job) or _read(names[job]) for job in jobs]


def _is_finished(name: pathlib.Path) -> bool:
    """Returns True if a picture has been prepared; its JSON file is written last."""
    return name.with_suffix(".json").exists()


def _prepare_all(todo: dict[pathlib.Path, Job], label: str) -> dict[Job, str]:
    """Prepares pictures on all cores, and returns why some can't be prepared.

    Raises OSError where they can't be written.
    """
    cores = len(os.sched_getaffinity(0))
    chunk = max(1, min(16, len(todo) // (4 * cores)))
    refused: dict[Job, str] = {}
    with tqdm.tqdm(desc=label, total=len(todo), unit="pictures") as bar:
        try:
            with loky.ProcessPoolExecutor(min(cores, len(todo))) as pool:
                results = pool.map(_make, todo.items(), chunksize=chunk)
                for job, words in zip(todo.values(), results, strict=True):
                    bar.update()
                    if words:
                        refused[job] = words
        except loky.process_executor.TerminatedWorkerError:
            left = {
                name: job
                for name, job in todo.items()
                if not _is_finished(name) and job not in refused
            }
            bar.reset(len(left))
            refused |= _prepare_one_by_one(left, bar)
    return refused


def _prepare_one_by_one(todo: dict[pathlib.Path, Job], bar: tqdm.tqdm) -> dict[Job, str]:
    """Prepares pictures after a worker died, and returns why some can't be prepared.

    There is one process, so that it is known which picture crashes it.
    """
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
                    refused[item[1]] = "crashes its decoder, perhaps for lack of memory"
                    break
                if words:
                    refused[item[1]] = words
    return refused


def _read(name: pathlib.Path) -> Ready:
    """Returns a picture that has been prepared."""
    fields = json.loads(name.with_suffix(".json").read_text())
    fields["transform"] = np.array(fields["transform"])
    for field in ("remarks", "landmarks", "found"):
        fields[field] = tuple(fields.get(field, ()))
    return Ready(png=name.with_suffix(".png"), **fields)


def _make(item: tuple[pathlib.Path, Job]) -> str:
    """Prepares a picture, and returns why it can't be prepared, or ''.

    Raises OSError where it can't be written.
    """
    name, job = item
    cv2.setNumThreads(1)  # the pool has a process for each core
    prepare = _xray if job.kind == "xray" else _face
    try:
        picture, fields = prepare(job)
    except UnreadableError as error:
        return str(error)
    except MemoryError:
        return "needs more memory than there is"
    except Exception as error:  # decoders raise many errors; one file must not end the build
        return f"damaged, or in a form that can't be decoded ({type(error).__name__})"
    _write(name.with_suffix(".png"), cv2.imencode(".png", picture)[1].tobytes())
    _write(name.with_suffix(".json"), json.dumps(fields).encode())
    return ""


def _write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file in one step."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _xray(job: Job) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns an X-ray's square, and the fields of Ready for a JSON file."""
    xray = prepare_xray(job.path, job.size, inverted=job.inverted, text=job.text)
    fields = xray._asdict() | {
        "transform": xray.transform.tolist(),
        "boxes": xray.boxes.round(1).tolist(),
    }
    return fields.pop("square"), fields


def _face(job: Job) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns a face's square in BGR, and the fields of Ready for a JSON file."""
    picture, step = read_photograph(job.path, 0 if job.view else job.size)
    height, width = picture.shape[:2]
    found = None
    landmarks = np.array(job.landmarks).reshape(-1, 2)
    if job.view and not job.landmarks:
        assert job.detector is not None
        found = only_face(picture, job.view, job.detector)
        # In a profile they are guesses.
        landmarks = found.landmarks if job.view == "frontal" else landmarks
    if len(landmarks):
        _check_landmarks(landmarks, height, width)
        transform = fitting(landmarks, job.size)
    elif found:
        transform = framing(found.box, found.looks_right, job.size)
    else:
        transform = padding(height, width, job.size)
    square = take(picture, transform, job.size)
    box = moved(found.box.reshape(2, 2), transform).ravel().round(1).tolist() if found else []
    # The decoder may have made one pixel of `step` pixels of the file.
    in_file = transform * step + np.array([[0, 0, (step - 1) / 2]] * 2)
    fields = {
        "transform": in_file.tolist(),
        "height": round(height * step),
        "width": round(width * step),
        "boxes": [],
        "masked": 0.0,
        "remarks": (),
        "landmarks": landmarks.ravel().tolist(),
        "found": box,
    }
    return cv2.cvtColor(square, cv2.COLOR_RGB2BGR), fields


def _check_landmarks(landmarks: Float[np.ndarray, "5 2"], height: int, width: int) -> None:
    """Raises UnreadableError where landmarks can't be those of a face in the photograph."""
    if (landmarks < 0).any() or (landmarks > [width, height]).any():
        raise UnreadableError(
            f"its landmarks lie outside the photograph of {width} x {height} pixels (upright)"
        )
    if np.ptp(landmarks, 0).min() < 4 or landmarks[0, 0] >= landmarks[1, 0]:
        raise UnreadableError(
            "its landmarks fit no face: the picture's left eye comes first, then the right one, "
            "nose and mouth"
        )
