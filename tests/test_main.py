"""The command line: all jobs at the smallest size, and one sentence for each wrong input."""

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

import cranio_jax
from configs import common
from cranio_jax import data, main
from cranio_jax.data.prompts import check_profile, make_prompt
from cranio_jax.errors import InputError
from cranio_jax.evaluation import controls
from cranio_jax.jobs import reconstruct
from cranio_jax.jobs.reconstruct import find_xrays, read_xray
from cranio_jax.reporting import pages
from cranio_jax.training import loop
from tests.evaluated import evaluated
from tests.program import exit_code

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def xray_file(tmp_path):
    """A 16-bit, oblong picture whose file name must not appear in any output."""
    values = np.linspace(300, 40000, 90 * 60).reshape(90, 60).astype(np.uint16)
    path = tmp_path / "Jane_Doe_1970-01-01.png"
    Image.fromarray(values).save(path)
    return path


def test_whole_road(config, tmp_path, xray_file):
    workdir = tmp_path / "run"
    loop.train(config, workdir)
    config.evaluate.num_samples = 2
    results = evaluated(config, workdir)
    assert list(results["rows"]) == [
        "cranio_diff",
        "cranio_diff, mean of 2 samples",
        "shuffled X-rays",
        "mean face",
    ]
    assert results["images"] == 4 * 18 and results["subjects"] == 4
    for row in results["rows"].values():
        assert all(v["low"] <= v["mean"] <= v["high"] for v in row.values())
    assert set(results) > {"config", "seed", "step", "data", "versions", "commit", "differences"}
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))

    # Fused generation and saved faces give the same numbers.
    config.evaluate.update(keep_faces=False, num_samples=1)
    fused = evaluated(config, workdir)
    for metric in ("psnr", "ssim"):
        assert fused["rows"]["cranio_diff"][metric]["mean"] == pytest.approx(
            results["rows"]["cranio_diff"][metric]["mean"], rel=1e-6
        )

    config.reconstruct.update(
        xrays=str(xray_file), view="lateral", sex="male", age=45.0, num_samples=3
    )
    config.reconstruct.batch_size = 8
    (folder,) = reconstruct.reconstruct(config, workdir)
    names = {p.name for p in folder.iterdir()}
    assert names == {
        "face_0.png",
        "face_1.png",
        "face_2.png",
        "mean.png",
        "spread.png",
        "xray.png",
        "sheet.png",
        "record.json",
    }
    first = (folder / "face_0.png").read_bytes()
    assert first != (folder / "face_1.png").read_bytes()
    config.reconstruct.num_samples = 2
    assert reconstruct.reconstruct(config, workdir) == [folder]
    assert (folder / "face_0.png").read_bytes() == first  # the same X-ray, the same faces
    assert not (folder / "face_2.png").exists() and (folder / "face_1.png").exists()
    config.reconstruct.view = "frontal"
    (other,) = reconstruct.reconstruct(config, workdir)
    assert other != folder and (folder / "record.json").exists()  # another profile replaces nothing

    page = pages.report(config, workdir).read_text()
    assert "a plausible hypothesis, not an identification" in page
    assert "mean face" in page and "data:image/svg+xml" in page and page.count("<img") > 2
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    for place in workdir.rglob("*"):
        if place.suffix in (".json", ".html", ".jsonl"):
            assert (
                "Jane_Doe" not in place.read_text()
                and str(xray_file.parent) not in place.read_text()
            )


def test_nobody_keeps_their_own_xray():
    examples = [
        {"subject": s, "sex": sex, "xray_view": v, "xray": f"{s} {v}"}
        for sex, people in (("female", "abc"), ("male", "de"))
        for s in people
        for v in ("frontal", "lateral")
        for _ in range(2)
    ]
    for e, other in zip(examples, controls.shuffled_xrays(examples, 0), strict=True):
        assert other["xray"] != e["xray"] and other["xray"].split()[1] == e["xray_view"]
        assert ("abc".find(other["xray"][0]) >= 0) == (e["sex"] == "female") and other[
            "subject"
        ] == e["subject"]
    # A single man gets a woman's X-ray. Without another frontal X-ray the error says so.
    alone = controls.shuffled_xrays([e for e in examples if e["subject"] != "d"], 0)
    assert all(
        e["xray"][0] in "abc" and e["xray"] != f"{e['subject']} {e['xray_view']}" for e in alone
    )
    lateral = [e for e in examples if e["subject"] == "a" or e["xray_view"] == "lateral"]
    with pytest.raises(InputError, match="only one test subject has a frontal X-ray"):
        controls.shuffled_xrays(lateral, 0)


