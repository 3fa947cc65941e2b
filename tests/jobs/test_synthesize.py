"""Faces at other ages and weights: the same people, in a list that the builder reads."""

import csv
import io
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import synthesize as recipe
from cranio_jax import assets
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.jobs import synthesize
from cranio_jax.metrics.features import Features
from data_builders.skull_face.manifest import NEEDED, read_manifest
from tests.conftest import CHECKOUT
from tests.data_builders.test_skull_face import skull

JUDGE = "shipped:phantom_judge.safetensors"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Two people at 45 years: faces of the model card's sheet stand for their photographs."""
    folder = tmp_path_factory.mktemp("hospital")
    sheet = Image.open(CHECKOUT / "docs" / "prompts_alone.jpg")
    rows = []
    for number, (name, sex) in enumerate((("ann", "f"), ("bob", "m"))):
        place = (70 + 4 * 128, 34 + number * 128)
        sheet.crop((*place, place[0] + 128, place[1] + 128)).save(folder / f"{name}.png")
        Image.fromarray(np.uint8(255 * skull(number))).save(folder / f"{name}_xray.png")
        rows.append([name, f"{name}_xray.png", "frontal", f"{name}.png", "frontal", 45, sex])
    with open(folder / "people.csv", "w", newline="") as file:
        csv.writer(file).writerows([NEEDED, *rows])
    return folder


@pytest.fixture
def config(hospital):
    config = recipe.get_config()
    config.data.data_dir = str(hospital / "records")
    config.data.settings.size = 128
    config.data.skull_face.update(manifest=str(hospital / "people.csv"), align=False)
    config.pretrained.model = "shipped:phantom_sd"
    config.prompt.length = 32
    config.sampling.num_steps = 6
    config.mesh.data = 1
    config.synthesize.update(
        ages=(25.0, 45.0, 65.0), bmi_changes=(0.0, 10.0), embedder_file=JUDGE, batch_size=5
    )
    return config


def test_the_same_people_at_other_ages_and_weights(config, hospital, tmp_path, monkeypatch):
    path = synthesize.synthesize(config, tmp_path)
    manifest = read_manifest(path)
    assert not manifest.problems and not manifest.ignored
    profiles = {(row.subject, row.face.age, row.face.bmi_change) for row in manifest.rows}
    assert profiles == {
        (name, age, change) for name in ("ann", "bob") for age in (25, 45, 65) for change in (0, 10)
    }
    photographs = [row for row in manifest.rows if not row.face.synthetic]
    assert [row.face.path.name for row in photographs] == ["ann.png", "bob.png"]

    # Each made face is nearest to its own person. Hair is grey at 65 years, heavier ones are wider.
    faces = {
        (row.subject, row.face.age, row.face.bmi_change): np.asarray(Image.open(row.face.path))
        for row in manifest.rows
    }
    judge = Features(JUDGE, (0, 0, 1, 1))
    params = judge.load(sharding.make_mesh(1, 1))
    (vectors,) = judge.embed(params, jnp.asarray(np.stack(list(faces.values())))).values()
    vectors = dict(
        zip(faces, vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True), strict=True)
    )
    for (name, *profile), vector in vectors.items():
        other = {"ann": "bob", "bob": "ann"}[name]
        own, others = (vector @ vectors[who, 45, 0] for who in (name, other))
        assert own > others + 0.2, (name, profile)
    for name in ("ann", "bob"):
        hair = [faces[name, age, 0][8:16, 54:74].mean() for age in (25, 45, 65)]
        assert hair[0] < hair[1] < hair[2] - 30
        wall = faces[name, 45, 0][60, 0].astype(int)
        widths = [
            (np.abs(faces[name, 45, change][100:112].astype(int) - wall).sum(-1) > 60).sum()
            for change in (0, 10)
        ]
        assert widths[1] > widths[0]

    # A second start makes only what is missing, and makes it alike.
    made = {
        row.face.path: row.face.path.read_bytes() for row in manifest.rows if row.face.synthetic
    }
    lost = sorted(made)[3]
    lost.unlink()
    lost.with_suffix(".json").unlink()
    asked = []
    best = synthesize.Maker.best

    def counted(self, examples):
        asked.extend(examples)
        return best(self, examples)

    monkeypatch.setattr(synthesize.Maker, "best", counted)
    assert synthesize.synthesize(config, tmp_path) == path
    assert len(asked) == 1
    again = np.asarray(Image.open(lost)).astype(int)
    first = np.asarray(Image.open(io.BytesIO(made[lost]))).astype(int)
    assert np.abs(again - first).max() <= 1  # in a batch of another content

    # Faces that are not alike enough are not in the list.
    config.synthesize.least_cosine = 1.0
    synthesize.synthesize(config, tmp_path)
    assert [row.face.synthetic for row in read_manifest(path).rows] == [False, False]
    report = json.loads((tmp_path / "synthesize.json").read_text())
    assert report["kept"] == 0 and len(report["refused"]) == 10
    assert report["refused"][0].keys() == {"row", "age", "bmi_change", "cosine"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(ages=(450.0,)), "synthesize: age=450 is outside 0 to 120 years"),
        (dict(ages=(25.0, 30.0)), "30 is not one of prompt.known_ages, 25, 45, 65"),
        (dict(bmi_changes=(900.0,)), "synthesize: bmi_change=900 is outside"),
        (dict(embedder_file=""), "synthesize.embedder_file is empty"),
        (dict(embedder_file="nothing.safetensors"), "nothing.safetensors: no such file"),
        (dict(folder="../elsewhere"), "not a folder within data's root"),
        (dict(way="magic"), "synthesize.way='magic': it is unknown. Use one of noise, inversion"),
        (dict(strength=0.0), "synthesize.strength=0.0: it is not in 0 to 1"),
        (dict(strength=0.1), "strength=0.1 leaves none of 6 steps"),
        (dict(num_candidates=3), "num_candidates=3: inversion gives one face"),
    ],
)
def test_settings_that_are_refused(config, tmp_path, changes, words):
    config.synthesize.update(changes)
    with pytest.raises(InputError, match=words):
        synthesize.synthesize(config, tmp_path)


def test_configurations_that_do_not_fit(config, tmp_path):
    config.data.builder = "cranio_phantom"
    with pytest.raises(InputError, match="job=synthesize reads a list of photographs"):
        synthesize.synthesize(config, tmp_path)
    config.data.builder = "skull_face"
    config.method.name = "pix2pix"
    with pytest.raises(InputError, match="job=synthesize makes faces by prompts alone"):
        synthesize.synthesize(config, tmp_path)


def test_a_pipeline_with_the_tokenizer_of_another(config, tmp_path):
    """Its ids go beyond the text encoder's, which JAX would read as the last one."""
    folder = tmp_path / "pipeline"
    (folder / "tokenizer").mkdir(parents=True)
    shipped = assets.located("shipped:phantom_sd")
    for part in shipped.iterdir():
        if part.name != "tokenizer":
            (folder / part.name).symlink_to(part)
    for name in ("merges.txt", "tokenizer_config.json"):
        shutil.copy(shipped / "tokenizer" / name, folder / "tokenizer")
    vocabulary = json.loads((shipped / "tokenizer" / "vocab.json").read_text())
    higher = {token: number + 300 for token, number in vocabulary.items()}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(higher))
    config.pretrained.model = str(folder)
    with pytest.raises(InputError, match="Name the tokenizer that belongs to the text encoder"):
        synthesize.synthesize(config, tmp_path)
