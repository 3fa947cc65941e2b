"""The experiment that a folder holds: what may change when it resumes, and what may not."""

import copy
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections

from cranio_jax import data
from cranio_jax.distributed import cluster
from cranio_jax.errors import InputError
from cranio_jax.files.atomic import write_json
from cranio_jax.methods import Method
from cranio_jax.runs import initial

# Fields that say what to do with an experiment and where; they do not identify it.
_FREE = (
    *(
        "job",
        "profile_steps",
        "sampling",
        "evaluate",
        "validation",
        "reconstruct",
        "synthesize",
        "export",
        "mesh",
    ),
    *("train.stop_at", "train.log_every", "train.checkpoint_every", "train.keep"),
    *("train.keep_period", "train.remat"),
)
# Paths of weights, which are identified by their content instead.
_PLACES = (
    *("pretrained.model", "pretrained.controlnet", "pretrained.revision", "pretrained.vae"),
    *("pretrained.tokenizer", "pretrained.lora", "pretrained.outline", "train.init_from"),
    "method.files",
    *("method.losses.trunk_file", "method.losses.heads_file", "method.losses.embedder_file"),
    "method.losses.decoder",
)
# Fields that may change when an experiment resumes. Each change is noted in its history.
_ADJUSTABLE = (
    *("train.num_steps", "train.learning_rate", "train.schedule", "train.warmup_steps", "train.b1"),
    *("train.b2", "train.weight_decay", "train.clip_norm", "train.ema_decay", "train.batch_size"),
    *("train.accumulate", "method.learning_rates", "compute_dtype"),
)

# Values of fields that a workdir of an earlier version may lack.
_EMPTY: tuple[Any, ...] = ("", 0, [], {})
_NEW: dict[str, tuple[Any, ...]] = {
    "pretrained.lora_scale": (1.0,),
    "method.timesteps": ("uniform",),
}


def identity(config: ml_collections.ConfigDict, method: Method) -> dict[str, Any]:
    """Returns the part of a configuration that identifies an experiment, as JSON.

    Published weights are in it by their SHA-256, not by their path.
    """
    fields = _without(config.to_dict(), (*_FREE, *_PLACES))
    # The records' name contains all their settings, and no path.
    kept = {name: config.data[name] for name in ("cached_variants", "validation_subjects")}
    fields["data"] = kept | {"records": data.records_name(config.data)}
    fields["weights"] = method.weight_hashes()
    # Settings in published files; names with an underscore are notes of their writer.
    fields["settings"] = {
        part: (
            {n: v for n, v in own.items() if not n.startswith("_")}
            if isinstance(own, dict)
            else own
        )
        for part, own in method.settings.items()
    }
    return json.loads(json.dumps(fields))


def read_identity(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the identity of the experiment in a folder with its history; empty without one."""
    path = workdir / "config.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _without(fields: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Returns a copy of nested fields without those of dotted names."""
    fields = copy.deepcopy(fields)
    for name in names:
        *path, leaf = name.split(".")
        block: Any = fields
        for part in path:
            block = block.get(part, {})
        block.pop(leaf, None)
    return fields


def _differences(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields the dotted name and both values of each field that differs."""
    if isinstance(there, dict) and isinstance(here, dict) and name not in _ADJUSTABLE:
        for part in sorted(there.keys() | here.keys()):
            yield from _differences(there.get(part), here.get(part), f"{name}.{part}".lstrip("."))
    elif there != here and not (there is None and here in _NEW.get(name, _EMPTY)):
        yield name, there, here


def check(
    workdir: pathlib.Path, config: ml_collections.ConfigDict, method: Method
) -> list[tuple[str, Any, Any]]:
    """Raises InputError if `workdir` holds another experiment.

    Returns the name, the old and the new value of each changeable field that has changed.
    """
    there = read_identity(workdir)
    if not there:
        return []
    before = _without(there, (*_FREE, *_PLACES, "history", "weights"))
    here = identity(config, method)
    weights = here.pop("weights")
    if "settings" not in before:  # version 0.1 kept none
        del here["settings"]
    changes = list(_differences(before, here))
    # Version 0.1 kept no hashes; weights of `init_from` are checked where they are read.
    known = _published(there.get("weights", weights))
    if "tokenizer" not in known:  # older workdirs have no hash of the tokenizer
        weights.pop("tokenizer", None)
    changes += _differences(known, weights, "weights")
    for name, old, new in changes:
        if name.startswith("weights."):
            raise InputError(
                f"{workdir} was trained with other weights of {name.partition('.')[2]}. Put those"
                " back, or choose another --workdir."
            )
        if name not in _ADJUSTABLE:
            raise InputError(
                f"{workdir} holds another experiment ({name} is {old!r} there and {new!r} here);"
                " choose another --workdir"
            )
    return changes


def _published(weights: dict[str, Any]) -> dict[str, str]:
    """Returns the hashes of published files; what a run starts from is kept beside them."""
    return {name: digest for name, digest in weights.items() if name != initial.FIELD}


def claim(workdir: pathlib.Path, config: ml_collections.ConfigDict, method: Method) -> None:
    """Marks `workdir` as this experiment's, and notes what has changed since the last start.

    Raises InputError if it holds another one, can't be written, or is not one folder for all.
    """
    changes = check(workdir, config, method)
    path = workdir / "config.json"
    if cluster.is_first() and (changes or not path.exists()):
        try:
            write_json(path, _claimed(workdir, config, method, changes))
        except OSError as error:
            raise InputError(f"{workdir} can't be written ({error.strerror or error})") from None
    for name, old, new in changes:
        cluster.say(f"from now on {name} is {new} (was {old})")
    cluster.wait_for_all("workdir")
    for _ in range(60):  # folders shared over a network may lag behind
        if path.exists():
            break
        time.sleep(1.0)
    if not cluster.all_agree(path.exists()):
        raise InputError(
            f"--workdir={workdir} is not one folder for all {jax.process_count()} processes; name"
            " one that they share"
        )


def _claimed(
    workdir: pathlib.Path,
    config: ml_collections.ConfigDict,
    method: Method,
    changes: list[tuple[str, Any, Any]],
) -> dict[str, Any]:
    """Returns the content of config.json."""
    fields = identity(config, method)
    if there := read_identity(workdir):
        fields["weights"] = there.get("weights", {}) | fields["weights"]
        changed = {name: {"before": old, "after": new} for name, old, new in changes}
        step = max(initial.steps(workdir / "checkpoints"), default=0)
        fields["history"] = [*there.get("history", []), {"after_step": step, "changed": changed}]
    elif config.train.init_from:
        fields["weights"][initial.FIELD] = initial.mark(config.train.init_from)
    return fields
