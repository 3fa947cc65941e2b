"""Another run's weights to start from: `train.init_from`."""

import hashlib
import json
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from cranio_jax.errors import InputError
from cranio_jax.files import buckets
from cranio_jax.models.functional import Params

FIELD = "train.init_from"
# Parts of a state that belong to the people it was trained on.
_OF_THE_COHORT = ("classes",)


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder."""
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def mark(workdir: str) -> dict[str, Any]:
    """Returns which weights are the newest in another run's folder, as JSON.

    That is the step, the networks, and the SHA-256 of the names and sizes of the files: Orbax
    gives each save names of its own. Raises InputError if there are no weights.
    """
    folder = _checkpoints(workdir)
    found = steps(folder)
    if not found:
        raise InputError(
            f"{FIELD}={workdir}: it holds no checkpoint. Name the workdir of a trained run."
        )
    newest = folder / str(max(found))
    networks = sorted(_networks(_stored(newest)))
    return {"step": max(found), "networks": networks, "sha256": _digest(newest)}


def _stored(folder: pathlib.Path) -> Any:
    """Returns the shapes and types of a checkpoint's state; nothing else is read."""
    return ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree


def _checkpoints(workdir: str) -> pathlib.Path:
    return buckets.open_folder(workdir, FIELD) / "checkpoints"


def _digest(folder: pathlib.Path) -> str:
    sizes = buckets.file_sizes(folder / "state")
    return hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()


def load(
    where: str, began: dict[str, Any], shapes: Any, shardings: Any, frozen_only: bool
) -> dict[str, Params]:
    """Returns another run's weights, averaged ones if it has them, by network.

    Args:
      where: the other run's folder.
      began: from `mark`, when this run started.
      shapes, shardings: of this run's `(state, frozen)`.
      frozen_only: leaves out what this run trains.

    Raises:
      InputError: the runs' networks differ, or the weights are gone.
    """
    trained, frozen = (_networks(tree) for tree in shapes)
    places = _networks(shardings[0]) | _networks(shardings[1])
    if frozen_only and not frozen.keys() & set(began["networks"]):
        return {}
    folder = _checkpoints(where) / str(began["step"])
    if not folder.is_dir() or began["sha256"] != _digest(folder):
        raise InputError(
            f"{FIELD}={where}: the weights that this run started from are gone. Put them back."
        )

    # What there is, and where it goes.
    stored = _stored(folder)
    theirs = {n: part for n, part in _networks(stored).items() if n not in _OF_THE_COHORT}
    for name, part in theirs.items():
        _compare(where, name, part, trained.get(name, frozen.get(name)))
    wanted = {name: frozen[name] for name in theirs if name in frozen}
    if not frozen_only:
        wanted |= {name: trained[name] for name in theirs if name in trained}

    # Read it.
    if not wanted:
        return {}
    item = _like(stored, wanted, places)
    arguments = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    try:
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        return _networks(reader.restore(folder / "state", args=arguments))
    except Exception as error:  # Orbax and TensorStore raise many kinds on a damaged file
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"{FIELD}={where}: its checkpoint of step {began['step']} is damaged ({reason}). "
            "Remove that step's folder and this workdir to start from the one before."
        ) from None


def _networks(tree: Any) -> dict[str, dict[str, Any]]:
    """Returns the leaves of a state or of frozen parameters, by network and path."""
    averaged = tree.get("ema") or tree.get("params") or ({} if "step" in tree else tree)
    networks = {name: dict(part) for name, part in averaged.items()}
    for name, value in tree.get("statistics", {}).items():
        if isinstance(value, dict):
            networks[name] |= value
        else:  # of the only network that is not a table of classes
            networks[next(n for n in networks if n not in _OF_THE_COHORT)][name] = value
    return networks


def _compare(where: str, name: str, theirs: dict[str, Any], ours: dict[str, Any] | None) -> None:
    if ours is None:
        raise InputError(f"{FIELD}={where}: it holds the network {name!r}, which this run lacks")
    for path in sorted(theirs.keys() | ours.keys()):
        sides = [tuple(part[path].shape) if path in part else None for part in (theirs, ours)]
        if sides[0] != sides[1]:
            there, here = ("missing" if side is None else f"{side}" for side in sides)
            raise InputError(
                f"{FIELD}={where}: {path!r} of {name} is {there} there and {here} in this run. Give"
                " both the same networks."
            )


def _like(stored: Any, wanted: dict[str, dict[str, Any]], places: Any) -> dict[str, Any]:
    """Returns the wanted leaves as they lie in a stored state, each with its type and sharding."""
    top = "ema" if "ema" in stored else "params"
    item: dict[str, Any] = {}
    for name, part in wanted.items():
        for path, shape in part.items():
            leaf = jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=places[name][path])
            if path in stored[top][name]:
                item.setdefault(top, {}).setdefault(name, {})[path] = leaf
            elif path in stored["statistics"]:
                item.setdefault("statistics", {})[path] = leaf
            else:
                item.setdefault("statistics", {}).setdefault(name, {})[path] = leaf
    return item
