"""Cranio-Diff's networks as a diffusers pipeline."""

import pathlib
import shutil
from typing import TYPE_CHECKING, Any

from cranio_jax import pretrained
from cranio_jax.files.atomic import write_json
from cranio_jax.pretrained.outline import FILE as OUTLINE

if TYPE_CHECKING:
    from cranio_jax.methods.cranio_diff.method import CranioDiff


def write(folder: pathlib.Path, method: "CranioDiff", params: dict[str, Any], dtype: str) -> None:
    """Writes the networks, the outline network, the tokenizer, the scheduler and the index.

    What was not trained is copied from the published files, tensor for tensor.
    """
    # The size of pictures where none is asked for, and the precision of the opened weights:
    # transformers would take that of the file, diffusers float32.
    fields: dict[str, dict[str, Any]] = {
        "unet": {"sample_size": method.size // method.factor},
        "text_encoder": {"torch_dtype": "float32"},
    }
    # Networks: trained ones from the state, others from the published files.
    published = method.pipeline.folders
    for part in (name for name in method.networks if name in method.settings):
        write_json(folder / part / "config.json", {**method.settings[part], **fields.get(part, {})})
        if part in published and part not in method.trained:
            with method.pipeline.open(part) as tensors:
                pretrained.save(folder / part, part, pretrained.renamed(tensors), dtype)
        else:
            pretrained.save(folder / part, part, pretrained.tensors_of(params[part]), dtype)
    if "unet_lora" in params:
        pretrained.save(folder, "unet_lora", pretrained.tensors_of(params["unet_lora"]), dtype)

    # The outline network, which diffusers does not know.
    if "outline" in method.networks:
        shutil.copyfile(published["outline"], folder / "controlnet" / OUTLINE)

    # Tokenizer, scheduler, index.
    hidden = shutil.ignore_patterns(".*")
    shutil.copytree(published["tokenizer"], folder / "tokenizer", ignore=hidden)
    scheduler = method.scheduler_config
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "_class_name": "StableDiffusionPipeline",
        "requires_safety_checker": False,
    }
    if "controlnet" in method.networks:
        index["controlnet"] = ["diffusers", "ControlNetModel"]
        index["_class_name"] = "StableDiffusionControlNetPipeline"
    write_json(folder / "model_index.json", index)


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


def describe(method: "CranioDiff", template: str) -> list[str]:
    """Returns lines for the card: how the networks are used, for users of diffusers."""
    lines = [f"- prompt: `{template}`"]
    if "controlnet" in method.networks:
        lines[0] += "; the ControlNet's input is "
        if "outline" in method.networks:
            lines[0] += (
                "the X-ray, bone bright, in red and blue, and in green the head that "
                f"`controlnet/{OUTLINE}` finds in it; job=reconstruct writes it as `condition.png`"
            )
        else:
            lines[0] += "the X-ray, bone bright, in three equal channels"
    if "unet_lora" in method.trained:
        lines.append("- the U-Net's LoRA is separate: `pipeline.load_lora_weights(FOLDER)`")
    return [*lines, _sampling(method)]


def _sampling(method: "CranioDiff") -> str:
    """Returns how the scored faces were sampled."""
    s, scheduler = method.sampling, method.scheduler_config
    control = f", weight of the ControlNet {s.controlnet_scale:g}" if method.reads_xrays else ""
    line = (
        f"- sampled with {s.num_steps} steps of {s.sampler} (`scheduler/`:"
        f" {scheduler['_class_name']}), guidance {s.guidance_scale:g}{control}, temperature"
        f" {s.temperature:g}"
    )
    changed = [f", {name} `{s[name]}`" for name, value in _USUAL.items() if s[name] != value]
    return line + "".join(changed)
