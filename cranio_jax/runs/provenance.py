"""Where numbers come from."""

import importlib.metadata
import pathlib
import platform
import shutil
import subprocess
from typing import Any

import jax
import ml_collections


def public_config(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A configuration without paths: they say more of the user than of the run."""

    def nameless(part: str) -> str:
        if "://" in part:
            return part.rstrip("/").rpartition("/")[2]
        path = pathlib.Path(part).expanduser()
        return (
            path.name if path.is_absolute() or path.exists() else part
        )  # absolute ones are patterns, perhaps, or gone by now

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: bare(v) for name, v in value.items()}
        if not isinstance(value, str):
            return value
        return ",".join(nameless(part) for part in value.split(","))

    public = bare(config.to_dict())
    public["data"]["data_dir"] = public["reconstruct"]["xrays"] = ""
    return public


def provenance(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Configuration, seed, versions, machine, commit."""
    names = (
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "clu",
        "grain",
        "tensorflow-datasets",
        "numpy",
        "pillow",
    )
    return {
        "config": public_config(config),
        "seed": config.seed,
        "versions": (
            {name: importlib.metadata.version(name) for name in names}
            | {"python": platform.python_version()}
        ),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "commit": _commit(),
    }


def _commit() -> str:
    """Of the checkout; 'unknown' where there is no git, or no checkout."""
    checkout = pathlib.Path(__file__).resolve().parents[2]
    git = lambda *a: subprocess.run(
        ["git", "-C", str(checkout), *a], capture_output=True, text=True, check=False
    ).stdout.strip()
    if not shutil.which("git"):
        return "unknown"
    commit = git("rev-parse", "HEAD") or "unknown"
    return commit + (
        " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    )
