"""Checks of a whole configuration, before anything is built or trained."""

import math
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_collections

from cranio_jax.data.prompts import check_profile
from cranio_jax.diffusion.schedules import TIMESTEPS, WEIGHTS
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation import disturbances
from cranio_jax.evaluation.retrieval import protocols
from cranio_jax.jobs.export import check_export
from cranio_jax.methods import check_method
from cranio_jax.methods.optimizer import SCHEDULES
from cranio_jax.metrics.features import Features
from data_builders.lists.tables import SPLITS

# The minimum and the maximum of each number.
_NUMBERS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "profile_steps": (0, math.inf),
    "data.settings.size": (1, 2**14),
    "data.cached_variants": (0, math.inf),
    "data.validation_subjects": (0, math.inf),
    "augment.flip": (0, 1),
    "augment.rotation": (0, 180),
    "augment.brightness": (0, 1),
    "augment.contrast": (0, 1),
    "augment.erase": (0, 1),
    "augment.bend": (0, 1),
    "augment.skin": (0, 1),
    "augment.radiograph": (0, 1),
    "data.synthetic_weight": (0, math.inf),
    "pretrained.lora_scale": (-math.inf, math.inf),
    "train.batch_size": (1, math.inf),
    "train.num_steps": (1, math.inf),
    "train.stop_at": (0, math.inf),
    "train.accumulate": (1, math.inf),
    "train.log_every": (1, math.inf),
    "train.checkpoint_every": (0, math.inf),
    "train.keep": (1, math.inf),
    "train.keep_period": (0, math.inf),
    "train.learning_rate": (0, math.inf),
    "train.warmup_steps": (0, math.inf),
    "train.b1": (0, 1),
    "train.b2": (0, 1),
    "train.weight_decay": (0, math.inf),
    "train.clip_norm": (0, math.inf),
    "train.ema_decay": (0, 1),
    "sampling.guidance_scale": (-math.inf, math.inf),
    "sampling.controlnet_scale": (-math.inf, math.inf),
    "evaluate.batch_size": (1, math.inf),
    "evaluate.num_samples": (1, math.inf),
    "evaluate.max_subjects": (0, math.inf),
    "evaluate.radiograph": (0, 1),
    "evaluate.bootstrap": (1, math.inf),
    "evaluate.pictures": (0, math.inf),
    "evaluate.kernel_subset": (2, math.inf),
    "evaluate.kernel_rounds": (1, math.inf),
    "evaluate.inception_splits": (1, math.inf),
    "validation.every": (0, math.inf),
    "validation.num_steps": (1, math.inf),
    "validation.examples": (1, math.inf),
    "reconstruct.num_samples": (1, math.inf),
    "reconstruct.batch_size": (1, math.inf),
    "synthesize.batch_size": (1, math.inf),
    "synthesize.num_candidates": (1, math.inf),
    "synthesize.iterations": (1, math.inf),
    "synthesize.least_cosine": (-1, 1),
    "method.prompt_dropout": (0, 1),
    "method.min_snr_gamma": (0, math.inf),
    "method.outline_weight": (0, math.inf),
    "method.true_outline": (0, 1),
    "method.patch": (1, math.inf),
    "method.losses.lpips": (0, math.inf),
    "method.losses.identity": (0, math.inf),
    "method.losses.gate_limit": (0, math.inf),
    "method.losses.warmup_steps": (0, math.inf),
    "method.losses.every": (1, math.inf),
    "method.losses.decode_batch": (0, math.inf),
    "method.channels": (1, math.inf),
    "method.discriminator_layers": (1, math.inf),
    "method.discriminator_dropout": (0, 1),
    "method.l1": (0, math.inf),
    "method.blocks": (1, math.inf),
    "method.cycle": (0, math.inf),
    "method.identity": (0, math.inf),
    "method.pool": (0, math.inf),
    "method.nce": (0, math.inf),
    "method.patches": (1, math.inf),
    "method.temperature": (0, math.inf),
    "method.margin": (0, math.inf),
    "method.scale": (0, math.inf),
    "method.disturb.colour": (0, 1),
    "method.disturb.grey": (0, 1),
    "method.disturb.shift": (0, 1),
    "method.disturb.zoom": (0, 1),
}
# These exclude the bound itself: a rate of 0 trains nothing, an average of 1 never moves.
_ABOVE_LEAST = {"train.learning_rate", "method.temperature", "method.scale", "method.min_snr_gamma"}
_ABOVE_LEAST |= {"data.synthetic_weight"}
_BELOW_MOST = {"train.b1", "train.b2", "train.ema_decay", "method.discriminator_dropout"}
_BELOW_MOST |= {"method.disturb.zoom"}
_NAMES: dict[str, tuple[str, ...]] = {
    "compute_dtype": ("float32", "bfloat16", "float64"),
    "export.dtype": ("float32", "float16"),
    "export.weights": ("ema", "raw"),
    "train.schedule": SCHEDULES,
    "method.loss_weight": WEIGHTS,
    "method.timesteps": TIMESTEPS,
    "evaluate.split": ("test", "validation"),
}


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError, naming the field, if a job of this configuration can't succeed.

    All that needs no data set is checked: numbers, names, networks, files of weights, and that
    batches fit the devices. `evaluate.check` looks at the test people once there are records.
    """
    for name, value in _present(config, _NUMBERS):
        _check_number(name, value)
    for name, value in _present(config, _NAMES):
        if value not in _NAMES[name]:
            raise InputError(
                f"{name}={value!r}: it is unknown. Use one of {', '.join(_NAMES[name])}."
            )
    if unknown := set(config.data.synthetic) - set(SPLITS):
        raise InputError(
            f"data.synthetic: {min(unknown)!r} is unknown. Use some of {', '.join(SPLITS)}."
        )
    for name, rate in config.method.get("learning_rates", {}).items():
        _check_number(f"method.learning_rates.{name}", rate, "train.learning_rate")
    if config.job in ("train_and_evaluate", "train"):
        _check_training(config)
    if config.job in ("train_and_evaluate", "evaluate"):
        _check_evaluation(config)
    if config.job == "reconstruct":
        r = config.reconstruct
        check_profile(r.view, r.sex, r.age, r.bmi_change)
    if config.job == "export":
        check_export(config)
    # Two folders of pictures need no method.
    folders = config.job == "evaluate" and config.evaluate.generated
    if (
        config.job in ("train_and_evaluate", "train", "evaluate", "reconstruct", "export")
        and not folders
    ):
        check_method(config)


def _present(config: ml_collections.ConfigDict, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields each dotted name that the configuration has, with its value."""
    for name in names:
        *path, leaf = name.split(".")
        block: Any = config
        for part in path:
            block = block.get(part, {})
        if leaf in block:
            yield name, block[leaf]


