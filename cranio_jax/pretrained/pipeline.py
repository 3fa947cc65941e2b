"""Published parts of the Stable Diffusion 1.x and 2.x families, here or on the hub.

They come as a diffusers folder or as a single file; LoRA is added as they are read.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from cranio_jax import assets
from cranio_jax.errors import InputError
from cranio_jax.pretrained.files import Tensor, choose, open_weights, sha256, shard_patterns
from cranio_jax.pretrained.load import current_tensors
from cranio_jax.pretrained.lora import FILES, Lora, find_lora, merged, read_lora
from cranio_jax.pretrained.outline import FILE as OUTLINE
from cranio_jax.pretrained.single_file import (
    find_file,
    open_file,
    read_part,
    read_settings_of,
)
from cranio_jax.pretrained.tokenizer import CLIP, TOKENIZER_FILES, check_tokenizer, fitted_tokenizer

NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
# Parts of later families (XL, 3, Flux, inpainting by image, ...) whose networks differ.
FOREIGN = ("text_encoder_2", "text_encoder_3", "transformer", "prior", "image_encoder")


# Settings that a single file may lack, and how to choose them.
HINTS = {
    "prediction_type": "'v_prediction' (most models of 768 pixels) or 'epsilon' (of 512)",
    "attention_head_dim": "the heads of each block",
    "num_attention_heads": "the heads of the text encoder",
    "norm_num_groups": "the groups of its normalisation",
}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Published parts and their settings; none if everything is trained from scratch.

    Attributes:
      folders: by part, where its files are; a single file may hold several parts. LoRA files are
        'lora', 'lora 2' and so on, and the one that training continues is 'unet_lora' too. The
        file of an outline network is 'outline'.
      settings: by part, the content of its config.json (scheduler_config.json for the scheduler),
        or what a single file states of it, None where it states nothing.
      name: what the user called it: a hub id, or the folder's own name. It holds no path.
      loras: what each LoRA file adds, by its name in `folders`.
      lora_scale: factor of all additions.
    """

    folders: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    name: str = ""
    loras: dict[str, Lora] = dataclasses.field(default_factory=dict)
    lora_scale: float = 1.0

    @contextlib.contextmanager
    def open(self, part: str) -> Iterator[dict[str, Tensor]]:
        """Yields the tensors of a part by diffusers' keys, with LoRA in them.

        'unet_lora' has the factors of the LoRA that training continues, which 'unet' lacks.
        """
        with contextlib.ExitStack() as stack:
            if part == "unet_lora":
                lora = stack.enter_context(open_file(self.folders["lora"]))
                yield self._factors(lora)
                return
            tensors = stack.enter_context(open_published(self.folders[part], part))
            if self._additions(part):
                tensors = current_tensors(tensors, part)
            for name, additions in self._additions(part).items():
                lora = stack.enter_context(open_file(self.folders[name]))
                tensors = merged(tensors, additions, lora, self.lora_scale)
            yield tensors

    def _additions(self, part: str) -> dict[str, Any]:
        """Returns by LoRA file what is merged into a part."""
        if part == "unet" and "unet_lora" in self.folders:
            return {}
        return {name: lora[part] for name, lora in self.loras.items() if part in lora}

    def _factors(self, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
        factors = {}
        for key, addition in self.loras["lora"]["unet"].items():
            layer = key.removesuffix(".weight")
            factors[f"{layer}.lora_A.weight"] = lora[addition.down]
            scale = addition.scale * self.lora_scale
            factors[f"{layer}.lora_B.weight"] = _scaled(lora[addition.up], scale)
        return factors

    def continuing(self, rank: int) -> "Pipeline":
        """Returns a pipeline whose LoRA is what training starts from, if it is of this rank.

        That needs one file, with an addition to each projection of the U-Net's attention and to
        nothing else of the U-Net. Otherwise LoRA stays merged into the weights.
        """
        unet = self.loras.get("lora", {}).get("unet", {})
        if rank < 1 or len(self.loras) != 1 or any(a.rank != rank for a in unet.values()):
            return self
        with open_published(self.folders["unet"], "unet") as tensors:
            ends = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
            targets = {key for key in current_tensors(tensors, "unet") if key.endswith(ends)}
        if targets != unet.keys() or any(a.mid for a in unet.values()):
            return self
        return dataclasses.replace(self, folders=self.folders | {"unet_lora": self.folders["lora"]})

    def hash(self, part: str) -> str:
        """Returns the SHA-256 of what `open` reads: of the file, or of all files' hashes."""
        hashes = [sha256(self.folders[part])]
        hashes += [sha256(self.folders[name]) for name in self._additions(part)]
        if len(hashes) == 1:
            return hashes[0]
        return hashlib.sha256(" ".join([*hashes, repr(self.lora_scale)]).encode()).hexdigest()

    def check(self, settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises InputError for a setting that neither a single file nor the user gives.

        Args:
          settings: by part, those of this pipeline with the user's own over them.
        """
        for part, fields in self.settings.items():
            where = self.folders["unet" if part == "scheduler" else part]
            for field in (field for field in fields if where.is_file()):
                if settings[part].get(field) is None:
                    raise InputError(
                        f"method.{part}.{field}: {where.name} doesn't state it. "
                        f"Set it: {HINTS[field]}."
                    )


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return Tensor(tensor.shape, lambda: tensor.read().astype("float32") * scale)


@contextlib.contextmanager
def open_published(where: pathlib.Path, part: str) -> Iterator[dict[str, Tensor]]:
    """Yields the tensors of a part by diffusers' keys, from a folder or a single file."""
    if where.is_file():
        with open_file(where) as tensors:
            yield read_part(tensors, part, where.name)
    else:
        with open_weights(where) as tensors:
            yield tensors


def read_settings(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a config.json. Raises InputError if it can't be read."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is this a diffusers folder?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None


def find(
    where: str,
    revision: str = "",
    parts: tuple[str, ...] = (),
    patterns: list[str] | None = None,
) -> pathlib.Path:
    """Returns the folder that `where` names: local, shipped, or a hub id, fetched unless cached.

    Of a hub's many formats the one that `files.choose` prefers is fetched for each of `parts`, or,
    without parts, for the repository's top folder; with `patterns`, what these name. Raises
    InputError where there is neither.
    """
    folder = assets.located(where)
    if folder.is_dir():
        return folder
    import huggingface_hub
    from huggingface_hub import errors

    if where.count("/") != 1 or where.startswith((".", "/", "~")):
        raise InputError(f"{where}: no such folder or file, and not a hub id (owner/name)")
    wrong_name = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.HFValidationError,
        errors.GatedRepoError,
    )
    try:
        files = huggingface_hub.HfApi().list_repo_files(where, revision=revision or None)
        wanted = patterns or _wanted(files, parts)
    except wrong_name as error:
        raise InputError(
            f"{where} (revision {revision or 'main'}): the hub says {str(error).splitlines()[0]}"
        ) from None
    except Exception:  # no network; the class depends on the hub's version
        wanted = None
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                where,
                revision=revision or None,
                allow_patterns=wanted,
                local_files_only=wanted is None,
            )
        )
    except errors.LocalEntryNotFoundError:
        raise InputError(
            f"{where}: not a folder here, not in the hub's cache, and the hub can't be reached; "
            "fetch it with a network connection"
        ) from None


