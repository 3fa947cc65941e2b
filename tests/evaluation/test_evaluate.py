"""Evaluation: cached faces, metrics of two folders, an embedder's own table, and wrong input."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from cranio_jax import data, pretrained
from cranio_jax.errors import InputError
from cranio_jax.evaluation import disturbances, evaluate, generation
from cranio_jax.evaluation.examples import read_examples
from cranio_jax.files.pictures import PairedFolders, read_face
from cranio_jax.jobs import export
from cranio_jax.reporting import pages
from cranio_jax.training import loop
from tests.evaluated import evaluated
from tests.evaluation.test_scorer import weights  # noqa: F401


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of the trained small method; the first test that needs it trains it."""
    return tmp_path_factory.mktemp("trained") / "run"


@pytest.fixture
def run(config, trained, quick_steps):
    if not trained.exists():
        loop.train(config, trained)
    return config, trained


def test_faces_are_made_once(run, weights, monkeypatch):  # noqa: F811
    config, workdir = run
    first = evaluated(config, workdir)
    (folder,) = (workdir / "faces").iterdir()
    files = sorted((folder / "sample_0").iterdir())
    assert len(files) == 72 and read_face(files[0]).shape == (32, 32, 3)
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*.png")}
    whole = files[3].read_bytes()
    files[3].unlink()

    made = []
    faces = generation.Generator._faces

    def counted(self, examples, draw, say):
        made.extend(examples)
        return faces(self, examples, draw, say)

    monkeypatch.setattr(generation.Generator, "_faces", counted)
    config.evaluate.weights = f"{weights}/*.safetensors"
    config.evaluate.kernel_subset = 50
    config.evaluate.retrieval.ks = (1, 3)
    second = evaluated(config, workdir)
    assert [e["id"] for e in made] == [
        files[3].stem
    ]  # a new metric generates no face again; a missing face is generated identically
    assert files[3].read_bytes() == whole
    assert all(f.stat().st_mtime_ns == t for f, t in before.items() if f != files[3])
    assert second["rows"]["cranio_diff"]["psnr"] == pytest.approx(
        first["rows"]["cranio_diff"]["psnr"]
    )
    row = second["rows"]["cranio_diff"]
    assert list(row) == [
        "psnr",
        "psnr/head",
        "ssim",
        "ssim/head",
        "lpips/squeeze (unpublished heads)",
        "identity/iresnet18",
        "frechet/squeeze",
        "kernel/squeeze",
    ]
    assert set(first["not_computed"]) == {"fid, kid and the inception score", "lpips", "arcface"}
    assert set(second["not_computed"]) == {"fid, kid and the inception score", "arcface"}
    assert list(second["retrieval"]["identity/iresnet18"]) == [
        "same/all",
        "same/one",
        "any/all",
        "any/one",
    ]
    page = pages.report(config, workdir).read_text()
    assert "Retrieval, identity/iresnet18, same/all" in page and "Match curves" in page

    # Other sampling settings give other faces of the same checkpoint, next to the first ones.
    made.clear()
    config.sampling.num_steps = 1
    config.evaluate.disturbances = ("blurred",)
    config.evaluate.num_samples = 2
    monkeypatch.setattr("cranio_jax.evaluation.groups.LEAST_PEOPLE", 2)
    third = evaluated(config, workdir)
    plain = read_examples(config, data.make_builder(config.data))
    blurred = disturbances.disturbed(plain, "blurred")
    for wanted, example in zip(blurred, made[-72:], strict=True):
        np.testing.assert_array_equal(example["xray"], wanted["xray"])
    headline, row = third["rows"]["cranio_diff"], third["rows"]["X-rays blurred"]
    difference = third["differences"]["cranio_diff minus X-rays blurred"]["psnr"]["mean"]
    assert difference == pytest.approx(headline["psnr"]["mean"] - row["psnr"]["mean"]) != 0
    assert third["groups"]["cranio_diff"]["view"].keys() == {"frontal", "lateral"}
    # Not of the networks whose features are compared as sets.
    reliable = third["reliability"]["cranio_diff"]
    assert list(reliable) == ["pixels", "identity/iresnet18"]
    assert all(one["spread"] > 0 for one in reliable.values())
    assert len(made) > 72 and files[3].read_bytes() == whole
    assert third["rows"]["cranio_diff"]["psnr"] != second["rows"]["cranio_diff"]["psnr"]


def test_x_rays_of_test_people_are_varied_on_demand(config):
    """Each always in the same way. Heads stay where they are, or framing would tell them apart."""
    builder = data.make_builder(config.data)
    plain = read_examples(config, builder)
    config.evaluate.radiograph = 1.0
    varied, again = read_examples(config, builder), read_examples(config, builder)
    assert [e["id"] for e in varied] == [e["id"] for e in plain]
    for name in ("xray", "face", "head_mask"):
        assert all((a[name] == b[name]).all() for a, b in zip(varied, again, strict=True))
        changed = [(a[name] != b[name]).any() for a, b in zip(varied, plain, strict=True)]
        assert np.mean(changed) > 0.7 if name == "xray" else not any(changed)