def _check_number(name: str, value: Any, like: str = "") -> None:
    """Raises InputError if a number is out of range; NaN always is."""
    kind = like or name
    least, most = _NUMBERS[kind]
    above = value > least if kind in _ABOVE_LEAST else value >= least
    below = value < most if kind in _BELOW_MOST or most == math.inf else value <= most
    if above and below and math.isfinite(value):
        return
    words = f"{'more than' if kind in _ABOVE_LEAST else 'at least'} {least:g}"
    if most < math.inf:
        words += f" and {'less than' if kind in _BELOW_MOST else 'at most'} {most:g}"
    raise InputError(
        f"{name}={value}: it is out of range. Set it to"
        f" {words if least > -math.inf else 'a number'}."
    )


def _check_training(config: ml_collections.ConfigDict) -> None:
    """Raises InputError if batches don't fit the devices, or held-out faces can't be scored."""
    t = config.train
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.check_batch(t.batch_size, mesh, "train.batch_size")
    share = t.batch_size // mesh.size
    if share % t.accumulate:
        raise InputError(
            f"train.accumulate={t.accumulate}: it does not divide the {share} examples of each"
            " device. Use a divisor."
        )
    if config.validation.every:
        Features(config.evaluate.weights, config.evaluate.crop)


def _check_evaluation(config: ml_collections.ConfigDict) -> None:
    """Raises InputError if files of weights are wrong, or a protocol or a row is unknown."""
    c = config.evaluate
    protocols(config)
    disturbances.check(c.disturbances, c.keep_faces)
    if not c.retrieval.ks or min(c.retrieval.ks) < 1:
        raise InputError(f"evaluate.retrieval.ks={tuple(c.retrieval.ks)}: each must be 1 or more.")
    if bool(c.generated) != bool(c.reference):
        raise InputError(
            "evaluate.generated and evaluate.reference are two folders; set both or none"
        )
    for name in ("generated", "reference"):
        if c[name] and not pathlib.Path(c[name]).expanduser().is_dir():
            raise InputError(f"evaluate.{name}={c[name]}: no such folder. Name one with pictures.")
    Features(c.weights, c.crop)