def _wanted(files: list[str], parts: tuple[str, ...]) -> list[str]:
    """Returns what to fetch of a repository: settings, tokenizer, one format of the weights."""
    wanted = ["model_index.json", OUTLINE, f"controlnet/{OUTLINE}"]
    for prefix in (f"{part}/" for part in parts) if parts else ("",):
        here = [f.removeprefix(prefix) for f in files if f.startswith(prefix)]
        wanted += [prefix + f for f in here if f.endswith((".json", ".txt")) and "/" not in f]
        if (chosen := choose(here)) is not None:
            wanted += [prefix + pattern for pattern in shard_patterns(chosen)]
    return wanted


def open_pipeline(config: ml_collections.ConfigDict, lora_rank: int = 0) -> Pipeline:
    """Returns the settings of published parts, and where their weights are, which are read later.

    Args:
      config: `model`, a diffusers folder, a hub id, a single file (here or as owner/name/file on
        the hub), or empty. `controlnet` and `vae`, each the same, replace the model's own.
        `tokenizer`, a folder or hub id; `lora`, files, folders or hub ids with commas between
        them; `lora_scale`; `outline`, a local file, or a pipeline's folder that holds it;
        `revision` of the model.
      lora_rank: of additions to the U-Net that are trained; they start from a LoRA that fits.

    Raises:
      InputError: another family, or a part is missing.
    """
    c = config
    others = (c.get(name, "") for name in ("controlnet", "vae", "tokenizer", "lora"))
    scale = float(c.get("lora_scale", 1.0))
    pipeline = _open_pipeline(c.model, *others, scale, c.revision).continuing(lora_rank)
    if outline := c.get("outline", ""):
        path = assets.located(outline)
        inside = [path / OUTLINE, path / "controlnet" / OUTLINE]
        file = next((file for file in inside if file.is_file()), path)
        return dataclasses.replace(pipeline, folders=pipeline.folders | {"outline": file})
    return pipeline


