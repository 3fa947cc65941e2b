"""Spread against error, of samples whose honesty is known."""

import base64
import re

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cranio_jax.evaluation.comparison import compare
from cranio_jax.evaluation.reliability import Vectors, deviations, score, summary
from cranio_jax.files.pictures import read_face, write_png
from cranio_jax.metrics.resampling import bootstrap_ratio
from cranio_jax.reporting import charts, tables
from tests.evaluation.test_comparison import results

SUBJECTS = [f"s{i // 2}" for i in range(40)]


def drawn(honesty, count=4):
    """Samples of `(count, 40, 500, 3)` and a truth whose spread is `honesty` times as large."""
    rng = np.random.default_rng(0)
    middle = rng.uniform(size=(40, 500, 3))
    spread = np.exp(rng.normal(0, 1.0, (40, 500, 1)))
    samples = middle + spread * rng.normal(size=(count, *middle.shape))
    return samples, middle + honesty * spread * rng.normal(size=middle.shape)


@pytest.mark.parametrize("count", [2, 8])
def test_honest_samples_have_a_ratio_of_one(count):
    found = summary(deviations(*drawn(1.0, count)), SUBJECTS, rounds=500, seed=0)
    assert found.ratio.mean == pytest.approx(1.0, abs=0.03)
    assert found.ratio.low < 1.0 < found.ratio.high
    assert found.correlation > 0.3
    expected, error = np.array(found.points).T
    assert len(expected) == 10 and (np.diff(expected) > 0).all()
    if count == 8:  # two samples know their own spread badly
        np.testing.assert_allclose(error[2:], expected[2:], rtol=0.35)


def test_samples_that_are_too_sure_are_found_out():
    """With a truth twice as far away, the squared error is 4 + 1/4 in place of 1 + 1/4."""
    found = summary(deviations(*drawn(2.0)), SUBJECTS, rounds=500, seed=0)
    assert found.ratio.mean == pytest.approx(np.sqrt(4.25 / 1.25), abs=0.06)
    # Spread that tells nothing about the error.
    honest = deviations(*drawn(1.0))
    error = np.random.default_rng(1).permutation(honest.error.ravel()).reshape(40, 500)
    found = summary(honest._replace(error=error), SUBJECTS, rounds=9, seed=0)
    assert abs(found.correlation) < 0.02


def test_a_ratio_of_means_resamples_both_together():
    rng = np.random.default_rng(0)
    under = rng.uniform(1, 9, 30)
    ratio, low, high = bootstrap_ratio(3 * under, under, rounds=200, seed=0)
    assert ratio == pytest.approx(3.0) and low == pytest.approx(3.0) == high
    over = rng.uniform(1, 9, 30)
    ratio, low, high = bootstrap_ratio(over, under, rounds=200, seed=0)
    assert ratio == pytest.approx(over.mean() / under.mean()) and low < ratio < high


def test_tables_and_charts_of_several_seeds():
    found = summary(deviations(*drawn(1.0)), SUBJECTS, rounds=50, seed=0)
    runs = {"ours": [results("ours", np.zeros(6), np.ones(6)) for _ in range(2)]}
    for one in runs["ours"]:
        one.reliability = {"ours": {"pixels": found}}
    merged = compare(runs, "ours", (), rounds=50)
    assert merged.reliability["ours"]["pixels"].points == [tuple(p) for p in found.points]
    ratio = merged.reliability["ours"]["pixels"].ratio
    assert ratio.mean == pytest.approx(found.ratio.mean) and ratio.sd == 0.0
    assert f"| ours: pixels | {ratio.mean:.2f} ± 0.00 |" in tables.markdown(merged)
    chart = charts.reliability(merged.reliability)
    page = tables.web(merged, "reliability", more=chart)
    assert page.startswith("<details><summary>Spread of the samples") and chart in page
    (source,) = re.findall('data:image/svg.xml;base64,([^"]+)', chart)
    drawn_words = base64.b64decode(source).decode()
    assert all(f">{word}<" in drawn_words for word in ("ours", "honest", "expected error"))


def test_files_of_samples_are_read(tmp_path):
    """Grey faces whose samples differ by person; half of each picture is no head."""
    config = ml_collections.ConfigDict({"seed": 0, "mesh": {"data": 1, "fsdp": 1}})
    config.evaluate = {"bootstrap": 50, "batch_size": 4}
    mask = np.zeros((8, 8, 1), np.uint8)
    mask[:4] = 255
    examples, files = [], [[], [], []]
    for person in range(6):
        truth = np.full((8, 8, 3), 100, np.uint8)
        examples.append({"subject": f"s{person}", "face": truth, "head_mask": mask})
        for sample, of_sample in enumerate(files):
            face = np.full((8, 8, 3), 100 + (sample - 1) * 10 * (1 + person), np.uint8)
            face[4:] = 7 * sample
            path = tmp_path / f"{person}_{sample}.png"
            write_png(path, face)
            of_sample.append(path)
    colours = {
        sample: np.stack([read_face(p)[0, 0] for p in of]) for sample, of in enumerate(files)
    }

    def embed(batch):
        return {"judge": batch["face"][:, 0, 0].astype(jnp.float32)}

    truth = {"judge": np.full((6, 3), 110.0)}
    found = score(config, examples, files, Vectors(truth, {"judge": colours[0]}), embed)
    assert set(found) == {"pixels", "judge"}
    # The mean is the truth, so the error is 0; the samples differ by 10 to 60.
    assert found["pixels"].ratio.mean == pytest.approx(0.0, abs=1e-9)
    variances = 3 * (np.arange(1, 7) * 10 / 255.0) ** 2
    assert found["pixels"].spread == pytest.approx(np.sqrt(variances.mean()))
    assert found["judge"].points[0] == pytest.approx((np.sqrt(300 * 4 / 3), np.sqrt(300)))

    # Samples that are all the same have no spread, whatever rounding says.
    same = [files[1]] * 3
    assert score(config, examples, same, Vectors(truth, {"judge": colours[1]}), embed) == {}
