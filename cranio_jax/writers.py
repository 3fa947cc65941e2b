"""What a run leaves behind: TensorBoard events, a line of JSON for each logged step, and whole files."""

import contextlib
import io
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
import tensorboardX

from cranio_jax import cluster


@contextlib.contextmanager
def whole_file(path: pathlib.Path, mode: str = "w"):
    """A file that appears under its name only when it is complete."""
    if not isinstance(path, pathlib.Path):  # in a bucket, whose objects appear when they are closed
        content = io.BytesIO() if "b" in mode else io.StringIO()
        yield content
        with path.open(mode) as file:
            file.write(content.getvalue())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode) as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes readable JSON, whole or not at all."""
    with whole_file(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


class _Lines:
    """A file that grows by lines; in a bucket, where none can, it is written anew with each."""

    def __init__(self, path: pathlib.Path):
        self._path, self._file = path, None
        if isinstance(path, pathlib.Path):
            self._file = path.open("a", buffering=1)
        else:
            self._text = path.read_text() if path.exists() else ""

    def add(self, line: str) -> None:
        if self._file:
            self._file.write(line)
        else:
            self._text += line
            self._path.write_text(self._text)

    def close(self) -> None:
        if self._file:
            self._file.close()


class Writer:
    """Scalars and pictures of a run; silent on every process but the first. A bucket gets the lines and no TensorBoard."""

    def __init__(self, workdir: pathlib.Path):
        self._board, self._lines = None, None
        if cluster.is_first():
            workdir.mkdir(parents=True, exist_ok=True)
            self._lines = _Lines(workdir / "metrics.jsonl")
            if isinstance(workdir, pathlib.Path):
                self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exc) -> None:
        for part in (self._board, self._lines):
            if part:
                part.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers of a step."""
        if self._lines:
            self._lines.add(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")
        for name, value in values.items() if self._board else ():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a picture `(height, width, 3)`, uint8."""
        if self._board:
            self._board.add_image(name, picture, step, dataformats="HWC")