@functools.cache
def _open_pipeline(
    model: str,
    controlnet: str,
    vae: str,
    tokenizer: str,
    lora: str,
    lora_scale: float,
    revision: str,
) -> Pipeline:
    if not model:
        for field, value in {"controlnet": controlnet, "lora": lora}.items():
            if value:
                raise InputError(
                    f"pretrained.{field} is set, but pretrained.model is not; "
                    f"{_ARTICLES[field]} belongs to a model"
                )
        return _lone_parts(vae, tokenizer)
    # The model, and what replaces parts of it.
    file = find_file(model, revision)
    if file:
        folders, settings = _single_file(file, model, with_vae=not vae)
    else:
        folders, settings = _folder(model, revision)
    for part, other in (("controlnet", controlnet), ("vae", vae)):
        if other:
            folders[part], settings[part] = _other_part(part, other, settings.get(part, {}))
    # The outline network lies beside the ControlNet that is shown its outlines.
    beside = folders["controlnet"] / OUTLINE if "controlnet" in folders else None
    if beside and beside.is_file():
        folders["outline"] = beside
    # The tokenizer.
    if tokenizer:
        folders["tokenizer"] = _tokenizer_folder(tokenizer)
    elif file:
        folders["tokenizer"] = _clip_vocabulary()
    check_tokenizer(folders["tokenizer"])
    if file or tokenizer:
        text = settings["text_encoder"]
        # OpenCLIP pads prompts with the first word, CLIP with the end mark.
        pad = {"gelu": "first", "quick_gelu": "end"}[text["hidden_act"]] if file else "own"
        folders["tokenizer"] = fitted_tokenizer(
            folders["tokenizer"],
            text.get("vocab_size", 49408),
            text.get("max_position_embeddings", 77),
            pad,
        )
    # LoRA.
    if not math.isfinite(lora_scale):
        raise InputError(
            f"pretrained.lora_scale={lora_scale}: it is not finite. Set it, say, to 1."
        )
    paths = [_lora_file(item.strip()) for item in lora.split(",")] if lora else []
    folders |= {f"lora {i}" if i > 1 else "lora": path for i, path in enumerate(paths, 1)}
    path = pathlib.Path(model).expanduser()
    name = path.resolve().name if path.exists() else model
    return Pipeline(folders, settings, name, _read_loras(folders), lora_scale)


_ARTICLES = {"controlnet": "a ControlNet", "lora": "a LoRA"}


def _lone_parts(vae: str, tokenizer: str) -> Pipeline:
    """Returns an autoencoder and a tokenizer, if named, whose model is trained from scratch."""
    folders: dict[str, pathlib.Path] = {}
    settings: dict[str, dict[str, Any]] = {}
    if vae:
        folders["vae"], settings["vae"] = _other_part("vae", vae, None)
    if tokenizer:
        folders["tokenizer"] = _tokenizer_folder(tokenizer)
        check_tokenizer(folders["tokenizer"])
    return Pipeline(folders, settings)


