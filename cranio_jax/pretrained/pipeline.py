"""A diffusers pipeline folder of the Stable Diffusion 1.x and 2.x families, here or on the hub."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import ml_collections

from cranio_jax.errors import InputError
from cranio_jax.pretrained.files import choose, shard_pattern

NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
# Parts of later families (XL, 3, Flux, inpainting by image, ...) whose networks are others.
FOREIGN = ("text_encoder_2", "text_encoder_3", "transformer", "prior", "image_encoder")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Published parts and their settings; none at all where everything is trained from scratch.

    Attributes:
      folders: by part, where its files are.
      settings: by part, the content of its config.json (scheduler_config.json for the scheduler).
      name: what the user called it: a hub id, or the folder's own name. It holds no path.
    """

    folders: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    name: str = ""


def read_settings(path: pathlib.Path) -> dict[str, Any]:
    """The content of a config.json. Raises InputError where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is this a diffusers folder?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None


def find(where: str, revision: str = "", parts: tuple[str, ...] = ()) -> pathlib.Path:
    """The folder that `where` names: a folder here, else a hub id, fetched unless the cache has it.

    Of a hub's many formats the one that `files.choose` prefers is fetched for each of `parts`, or, without parts,
    for the repository's top folder. Raises InputError where there is neither.
    """
    folder = pathlib.Path(where).expanduser()
    if folder.is_dir():
        return folder
    import huggingface_hub
    from huggingface_hub import errors

    if where.count("/") != 1 or where.startswith((".", "/", "~")):
        raise InputError(f"{where}: no such folder, and not a hub id (owner/name)")
    revision = revision or None
    wrong_name = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError, errors.GatedRepoError)
    try:
        wanted = _wanted(huggingface_hub.HfApi().list_repo_files(where, revision=revision), parts)
    except wrong_name as error:
        raise InputError(f"{where} (revision {revision or 'main'}): the hub says {str(error).splitlines()[0]}") from None
    except Exception:  # no network; of which class that is depends on the hub's version
        wanted = None
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(where, revision=revision, allow_patterns=wanted, local_files_only=wanted is None)
        )
    except errors.LocalEntryNotFoundError:
        raise InputError(
            f"{where}: not a folder here, not in the hub's cache, and the hub can't be reached; fetch it where there is a network"
        ) from None


def _wanted(files: list[str], parts: tuple[str, ...]) -> list[str]:
    """What to fetch of a repository's files: settings, the tokenizer, and one format of the weights."""
    wanted = ["model_index.json"]
    for prefix in (f"{part}/" for part in parts) if parts else ("",):
        here = [f.removeprefix(prefix) for f in files if f.startswith(prefix)]
        wanted += [prefix + f for f in here if f.endswith((".json", ".txt")) and "/" not in f]
        if (chosen := choose(here)) is not None:
            wanted.append(prefix + shard_pattern(chosen))
    return wanted


def open_pipeline(config: ml_collections.ConfigDict) -> Pipeline:
    """The settings of a Stable Diffusion 1.x or 2.x pipeline, and of a ControlNet beside it; weights are read later.

    Args:
      config: `model` and `controlnet`, each a diffusers folder, a hub id, or empty; `revision` of the model.

    Raises:
      InputError: another family, or a part is missing.
    """
    return _open_pipeline(config.model, config.controlnet, config.revision)


@functools.cache
def _open_pipeline(model: str, controlnet: str, revision: str) -> Pipeline:
    if not model:
        if controlnet:
            raise InputError("pretrained.controlnet is set and pretrained.model is not; a ControlNet belongs to a model")
        return Pipeline()
    folder = find(model, revision, (*NEEDED, "controlnet"))
    index = read_settings(folder / "model_index.json")
    present = {name for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    foreign, missing = present.intersection(FOREIGN), set(NEEDED) - present
    if foreign or missing:
        found = f"with {min(foreign)}" if foreign else f"without {min(missing)}"
        kind = index.get("_class_name", "pipeline of unknown kind")
        raise InputError(f"{model} holds a {kind} {found}; expected a Stable Diffusion 1.x or 2.x pipeline ({', '.join(NEEDED)})")
    folders = {part: folder / part for part in (*NEEDED, "controlnet") if part in present}
    if controlnet:
        folders["controlnet"] = find(controlnet)
    files = {"scheduler": "scheduler_config.json"}
    settings = {part: read_settings(path / files.get(part, "config.json")) for part, path in folders.items() if part != "tokenizer"}
    if not any((folders["tokenizer"] / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise InputError(f"{folders['tokenizer']} holds no vocabulary; expected vocab.json and merges.txt, or tokenizer.json")
    return Pipeline(folders, settings, model if not pathlib.Path(model).expanduser().is_dir() else folder.resolve().name)