def test_mean_faces_of_any_age():
    """A mean face averages faces of the same condition, or of the nearest ones if they are few.

    It never mixes views.
    """

    class People(data.Examples):
        def __init__(self, faces):
            self.faces = faces

        def __getitem__(self, index):
            return self.faces[index]

        def conditions(self):
            return [(face["face_view"], face["age"], 0.0) for face in self.faces]

    def face(view, age):
        return {
            "face_view": view,
            "age": age,
            "face": np.full((2, 2, 3), age, np.uint8),
        }

    people = (
        [face("frontal", age) for age in range(100)]
        + [face("lateral", 30)] * 25
        + [face("lateral", 200)]
    )
    mean = controls.mean_faces(People(people))

    def at(view, age):
        return mean({"face_view": view, "age": age, "bmi_change": 0.0})[0, 0, 0]

    assert at("lateral", 30) == 30 and at("frontal", 50) == 50
    assert abs(at("frontal", 0) - 9.5) <= 0.5  # 0 to 19, the nearest twenty
    assert at("lateral", 190) in range(30, 40)  # all at the same distance as the twentieth
    with pytest.raises(InputError, match="a test face is frontal, but no training face"):
        controls.mean_faces(People(people[100:]))(
            {"face_view": "frontal", "age": 30, "bmi_change": 0.0}
        )


def test_xray_is_padded_not_stretched(xray_file, tmp_path):
    made = read_xray(xray_file, 30)
    got = made.square
    assert made.masked == 0 and len(made.boxes) == 0
    assert got.shape == (30, 30) and got.dtype == np.uint8
    assert got[:, :4].max() == 0 and got[:, -4:].max() == 0 and got[15, 15] > 100
    for suffix, mode in ((".jpg", "L"), (".tiff", "I;16"), (".png", "RGB")):
        picture = (
            Image.open(xray_file)
            if mode == "I;16"
            else Image.fromarray(
                (np.asarray(Image.open(xray_file)) // 256).astype(np.uint8)
            ).convert(mode)
        )
        picture.save(tmp_path / f"other{suffix}")
        other = read_xray(tmp_path / f"other{suffix}", 30).square
        assert np.abs(other.astype(int) - got).mean() < 3, suffix


def test_bone_that_is_dark(tmp_path, xray_file):
    pixels = np.asarray(Image.open(xray_file))
    Image.fromarray(np.uint16(65535 - pixels)).save(tmp_path / "dark.png")
    got, turned = read_xray(xray_file, 30), read_xray(tmp_path / "dark.png", 30, inverted=True)
    assert np.abs(turned.square.astype(int) - got.square).mean() < 3


def test_names_of_files_and_patterns(tmp_path, monkeypatch):
    """An existing file name takes precedence over a pattern or a list."""
    monkeypatch.chdir(tmp_path)
    names = [
        "a.png",
        "b.png",
        "case [7], left.png",
        "Doe, Jane.png",
        "M\u00fcller.png",
        "x[1].png",
        "x1.png",
    ]
    for name in names:
        pathlib.Path(name).write_bytes(b"picture")
    pathlib.Path("folder").mkdir()

    def found(listed):
        return [path.name for path in find_xrays(listed)]

    assert found("a.png,b.png") == found(" a.png , b.png ,") == ["a.png", "b.png"]
    assert found("case [7], left.png") == ["case [7], left.png"]
    assert found("a.png,Doe, Jane.png,case [7], left.png") == [
        "a.png",
        "Doe, Jane.png",
        "case [7], left.png",
    ]
    assert found("x[1].png") == ["x[1].png"] and found("x?.png") == ["x1.png"]
    assert found("Mu\u0308ller.png") == ["M\u00fcller.png"]
    assert found("[ab].png,a.png") == ["a.png", "b.png"]
    assert found(str(tmp_path / "*.png")) == sorted(names)
    for listed, words in (
        ("none.png", "none.png: no such file"),
        ("folder", "folder is a folder"),
        (" , ", "is empty"),
    ):
        with pytest.raises(InputError, match=words):
            find_xrays(listed)


def test_unreadable_xrays_are_named(tmp_path, xray_file):
    with pytest.raises(InputError, match="gone.png: no such file"):
        read_xray(tmp_path / "gone.png", 32)
    broken = tmp_path / "broken.png"
    broken.write_bytes(xray_file.read_bytes()[:500])
    with pytest.raises(InputError, match="broken.png: damaged"):
        read_xray(broken, 32)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="text.png: "):
        read_xray(tmp_path / "text.png", 32)
    Image.new("L", (20, 20), 77).save(tmp_path / "flat.png")
    with pytest.raises(InputError, match="flat.png: all pixels have the value 77"):
        read_xray(tmp_path / "flat.png", 32)


