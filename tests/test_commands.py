"""Runs every command of the documentation, with tiny settings added to it."""

import ast
import contextlib
import csv
import functools
import importlib
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from concurrent import futures
from inspect import signature

import diffusers
import jax
import jax.numpy as jnp
import ml_collections
import nibabel
import numpy as np
import pytest
import safetensors
import torch
from PIL import Image, ImageOps

from configs import common
from cranio_jax import assets, main
from cranio_jax.data import __main__ as learn
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation import evaluate
from cranio_jax.files import buckets
from cranio_jax.methods import make_method
from cranio_jax.metrics.features import Features
from cranio_jax.models import make_embedder
from cranio_jax.models.functional import Network
from cranio_jax.pretrained import __main__ as pretrained
from cranio_jax.pretrained.embedder import open_embedder, save_embedder
from cranio_jax.pretrained.kinds import kinds
from cranio_jax.pretrained.outline import open_outline
from cranio_jax.pretrained.save import tensors_of
from cranio_jax.reporting import tables
from data_builders.cranio_phantom import cohort, overview
from data_builders.cranio_phantom.cranio_phantom_dataset_builder import (
    make_config,
    subject_records,
)
from data_builders.images import staging
from data_builders.rendering import ct
from data_builders.skull_face import draft
from launch import local_processes, study
from launch.measure import benchmark, parity, sampling, scaling, sd15
from tests.data_builders import text_pictures
from tests.data_builders.test_cephalograms import write_challenge
from tests.data_builders.test_ct_heads import head_like
from tests.data_builders.test_iit_mandi_s2f import folder as public_set  # noqa: F401
from tests.data_builders.test_iit_mandi_s2f import quick_text  # noqa: F401
from tests.data_builders.test_skull_face import skull
from tests.documentation import ROOT, commands_of, inline_of, pages
from tests.pretrained.conftest import write_pipeline
from tests.program import forget_flags

PROGRAM = r"python -m cranio_jax\.main --config=configs/"
STUDY = r"python launch/study\.py --study=configs/"
# Commands that are run below, by the name that they have there. Each expression matches one command
# as a whole.
RUN_HERE = {
    "first picture": rf"{PROGRAM}demo\.py --config\.job=reconstruct .*",
    "demo": rf"{PROGRAM}demo\.py --workdir=/tmp/cranio",
    "from scratch": rf"{PROGRAM}from_scratch\.py --workdir=DIR",
    "prompt words": r"python launch/prompt_words\.py .*",
    "synthesis": r"python launch/synthesis\.py .*",
    "sampling": r"python launch/sampling\.py .*",
    "embedder": rf"{PROGRAM}arcface\.py --.*",
    "score again": rf"{PROGRAM}demo\.py .*job=evaluate .*embedder\.safetensors",
    "reconstruct": rf"{PROGRAM}demo\.py --workdir=/tmp/cranio .*job=reconstruct .*",
    "folders": rf"{PROGRAM}common\.py .*evaluate\.generated=.*",
    "processes": r"python launch/local_processes\.py .*",
    "status": rf"{PROGRAM}demo\.py.*job=status",
    "convert": r"python -m cranio_jax\.pretrained convert .*",
    "cranio_diff": rf"{PROGRAM}cranio_diff\.py .*FOLDER_OR_HUB_ID.*",
    "cranio_diff_robust": rf"{PROGRAM}cranio_diff_robust\.py .*",
    "tokenizer": r"python -m cranio_jax\.data tokenizer .*",
    "autoencoder": rf"{PROGRAM}autoencoder\.py --.*",
    "text_to_image": rf"{PROGRAM}text_to_image\.py --.*",
    "export": rf"{PROGRAM}cranio_diff\.py .*job=export",
    "draft": r"python -m data_builders\.skull_face\.draft hospital > .*",
    "draft a folder": r"python -m data_builders\.skull_face\.draft FOLDER > .*",
    "inspect": rf"{PROGRAM}demo\.py .*job=inspect .*",
    "own data": rf"{PROGRAM}demo\.py --workdir=run .*",
    "synthesize": rf"{PROGRAM}synthesize\.py .*",
    "pix2pix": rf"{PROGRAM}pix2pix\.py .*",
    "cyclegan": rf"{PROGRAM}cyclegan\.py .*",
    "cut": rf"{PROGRAM}cut\.py .*",
    "siamese": rf"{PROGRAM}siamese\.py .*",
    "outline": rf"{PROGRAM}outline\.py --.*",
    "challenge": r"python -m data_builders\.cephalograms\.challenge .*",
    "varied picture": rf"{PROGRAM}demo\.py:varied --config\.job=reconstruct .*",
    "millimetres": rf"{PROGRAM}demo\.py:varied --workdir=mm .*cephalograms.*",
    "public set": rf"{PROGRAM}common\.py .*iit_mandi_s2f.*",
    "ct": r"python -m data_builders\.rendering\.ct .*",
    "diffusers": r"import diffusers\n\n.*",
    "diffusers with an X-ray": r"import pathlib\n\nimport diffusers.*",
    "builder": r"import tensorflow_datasets.*",
    "ceiling": r"python -m data_builders\.cranio_phantom\.overview ceiling",
    "text pictures": r"python -m tests\.data_builders\.text_pictures .*",
    "study": rf"{STUDY}study_phantom\.py --workdir=DIR",
    "study published": rf"{STUDY}study_phantom\.py:published .*--cell=K",
    "study judge": rf"{STUDY}study_phantom\.py:published .*--cell=0",
    "study 128": rf"{STUDY}study_128\.py --workdir=DIR",
    "study paper": rf"{STUDY}study_paper\.py .*",
    "compare": rf"{STUDY}study_phantom\.py:published .*--compare",
    "benchmark": r"python launch/benchmark\.py",
    "benchmark of memory": r"python launch/benchmark\.py --cases=both,both-remat",
    "benchmark of data": r"python launch/benchmark\.py --cases=batches.*",
    "benchmark of metrics": r"python launch/benchmark\.py .*inception.*",
    "parity": r"python launch/parity\.py",
    "scaling": r"python launch/scaling\.py",
    "pod": r"launch/tpu_pod\.sh .*",
    "slurm": r"sbatch .*launch/slurm\.sbatch .*",
}
# Several commands of one kind.
KINDS = {
    "more text pictures": r"\.\.\. FOLDER \d+ \d+",
    "cells": r"\.\.\. --cell=\d+",
    "recipes": rf"{PROGRAM}\w+\.py:phantom_\w+ .*",
    "install": r"pip install .*",
    "slurm dry": r"DRY_RUN=1 bash launch/slurm\.sbatch \.\.\.",
}
# Commands that are run elsewhere: by continuous integration, or by tests with a storage server,
# which needs no login and gets its records from the program. Each has the file and words of it.
ELSEWHERE = {
    r"python -m pytest -q -n 2": (".ci/run", "<!-- test command -->"),
    r'"""Mean absolute error of a face.*': ("tests/test_extending.py", '"""Mean absolute error'),
    r'"""A linear map from each pixel.*': ("tests/test_extending.py", '"""A linear map'),
    r'"""People whose X-rays.*': ("tests/test_extending.py", '"""People whose'),
    r"ruff check \.": (".ci/run", "ruff check ."),
    r"ruff format --check \.": (".ci/run", "ruff format --check ."),
    r"gcloud auth application-default login": ("tests/files/test_buckets.py", "def server"),
    r"gcloud storage cp -r records gs://.*": ("tests/files/test_buckets.py", "def published"),
    r"tfds build --data_dir=gs://.*": (
        "tests/files/test_buckets.py",
        "records are built and read on a",
    ),
}


