"""Saving and finding training states: a thin layer over Orbax."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """Checkpoints in a folder, written in the background; usable in `with`, which waits for the last one."""

    def __init__(self, folder: pathlib.Path, keep: int = 2, keep_period: int | None = None):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, keep_period=keep_period or None, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data_position: dict[str, Any]) -> None:
        """Starts to write a state and the position in the data."""
        if self.latest == step:
            return
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data_position)))

    def restore(self, state: Any, shardings: Any) -> tuple[Any, dict[str, Any]]:
        """The newest `(state, data position)`, placed as `shardings` says. `state` gives shapes and types."""
        abstract = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
        restored = self._manager.restore(self.latest, args=args)
        return restored["state"], restored["data"]