def _folder(model: str, revision: str) -> tuple[dict[str, pathlib.Path], dict[str, dict[str, Any]]]:
    """Returns folders and settings of the parts of a diffusers pipeline."""
    folder = find(model, revision, (*NEEDED, "controlnet"))
    if not (folder / "model_index.json").is_file():
        inside = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".ckpt")]
        if inside:
            raise InputError(
                f"pretrained.model={folder}: it is not a diffusers folder, and holds {inside[0]}. "
                "Name that file."
            )
    index = read_settings(folder / "model_index.json")
    present = {
        name for name, value in index.items() if isinstance(value, list) and value[0] is not None
    }
    foreign, missing = present.intersection(FOREIGN), set(NEEDED) - present
    if foreign or missing:
        difference = f"with {min(foreign)}" if foreign else f"without {min(missing)}"
        kind = index.get("_class_name", "pipeline of unknown kind")
        raise InputError(
            f"{model} holds a {kind} {difference}; expected a Stable Diffusion 1.x or 2.x pipeline "
            f"({', '.join(NEEDED)})"
        )
    folders = {part: folder / part for part in (*NEEDED, "controlnet") if part in present}
    files = {"scheduler": "scheduler_config.json"}
    settings = {
        part: read_settings(path / files.get(part, "config.json"))
        for part, path in folders.items()
        if part != "tokenizer"
    }
    return folders, settings


def _single_file(
    file: pathlib.Path, model: str, with_vae: bool
) -> tuple[dict[str, pathlib.Path], dict[str, dict[str, Any]]]:
    """Returns where the parts of a single file are, which is the file, and their settings."""
    what = f"pretrained.model={file.name}"
    settings = read_settings_of(file, ("unet", "text_encoder", "vae", "controlnet"), what)
    for part, cure in (
        ("unet", "Name a whole checkpoint."),
        ("text_encoder", "Name a whole checkpoint."),
        ("vae", "Set pretrained.vae."),
    ):
        if part not in settings and (part != "vae" or with_vae):
            title = (
                "autoencoder" if part == "vae" else part.replace("_", " ").replace("unet", "U-Net")
            )
            raise InputError(f"{what}: it holds no {title}. {cure}")
    return {part: file for part in settings}, settings


def _other_part(
    part: str, where: str, replaced: Mapping[str, Any] | None
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Returns the place and the settings of a ControlNet or autoencoder that the user names.

    `replaced` are the settings of the part whose place it takes, if there is one.
    """
    if file := find_file(where):
        settings = read_settings_of(file, (part,), f"pretrained.{part}={file.name}")[part]
        path = file
    else:
        path = find(where)
        inner = path / part
        path = inner if not (path / "config.json").is_file() and inner.is_dir() else path
        settings = read_settings(path / "config.json")
    scales = [s.get("scaling_factor", 0.18215) for s in (replaced, settings) if s is not None]
    if scales[0] != scales[-1]:
        raise InputError(
            f"pretrained.{part}={path.name}: its scaling_factor is {scales[-1]}, the model's own "
            f"has {scales[0]}, so its latents differ. Use an autoencoder of the same family."
        )
    return path, settings


def _tokenizer_folder(where: str) -> pathlib.Path:
    """Returns the folder with the files of the tokenizer that the user names."""
    patterns = [*TOKENIZER_FILES, *(f"tokenizer/{name}" for name in TOKENIZER_FILES)]
    folder = find(where, patterns=patterns)
    inner = folder / "tokenizer"
    return inner if inner.is_dir() else folder


def _clip_vocabulary() -> pathlib.Path:
    try:
        return find(CLIP, patterns=list(TOKENIZER_FILES))
    except InputError as error:
        raise InputError(
            f"pretrained.tokenizer='': a single file has no tokenizer, and CLIP's can't be fetched "
            f"({error}). Set it to a folder with vocab.json and merges.txt, or to a hub id."
        ) from None


def _lora_file(where: str) -> pathlib.Path:
    if file := find_file(where):
        return file
    return find_lora(find(where, patterns=list(FILES)), where)


def _read_loras(folders: Mapping[str, pathlib.Path]) -> dict[str, Lora]:
    names = [name for name in folders if name.startswith("lora")]
    if not names:
        return {}
    layers = {}
    for part in ("unet", "text_encoder"):
        with open_published(folders[part], part) as tensors:
            current = current_tensors(tensors, part)
            layers[part] = {key: tensor.shape for key, tensor in current.items()}
    return {name: read_lora(folders[name], layers) for name in names}