@functools.cache
def documented_commands():
    """Returns each command of the documentation once."""
    return sorted({command for text in pages().values() for command in commands_of(text)})


def covered_by(expression):
    """Returns the commands that an expression matches as a whole."""
    return [text for text in documented_commands() if re.fullmatch(expression, text, re.DOTALL)]


def command(name):
    """Returns the command of the documentation that an entry of RUN_HERE covers."""
    (text,) = covered_by(RUN_HERE[name])
    return text


def test_each_command_is_covered():
    """A new command in the documentation needs an entry, and an entry a command."""
    entries = RUN_HERE | KINDS | {expression: expression for expression in ELSEWHERE}
    covered = {name: covered_by(expression) for name, expression in entries.items()}
    assert not [name for name, texts in covered.items() if not texts]
    assert not [name for name in RUN_HERE if len(covered[name]) > 1]
    assert sorted(text for texts in covered.values() for text in texts) == documented_commands()
    source = pathlib.Path(__file__).read_text()
    assert not [name for name in RUN_HERE | KINDS if source.count(f'"{name}"') < 2]
    for file, words in ELSEWHERE.values():
        assert words in (ROOT / file).read_text()


def parse(*arguments):
    """Returns the configuration and the workdir that the program's arguments set."""
    forget_flags()
    main.parse(["main", *arguments])
    return main._CONFIG.value, main._WORKDIR.value


def run(name, *tiny, **places):
    """Runs a command of the program with tiny settings added; returns its workdir.

    `places` replaces the placeholders of the command, such as DIR, by the values here.
    """
    text = command(name).removeprefix("python -m cranio_jax.main ")
    places = places | {"/tmp/": ""}
    names = "|".join(sorted(places, key=len, reverse=True))
    text = re.sub(f"=({names})", lambda match: f"={places[match[1]]}", text)
    config, workdir = parse(*shlex.split(text), *tiny)
    folder = buckets.open_folder(workdir, "--workdir") if workdir else None
    main.run(config, folder)
    return folder


def settings(block, **fields):
    return [f"--config.{block}.{name}={value}" for name, value in fields.items()]


def differences(source, target, prefix="--config."):
    """Yields the flags that turn the configuration `source` into `target`."""
    for name, value in target.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from differences(source.get(name, {}), value, f"{prefix}{name}.")
        elif name != "name" and source.get(name) != value:
            yield f"{prefix}{name}={value}"


def tiny(config, name, **changes):
    """Returns flags that make configs/NAME.py as small as the configuration of other tests.

    Programs that those tests compiled are then not compiled again.
    """
    module = importlib.import_module(f"configs.{name}")
    smallest = config if name == "from_scratch" else module.get_config("smoke")
    smallest.data = config.data
    smallest.mesh = config.mesh
    smallest.method.update(changes)
    return list(differences(module.get_config(), smallest))


def script(monkeypatch, module, text, *more):
    """Runs the main function of a module in launch/ with a command's flags, and `more` flags."""
    words = shlex.split(text.removeprefix("python "))
    monkeypatch.setattr("sys.argv", [*words, *more])
    module.main()


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Changes to an empty folder, and returns it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# The demo


