"""Settings that can't work are refused before anything is built or trained.

The error is one sentence that names the field.
"""

import importlib
import pathlib

import pytest

from cranio_jax import main
from cranio_jax.errors import InputError
from cranio_jax.jobs import checks
from cranio_jax.training import loop

CONFIGS = sorted(
    path.stem for path in pathlib.Path(checks.__file__).parents[2].joinpath("configs").glob("*.py")
)
# These need files that the user has.
WITHOUT_WEIGHTS = ("autoencoder", "cranio_diff", "cranio_diff_robust", "text_to_image")
NAN = float("nan")


def changed(config, name, value):
    """Returns the configuration with the field of this dotted name set to `value`."""
    *path, leaf = name.split(".")
    block = config
    for part in path:
        block = block[part]
    with block.unlocked():
        block[leaf] = value
    return config


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sampling.sampler", "plms", "sampling.sampler='plms'.*Use one of ddim, ddpm"),
        ("sampling.spacing", "even", "sampling.spacing='even'.*leading, trailing"),
        ("sampling.num_steps", 0, "sampling.num_steps=0"),
        ("sampling.num_steps", 1001, "sampling.num_steps=1001"),
        ("sampling.eta", 1.5, "sampling.eta=1.5"),
        ("sampling.guidance_scale", NAN, "sampling.guidance_scale=nan.*Set it to a number"),
        ("sampling.negative_prompt", "blurry", "sampling.negative_prompt.*doesn't know 'blurry'"),
        ("sampling.clip_skip", 5, "sampling.clip_skip=5"),
        ("compute_dtype", "float8", "compute_dtype='float8'.*Use one of float32, bfloat16"),
        ("method.losses.lpips", -0.2, "method.losses.lpips=-0.2.*at least 0"),
        ("method.losses.identity", NAN, "method.losses.identity=nan"),
        ("method.losses.lpips", 0.2, "method.losses.trunk_file is empty"),
        ("method.losses.gate", "open", "method.losses.gate='open'"),
        ("method.loss_weight", "snr", "method.loss_weight='snr'.*min_snr"),
        ("method.prompt_dropout", 1.2, "method.prompt_dropout=1.2.*at most 1"),
        (
            "method.learning_rates",
            {"unet": -1e-4},
            "method.learning_rates.unet=-0.0001.*more than 0",
        ),
        ("method.patch", 0, "method.patch=0"),
        ("train.learning_rate", 0.0, "train.learning_rate=0.0.*more than 0"),
        ("train.learning_rate", float("inf"), "train.learning_rate=inf"),
        ("train.log_every", 0, "train.log_every=0.*at least 1"),
        ("train.keep", 0, "train.keep=0"),
        ("train.accumulate", 0, "train.accumulate=0"),
        ("train.accumulate", 3, "train.accumulate=3: it does not divide the 8 examples"),
        ("train.ema_decay", 1.0, "train.ema_decay=1.0.*less than 1"),
        ("train.b1", 1.0, "train.b1=1.0"),
        ("train.schedule", "sawtooth", "train.schedule='sawtooth'"),
        ("augment.flip", 2.0, "augment.flip=2.0"),
        ("evaluate.weights", "nowhere/*.pth", "evaluate.weights: nowhere/.*: no such file"),
        ("evaluate.num_samples", 0, "evaluate.num_samples=0"),
        ("evaluate.bootstrap", 0, "evaluate.bootstrap=0"),
        ("evaluate.crop", (0.5, 0.5, 0.6, 0.6), "evaluate.crop"),
        ("evaluate.retrieval.ks", (0, 1), "evaluate.retrieval.ks"),
        (
            "evaluate.retrieval.protocols",
            ("every/all",),
            "evaluate.retrieval.protocols names 'every/all'",
        ),
        ("evaluate.generated", "/nowhere", "evaluate.generated and evaluate.reference"),
        ("prompt.length", 10, "prompt.length=10"),
        ("method.scheduler", {"prediction": "epsilon"}, "method.scheduler.prediction: .*unknown"),
        ("seed", -1, "seed=-1"),
    ],
)
def test_a_wrong_setting_is_named_at_the_start(config, tmp_path, name, value, words):
    config.data.data_dir = str(tmp_path / "records")
    with pytest.raises(InputError, match=words) as error:
        main.run(changed(config, name, value), tmp_path / "new")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("job", "name", "value", "words"),
    [
        ("reconstruct", "reconstruct.age", 200.0, "age=200"),
        ("reconstruct", "reconstruct.view", "above", "view='above'"),
        ("reconstruct", "reconstruct.num_samples", 0, "reconstruct.num_samples=0"),
        ("reconstruct", "sampling.sampler", "plms", "sampling.sampler"),
        ("export", "export.dtype", "int8", "export.dtype='int8'"),
        ("evaluate", "evaluate.weights", "nowhere", "no such file"),
        ("train", "data.synthetic_weight", 0.0, "data.synthetic_weight=0.0: it is out of range"),
        ("inspect", "data.synthetic", ("trian",), "data.synthetic: 'trian' is unknown"),
    ],
)
def test_other_jobs_too(config, job, name, value, words):
    config.job = job
    with pytest.raises(InputError, match=words):
        checks.check(changed(config, name, value))


@pytest.mark.parametrize(
    "name", [c for c in CONFIGS if c not in ("__init__", "common") and not c.startswith("study_")]
)
def test_every_configuration_passes(name):
    """Valid configurations pass.

    Full-size ones need weight files from the user, and the error says so.
    """
    config = importlib.import_module(f"configs.{name}").get_config()
    config.mesh.data = 1
    if name in WITHOUT_WEIGHTS:
        with pytest.raises(InputError, match=r"pretrained.model|method.losses"):
            checks.check(config)
    else:
        checks.check(config)


def test_too_few_test_people_are_noticed_before_training(quick_config, tmp_path):
    """A single test subject has no other subject to exchange X-rays with."""
    config = quick_config
    config.evaluate.max_subjects = 1
    with pytest.raises(InputError, match="X-rays can't be shuffled; more test subjects are needed"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
