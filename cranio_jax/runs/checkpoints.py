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

# Sizes and sums of a checkpoint's files, in its own folder.
_SUMS = "cranio_jax_sums.json"
# TensorStore's words for a bucket that is there and can't be read.
_NO_ACCESS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNAVAILABLE")


@functools.cache
def _prepare_orbax() -> None:
    # Devices that hold the same share the writing, by slices of each array; of small ones a slice takes longer than the whole.
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
    ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    sys.unraisablehook = _unraisable


def _unraisable(what: Any) -> None:
    """Of a save that fails Orbax raises the first error; arrays that end later find its event loop closed, a traceback each."""
    if not (
        isinstance(what.exc_value, RuntimeError) and str(what.exc_value) == "Event loop is closed"
    ):
        sys.__unraisablehook__(what)


class Checkpoints:
    """Checkpoints in a folder, written in the background; usable in `with`, which waits for the last one.

    Orbax gives a checkpoint its name when it is complete. Sums of its files are then put beside it, for what happens to them
    later: what a disk has spoilt is not gone on from.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        keep: int = 2,
        keep_period: int | None = None,
        clean: bool = False,
    ):
        """Opens or makes the folder; `clean` removes what a killed run has left half-written.

        Raises InputError where the folder can't be written.
        """
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_period or None, cleanup_tmp_directories=clean
        )
        self._folder, self._damaged, self._sealing = folder, set(), None
        self._local = not buckets.is_remote(folder)  # a bucket has sums of its own
        _prepare_orbax()
        with self._written():
            self._manager = ocp.CheckpointManager(
                folder.absolute() if self._local else folder, options=options
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, *exc) -> None:
        # An error on the way is worth more than one at the end.
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
        """Starts to write a state and the position in the data. Raises InputError where this or the one before can't be."""
        if self.latest == step:
            return
        with self._written():
            for damaged in sorted(self._damaged):  # Orbax keeps no step that is older than another
                self._manager.delete(damaged)
            self._damaged.clear()
            self._manager.wait_until_finished()
            self._seal()
            args = ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_position)
            )
            with jax.transfer_guard_device_to_host("allow"):  # the one that is meant
                self._manager.save(step, args=args, force=True)

    def restore(self, state: Any, shardings: Any) -> tuple[int, Any, dict[str, Any]]:
        """The newest `(step, state, data position)` that is whole, placed as `shardings` says.

        Args:
          state: shapes and types.
          shardings: one for each leaf.

        Raises:
          InputError: there are some, and none is whole.
        """
        abstract = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings
        )
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
        )
        while (step := self.latest) is not None:
            spoilt = _spoilt(self._folder / str(step)) if cluster.is_first() else None
            restored, why = None, f"{spoilt} is not as it was written"
            if cluster.of_first(np.array(spoilt is None)):
                try:
                    restored = self._manager.restore(step, args=args)
                except (
                    Exception
                ) as error:  # Orbax and TensorStore raise what they like on a damaged file
                    why = _reason(error)
                    self._check_access(error)
            if cluster.all_agree(restored is not None):
                return step, restored["state"], restored["data"]
            self._damaged.add(step)
            cluster.say(
                f"the checkpoint of step {step} in {self._folder} is damaged ({why}); the one"
                " before it is tried"
            )
        raise InputError(
            f"no checkpoint in {self._folder} is whole; remove the folder to begin anew"
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
        """Starts to write the sums of the newest step, if they are not there."""
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
        try:
            yield
        except Exception as error:  # of a thread of Orbax, perhaps, which raises what it likes
            kept = self.latest if hasattr(self, "_manager") else None
            kept = (
                f"; the newest whole checkpoint there is of step {kept}" if kept is not None else ""
            )
            raise InputError(f"{self._folder} can't be written ({_reason(error)}){kept}") from error


def _sum(path: pathlib.Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            found = zlib.crc32(block, found)
    return found


def _write_sums(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # it may be gone by now; and without sums it is trusted
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        write_json(
            folder / _SUMS,
            {str(path.relative_to(folder)): [path.stat().st_size, _sum(path)] for path in files},
        )


def _spoilt(folder: pathlib.Path) -> str | None:
    """The first file of a checkpoint that is not as it was written; None where all are, or nothing tells."""
    if not (folder / _SUMS).exists():
        return None
    for name, (size, total) in json.loads((folder / _SUMS).read_text()).items():
        path = folder / name
        if not path.exists() or path.stat().st_size != size or _sum(path) != total:
            return name
    return None


def _reason(error: Exception) -> str:
    """Why, in a few words: those of the OSError at the root, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's way of saying it
        return os.strerror(int(code[1]))
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