def test_a_diverged_checkpoint_gives_no_number(run, tmp_path, monkeypatch):
    config, workdir = run
    shutil.copytree(
        workdir, tmp_path / "copy", ignore=shutil.ignore_patterns("faces", "results.json")
    )
    restore = generation.restore

    def broken(config, workdir):
        method, mesh, state, frozen, step = restore(config, workdir)
        state["ema"]["controlnet"]["controlnet_mid_block.bias"] += np.nan
        return method, mesh, state, frozen, step

    monkeypatch.setattr(generation, "restore", broken)
    with pytest.raises(
        InputError, match="the face generated for p.* holds values that are not numbers"
    ):
        evaluated(config, tmp_path / "copy")
    config.evaluate.keep_faces = False
    with pytest.raises(
        InputError, match="the face generated for p.* holds values that are not numbers"
    ):
        evaluated(config, tmp_path / "copy")
    assert not (tmp_path / "copy" / "results.json").exists() and not list(
        (tmp_path / "copy").rglob("*.png")
    )


def test_settings_that_fit_no_test_set(run, weights, tmp_path):  # noqa: F811
    config, workdir = run
    config.evaluate.weights = f"{weights}/trunk.safetensors"
    config.evaluate.kernel_subset = 73
    with pytest.raises(InputError, match="evaluate.kernel_subset=73: only 72 images are scored"):
        evaluated(config, workdir)
    config.evaluate.weights = f"{weights}/embedder.safetensors"
    config.evaluate.retrieval.ks = (1, 37)
    with pytest.raises(InputError, match="evaluate.retrieval.ks: k=37 exceeds a gallery"):
        evaluated(config, workdir)
    config.evaluate.retrieval.update(ks=(1,), protocols=("same/some",))
    with pytest.raises(InputError, match="evaluate.retrieval.protocols names 'same/some'"):
        evaluated(config, workdir)


def test_the_judge_is_not_the_teacher(config, weights):  # noqa: F811
    config.method.losses.update(identity=0.1, embedder_file=str(weights / "embedder.safetensors"))
    config.evaluate.weights = str(weights / "embedder.safetensors")
    config.evaluate.retrieval.ks = (1,)
    who = [{"subject": f"s{i // 4}", "view": "frontal", "variant": str(i)} for i in range(72)]
    with pytest.raises(
        InputError,
        match="embedder.safetensors is the embedder in method.losses.embedder_file, or its twin",
    ):
        evaluate._features(config, who, (32, 32))
    config.method.losses.identity = 0.0
    assert evaluate._features(config, who, (32, 32)).embedders


def test_validation_while_training(quick_config, weights, tmp_path):  # noqa: F811
    config = quick_config
    config.data.validation_subjects = 3
    config.validation.update(every=2, num_steps=1, examples=9)
    config.evaluate.update(weights=f"{weights}/*.safetensors", kernel_subset=50)
    config.train.num_steps = 4
    loop.train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if "validation/psnr" in line}
    assert list(found) == [2, 4] and found[2]["validation/psnr"] != found[4]["validation/psnr"]
    assert set(found[2]) > {
        "validation/lpips/squeeze (unpublished heads)",
        "validation/identity/iresnet18",
        "validation/psnr/head",
    }


def test_an_embedder_scores_itself_and_leaves_a_file(records, config, tmp_path, quick_steps):
    from configs import arcface

    c = arcface.get_config("smoke")
    c.data = config.data
    c.method.update(channels=4, height=16, width=16)
    c.train.update(num_steps=2, checkpoint_every=0)
    c.evaluate.update(batch_size=16, bootstrap=100)
    c.evaluate.retrieval.ks = (1, 3)
    c.export.dtype = "float16"
    loop.train(c, tmp_path)
    results = evaluated(c, tmp_path)
    assert not results["rows"] and list(results["retrieval"]) == ["identity/iresnet18"]
    ceiling = results["retrieval"]["identity/iresnet18"]["same/all"]["rows"][
        "another real face of the subject"
    ]
    assert 0 <= ceiling["recall@1"]["mean"] <= 1
    embedder = pretrained.open_embedder(tmp_path / "embedder.safetensors")
    assert (
        embedder.settings == {"network": "iresnet18", "channels": 4, "height": 16, "width": 16}
        and embedder.seed == 0
    )
    assert embedder.crop == tuple(c.method.crop)
    tensors = safetensors.numpy.load_file(embedder.file)
    assert "conv1.weight" in tensors and {str(t.dtype) for t in tensors.values()} == {"float16"}
    assert "Retrieval, identity/iresnet18" in pages.report(c, tmp_path).read_text()
    assert str(tmp_path) not in (tmp_path / "results.json").read_text()
    with pytest.raises(InputError, match="which arcface is not"):
        export.export(c, tmp_path)
    # With more people in the gallery no rank improves.
    c.evaluate.retrieval.distractors.update(
        builder="cranio_phantom", split="train", data_dir=str(records)
    )
    for block in ("settings", "cranio_phantom"):
        c.evaluate.retrieval.distractors[block].update(c.data[block])
    crowded = evaluated(c, tmp_path)["retrieval"]["identity/iresnet18"]["same/all"]
    assert crowded["gallery"] == 24 * 18 and crowded["seen"] == 24 * 9
    assert (
        crowded["rows"]["another real face of the subject"]["recall@1"]["mean"]
        <= ceiling["recall@1"]["mean"]
    )


