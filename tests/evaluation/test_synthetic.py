"""Faces that were made from photographs: never compared with in silence."""

import numpy as np
import pytest

from configs import demo
from cranio_jax.distributed import sharding
from cranio_jax.evaluation.assembly import assemble
from cranio_jax.evaluation.examples import who_of
from cranio_jax.evaluation.results import Results, from_json, to_json
from cranio_jax.evaluation.scorer import Scores
from cranio_jax.metrics.features import Features
from cranio_jax.reporting import tables


def results_of(synthetic):
    """Returns the results of eight faces of four people, whose PSNR rises from 20 to 27 dB."""
    config = demo.get_config()
    config.evaluate.bootstrap = 100
    examples = [
        {"subject": f"s{i // 2}", "face_view": "frontal", "age": 25.0 + i, "bmi_change": 0.0}
        | ({"synthetic": synthetic(i)} if synthetic else {})
        for i in range(8)
    ]
    psnr = np.arange(20.0, 28.0)
    scored = {
        "cranio_diff": Scores({"psnr": psnr}, {}, {}),
        "mean face": Scores({"psnr": psnr - 1}, {}, {}),
    }
    return assemble(
        config,
        Features("", (0, 0, 1, 1)),
        sharding.make_mesh(1, 1),
        who_of(examples),
        Scores({}, {}, {}),
        scored,
        "cranio_diff",
        controls=("mean face",),
    )


def test_photographs_and_synthetic_faces_are_reported_apart():
    results = results_of(lambda i: i % 2 == 1)
    assert results.synthetic == 4
    assert results.rows["cranio_diff"]["psnr"].mean == pytest.approx(23.5)
    assert results.rows["cranio_diff, photographs alone"]["psnr"].mean == pytest.approx(23.0)
    assert results.rows["cranio_diff, synthetic faces alone"]["psnr"].mean == pytest.approx(24.0)
    note = "4 of the 8 faces compared with are synthetic, not photographs"
    assert note in tables.picture_notes(results)
    again = from_json(to_json(results), Results)
    assert again.synthetic == 4 and note in tables.picture_notes(again)


@pytest.mark.parametrize("synthetic", [None, lambda i: False])
def test_photographs_need_no_words(synthetic):
    results = results_of(synthetic)
    assert set(results.rows) == {"cranio_diff", "mean face"}
    assert not any("synthetic" in note for note in tables.picture_notes(results))


def test_varied_x_rays_are_told():
    results = results_of(None)
    assert not any("varied" in note for note in tables.picture_notes(results))
    results.radiograph = 0.5
    again = from_json(to_json(results), Results)
    assert any("evaluate.radiograph=0.5" in note for note in tables.picture_notes(again))


def test_synthetic_faces_alone_are_told():
    results = results_of(lambda i: True)
    assert set(results.rows) == {"cranio_diff", "mean face"}
    assert any("8 of the 8 faces" in note for note in tables.picture_notes(results))