def test_demo(config, desk, capsys, quick_steps):
    # Train and score.
    demo = tiny(config, "demo")
    workdir = run("demo", *demo)
    names = {"results.json", "table.md", "table.tex", "report.html", "checkpoints", "faces"}
    assert names <= {path.name for path in workdir.iterdir()}
    shipped = json.loads((workdir / "results.json").read_text())["retrieval"]

    # Score again with an embedder.
    embedder = run("embedder", *tiny(config, "arcface", channels=4, height=16, width=16))
    run("score again", *demo)
    again = json.loads((workdir / "results.json").read_text())["retrieval"]
    assert shipped and again and shipped != again

    # Read the state of the run.
    capsys.readouterr()
    run("status", **{"/tmp/two": "cranio"})
    assert "step 4 of 4" in capsys.readouterr().out

    # Reconstruct faces from X-rays.
    (desk / "xrays").mkdir()
    for side in (60, 90):
        Image.linear_gradient("L").resize((70, side)).save(desk / "xrays" / f"{side}.png")
    run("reconstruct", *demo)
    assert len(list(workdir.rglob("sheet.png"))) == 2

    # Score two folders of pictures.
    for folder in ("MADE", "REAL"):
        (desk / folder).mkdir()
        for number, subject in enumerate(("ann", "bob", "eve")):
            values = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
            for view in ("frontal", "lateral"):
                Image.fromarray(values).save(desk / folder / f"{subject}-0-{view}-25.png")
    (desk / "weights").mkdir()
    shutil.copy(embedder / "embedder.safetensors", desk / "weights")
    scores = run(
        "folders", *settings("evaluate", bootstrap=20), *settings("evaluate.retrieval", ks="(1,)")
    )
    results = json.loads((scores / "results.json").read_text())
    assert results["subjects"] == 3 and results["retrieval"] and (scores / "table.md").exists()


def test_first_picture(desk):
    """A fresh install draws the person of the X-ray: to the judge it looks like nobody else."""
    run("first picture", "--config.mesh.data=1", **{"docs/": f"{ROOT}/docs/"})
    (folder,) = (desk / "reconstructions").iterdir()
    assert (folder / "sheet.png").exists()
    made = [np.asarray(Image.open(path)) for path in sorted(folder.glob("face_*.png"))]

    # The X-ray in docs/ is that of the second person of seed 7.
    cohort = make_config(size=128, seed=7, appearances=1)
    frontal = [subject_records(cohort, index)[0][1]["face"] for index in range(6)]
    real = [np.asarray(Image.open(face)) for face in frontal]

    judge = Features(str(assets.located("shipped:phantom_judge.safetensors")), (0, 0, 1, 1))
    params = judge.load(sharding.make_mesh(1, 1))
    (vectors,) = judge.embed(params, jnp.asarray(np.stack([*made, *real]))).values()
    vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors[: len(made)] @ vectors[len(made) :].T
    assert cosines.mean(0).argmax() == 1


def test_diffusers_opens_what_ships(desk):
    """The prompt alone gives a face whose hair and skin are darker than the wall behind."""
    (desk / "cranio_jax").symlink_to(ROOT / "cranio_jax")
    exec(command("diffusers"), {})
    face = np.asarray(Image.open(desk / "face.png")).mean(-1)
    assert face.shape == (128, 128)
    assert face[40:90, 45:85].mean() < face[:10, :10].mean() - 30


def head_of(face):
    """Returns where a picture differs from the wall behind the head."""
    return np.abs(np.asarray(face) - np.asarray(face)[2, 2].astype(float)).max(-1) > 40


def test_faces_lie_where_the_head_is(desk):
    """Also in an X-ray that is moved and mirrored, by the program and by diffusers."""
    (desk / "cranio_jax").symlink_to(ROOT / "cranio_jax")
    (desk / "docs").mkdir()
    small = Image.open(ROOT / "docs/xray_lateral.png").convert("L").resize((104, 104))
    moved = Image.new("L", (128, 128))
    moved.paste(ImageOps.mirror(small), (20, 24))
    moved.save(desk / "docs/xray_lateral.png")
    run("varied picture", "--config.mesh.data=1", "--config.reconstruct.num_samples=1")
    exec(command("diffusers with an X-ray"), {})
    (made,) = desk.glob("reconstructions/*/face_*.png")
    bone = np.asarray(moved) > 60
    for face in (Image.open(desk / "face.png"), Image.open(made)):
        assert face.size == (128, 128)
        head = head_of(face)
        assert (head & bone).sum() > 0.95 * bone.sum() and head.sum() < 3 * bone.sum()
        assert not head[:16].any()


