"""Scores by group: which face belongs to which, and what is left out."""

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from skimage import color

from cranio_jax import data
from cranio_jax.distributed import sharding
from cranio_jax.evaluation.comparison import compare
from cranio_jax.evaluation.examples import read_examples
from cranio_jax.evaluation.groups import scores_by_group, typology_angle
from cranio_jax.evaluation.retrieval import distractor_faces
from cranio_jax.reporting import tables
from tests.evaluation.test_comparison import results

# Skin from dark to very light, with its group and the group's upper bound in degrees.
SKIN = (
    *(((62, 43, 35), "dark", -30), ((140, 102, 75), "brown", 10), ((168, 130, 100), "tan", 28)),
    *(((190, 150, 118), "intermediate", 41), ((205, 170, 140), "light", 55)),
    ((245, 224, 205), "very light", 90),
)


@pytest.fixture
def settings():
    config = ml_collections.ConfigDict({"seed": 0})
    config.evaluate = {"bootstrap": 200, "crop": (0.2, 0.2, 0.6, 0.6)}
    return config


def examples_of(people):
    """A frontal and a lateral face at two ages of each person."""
    return [
        {
            "subject": f"s{number:02d}",
            "sex": "female" if number % 2 else "male",
            "face_view": view,
            "age": age,
            "bmi_change": 10.0 * (number % 3 - 1),
            "face": np.full((10, 10, 3), SKIN[number % 2 + 2][0], np.uint8),
        }
        for number in range(people)
        for view in ("frontal", "lateral")
        for age in (25.0, 65.0)
    ]


def test_typology_angle_is_that_of_the_published_formula():
    lowest = -90.0
    for rgb, name, highest in SKIN:
        skin = np.full((3, 4, 3), rgb, np.uint8)
        skin[0, 0] = 0  # an eye or a lip does not count
        lightness, _, yellow = color.rgb2lab(np.array(rgb) / 255.0)
        angle = typology_angle(skin)
        assert angle == pytest.approx(np.degrees(np.arctan((lightness - 50) / yellow)), abs=0.5)
        assert lowest < angle < highest, name
        lowest = highest
    assert np.isnan(typology_angle(np.full((3, 4, 3), (120, 130, 150), np.uint8)))


def test_faces_are_in_their_groups(settings):
    examples = examples_of(12)
    values = {
        "psnr": np.array([20.0 + (e["sex"] == "female") + 2 * (e["age"] > 30) for e in examples]),
        "ms-ssim": np.zeros(len(examples)),
    }
    found = scores_by_group(settings, examples, values)
    # Only four people have each change of BMI.
    assert set(found) == {"view", "sex", "age", "skin tone"}
    assert list(found["age"]) == ["18 to 29", "60+"]
    assert list(found["skin tone"]) == ["tan", "intermediate"]
    group = found["sex"]["female"]
    assert group.subjects == [f"s{number:02d}" for number in range(1, 12, 2)]
    assert group.images == 24
    assert list(group.metrics) == ["psnr"]  # the others are not main ones
    assert group.metrics["psnr"].mean == 22.0 and found["sex"]["male"].metrics["psnr"].mean == 21.0
    assert found["age"]["60+"].metrics["psnr"].mean == 22.5
    assert found["view"]["lateral"].values["psnr"] == [21.0, 22.0] * 6

    # A face without a frontal one has no tone, and few people no groups at all.
    lateral = [e for e in examples if e["face_view"] == "lateral"]
    there = scores_by_group(settings, lateral, {"psnr": np.zeros(len(lateral))})
    assert set(there) == {"sex", "age"}
    few = examples_of(4)
    assert scores_by_group(settings, few, {"psnr": np.zeros(len(few))}) == {}


def test_one_table_comes_first():
    """Methods in the study's order, also those that make no picture; then the controls."""
    runs = {
        "matcher": [results("matcher", None, np.ones(6), judge="matcher")],
        "ours": [results("ours", np.arange(6) + 20.0, np.ones(6))],
    }
    runs["matcher"][0].retrieval["matcher"]["same/all"].by_subject = {
        "matcher": {"recall@1": [0.5] * 6}
    }
    merged = compare(runs, "ours", (), rounds=50)
    merged.costs = {"matcher": {}, "ours": {}}
    table = tables.overview(merged)
    assert table.head == ["recall@1, judge\u00a0↑", "PSNR (dB)\u00a0↑"]
    assert [name for name, _ in table.rows][:2] == ["matcher", "ours"]
    rows = {name: [c.value for c in cells] for name, cells in table.rows}
    assert rows["matcher"] == ["0.500", ""] and rows["ours"] == ["1.000", "22.50"]
    assert rows["mean face"] == ["", "21.50"]
    assert table.notes[-1].endswith("by themselves; chance 0.200")
    # The rest is folded away where the overview is shown.
    folded = tables.web(merged, "pictures", whole=False)
    assert folded.startswith("<details><summary>All metrics of pictures") and "PSNR" in folded
    assert tables.web(merged, "pictures").startswith("<h2>Pictures")


def test_seeds_are_averaged_in_each_group(settings):
    examples = examples_of(10)
    runs = {"ours": [results("ours", np.zeros(6), np.ones(6)) for _ in range(2)]}
    for number, one in enumerate(runs["ours"]):
        scores = {"psnr": 20.0 + 2 * number + np.arange(len(examples)) % 2}
        one.groups = {"ours": scores_by_group(settings, examples, scores)}
    merged = compare(runs, "ours", (), rounds=200)
    group = merged.groups["ours"]["age"]["60+"]
    assert group.metrics["psnr"].mean == 22.0 and group.values["psnr"] == [22.0] * 10
    words = tables.markdown(merged)
    assert "**By age**" in words and "| ours: 60+ (10 people) | 22.00 [22.00, 22.00] |" in words
    folded = tables.web(merged, "groups")
    assert folded.startswith("<details><summary>By view, sex") and "By skin tone" in folded
    assert "By age" not in tables.text(merged)


def test_nobody_is_their_own_distractor(config):
    """Validation people are in the training split of their own records, which distractors name."""
    config.data.validation_subjects = 4
    config.evaluate.split = "validation"
    distractors = config.evaluate.retrieval.distractors
    distractors.update(builder="cranio_phantom", split="train", data_dir=config.data.data_dir)
    for block in ("settings", "cranio_phantom"):
        distractors[block].update(config.data[block])
    builder = data.make_builder(config.data)
    queries = {example["subject"] for example in read_examples(config, builder, images=())}

    def embed(batch):
        return {"judge": batch["face"][:, 0, 0].astype(jnp.float32)}

    faces = distractor_faces(config, embed, sharding.make_mesh(1, 1))["judge"]
    names = {name.removeprefix("distractor ") for name in faces.subjects}
    assert len(queries) == 4 and names == set(data.subjects(builder, "train", config))
    assert not names & queries and len(faces.vectors) == len(faces.subjects)
