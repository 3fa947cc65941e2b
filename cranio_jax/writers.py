"""What a run leaves behind: TensorBoard events, a line of JSON for each logged step, and whole files."""

import contextlib
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np
import tensorboardX


@contextlib.contextmanager
def whole_file(path: pathlib.Path, mode: str = "w"):
    """A file that appears under its name only when it is complete."""
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


class Writer:
    """Scalars and pictures of a run; silent on every process but the first."""

    def __init__(self, workdir: pathlib.Path):
        self._first = jax.process_index() == 0
        if self._first:
            workdir.mkdir(parents=True, exist_ok=True)
            self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"))
            self._lines = open(workdir / "metrics.jsonl", "a", buffering=1)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exc) -> None:
        if self._first:
            self._board.close()
            self._lines.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers of a step."""
        if self._first:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._lines.write(json.dumps({"step": step, "time": round(time.time(), 1), **values}) + "\n")

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Logs a picture `(height, width, 3)`, uint8."""
        if self._first:
            self._board.add_image(name, picture, step, dataformats="HWC")
