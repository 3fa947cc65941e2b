"""Two processes give the same examples, losses and faces as one.

Only one of them writes files. If one dies, the other ends too.
"""

import contextlib
import json
import random
import subprocess
import sys
import time

import pytest

from cranio_jax.distributed import cluster
from launch.local_processes import commands
from tests.runs.test_faults import ROOT, command, environment, losses, wait_until

pytestmark = pytest.mark.eight_devices
STEPS = 24


@pytest.fixture(params=["pix2pix", pytest.param("cranio_diff", marks=pytest.mark.slow)])
def config(request):
    """Returns the settings of the quicker method, and of Cranio-Diff before a release."""
    name = {"pix2pix": "quick_config", "cranio_diff": "config"}[request.param]
    config = request.getfixturevalue(name)
    config.train.update(num_steps=STEPS, checkpoint_every=8, log_every=1)
    config.augment.flip = 0.5
    config.mesh.data = 8
    return config


@pytest.fixture
def alone(config, shared_folder):
    return shared_folder / f"one process, {config.method.name}" / "run"


def run_alone(config, workdir):
    """Runs one process with eight devices, unless it has already run."""
    if not (workdir / "results.json").exists():
        arguments = [sys.executable, "-m", "cranio_jax.main", *command(config, workdir)]
        subprocess.run(arguments, cwd=ROOT, env=environment(8), check=True, capture_output=True)
    return workdir


def test_two_processes_are_one(config, tmp_path, alone):
    """Two processes with four devices train and score like one process with eight."""
    workdir = tmp_path / "run"
    launcher = [
        sys.executable,
        str(ROOT / "launch" / "local_processes.py"),
        "--processes=2",
        "--devices-per-process=4",
        "--",
    ]
    done = subprocess.run(
        [*launcher, *command(config, workdir)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    run_alone(config, alone)
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == STEPS
    for step, loss in losses(alone).items():
        assert losses(workdir)[step] == pytest.approx(loss, rel=1e-5)
    ours, theirs = (
        json.loads((folder / "results.json").read_text()) for folder in (workdir, alone)
    )
    assert ours["images"] == theirs["images"] and ours["rows"].keys() == theirs["rows"].keys()
    for row, metrics in theirs["rows"].items():
        for metric, value in metrics.items():
            # A pixel value close to a half may be rounded up or down.
            assert ours["rows"][row][metric]["mean"] == pytest.approx(
                value["mean"], rel=1e-3, abs=1e-4
            )
    faces = [
        sorted(
            path.relative_to(next((folder / "faces").iterdir()))
            for path in folder.glob("faces/*/*/*.png")
        )
        for folder in (workdir, alone)
    ]
    assert faces[0] == faces[1] and faces[0]
    assert done.stdout.count("Pictures: ") == 1 and "[1] " not in done.stdout


@contextlib.contextmanager
def two_processes(config, workdir):
    """Starts two processes with four devices each, and ends both on exit."""
    port = 20_000 + random.randrange(20_000)
    started = [
        subprocess.Popen(
            line,
            cwd=ROOT,
            env=environment() | extra,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for extra, line in commands(2, 4, port, command(config, workdir))
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_two_stop_together_and_one_ends_when_the_other_dies(config, tmp_path, alone):
    """A signal to one process stops both after the same step.

    If one is killed, the other ends in bounded time, with an error and the exit code for a
    restart. One process can then continue the run.
    """
    workdir = tmp_path / "run"
    run_alone(config, alone)
    with two_processes(config, workdir) as started:
        wait_until(lambda: losses(workdir), started[0])
        started[1].terminate()
        words = [process.communicate(timeout=120)[1] for process in started]
        assert [process.returncode for process in started] == [cluster.START_AGAIN] * 2, words
    stopped = max(losses(workdir))
    assert stopped < STEPS and (workdir / "checkpoints" / str(stopped)).exists()
    assert all(f"stopped on request after step {stopped}, which is saved" in said for said in words)

    with two_processes(config, workdir) as started:
        wait_until(lambda: max(losses(workdir)) > stopped, started[0])
        started[1].kill()
        began = time.monotonic()
        words = started[0].communicate(timeout=cluster.HEARTBEAT_S + 60)[1]
        assert time.monotonic() - began < cluster.HEARTBEAT_S + 30
        assert started[0].returncode in (
            cluster.START_AGAIN,
            -6,
        ), words  # -6: JAX's heartbeat ends it
        assert "another process is gone" in words or "another task died" in words

    arguments = [sys.executable, "-m", "cranio_jax.main", *command(config, workdir)]
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment(8), capture_output=True, text=True, check=True
    )
    assert "resuming from step" in done.stderr
    assert set(losses(workdir)) == set(losses(alone))
    for step, loss in losses(alone).items():
        assert losses(workdir)[step] == pytest.approx(loss, rel=1e-5)
