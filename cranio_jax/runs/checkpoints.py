"""Saving and finding training states: a thin layer over Orbax."""

import contextlib
import functools
import json
import os
import pathlib
import re
import sys
import threading
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cranio_jax.distributed import cluster
from cranio_jax.errors import InputError
from cranio_jax.files import buckets
from cranio_jax.files.atomic import write_json

# Sizes and checksums of a checkpoint's files, in its own folder.
_SUMS = "cranio_jax_sums.json"
# TensorStore's words for a bucket that exists and can't be read.
_NO_ACCESS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE")


@functools.cache
def _prepare_orbax() -> None:
    # Devices that hold the same array share the writing, by slices. A slice of a small array takes
    # longer than the whole.
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    sys.unraisablehook = _unraisable


def _unraisable(what: Any) -> None:
    """Hides errors that follow a failed save.

    Orbax raises the first error. Each array that ends later finds its event loop closed, and would
    print a traceback.
    """
    if not (
        isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed"
    ):
        sys.__unraisablehook__(what)


class Checkpoints:
    """Checkpoints in a folder, written in the background. Leaving `with` waits for the last one.

    Orbax gives a checkpoint its name when it is complete. Checksums of its files are then written
    beside it, so that a checkpoint that a disk has damaged later is not used.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        keep: int = 2,
        keep_period: int | None = None,
        clean: bool = False,
    ):
        """Opens or creates the folder.

        Args:
          folder: of the checkpoints.
          keep: how many of the newest to keep.
          keep_period: keeps every checkpoint whose step divides by this; None for no others.
          clean: removes what a killed run has left half-written.

        Raises:
          InputError: the folder can't be written.
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_period or None, cleanup_tmp_directories=clean
        )
        self._folder = folder
        self._damaged: set[int] = set()
        self._sealing: threading.Thread | None = None
        # A bucket has checksums of its own.
        self._local = not buckets.is_remote(folder)
        _prepare_orbax()
        with self._written():
            self._manager = ocp.CheckpointManager(
                folder.absolute() if self._local else folder, options=options
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *exc: object) -> None:
        # The first error is more useful than one from closing.
        with contextlib.suppress(Exception) if kind else self._written():
            self._manager.close()
            self._seal()
            if self._sealing:
                self._sealing.join()

    @property
    def latest(self) -> int | None:
        """The newest complete step that is not known to be damaged, or None."""
        return max(set(self._manager.all_steps()) - self._damaged, default=None)

    def save(self, step: int, state: Any, data_position: dict[str, Any]) -> None:
        """Starts to write a state and the position in the data.

        Raises InputError if this one or the one before can't be written.
        """
        if self.latest == step:
            return
        with self._written():
            # Orbax would not save a step that is older than a damaged one.
            for damaged in sorted(self._damaged):
                self._manager.delete(damaged)
            self._damaged.clear()
            self._manager.wait_until_finished()
            self._seal()
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_position)
            )
            with jax.transfer_guard_device_to_host("allow"):
                self._manager.save(step, args=args, force=True)

    def restore(self, state: Any, shardings: Any) -> tuple[int, Any, dict[str, Any]]:
        """Returns the newest `(step, state, data position)` that is whole.

        Args:
          state: shapes and types.
          shardings: where each leaf is placed.

        Raises:
          InputError: no checkpoint is whole.
        """
        abstract = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings
        )
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
        )
        while (step := self.latest) is not None:
            changed = _changed_file(self._folder / str(step)) if cluster.is_first() else None
            restored: Any = None
            why = (
                f"{changed} is not as it was written"
                if changed
                else "another process can't read it"
            )
            if cluster.of_first(np.array(changed is None)):
                # Orbax and TensorStore raise errors of many kinds on a damaged file.
                try:
                    restored = self._manager.restore(step, args=args)
                except Exception as error:
                    why = _reason(error)
                    self._check_access(error)
            if cluster.all_agree(restored is not None):
                return step, restored["state"], restored["data"]
            self._damaged.add(step)
            cluster.say(
                f"the checkpoint of step {step} in {self._folder} is damaged ({why}); trying"
                " the one before it"
            )
        raise InputError(
            f"no checkpoint in {self._folder} is whole; remove the folder to start again"
        )

    def _check_access(self, error: Exception) -> None:
        """Raises InputError if a bucket can't be read, which says nothing about the checkpoint."""
        if self._local:
            return
        buckets.open_folder(str(self._folder), "--workdir")
        if any(word in str(error) for word in _NO_ACCESS):
            raise InputError(
                f"{self._folder}: can't be read ({_reason(error)}). To get access, {buckets.LOGIN}."
            )

    def _seal(self) -> None:
        """Starts to write the checksums of the newest step, if they are missing."""
        step = self.latest
        if (
            step is None
            or not self._local
            or not cluster.is_first()
            or (self._folder / str(step) / _SUMS).exists()
        ):
            return
        if self._sealing:
            self._sealing.join()
        self._sealing = threading.Thread(target=_write_sums, args=(self._folder / str(step),))
        self._sealing.start()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        # The error may come from a thread of Orbax, and be of any kind.
        try:
            yield
        except Exception as error:
            latest = self.latest if hasattr(self, "_manager") else None
            rest = ""
            if latest is not None:
                rest = f"; the newest whole checkpoint there is of step {latest}"
            raise InputError(f"{self._folder} can't be written ({_reason(error)}){rest}") from error


def _sum(path: pathlib.Path) -> int:
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            total = zlib.crc32(block, total)
    return total


def _write_sums(folder: pathlib.Path) -> None:
    # The checkpoint may be gone by now. Without checksums it is trusted.
    with contextlib.suppress(OSError):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sums = {str(path.relative_to(folder)): [path.stat().st_size, _sum(path)] for path in files}
        write_json(folder / _SUMS, sums)


def _changed_file(folder: pathlib.Path) -> str | None:
    """Returns the first file of a checkpoint that is not as it was written.

    None if all are, or if there are no checksums.
    """
    if not (folder / _SUMS).exists():
        return None
    for name, (size, total) in json.loads((folder / _SUMS).read_text()).items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size or _sum(path) != total:
            return name
    return None


def _reason(error: Exception) -> str:
    """Returns the reason in a few words: the OSError at the root, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's way of saying it
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