@pytest.mark.parametrize(
    "profile,words",
    [
        (("oblique", "male", 30, 0), "view='oblique' is unknown; expected frontal or lateral"),
        (("frontal", "x", 30, 0), "sex='x' is unknown"),
        (("frontal", "male", -1, 0), "age=-1 is outside 0 to 120"),
        (("frontal", "male", 121, 0), "age=121 is outside 0 to 120"),
        (("frontal", "male", 30, -80), "bmi_change=-80 is outside"),
    ],
)
def test_impossible_profiles(profile, words):
    with pytest.raises(InputError, match=words):
        check_profile(*profile)


def test_prompt_and_its_tokens():
    template = "portrait of a {noun}, {view} view, {age} years old, {bmi}"
    assert (
        make_prompt(template, "lateral", "female", 45, -10)
        == "portrait of a woman, lateral view, 45 years old, 10 percent less weight"
    )
    assert "25 years" in make_prompt(template, "lateral", "female", 30, 0, known_ages=(25, 45))
    with pytest.raises(InputError, match="prompt.template"):
        make_prompt("a {nose}", "lateral", "female", 45, 0)


def command(*arguments, cwd=CHECKOUT):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run(
        [sys.executable, "-m", "cranio_jax.main", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--config=configs/nothing.py"], "configs/nothing.py: no such file"),
        (["--config=configs/demo.py", "--config.train.lerning_rate=1"], "learning_rate"),
        (
            ["--config=configs/demo.py", "--lerning_rate=1"],
            "Unknown command line flag 'lerning_rate'",
        ),
        (
            ["--config.seed=1", "--config=configs/demo.py"],
            "Found --config.seed=1 in argv before a value for --config",
        ),
        (
            ["--config=configs/demo.py", "--config.job=dance"],
            "job='dance' is not one of train_and_evaluate",
        ),
        (
            ["--config=configs/demo.py", "--config.job=evaluate"],
            "holds no checkpoint; run job=train first",
        ),
        (
            [
                "--config=configs/demo.py",
                "--config.job=reconstruct",
                "--config.reconstruct.age=130.0",
            ],
            "age=130 is outside 0 to 120",
        ),
        (["--config=configs/demo.py", "--config.job=report"], "holds no results.json"),
        (["--config=configs/demo.py", "--config.train.batch_size=0"], "train.batch_size=0"),
    ],
)
def test_wrong_command_is_one_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert exit_code(monkeypatch, *arguments, f"--workdir={tmp_path / 'w'}") == 1
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "w").exists()


def test_the_program_says_what_is_wrong(tmp_path):
    """In a process of its own, outside of the checkout."""
    done = command("--config=configs/demo.py", "--config.job=dance", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 1
    assert done.stderr.startswith("cranio_jax: job='dance' is not one of ")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "w").exists()


def test_the_sentence_comes_last():
    """After warnings about what was cut off, such as a write to a full disk."""
    code = textwrap.dedent("""
        from cranio_jax import main

        async def write(): pass

        def fail(*_, **__):
            cut_off = [write()]
            cut_off.append(cut_off)
            raise main.InputError("the disk is full")

        main.app.run = fail
        main.cli()
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *warned, last = done.stderr.splitlines()
    assert done.returncode == 1 and last == "cranio_jax: the disk is full"
    assert any("never awaited" in line for line in warned)


def test_a_start_imports_little():
    """Libraries that few jobs need are imported by those; with them a start took twice as long."""
    code = "import sys, cranio_jax.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    modules = set(loaded.split())
    assert "jax" in modules
    assert not modules & {
        *("torch", "tensorflow", "sklearn", "scipy.stats", "matplotlib", "pandas", "skimage"),
        *("diffusers", "transformers", "onnxruntime", "tensorboardX"),
    }


def test_help_is_short_and_true(capsys, monkeypatch):
    """It names every job, and only fields that exist."""
    monkeypatch.setattr("sys.argv", ["main", "--help"])
    main.cli()
    words = capsys.readouterr().out
    assert len(words.splitlines()) < 35 and all(job in words for job in main.JOBS)
    config = common.get_config()
    for name in main.FIELDS:
        assert name in words
        *path, leaf = name.split(".")
        block = config
        for part in path:
            block = block[part]
        assert leaf in block


def test_version(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["main", "--version"])
    main.cli()
    assert capsys.readouterr().out == f"cranio_jax {cranio_jax.__version__}\n"
