"""A trained model as a folder that diffusers opens."""

import pathlib
import shutil
import tempfile
from typing import Any

import jax
import ml_collections

from cranio_jax import __version__, data, pretrained
from cranio_jax.errors import InputError
from cranio_jax.evaluation.results import read_results
from cranio_jax.files import buckets
from cranio_jax.files.atomic import write_json
from cranio_jax.methods import method_class
from cranio_jax.reporting import tables
from cranio_jax.reporting.notice import NOTICE
from cranio_jax.runs.state import restore

TYPES = ("float32", "float16")
WEIGHTS = ("ema", "raw")
_INDEX = "model_index.json"


def check_export(config: ml_collections.ConfigDict) -> None:
    """Raises InputError if `config.export` is wrong, or the model isn't Stable Diffusion's."""
    e = config.export
    for name, value, known in (("weights", e.weights, WEIGHTS), ("dtype", e.dtype, TYPES)):
        if value not in known:
            raise InputError(f"export.{name}={value!r} is not one of {', '.join(known)}")
    if not method_class(config).writes_pipeline:
        raise InputError(
            f"job=export writes a diffusers pipeline, which {config.method.name} is not; an"
            " embedder's file is written by job=evaluate"
        )
    if not config.pretrained.model:
        raise InputError(
            "job=export writes a diffusers pipeline, whose tokenizer and autoencoder come from"
            " pretrained.model; set it"
        )


def export(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Writes the newest whole checkpoint as a StableDiffusionControlNetPipeline, with a model card.

    What was not trained is copied from the published files, tensor for tensor. Returns the folder.
    Raises InputError if the model does not derive from Stable Diffusion, or the folder exists.
    """
    check_export(config)
    e = config.export
    folder = workdir / "export" / f"{e.weights}_{e.dtype}"
    # An export to a bucket may have been interrupted.
    if (folder / _INDEX if buckets.is_remote(folder) else folder).exists():
        raise InputError(f"{folder} exists; remove it to export again")
    method, _, state, frozen, step = restore(config, workdir)
    params = (method.generation_params(state) if e.weights == "ema" else state["params"]) | frozen
    with buckets.local_folder(folder.parent, last=_INDEX) as parent:
        parent.mkdir(parents=True, exist_ok=True)
        scratch = pathlib.Path(tempfile.mkdtemp(dir=parent, prefix="."))
        try:
            _write(scratch, method, params, e.dtype)
            (scratch / "README.md").write_text(_card(config, workdir, method, step))
            scratch.chmod(0o755)
            scratch.rename(parent / folder.name)
        except BaseException:
            shutil.rmtree(scratch)
            raise
    return folder


def _write(folder: pathlib.Path, method: Any, params: dict[str, Any], dtype: str) -> None:
    """Writes the networks, the tokenizer, the scheduler and the index."""
    # Networks: trained ones from the state, others from the published files.
    published = method.pipeline.folders
    for part in (name for name in method.networks if name in method.settings):
        write_json(folder / part / "config.json", method.settings[part])
        if part in published and part not in method.trained:
            with method.pipeline.open(part) as tensors:
                pretrained.save(folder / part, part, pretrained.renamed(tensors), dtype)
        else:
            pretrained.save(folder / part, part, pretrained.tensors_of(params[part]), dtype)
    if "unet_lora" in params:
        pretrained.save(folder, "unet_lora", pretrained.tensors_of(params["unet_lora"]), dtype)

    # Tokenizer, scheduler, index.
    hidden = shutil.ignore_patterns(".*")
    shutil.copytree(published["tokenizer"], folder / "tokenizer", ignore=hidden)
    scheduler = method.scheduler_config
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "controlnet": ["diffusers", "ControlNetModel"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "_class_name": "StableDiffusionControlNetPipeline",
        "requires_safety_checker": False,
    }
    write_json(folder / _INDEX, index)


# Sampling settings that the card names where they differ from these values.
_USUAL = {
    "eta": 0.0,
    "clip": 0.0,
    "clip_skip": 0,
    "guidance_rescale": 0.0,
    "control_start": 0.0,
    "control_end": 1.0,
    "negative_prompt": "",
}


def _sampling(s: ml_collections.ConfigDict, scheduler: dict[str, Any]) -> str:
    """Returns how the scored faces were sampled, for users of diffusers to pass to the call."""
    line = (
        f"- sampled with {s.num_steps} steps of {s.sampler} (`scheduler/`:"
        f" {scheduler['_class_name']}), guidance {s.guidance_scale:g}, weight of the ControlNet"
        f" {s.controlnet_scale:g}, temperature {s.temperature:g}"
    )
    changed = [f", {name} `{s[name]}`" for name, value in _USUAL.items() if s[name] != value]
    return line + "".join(changed)


def _card(config: ml_collections.ConfigDict, workdir: pathlib.Path, method: Any, step: int) -> str:
    """Returns the model card."""
    t = config.train
    lines = [
        "# A face from a skull X-ray",
        f"**{NOTICE}**",
        (
            f"Trained with cranio_jax {__version__} (JAX {jax.__version__}), configuration"
            f" `{config.name}`, after Cranio-Diff (arXiv 2606.09699)."
        ),
        f"- started from {method.pipeline.name}; trained: {', '.join(method.trained)}",
        f"- data: {data.records_name(config.data)}",
        (
            f"- step {step} of {t.num_steps}, batches of {t.batch_size}, AdamW at"
            f" {t.learning_rate:g} ({t.schedule}), weight decay {t.weight_decay:g}, EMA"
            f" {t.ema_decay:g}; weights here: {config.export.weights}, {config.export.dtype}"
        ),
        (
            f"- prompt: `{config.prompt.template}`; the X-ray, bone bright, in three equal"
            " channels, is the ControlNet's input"
        ),
    ]
    if "unet_lora" in method.trained:
        lines.append("- the U-Net's LoRA is separate: `pipeline.load_lora_weights(FOLDER)`")
    lines.append(_sampling(config.sampling, method.scheduler_config))
    path = workdir / "results.json"
    if path.exists():
        results = read_results(path)
        lines.append(f"Scores at step {results.step}, on people not in training:")
        lines.append(tables.markdown(results))
    return "\n\n".join(lines).replace("\n\n- ", "\n- ") + "\n"
