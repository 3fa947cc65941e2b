"""Provenance: the configuration, versions, machine and commit that numbers come from."""

import importlib.metadata
import pathlib
import platform
import shutil
import subprocess
from typing import Any

import jax
import ml_collections

# Libraries whose versions are noted.
_LIBRARIES = (
    *("jax", "flax", "optax", "orbax-checkpoint", "clu", "grain", "tensorflow-datasets"),
    *("numpy", "pillow"),
)


def public_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns a configuration without paths: they say more about the user than the run."""
    public = _without_paths(config.to_dict())
    public["data"]["data_dir"] = ""
    public["reconstruct"]["xrays"] = ""
    return public


def _without_paths(value: Any) -> Any:
    """Returns a copy in which each path is its last part; texts may hold several with commas."""
    if isinstance(value, dict):
        return {name: _without_paths(part) for name, part in value.items()}
    if not isinstance(value, str):
        return value
    return ",".join(_last_part(part) for part in value.split(","))


def _last_part(text: str) -> str:
    if "://" in text:
        return text.rstrip("/").rpartition("/")[2]
    path = pathlib.Path(text).expanduser()
    # An absolute path may be a pattern, or gone by now.
    return path.name if path.is_absolute() or path.exists() else text


def provenance(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns `config`, `seed`, `versions`, `devices` and `commit`, as fields of results."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "config": public_config(config),
        "seed": config.seed,
        "versions": versions | {"python": platform.python_version()},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "commit": _commit(),
    }


def _commit() -> str:
    """Returns the commit of the checkout; "unknown" without git or without a checkout."""
    if not shutil.which("git"):
        return "unknown"
    commit = _git("rev-parse", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{commit} with uncommitted changes" if changed else commit


def _git(*arguments: str) -> str:
    checkout = pathlib.Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
