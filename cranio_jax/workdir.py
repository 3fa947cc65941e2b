"""Which experiment a folder holds."""

import json
import pathlib
import time
from typing import Any

import jax
import ml_collections

from cranio_jax import cluster, data
from cranio_jax.errors import InputError
from cranio_jax.writers import write_json

# Fields that say what to do with an experiment and where, not which experiment it is.
_FREE = {
    "": ("job", "profile_steps", "sampling", "evaluate", "validation", "reconstruct", "export", "mesh"),
    "train": ("stop_at", "log_every", "checkpoint_every", "keep", "keep_period"),
}


def identity(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The part of a configuration that makes an experiment what it is."""
    fields = {name: value for name, value in config.to_dict().items() if name not in _FREE[""]}
    fields["train"] = {name: value for name, value in fields["train"].items() if name not in _FREE["train"]}
    # The records' name tells of all their settings, and of no path.
    kept = ("cached_variants", "validation_subjects")
    fields["data"] = {name: config.data[name] for name in kept} | {"records": data.records_name(config.data)}
    return json.loads(json.dumps(fields))


def _difference(there: Any, here: Any, path: str = "") -> str | None:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            if found := _difference(there.get(name), here.get(name), f"{path}.{name}".lstrip(".")):
                return found
        return None
    return None if there == here else f"{path} is {there!r} there and {here!r} here"


def check(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Raises InputError where `workdir` holds another experiment."""
    path = workdir / "config.json"
    if not path.exists():
        return
    there = {name: value for name, value in json.loads(path.read_text()).items() if name not in _FREE[""]}
    if difference := _difference(there, identity(config)):
        raise InputError(f"{workdir} holds another experiment ({difference}); choose another --workdir")


def claim(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Marks `workdir` as this experiment's, after `check`. Raises InputError where it can't be written, or not all see it."""
    check(workdir, config)
    path = workdir / "config.json"
    if cluster.is_first() and not path.exists():
        try:
            write_json(path, identity(config))
        except OSError as error:
            raise InputError(f"{workdir} can't be written ({error.strerror or error})") from None
    cluster.wait_for_all("workdir")
    for _ in range(60):  # folders shared over a network may lag behind
        if path.exists():
            break
        time.sleep(1.0)
    if not cluster.all_agree(path.exists()):
        raise InputError(f"--workdir={workdir} is not one folder for all {jax.process_count()} processes; name one that they share")