@pytest.fixture
def folders(tmp_path):
    """Two folders of 12 pictures of 4 people."""
    rng = np.random.default_rng(0)
    for name in ("made", "true"):
        (tmp_path / name / "sub").mkdir(parents=True)
    for i in range(12):
        face = rng.integers(0, 256, (40, 32, 3), np.uint8)
        other = np.clip(face + rng.normal(0, 20, face.shape), 0, 255).astype(np.uint8)
        stem = f"sub/s{i // 3}_frontal_{i}"
        Image.fromarray(face).save(tmp_path / "true" / f"{stem}.png")
        Image.fromarray(other).save(tmp_path / "made" / f"{stem}.{'png' if i % 2 else 'bmp'}")
    return tmp_path / "made", tmp_path / "true"


@pytest.fixture
def pair_config(folders, weights):  # noqa: F811
    from configs import common

    c = common.get_config()
    c.evaluate.update(
        generated=str(folders[0]),
        reference=str(folders[1]),
        batch_size=7,
        weights=f"{weights}/*.safetensors",
        bootstrap=100,
    )
    c.evaluate.update(
        kernel_subset=6, kernel_rounds=10, names=r"(?P<subject>s\d+)_(?P<view>[a-z]+)"
    )
    c.evaluate.retrieval.ks = (1, 3)
    return c


def test_two_folders(pair_config, folders, tmp_path):
    results = evaluated(pair_config, tmp_path / "w")
    assert (
        results["images"] == 12
        and results["subjects"] == 4
        and list(results["rows"]) == ["generated"]
    )
    pairs = PairedFolders(*folders)
    a, b = (
        np.stack([e["generated"][0] for e in pairs]).astype(float),
        np.stack([e["face"] for e in pairs]),
    )
    psnr = 20 * np.log10(255) - 10 * np.log10(((a - b) ** 2).mean((1, 2, 3)))
    assert results["rows"]["generated"]["psnr"]["mean"] == pytest.approx(psnr.mean(), rel=1e-5)
    assert results["retrieval"]["identity/iresnet18"]["same/one"]["seen"] == 4
    for name in ("results.json", "table.md", "table.tex"):
        words = (tmp_path / "w" / name).read_text()
        assert "generated" in words and str(tmp_path) not in words
    assert "12 pictures of 4 people" in pages.report(pair_config, tmp_path / "w").read_text()
    # A set compared with itself.
    pair_config.evaluate.reference = str(folders[0])
    same = evaluated(pair_config, tmp_path / "w")["rows"]["generated"]
    assert same["ssim"]["mean"] == pytest.approx(1, abs=1e-6)
    assert same["lpips/squeeze (unpublished heads)"]["mean"] == pytest.approx(0, abs=1e-9)
    assert same["frechet/squeeze"]["mean"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (1, 1), (30, 8), (16, 16)])
def test_small_pictures(pair_config, tmp_path, size):
    c, rng, made = pair_config.evaluate, np.random.default_rng(0), []
    for field in ("generated", "reference"):
        made.append(rng.integers(0, 256, (3, *size, 3), np.uint8))
        (tmp_path / field).mkdir()
        for i, picture in enumerate(made[-1]):
            Image.fromarray(picture).save(tmp_path / field / f"s{i}_frontal.png")
        c[field] = str(tmp_path / field)
    c.update(kernel_subset=2, weights=c.weights.replace("*", "trunk"))
    if min(size) < 17:
        words = (
            f"trunk squeeze needs pictures of at least 17 x 17 pixels, not {size[0]} x {size[1]}"
        )
        with pytest.raises(InputError, match=words):
            evaluated(pair_config, tmp_path / "w")
        assert not (tmp_path / "w").exists()
    c.weights = ""
    results = evaluated(pair_config, tmp_path / "w")
    row, (a, b) = results["rows"]["generated"], np.float64(made)
    psnr = 20 * np.log10(255) - 10 * np.log10(((a - b) ** 2).mean((1, 2, 3)))
    assert row["psnr"]["mean"] == pytest.approx(psnr.mean(), rel=1e-5)
    needs = f"pictures of at least 11 x 11 pixels, not {size[0]} x {size[1]}"
    assert ("ssim" in row) == (min(size) >= 11)
    assert results["not_computed"].get("ssim") == (None if "ssim" in row else needs)


