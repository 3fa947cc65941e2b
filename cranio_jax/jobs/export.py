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
from cranio_jax.reporting import tables
from cranio_jax.reporting.notice import NOTICE
from cranio_jax.runs.state import restore

TYPES = ("float32", "float16")
WEIGHTS = ("ema", "raw")
_INDEX = "model_index.json"


def check_export(config: ml_collections.ConfigDict) -> None:
    """Raises InputError if `config.export` is wrong, or the model is not of Stable Diffusion's making."""
    e = config.export
    for name, value, known in (("weights", e.weights, WEIGHTS), ("dtype", e.dtype, TYPES)):
        if value not in known:
            raise InputError(f"export.{name}={value!r} is not one of {', '.join(known)}")
    if config.method.name != "cranio_diff":
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
    """Writes the newest checkpoint as a StableDiffusionControlNetPipeline, with a model card; returns the folder.

    What was not trained is copied from the published files, tensor for tensor. Raises InputError where the model
    is not of Stable Diffusion's making, or the folder exists.
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
    shutil.copytree(
        published["tokenizer"], folder / "tokenizer", ignore=shutil.ignore_patterns(".*")
    )
    scheduler = method.scheduler_config
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    kinds = {
        "controlnet": "ControlNetModel",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }
    index = {part: ["diffusers", kind] for part, kind in kinds.items()}
    index |= {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    index |= {"scheduler": ["diffusers", scheduler["_class_name"]]}
    index |= {
        part: [None, None] for part in ("safety_checker", "feature_extractor", "image_encoder")
    }
    write_json(
        folder / _INDEX,
        index
        | {
            "_class_name": "StableDiffusionControlNetPipeline",
            "requires_safety_checker": False,
        },
    )


def _sampling(s: ml_collections.ConfigDict, scheduler: dict[str, Any]) -> str:
    """How the scored faces were sampled: settings that a diffusers user passes to the call."""
    line = (
        f"- sampled with {s.num_steps} steps of {s.sampler} (`scheduler/`:"
        f" {scheduler['_class_name']}), guidance {s.guidance_scale:g}, weight of the ControlNet"
        f" {s.controlnet_scale:g}, temperature {s.temperature:g}"
    )
    usual = {"eta": 0.0, "clip": 0.0, "clip_skip": 0, "guidance_rescale": 0.0}
    usual |= {"control_start": 0.0, "control_end": 1.0, "negative_prompt": ""}
    return line + "".join(
        f", {name} `{s[name]}`" for name, value in usual.items() if s[name] != value
    )


def _card(config: ml_collections.ConfigDict, workdir: pathlib.Path, method: Any, step: int) -> str:
    """How the model came about, for whoever finds the folder."""
    t, results = config.train, workdir / "results.json"
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
            " channels, is the ControlNet's picture"
        ),
        *(
            ["- the U-Net's additions are apart: `pipeline.load_lora_weights(FOLDER)`"]
            if "unet_lora" in method.trained
            else []
        ),
        _sampling(config.sampling, method.scheduler_config),
    ]
    if results.exists():
        scores = read_results(results)
        lines.append(f"Scores at step {scores.step}, on people it never saw:")
        lines.append(tables.markdown(scores))
    return "\n\n".join(lines).replace("\n\n- ", "\n- ") + "\n"
