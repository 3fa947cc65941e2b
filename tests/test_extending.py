"""The code of docs/extending.md does what the page says."""

import importlib
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

import cranio_jax.methods
import data_builders
from configs import common
from cranio_jax import main
from cranio_jax.evaluation.results import read_results
from cranio_jax.metrics.registry import METRICS

ROOT = pathlib.Path(__file__).resolve().parent.parent


def block(first_line):
    """The block of code that begins with a line."""
    text = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (found,) = [code for code in blocks if code.startswith(first_line)]
    return found


def test_a_metric(tmp_path):
    """It is in the table, with its interval."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    for folder, faces in zip(("made", "real"), pictures, strict=True):
        (tmp_path / folder).mkdir()
        for number, face in enumerate(faces):
            Image.fromarray(face).save(tmp_path / folder / f"s{number}.png")
    config = common.get_config()
    config.job = "evaluate"
    config.mesh.data = 1
    config.evaluate.update(
        generated=str(tmp_path / "made"), reference=str(tmp_path / "real"), bootstrap=20
    )
    config.method = dict(name="pix2pix")
    try:
        exec(block('"""Mean absolute error'), {})
        main.run(config, tmp_path / "run")
    finally:
        METRICS.pop("mae", None)
    row = read_results(tmp_path / "run" / "results.json").rows["generated"]
    made, real = pictures.astype(np.float64) / 255
    assert row["mae"].mean == pytest.approx(np.abs(made - real).mean(), rel=1e-5)
    assert row["mae"].low <= row["mae"].mean <= row["mae"].high
    assert "| MAE\u00a0↓ |" in (tmp_path / "run" / "table.md").read_text()


def test_a_method_and_a_data_set(tmp_path, monkeypatch):
    """The method learns the data set's map, and is scored."""
    package = tmp_path / "builders" / "gradients"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "gradients_dataset_builder.py").write_text(block('"""People whose'))
    methods = tmp_path / "methods"
    methods.mkdir()
    (methods / "linear.py").write_text(block('"""A linear map'))
    monkeypatch.setattr(data_builders, "__path__", [*data_builders.__path__, str(package.parent)])
    paths = [*cranio_jax.methods.__path__, str(methods)]
    monkeypatch.setattr(cranio_jax.methods, "__path__", paths)

    # tensorflow-datasets looks beside data_builders/ alone.
    module = importlib.import_module("data_builders.gradients.gradients_dataset_builder")
    module.Builder.pkg_dir_path = package

    config = common.get_config()
    config.data.update(builder="gradients", data_dir=str(tmp_path / "records"))
    config.data.settings.size = 32
    config.augment.update(flip=0.0, rotation=0.0, brightness=0.0, contrast=0.0, erase=0.0)
    config.method = dict(name="linear")
    config.mesh.data = 1
    config.train.update(batch_size=8, num_steps=200, learning_rate=0.05, weight_decay=0.0)
    config.train.update(checkpoint_every=0, warmup_steps=0, schedule="cosine")
    config.evaluate.update(bootstrap=20, num_samples=1, batch_size=4, pictures=2)
    main.run(config, tmp_path / "run")
    row = read_results(tmp_path / "run" / "results.json").rows["linear"]
    assert row["psnr"].mean > 35
