"""The log of a run: TensorBoard events, and a line of JSON for each logged step."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8

from cranio_jax.distributed import cluster
from cranio_jax.errors import InputError
from cranio_jax.files import buckets


def logged(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Returns lines of a run's metrics.jsonl, without a half-written last one."""
    path = workdir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class _Lines:
    """A file that grows by lines. In a bucket, where files can't grow, each line rewrites it."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file: BinaryIO | None = None
        self._text = ""
        if buckets.is_remote(path):
            self._text = path.read_text() if path.exists() else ""
            return
        self._file = path.open("ab+")
        # A full disk or a kill leaves half a line.
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def add(self, line: str) -> None:
        if self._file:
            self._file.write(line.encode())
            self._file.flush()
        else:
            self._text += line
            buckets.write_object(self._path, self._text.encode())

    def close(self) -> None:
        if self._file:
            self._file.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Lets tensorboardX start without torch.

    It imports torch where that is installed, which takes seconds. Without, it takes no tensors of
    torch for the rest of the process; this program has none for it.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


class Writer:
    """Logs scalars and pictures of a run; silent on every process but the first.

    In a bucket it writes the lines and no TensorBoard. Raises InputError if they can't be written.
    """

    def __init__(self, workdir: pathlib.Path):
        self._workdir = workdir
        self._board: Any = None
        self._lines: _Lines | None = None
        if cluster.is_first():
            with self._written():
                workdir.mkdir(parents=True, exist_ok=True)
                self._lines = _Lines(workdir / "metrics.jsonl")
                if not buckets.is_remote(workdir):
                    with _without_torch():
                        from tensorboardX.event_file_writer import EventsWriter

                    # Not SummaryWriter: a full disk ends its thread, for which the next call
                    # would wait for ever.
                    (workdir / "tensorboard").mkdir(exist_ok=True)
                    self._board = EventsWriter(str(workdir / "tensorboard" / "events"))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        # The first error is more useful than one from closing.
        with contextlib.suppress(OSError) if kind else self._written():
            for part in (self._lines, self._board):
                if part:
                    part.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs numbers of a step."""
        with self._written():
            if self._lines:
                line = {"step": step, "time": round(time.time(), 1), **values}
                self._lines.add(json.dumps(line) + "\n")
            if self._board:
                from tensorboardX import summary

                self._event(step, *(summary.scalar(name, value) for name, value in values.items()))

    def image(self, step: int, name: str, picture: UInt8[np.ndarray, "h w 3"]) -> None:
        """Logs a picture."""
        with self._written():
            if self._board:
                from tensorboardX import summary

                self._event(step, summary.image(name, picture, dataformats="HWC"))

    def _event(self, step: int, *summaries: Any) -> None:
        from tensorboardX.proto import event_pb2

        for summary in summaries:
            event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary)
            self._board.write_event(event)
        self._board.flush()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._workdir} can't be written ({error.strerror}); start again when it can"
            ) from error