def test_prompt_words(config, desk):
    words = shlex.split(command("prompt words"))
    small = [*tiny(config, "demo"), "--people=1"]
    done = subprocess.run(
        [sys.executable, ROOT / words[1], *words[2:], *small], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| bmi_change 10 |" in done.stdout and (desk / "PICTURE.png").exists()


@pytest.mark.slow
def test_sampling(config, desk, quick_steps, monkeypatch):
    """Each value is measured on validation people, and changes faces; the figure shows it."""
    small = [*tiny(config, "demo"), *settings("data", validation_subjects=4)]
    settings_of_run, _ = parse("--config=configs/demo.py", "--workdir=run", *small)
    main.run(settings_of_run, desk / "run")
    words = shlex.split(command("sampling"))
    picture = desk / words[-1].removeprefix("--figure=")
    found, workdir = parse(*words[2:-1], *small)[0], desk / "run"
    monkeypatch.setattr(sampling, "GRID", {"temperature": (0.5,), sampling.SAMPLES: (1, 2)})
    monkeypatch.setattr(sampling, "_DRAWN", 2)

    points = sampling.measure(found, workdir)
    assert [(p.setting, p.value) for p in points] == [
        *(("temperature", 0.5), ("temperature", 1.0)),
        *((sampling.SAMPLES, 1), (sampling.SAMPLES, 2)),
    ]
    half, one, single, mean = (p.measures for p in points)
    assert half["spread"].mean < one["spread"].mean == mean["spread"].mean
    assert single["identity"] == one["identity"] != mean["identity"]
    # The scores of test people stay, and those of validation people say so.
    assert json.loads((workdir / "results.json").read_text()).get("split") is None
    found.evaluate.update(split="validation", num_samples=1)
    assert "these are validation people" in tables.markdown(evaluate.score(found, workdir))

    sampling.figure(points, {"temperature": 1.0}, picture)
    with Image.open(picture) as chart:
        assert chart.width > 400 and len(set(chart.convert("L").tobytes())) > 50
    table = sampling.text(points).splitlines()
    assert table[2].startswith("| temperature 0.5 | ") and len(table) == 6

    found.data.validation_subjects = 0
    with pytest.raises(InputError, match="data.validation_subjects=0: settings are chosen on"):
        sampling.measure(found, workdir)


def test_synthesis(config, desk):
    """The tables of faces made of photographs; distances need files of LPIPS, which are no part."""
    words = shlex.split(command("synthesis"))
    small = [
        f"--config.data.data_dir={config.data.data_dir}",
        *settings("data.settings", size=32),
        *settings("data.cranio_phantom", subjects=24),
        *settings("synthesize", iterations=1),
        *settings("sampling", num_steps=1),
        *settings("evaluate", weights=""),
        "--people=1",
    ]
    done = subprocess.run(
        [sys.executable, ROOT / words[1], *words[2:], *small], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("| 16 faces of 1 people | faces made |")
    with Image.open(desk / "PICTURE.png") as sheet:
        assert sheet.size == (9 * 32, 20 + 4 * 32)


def test_from_scratch(config, desk, quick_steps):
    workdir = run("from scratch", *tiny(config, "from_scratch"), DIR="scratch")
    assert (workdir / "table.md").exists()


def test_processes(monkeypatch, capsys):
    """Parses the commands that the launcher would start; test_processes.py starts two."""
    script(monkeypatch, local_processes, command("processes").replace(" -- ", " --dry-run -- "))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("device_count=4" in line for line in lines)
    for line in lines:
        config, workdir = parse(*shlex.split(line.partition(" cranio_jax.main ")[2]))
        assert (config.name, workdir) == ("demo:smoke", "/tmp/two")


# Stable Diffusion


def feature_file(title):
    """Returns random positive weights with the shapes of a published network."""
    shapes = next(kind.shapes for kind in kinds() if title in kind.title)
    return {key: torch.rand(shape) / 100 for key, shape in shapes.items()}


def test_convert(desk):
    torch.save(feature_file("heads for vgg"), desk / "FILE.pth")
    pretrained.main(shlex.split(command("convert"))[3:])
    with safetensors.safe_open(desk / "OUT.safetensors", "np") as file:
        assert len(file.keys()) == 5


STABLE_DIFFUSION = [
    *settings("data.settings", size=32, pairing="matched"),
    *settings("data.cranio_phantom", subjects=24),
    *settings("data", cached_variants=1),
    *settings("method.controlnet", conditioning_embedding_out_channels="(4,8)"),
    *settings("method.losses", trunk="squeeze", embedder_file="embedder.safetensors"),
    *settings("train", batch_size=8),
    "--config.compute_dtype=float32",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns a folder with small files, which have the names in the commands."""
    folder = tmp_path_factory.mktemp("files")
    write_pipeline(folder / "FOLDER", "1.5", control=False)
    (folder / "FOLDER_OR_HUB_ID").symlink_to(folder / "FOLDER")
    torch.save(feature_file("trunk squeeze"), folder / "vgg16.pth")
    torch.save(feature_file("heads for squeeze"), folder / "vgg.pth")
    network = {"network": "iresnet18", "channels": 4, "height": 16, "width": 16}
    params = Network(make_embedder(network)).init(jax.random.key(0))
    save_embedder(folder / "embedder.safetensors", params, network, (0.2, 0.2, 0.6, 0.6), 0)
    return folder


def test_stable_diffusion(files, records, quick_steps, monkeypatch):
    monkeypatch.chdir(files)
    small = [*STABLE_DIFFUSION, f"--config.data.data_dir={records}"]
    workdir = run("cranio_diff", *small, *ONE_STEP)
    assert len(quick_steps) == 1 and list(records.rglob("encoded/*"))
    run("export", *small)
    exported = workdir / "export" / "ema_float32"
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(exported)
    assert isinstance(pipeline.controlnet, diffusers.ControlNetModel)
    workdir = run("cranio_diff_robust", *small, *ONE_STEP, DIR="ROBUST")
    assert len(quick_steps) == 2 and (workdir / "checkpoints" / "1").exists()


def test_recipes_of_what_ships():
    """Each network that ships has the fields that its recipe sets."""
    for text in covered_by(KINDS["recipes"]):
        config, _ = parse(*shlex.split(text)[3:])
        people = config.data.cranio_phantom
        assert people.people == "networks" and people.appearances == 3
        if config.method.name == "outline":
            shipped = assets.located("shipped:phantom_cranio_diff") / "controlnet"
            outline = open_outline(shipped / "outline.safetensors")
            assert outline.settings["side"] == config.data.settings.size
            assert tuple(outline.settings["widths"]) == config.method.widths
            continue
        if config.method.name == "arcface":
            name = config.name.partition(":")[2]
            embedder = open_embedder(assets.located(f"shipped:{name}.safetensors"))
            assert embedder.settings.items() <= config.method.to_dict().items()
            assert (embedder.crop, embedder.seed) == (tuple(config.method.crop), config.seed)
            continue
        for part in ("vae", "unet", "text_encoder", "scheduler", "controlnet"):
            folder = assets.located("shipped:phantom_sd") / part
            if part == "controlnet":
                folder = assets.located("shipped:phantom_controlnet")
            stated = json.loads(next(folder.glob("*config.json")).read_text())
            for field, value in config.method.get(part, {}).items():
                assert stated[field] == (list(value) if isinstance(value, tuple) else value), field


SMALL_FACES = [
    *settings("data.settings", size=32),
    *settings("data.cranio_phantom", subjects=24),
    *settings("train", batch_size=8),
    *settings("sampling", num_steps=1),
    *settings("evaluate", batch_size=16, bootstrap=20),
]


def test_a_stable_diffusion_of_ones_own(desk, records, quick_steps):
    """A tokenizer, an autoencoder, and a U-Net with a text encoder for both."""
    learn.main(shlex.split(command("tokenizer"))[3:])
    small = [*SMALL_FACES, f"--config.data.data_dir={records}", *ONE_STEP]
    vae = settings("method.vae", block_out_channels="(8,8,8,8)", norm_num_groups=4)
    workdir = run("autoencoder", *small, *vae, "--config.method.losses.lpips=0.0")
    run("autoencoder", *small, *vae, "--config.method.losses.lpips=0.0", "--config.job=export")
    exported = workdir / "export" / "ema_float32"
    diffusers.AutoencoderKL.from_pretrained(exported).save_pretrained(desk / "FOLDER")

    unet = settings(
        "method.unet",
        block_out_channels="(8,)",
        down_block_types="('DownBlock2D',)",
        up_block_types="('UpBlock2D',)",
        attention_head_dim=2,
        norm_num_groups=4,
    )
    workdir = run("text_to_image", *small, *unet, DIR="PRIOR")
    run("text_to_image", *small, *unet, "--config.job=export", DIR="PRIOR")
    folder = workdir / "export" / "ema_float32"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    picture = pipeline("a woman", height=32, width=32, num_inference_steps=1).images[0]
    assert picture.size == (32, 32)


# Your own data


def drafted(name):
    """Runs a draft as a shell would, which opens the file first; returns the list's path."""
    source, target = command(name).split(" draft ")[-1].split()[-3::2]
    with open(target, "w") as file, contextlib.redirect_stdout(file):
        draft.main(source)
    return pathlib.Path(target)


def write_people(folder):
    """Writes X-rays and photographs of six people, one folder each."""
    for number in range(6):
        person = folder / f"person{number}"
        person.mkdir(parents=True)
        for view in ("front", "side"):
            picture = skull(2 * number + (view == "side"))
            Image.fromarray(np.uint8(255 * picture)).save(person / f"{view}.png")
            values = np.random.default_rng(number).integers(0, 256, (9, 8, 3), np.uint8)
            photograph = Image.fromarray(values).resize((80, 90))
            photograph.save(person / f"{view}_{20 + 5 * number}y.jpg")


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Returns a folder with a hospital and its list, as the commands make them."""
    place = tmp_path_factory.mktemp("own")
    write_people(place / "hospital")
    with contextlib.chdir(place):
        people = drafted("draft")
    rows = list(csv.DictReader(people.open() if people.is_absolute() else (place / people).open()))
    assert len(rows) == 12 and not any(row["sex"] for row in rows)
    # Fill in what the draft could not know.
    with open(place / people, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"sex": "fm"[int(row["subject"][-1]) % 2]} for row in rows)
    return place


ONE_STEP = [*settings("train", num_steps=1, checkpoint_every=0), "--config.job=train"]
OWN = [
    *settings("data.skull_face", text="keep", test_fraction=0.4),
    "--config.data.data_dir=records",
]


def test_own_data(config, hospital, quick_steps, monkeypatch):
    monkeypatch.chdir(hospital)
    looked = run("inspect", *OWN, *settings("data.settings", size=128))
    assert "<h2>Pairs</h2>" in (looked / "inspect.html").read_text()
    assert not (hospital / "records" / "skull_face").exists()
    demo = [flag for flag in tiny(config, "demo") if "data_dir" not in flag]
    workdir = run("own data", *demo, *ONE_STEP, *OWN)
    assert (workdir / "checkpoints" / "1").exists() and quick_steps == [(8, 32, 32, 1)]
    assert list((hospital / "records").rglob("dataset_info.json"))


def test_faces_at_other_ages(config, hospital, quick_steps, monkeypatch):
    """From a draft to a page of results, with faces that are made on the way and told apart."""
    monkeypatch.chdir(hospital)
    quickly = [
        *settings("data.settings", size=32),
        *settings("data.skull_face", align=False),
        *settings("prompt", length=32),
        *settings("sampling", num_steps=1),
        *settings("synthesize", ages="(25.0,)", bmi_changes="(0.0,)", iterations=1),
        *settings("synthesize", least_cosine=-1.0),
    ]
    places = {"LIST": "hospital/people.csv", "FOLDER_OR_HUB_ID": "shipped:phantom_sd"}
    places |= {"DIR": "made", "FILE": "shipped:phantom_judge.safetensors"}
    run("synthesize", *quickly, *OWN, **places)
    both = "--config.data.skull_face.manifest=hospital/people_synthesized.csv"
    looked = run("inspect", *OWN, *settings("data.settings", size=32), both)
    faces = json.loads((looked / "inspect.json").read_text())["counts"]["pairs, face"]
    # The second person is 25 years old already.
    assert sum(split["photograph"] for split in faces.values()) == 12
    assert sum(split["synthetic"] for split in faces.values()) == 10
    assert faces["test"]["photograph"] == 4

    # Train on both, and score the photographs of the others.
    small = tiny(config, "demo")
    demo = [flag for flag in small if "data_dir" not in flag and "retrieval.ks" not in flag]
    demo += settings("train", num_steps=1, checkpoint_every=0)
    demo += settings("evaluate.retrieval", ks="(1,)")
    workdir = run("own data", *demo, *OWN, both, "--workdir=both")
    results = json.loads((workdir / "results.json").read_text())
    assert results["images"] == 4 and "synthetic" not in results
    assert (workdir / "report.html").exists()


@pytest.mark.parametrize("name", ["pix2pix", "cyclegan", "cut", "siamese"])
def test_baselines(name, config, hospital, quick_steps, monkeypatch):
    monkeypatch.chdir(hospital)
    small = {} if name == "siamese" else dict(channels=4, discriminator_layers=1)
    small |= dict(blocks=1) if name == "cyclegan" else {}
    flags = [flag for flag in tiny(config, name, **small) if "data_dir" not in flag]
    workdir = run(name, *flags, *ONE_STEP, *OWN, DIR=name, LIST="hospital/people.csv")
    assert (workdir / "checkpoints" / "1").exists() and quick_steps == [(8, 32, 32, 1)]


def test_an_outline_network(config, desk):
    flags = [flag for flag in tiny(config, "outline") if "name" not in flag]
    workdir = run("outline", *flags, *settings("train", num_steps=1, checkpoint_every=0))
    assert open_outline(workdir / "outline.safetensors").settings["side"] == 32


def test_a_draft_of_another_folder(desk):
    write_people(desk / "FOLDER")
    assert len(drafted("draft a folder").read_text().splitlines()) == 13


def test_the_public_set(public_set, quick_text, desk, monkeypatch):  # noqa: F811
    """Searches three X-rays only for text, in this process."""
    monkeypatch.setattr(staging.loky, "ProcessPoolExecutor", futures.ThreadPoolExecutor)
    workdir = run("public set", *settings("data.settings", size=64), FOLDER=public_set)
    assert json.loads((workdir / "inspect.json").read_text())["xrays"] == 102


def test_errors_in_millimetres(desk):
    """From the challenge's own files to the table, with the networks that ship."""
    write_challenge(desk / "FOLDER", people=5)
    done = subprocess.run(
        [sys.executable, *shlex.split(command("challenge").partition(" > ")[0])[1:]],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    (desk / "FOLDER" / "cephalograms.csv").write_text(done.stdout)
    small = [*settings("sampling", num_steps=1), *settings("evaluate", bootstrap=20)]
    workdir = run("millimetres", *small, "--config.mesh.data=1", "--config.data.data_dir=records")
    depths = json.loads((workdir / "results.json").read_text())["depths"]
    assert depths["images"] == depths["unknown"] == 5 and len(depths["rows"]) == 4
    assert "outline alone" in depths["rows"]
    assert "5 X-rays of 5 real people" in (workdir / "table.md").read_text()
    assert "overlaid" in (workdir / "report.html").read_text()
    with Image.open(workdir / "cephalograms.png") as sheet:
        panels = np.asarray(sheet).reshape(2, 128, 12, 128, 3)
    # Eight landmarks are drawn on the first person's face.
    assert 8 <= (panels[0, :, 3] != panels[0, :, 1]).any(-1).sum() <= 32


@pytest.fixture
def rank_promotion():
    """Allows rank promotion, as the tests of data_builders do."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
def test_a_head_to_look_at(desk, rank_promotion, monkeypatch):
    monkeypatch.setattr(ct, "voxel_for", lambda size: 4.0)  # as test_ct_heads.py has it
    nibabel.save(nibabel.Nifti1Image(*head_like()), desk / "HEAD.nii.gz")
    ct.main(*shlex.split(command("ct"))[3:], "32")
    names = {"xray_frontal.png", "xray_lateral.png", "face_frontal.png", "face_lateral.png"}
    assert {path.name for path in (desk / "OUT_FOLDER").iterdir()} == names


def test_the_builder_in_python(config, records):
    from cranio_jax import data

    data.make_builder(config.data)  # the records that other tests use too
    text = command("builder")
    ready = f"phantom.make_config(size=32, subjects=24), data_dir={str(records)!r}"
    names = {}
    exec(text.replace('"matched_128"', ready), names)
    assert names["record"]["xray"].shape == (32, 32, 1)
    assert "matched_128" in names["phantom"].Builder.builder_configs
    (other,) = re.findall(r"phantom\.make_config\(.*?\)", text)
    assert eval(other, names).name == "matched_96-n40-seed1"


@pytest.mark.slow
def test_the_ceiling(monkeypatch, capsys, rank_promotion):
    monkeypatch.setattr(overview.ceiling, "__defaults__", (64, 3))
    monkeypatch.setattr(cohort, "AGES", (45,))
    monkeypatch.setattr(cohort, "BMI_CHANGES", (0,))
    overview.main(*shlex.split(command("ceiling"))[3:])
    assert capsys.readouterr().out.count(" dB") == 2


def test_the_search_for_text(desk, monkeypatch, capsys):
    (desk / "FOLDER").mkdir()
    Image.fromarray(np.uint8(255 * skull(0))).save(desk / "FOLDER" / "a.jpg")
    monkeypatch.setattr(text_pictures, "phantoms", lambda people: [])
    text_pictures.main(*shlex.split(command("text pictures"))[3:], "1")
    assert "of 1 pictures with a legible word left" in capsys.readouterr().out
    for text in covered_by(KINDS["more text pictures"]):
        signature(text_pictures.main).bind(*shlex.split(text)[1:])


# Studies


def cells_of(name):
    """Returns the cells of a study's command."""
    words = shlex.split(command(name))
    (configuration,) = (word.partition("=")[2] for word in words if word.startswith("--study="))
    more = [word for word in words if word.startswith("--config.")]
    return study.cells_of(
        study.read_study(configuration), pathlib.Path("w"), pathlib.Path("w"), more
    )


@pytest.mark.parametrize(
    "name", ["study", "study published", "study judge", "study 128", "study paper"]
)
def test_studies(name, desk, monkeypatch, capsys):
    """Lists the cells and parses their flags; CI runs the smallest study."""
    script(monkeypatch, study, command(name).replace("--cell=K", "--cell=1"), "--list")
    lines = capsys.readouterr().out.splitlines()
    cells = cells_of(name)
    assert (
        len(lines) == len(cells)
        and "configs/study_phantom.py:smoke" in (ROOT / ".ci" / "run").read_text()
    )
    for cell in cells:
        parse(*cell.command()[3:])
    if name == "study judge":
        for text in covered_by(KINDS["cells"]):
            (row,) = (
                line for line in pages()["results/README.md"].splitlines() if f"`{text}`" in line
            )
            assert f"{int(text.partition('=')[2]):3d}  {row.split('|')[1].strip()}" in lines


def test_a_comparison_again(desk, monkeypatch):
    workdir = desk / "results" / "study_phantom"
    shutil.copytree(ROOT / "results" / "study_phantom" / "cells", workdir / "cells")
    script(monkeypatch, study, command("compare"))
    assert (workdir / "study.html").exists()
    for row in ("cranio_diff longer", "pix2pix longer", "siamese"):
        assert f"| {row} |" in (workdir / "table.md").read_text()


# Measuring


@pytest.fixture
def tiny_networks(monkeypatch):
    """Gives Stable Diffusion 1.5 few channels and layers."""
    small = dict(layers_per_block=1, block_out_channels=(32, 32))
    down = ("CrossAttnDownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "CrossAttnUpBlock2D")
    monkeypatch.setattr(sd15, "UNET", sd15.UNET | small | dict(down_block_types=down))
    monkeypatch.setattr(sd15, "UP", dict(up_block_types=up))
    small["block_out_channels"] *= 2
    monkeypatch.setattr(sd15, "VAE", sd15.VAE | small)
    small = dict(intermediate_size=16, num_hidden_layers=1)
    monkeypatch.setattr(sd15, "TEXT", sd15.TEXT | small)


def test_parity(monkeypatch, capsys):
    """Checks the flags only, because the program has no smaller networks."""
    with pytest.raises(SystemExit) as ended:
        script(monkeypatch, parity, command("parity"), "--size=64", "--help")
    assert ended.value.code == 0 and "--size" in capsys.readouterr().out


def test_scaling(tiny_networks, monkeypatch, capsys):
    def kept(method, state, frozen, batch):
        """Pretends that a picture takes a gigabyte; test_scaling.py tests the real count."""
        return 10**9 * len(batch["xray"])

    monkeypatch.setattr(scaling, "kept_for_backward", kept)
    need = scaling.need("controlnet")
    monkeypatch.setattr(scaling, "need", lambda case: need)
    script(monkeypatch, scaling, command("scaling"))
    assert capsys.readouterr().out.count("| 64 x H200 |") == 4


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("benchmark", ["--cases=lpips-alex", "--sizes=64"]),
        ("benchmark of metrics", ["--cases=lpips-alex", "--sizes=64", "--batches=1"]),
        ("benchmark of data", ["--cases=batches-cached", "--sizes=32", "--batches=2"]),
        ("benchmark of memory", ["--cases=lpips-alex", "--sizes=64"]),
    ],
)
def test_benchmarks(name, small, monkeypatch, desk, capsys):
    """Measures in this process instead of a child process."""
    monkeypatch.setattr(benchmark, "child", benchmark.measure)
    script(monkeypatch, benchmark, command(name), *small, "--repeats=1", "--output=figures.json")
    lines = json.loads((desk / "figures.json").read_text())
    assert lines and all(line["seconds"] > 0 for line in lines)


# Launching and installing


def started_by(text, **variables):
    """Returns the configuration and the workdir with which a launcher would start the program."""
    environment = os.environ | variables
    words = ["bash", "-c", text]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    line = " ".join(shlex.split(done.stdout.splitlines()[-1]))
    return parse(*shlex.split(line.partition(" cranio_jax.main ")[2]))


def test_launchers():
    config, workdir = started_by(command("pod").replace(" -- ", " --dry-run -- "))
    assert (workdir, config.data.data_dir) == ("gs://BUCKET/RUN", "gs://BUCKET/records")
    (dry,) = covered_by(KINDS["slurm dry"])
    arguments = command("slurm").partition("slurm.sbatch ")[2]
    config, workdir = started_by(dry.replace("...", arguments))
    assert (workdir, config.name) == ("/shared/RUN", "cranio_diff")


def test_what_can_be_installed():
    """Checks that the extras exist; CI installs the one of the tests."""
    (extras,) = (
        ast.literal_eval(keyword.value)
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "extras_require"
    )
    packages = {package for extra in extras.values() for package in extra}
    for text in covered_by(KINDS["install"]):
        for word in shlex.split(text)[2:]:
            if word not in packages | {"-e", "."}:
                assert word.startswith(".[") and set(word[2:-1].split(",")) <= set(extras), text


# Flags and fields that the text names


def accepts(name, words):
    """Returns True if configs/NAME.py knows the flags; those without a value only need a field."""
    try:
        config, _ = parse(f"--config=configs/{name}.py", *(w for w in words if not w.endswith("=")))
        for word in words:
            functools.reduce(
                lambda block, field: block[field],
                word.partition("=")[0].removeprefix("--config.").split("."),
                config,
            )
    except (InputError, KeyError):
        return False
    return True


def test_flags_in_the_text_are_known():
    blocks = "|".join(name for name, value in common.get_config().items() if hasattr(value, "keys"))
    field = re.compile(rf"({blocks})(\.\w+)+(=\S+)?|job=\w+")
    scripts = (ROOT / "launch").glob("*.*"), (ROOT / "launch" / "measure").glob("*.py")
    sources = [ROOT / "cranio_jax" / "main.py", *itertools.chain(*scripts)]
    others = "".join(path.read_text() for path in sources if path.suffix != ".md")
    unknown = []
    for page, text in pages().items():
        for code in inline_of(text):
            words = code.split()
            # A script may have the name of a block: `sampling.py`.
            if field.fullmatch(code) and not code.endswith(".py"):
                words = [f"--config.{code}" if "=" in code else f"--config.{code}="]
            ours = [word for word in words if word.startswith("--config.")]
            if not words[0].startswith("--"):
                continue
            if not any(accepts(name, ours) for name in ("cranio_diff", "pix2pix", "from_scratch")):
                unknown.append((page, code))
            rest = [word.partition("=")[0] for word in words if word not in ours]
            unknown += [(page, word) for word in rest if word.strip("-") not in others]
    assert not unknown


# Fields that a configuration does not have yet


def read(name, *words):
    return parse(f"--config=configs/{name}.py", *words)[0]


def test_an_authors_file_is_where_training_starts(tmp_path, config):
    """Loads a file by the flag of a page, and compares the network's values with the file's."""
    small = tiny(config, "pix2pix", channels=4, discriminator_layers=1)
    method = make_method(read("pix2pix", *small))
    rng = np.random.default_rng(0)
    shapes = method.networks["G"].shapes()
    params = {path: rng.random(shape, np.float32) for path, shape in shapes.items()}
    with open(tmp_path / "latest_net_G.pth", "wb") as file:
        tensors = dict(tensors_of(params))
        torch.save({key: torch.tensor(np.asarray(value)) for key, value in tensors.items()}, file)
    (flag,) = {code for text in pages().values() for code in inline_of(text) if ".files.G=" in code}
    flag = flag.replace("latest_net_G.pth", str(tmp_path / "latest_net_G.pth"))
    loaded = make_method(read("pix2pix", *small, flag)).load(
        sharding.make_mesh(), frozen_only=False
    )
    assert set(loaded) == {"G"}
    for path, value in params.items():
        np.testing.assert_array_equal(loaded["G"][path], value)


NO_RESCALING = "--noconfig.method.scheduler.rescale_betas_zero_snr"


def scheduled(config):
    schedule = make_method(config).schedule
    return schedule.prediction, float(schedule.alphas_cumprod[-1]) == 0


@pytest.mark.parametrize(
    ("words", "prediction", "no_signal"),
    [
        (["--config.method.scheduler.prediction_type=v_prediction"], "v_prediction", True),
        (["--config.method.scheduler.prediction_type", "epsilon", NO_RESCALING], "epsilon", False),
        ([NO_RESCALING], "sample", False),
        (["-config.method.scheduler.rescale_betas_zero_snr=false"], "sample", False),
        (["--config.method.scheduler.rescale_betas_zero_snr", "--config.seed=1"], "sample", True),
    ],
)
def test_a_schedule_from_flags(words, prediction, no_signal):
    assert scheduled(read("from_scratch", *words)) == (prediction, no_signal)


def test_a_rate_of_its_own():
    """Checks that one network's update is a tenth of the other's."""
    for words in (
        ["--config.method.learning_rates.unet=2e-4"],
        ["--config.method.learning_rates.unet", "2e-4"],
    ):
        config = read(
            "from_scratch",
            *words,
            "--config.train.schedule=constant",
            "--config.train.warmup_steps=0",
        )
        method = make_method(config)
        params = {name: {"w": jnp.ones(3)} for name in ("controlnet", "unet")}
        gradients = jax.tree.map(lambda p: 0.5 * p, params)
        updates, _ = method.optimizer.update(gradients, method.optimizer.init(params), params)
        np.testing.assert_allclose(updates["unet"]["w"], updates["controlnet"]["w"] / 10, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "from_scratch",
            ["method.files.G=a.pth"],
            "method.files.G: cranio_diff has no method.files. Remove",
        ),
        ("arcface", ["method.learning_rates.D=1"], "arcface has no method.learning_rates"),
        ("pix2pix", ["method.unet.layers_per_block=1"], "pix2pix has no method.unet"),
        (
            "from_scratch",
            ["method.learning_rates.unet=fast"],
            "unet=fast: wrong type of value. Use a number",
        ),
        (
            "from_scratch",
            ["method.learning_rates.unet", "--config.seed=1"],
            "it has no value. Write --config",
        ),
        ("pix2pix", ["method.files.G"], "method.files.G: it has no value"),
        (
            "from_scratch",
            ["method.unet.layers_per_block=x"],
            "=x: wrong type of value. Use one like 1.",
        ),
        ("from_scratch", ["method.unet.block_out_channels=8"], "Use one like \\(64, 128\\)"),
        (
            "from_scratch",
            ["method.unet.block_out_channels[0]=8"],
            "--config: 0 is not a valid index",
        ),
        ("from_scratch", ["method.unet.inner.width=8"], "--config: 'inner'"),
    ],
)
def test_fields_that_can_not_be_set(name, words, message):
    with pytest.raises(InputError, match=message) as error:
        read(name, f"--config.{words[0]}", *words[1:])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("pix2pix", "method.files.G=2024", "2024"),
        ("pix2pix", "method.files.D=folder/net, v1.pth", "folder/net, v1.pth"),
        ("pix2pix", "method.learning_rates.D=1", 1.0),
        ("cranio_diff", "method.unet.only_cross_attention=[False,True]", (False, True)),
        ("cranio_diff", "method.vae.scaling_factor=0.2", 0.2),
        ("cranio_diff", "method.text_encoder.hidden_act=gelu", "gelu"),
        ("from_scratch", "method.unet.block_out_channels=8,16", (8, 16)),
        ("from_scratch", "method.unet.attention_head_dim=(2,4)", (2, 4)),
    ],
)
def test_fields_that_can_be_set(name, word, value):
    block, _, field = word.partition("=")[0].removeprefix("method.").rpartition(".")
    setting = read(name, f"--config.{word}").method[block][field]
    assert setting == value
    assert type(setting) is type(value)
