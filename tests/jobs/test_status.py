"""A run seen from outside: its status, a trace, and a second start that compiles nothing."""

import json
import os
import platform
import subprocess
import sys
import time

import pytest

from cranio_jax.errors import InputError
from cranio_jax.files.atomic import whole_file, write_json
from cranio_jax.jobs.status import status
from cranio_jax.training import loop
from tests.runs.test_faults import ROOT, command, environment


@pytest.fixture
def run(tmp_path):
    """Returns a function that writes the workdir of a run; its keywords replace the defaults.

    By default the run is at step 400 of 1,000, with a batch size of 8 and 20 images/s. It last
    logged a minute ago.
    """

    def make(folder=tmp_path, silent=60.0, **differs):
        now = time.time()
        told = {
            "state": "training",
            "num_steps": 1000,
            "batch_size": 8,
            "log_every": 20,
            "processes": 2,
            "devices": 16,
        }
        told |= {"host": platform.node(), "pid": os.getpid(), "time": now - 3600}
        write_json(folder / "run.json", told | differs)
        lines = [
            {"step": 380, "time": 0.0, "loss": 9.0, "images_per_second": 1.0},
            {"step": 400, "validation/psnr": 21.5},
        ]
        lines.insert(
            1, {"step": 400, "time": now - silent, "loss": 0.25, "images_per_second": 20.0}
        )
        with whole_file(folder / "metrics.jsonl") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        for name in ("200", "400.orbax-checkpoint-tmp", "350"):
            (folder / "checkpoints" / name).mkdir(parents=True)
        return status(folder).splitlines()

    return make


def test_a_run_that_lives(run):
    step, life, training, validation, checkpoint = run()
    assert step == "step 400 of 1,000 (40 %), 20 images/s, 4:00 left"
    assert (
        life == f"alive: process {os.getpid()} of this machine, last line 1:00 ago (2 processes, 16"
        " devices)"
    )
    assert (
        training == "training, step 400: loss 0.25"
        and validation == "validation, step 400: psnr 21.5"
    )
    assert checkpoint == "newest checkpoint: step 350"


@pytest.mark.parametrize(
    "differs,words",
    [
        (
            dict(pid=2**22 + 1),
            "DEAD: its process ended unexpectedly, at most 1:00 ago; start it again to resume",
        ),
        (
            dict(host="elsewhere"),
            "alive: last line 1:00 ago (2 processes, 16 devices of another machine)",
        ),
        # It logs every eight seconds.
        (
            dict(host="elsewhere", silent=400.0),
            "PROBABLY DEAD: no line for 6:40 (2 processes, 16 devices of another machine)",
        ),
        (dict(state="failed", why="the disk is full"), ": the disk is full"),
    ],
)
def test_whether_it_lives(run, differs, words):
    assert words in run(**differs)[1]


def test_no_run(tmp_path):
    with pytest.raises(InputError, match=r"holds no run.json. Name the workdir of a run"):
        status(tmp_path)


def test_a_trace(quick_config, tmp_path, capfd):
    quick_config.profile_steps = 2
    quick_config.train.update(num_steps=13, checkpoint_every=0)
    loop.train(quick_config, tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    assert "a trace of 2 steps: tensorboard --logdir=" in capfd.readouterr().err


COMPILES = """
import atexit, jax
spent = []
def hear(name, seconds, **_):
    if name == "/jax/core/compile/backend_compile_duration":
        spent.append(seconds)
jax.monitoring.register_event_duration_secs_listener(hear)
atexit.register(lambda: print("compiled for", sum(spent)))
from cranio_jax import main
main.cli()
"""


def test_a_second_start_compiles_nothing_anew(quick_config, tmp_path):
    """The second start uses the cache in the workdir, in less than a third of the time."""
    config = quick_config
    config.job = "train"
    config.train.update(num_steps=2, checkpoint_every=0)
    own = environment() | {"PYTHONPATH": str(ROOT)}
    own.pop("JAX_COMPILATION_CACHE_DIR")
    spent = []
    for stop_at in (1, 2):
        config.train.stop_at = stop_at
        arguments = [sys.executable, "-c", COMPILES, *command(config, tmp_path / "run")]
        done = subprocess.run(
            arguments, cwd=ROOT, env=own, stdout=subprocess.PIPE, text=True, check=True
        )
        spent.append(float(done.stdout.split("compiled for ")[1]))
    assert any((tmp_path / "run" / "compiled").iterdir())
    assert spent[1] < spent[0] / 3