def test_folders_that_do_not_pair(pair_config, folders, tmp_path):
    c, made, workdir = pair_config.evaluate, folders[0], tmp_path / "w"
    paired = evaluated(pair_config, workdir)
    # The same two sets without paired metrics.
    c.paired = False
    row = evaluated(pair_config, workdir)["rows"]["generated"]
    assert set(row) == {"frechet/squeeze", "kernel/squeeze"}
    for metric, value in row.items():
        assert value["mean"] == pytest.approx(paired["rows"]["generated"][metric]["mean"], rel=1e-4)
    # A file name that one folder lacks.
    c.paired = True
    (made / "sub" / "s0_frontal_1.png").unlink()
    results = evaluated(pair_config, workdir)
    assert set(results["rows"]["generated"]) == set(row)
    words = (workdir / "table.md").read_text()
    assert "11 names are in both folders, of 11 generated and 12 real pictures; not all" in words
    needs = "psnr, ssim, ms-ssim, lpips, arcface, identity: not computed, needs pictures that pair"
    assert needs in words
    assert "11 generated, 12 real" in pages.report(pair_config, workdir).read_text()
    assert "NaN" not in (workdir / "results.json").read_text()


def test_folders_that_can_not_be_compared(pair_config, folders, tmp_path):
    c, made = pair_config.evaluate, folders[0]
    one = made / "sub" / "s0_frontal_1.png"

    def refused(words):
        with pytest.raises(InputError, match=words):
            evaluated(pair_config, tmp_path / "w")
        assert not (tmp_path / "w").exists()

    one.rename(made / "other.png")
    named, c.weights = c.weights, ""
    refused("evaluate.weights='': 11 names are in both folders, .* no network for these is given")
    c.update(weights=named, kernel_subset=13)
    refused("evaluate.kernel_subset=13: the smaller folder has 12 images")
    c.update(kernel_subset=12, batch_size=0)
    refused("evaluate.batch_size=0: a batch holds at least one example")
    c.batch_size = 7
    Image.new("RGB", (20, 30)).save(made / "other.png")
    refused(r"pictures are of 2 sizes, from \(30, 20\) to \(40, 32\)")
    (made / "other.png").write_text("no picture")
    refused("other.png: not a readable picture")
    for path in sorted(made.rglob("*.*")):
        path.unlink()
    refused("evaluate.generated='.*made' holds no picture")
    Image.new("RGB", (32, 40)).save(one)
    refused("evaluate.generated='.*made' holds one picture")


def test_wrong_folders(pair_config, folders, tmp_path):
    c, (made, true) = pair_config.evaluate, folders

    def refused(words):
        with pytest.raises(InputError, match=words):
            evaluated(pair_config, tmp_path / "w")
        assert not (tmp_path / "w").exists()

    c.generated = ""
    refused("set both or none")
    c.generated = str(tmp_path / "nowhere")
    refused("evaluate.generated='.*nowhere' is not a folder")
    c.generated = str(made)
    c.names = "(?P<who>.)"
    refused("has no group")
    c.names = "(?P<subject>x+)"
    refused("finds no subject in 'sub/s0_frontal_0'")
    c.names = "(?P<subject>"
    refused("is not a regular expression")
    c.names = ""
    (made / "sub" / "more.png").write_bytes((made / "sub" / "s0_frontal_1.png").read_bytes())
    (true / "sub" / "more.txt").write_text("no picture")
    refused("more.txt: not a readable picture")
    (true / "sub" / "more.txt").unlink()
    Image.new("RGB", (32, 41)).save(true / "sub" / "more.png")
    refused(
        r"more.png is \(40, 32\), more.png \(41, 32\); pictures that are compared in pairs must be"
        r" of one size"
    )
    broken = (made / "sub" / "s0_frontal_1.png").read_bytes()
    for folder in folders:
        (folder / "sub" / "more.png").write_bytes(broken[: len(broken) // 2])
    refused("more.png: not a readable picture")
    for folder in folders:
        (folder / "sub" / "more.png").unlink()
        Image.fromarray(np.full((40, 32), np.nan, np.float32)).save(folder / "sub" / "more.tiff")
    refused("more.tiff: holds pixels that are not numbers")
    (made / "sub" / "more.tiff").unlink()
    (made / "sub" / "more.png").write_bytes(broken)
    (made / "sub" / "more.bmp").write_bytes(broken)
    refused("have the same name; keep one")
