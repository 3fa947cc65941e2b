"""Runs that are killed, stopped or find damaged files end like an undisturbed run."""

import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cranio_jax import data
from cranio_jax.distributed import cluster, sharding
from cranio_jax.errors import InputError
from cranio_jax.jobs import status
from cranio_jax.methods import make_method
from cranio_jax.runs.checkpoints import Checkpoints
from cranio_jax.runs.log import logged
from cranio_jax.runs.state import shardings_of
from cranio_jax.training import loop

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, EVERY = 12, 3
_STARTED = []


@pytest.fixture
def config(quick_config):
    config = quick_config
    config.job = "train"
    config.augment.flip = 0.5  # so that the data's own random stream matters
    config.train.update(num_steps=STEPS, checkpoint_every=EVERY, log_every=1)
    return config


def command(config, workdir, *more):
    """Arguments that run the test's configuration; tests/whole_config.py reads it from a file."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    file = workdir.parent / f"{workdir.name}.json"
    file.write_text(config.to_json())
    return [f"--config={ROOT / 'tests' / 'whole_config.py'}:{file}", f"--workdir={workdir}", *more]


def environment(devices=1):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags}


def start(config, workdir, *more, **how):
    arguments = [sys.executable, "-m", "cranio_jax.main", *command(config, workdir, *more)]
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, **how
    )
    _STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_left_running():
    """Ends the processes of a failed test, which would slow down the others."""
    yield
    for process in _STARTED:
        process.kill()
    _STARTED.clear()


def finish(config, workdir):
    process = start(config, workdir)
    words = process.communicate(timeout=300)[1]
    assert process.returncode == 0, words
    return words


def losses(workdir):
    """Returns the last logged loss of each step."""
    lines = (
        (workdir / "metrics.jsonl").read_text().splitlines()
        if (workdir / "metrics.jsonl").exists()
        else []
    )
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


def wait_until(condition, process=None, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.002)


def last_state(config, workdir):
    method, mesh = make_method(config), sharding.make_mesh(1)
    shapes, shardings = shardings_of(method, mesh)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        step, state, _ = checkpoints.restore(shapes[0], shardings[0])
    assert step == STEPS
    return jax.device_get(state)


@pytest.fixture(scope="session")
def undisturbed_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def undisturbed(config, undisturbed_folder):
    """The run that nothing disturbs, made before a test changes its configuration."""
    if not (undisturbed_folder / "run.json").exists():
        finish(config, undisturbed_folder)
    return undisturbed_folder


def assert_as_undisturbed(config, workdir, undisturbed):
    assert losses(workdir) == losses(undisturbed) and len(losses(workdir)) == STEPS
    jax.tree.map(
        np.testing.assert_array_equal, last_state(config, workdir), last_state(config, undisturbed)
    )


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(
    "moment", [0, *(pytest.param(m, marks=pytest.mark.slow) for m in range(1, 19))]
)
def test_killed_at_any_moment(config, tmp_path, undisturbed, moment):
    rng, workdir = random.Random(moment), tmp_path / "run"
    step, later = rng.randrange(STEPS), rng.random() * 0.3
    process = start(config, workdir)
    wait_until(lambda: len(losses(workdir)) >= step, process)
    time.sleep(later)
    kill(process)
    finish(config, workdir)
    assert_as_undisturbed(config, workdir, undisturbed)


@pytest.mark.slow
def test_killed_while_it_saves(config, tmp_path, undisturbed):
    workdir = tmp_path / "run"
    process = start(config, workdir)
    wait_until(
        lambda: any("tmp" in path.name for path in (workdir / "checkpoints").glob("*")), process
    )
    kill(process)
    assert "training" in json.loads((workdir / "run.json").read_text())["state"]
    assert "DEAD: its process ended unexpectedly" in status.status(workdir)
    finish(config, workdir)
    assert_as_undisturbed(config, workdir, undisturbed)
    assert not [path for path in (workdir / "checkpoints").iterdir() if "tmp" in path.name]
    assert status.status(workdir).splitlines()[1].startswith("finished at ")


def test_told_to_stop(config, tmp_path, undisturbed):
    """After SIGTERM the run saves the current step and exits with the code for a restart."""
    workdir = tmp_path / "run"
    config.train.checkpoint_every = 0
    process = start(config, workdir)
    wait_until(lambda: len(losses(workdir)) >= 4, process)
    process.terminate()
    words = process.communicate(timeout=60)[1]
    assert process.returncode == cluster.START_AGAIN == 75
    done = max(losses(workdir))
    assert 4 <= done < STEPS and f"stopped on request after step {done}, which is saved" in words
    assert f"newest checkpoint: step {done}" in status.status(
        workdir
    ) and "stopped at " in status.status(workdir)
    assert f"resuming from step {done}" in finish(config, workdir)
    assert_as_undisturbed(config, workdir, undisturbed)


@pytest.mark.parametrize(
    "how",
    [
        "flipped",
        "truncated before its sums were written",
        pytest.param("truncated", marks=pytest.mark.slow),
        pytest.param("gone", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(config, tmp_path, undisturbed, how, capfd):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    folder = workdir / "checkpoints" / str(STEPS)
    file = max(
        (path for path in (folder / "state").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = file.read_bytes()
    if "before" in how:  # of a single file the lost half may be one that nothing refers to
        (folder / "cranio_jax_sums.json").unlink()
        for array in (folder / "state").glob("ocdbt.process_*/d/*"):
            os.truncate(array, array.stat().st_size // 2)
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        file.unlink()
    with open(workdir / "metrics.jsonl", "w"):
        pass
    words = finish(config, workdir)
    assert (
        f"the checkpoint of step {STEPS} in {workdir / 'checkpoints'} is damaged (" in words
        and "resuming from step 9" in words
    )
    assert losses(workdir) == {step: loss for step, loss in losses(undisturbed).items() if step > 9}
    jax.tree.map(
        np.testing.assert_array_equal, last_state(config, workdir), last_state(config, undisturbed)
    )


def test_no_whole_checkpoint(config, tmp_path):
    config.train.update(num_steps=1, checkpoint_every=0)
    loop.train(config, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints" / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(
        InputError, match="no checkpoint in .* is whole; remove the folder to start again"
    ):
        loop.train(config, tmp_path / "run")


def test_records_with_flipped_bytes(config, tmp_path):
    data.make_builder(config.data)
    shutil.copytree(config.data.data_dir, tmp_path / "records")
    config.data.data_dir = str(tmp_path / "records")
    file = next(pathlib.Path(str(data.make_builder(config.data).data_dir)).glob("*train*"))
    good, bad = file.read_bytes(), bytearray(file.read_bytes())
    bad[len(bad) // 2] ^= 0xFF
    file.write_bytes(bad)
    config.train.update(num_steps=60, checkpoint_every=20)  # more than one epoch
    with pytest.raises(
        InputError,
        match=(
            rf"{tmp_path}.*split 'train': record \d+ is damaged \(.*remove the folder to have it"
            r" built again"
        ),
    ):
        loop.train(config, tmp_path / "run")
    file.write_bytes(good)
    assert losses(tmp_path / "run")
    loop.train(config, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 60


@pytest.mark.slow
def test_a_batch_that_is_not_of_numbers(config, tmp_path, undisturbed, monkeypatch):
    """The error names the step and its examples; the newest checkpoint is from an earlier step."""
    config.train.checkpoint_every = 1
    spoilt = []

    class Spoilt(data.TrainingBatches):
        def __next__(self):
            batch = super().__next__()
            if self.get_state()["examples"] == 5 * config.train.batch_size:
                spoilt.extend(batch["id_hash"])
                batch["face"] = np.full(batch["face"].shape, np.nan, np.float32)
            return batch

    monkeypatch.setattr(data, "TrainingBatches", Spoilt)
    with pytest.raises(loop.NonFiniteLossError) as error:
        loop.train(config, tmp_path / "run")
    assert len(spoilt) == config.train.batch_size
    assert "at step 5, whose batch held the examples " + ", ".join(
        f"{i:08x}" for i in spoilt
    ) in str(error.value)
    assert "the newest checkpoint is of step 4" in str(error.value)
    monkeypatch.undo()
    loop.train(config, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == STEPS


def last_words_where_files_stay_small(config, workdir):
    """Returns the last line of a run that fails because no file may grow beyond 64 KB.

    This simulates a full disk.
    """
    arguments = [sys.executable, "-m", "cranio_jax.main", *command(config, workdir)]
    limited = ["bash", "-c", 'ulimit -f 64 && exec "$@"', "bash", *arguments]
    environment_ = environment() | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    process = subprocess.run(
        limited, cwd=ROOT, env=environment_, stderr=subprocess.PIPE, text=True, check=False
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr
    return process.stderr.strip().splitlines()[-1]


def test_a_full_disk_keeps_what_was_there(config, tmp_path, undisturbed):
    workdir = tmp_path / "run"
    config.train.stop_at = EVERY
    finish(config, workdir)
    config.train.stop_at = 0
    last = last_words_where_files_stay_small(config, workdir)
    assert (
        "can't be written (File too large)" in last
        and f"the newest whole checkpoint there is of step {EVERY}" in last
    )
    finish(config, workdir)
    assert_as_undisturbed(config, workdir, undisturbed)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_metrics_are_written(config, tmp_path, undisturbed):
    """Half a line is left in the file; it is ignored, and the next start removes it."""
    workdir = tmp_path / "run"
    data.make_builder(config.data)
    workdir.mkdir()
    line = json.dumps({"step": 1, "loss": 0.0}) + "\n"
    (workdir / "metrics.jsonl").write_text(line * ((2**16 - 20) // len(line)))
    assert (
        last_words_where_files_stay_small(config, workdir)
        == f"cranio_jax: {workdir} can't be written (File too large); start again when it can"
    )
    assert not (workdir / "metrics.jsonl").read_text().endswith("\n") and logged(workdir)[-1] == {
        "step": 1,
        "loss": 0.0,
    }
    assert status.status(workdir).startswith(f"step 1 of {STEPS}")
    finish(config, workdir)
    assert_as_undisturbed(config, workdir, undisturbed)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_records_are_written(config, tmp_path):
    config.data.data_dir = str(tmp_path / "records")
    config.data.cranio_phantom.subjects = 6
    last = last_words_where_files_stay_small(config, tmp_path / "run")
    assert re.fullmatch(
        rf"cranio_jax: {config.data.data_dir}.*: can't be written \(File too large\). "
        "Set data.data_dir.",
        last,
    )
    assert not list((tmp_path / "records").rglob("*.array_record*"))


_ARRAY_THAT_ENDS_LATE = """
import asyncio, pathlib, sys, tensorstore
from cranio_jax.runs.checkpoints import Checkpoints

async def wait(array):
    await array

async def fail():
    global task
    written, array = tensorstore.Promise.new()
    task = asyncio.ensure_future(wait(array))
    await asyncio.sleep(0.01)
    return written

with Checkpoints(pathlib.Path(sys.argv[1])):
    loop = asyncio.new_event_loop()
    written = loop.run_until_complete(fail())
    loop.close()
    written.set_result(None)
"""


def test_arrays_that_end_after_a_failed_save_print_no_traceback(tmp_path):
    """Runs in a separate process, because pytest also hooks exceptions that can't be raised."""
    arguments = [sys.executable, "-c", _ARRAY_THAT_ENDS_LATE, str(tmp_path)]
    assert (
        "Traceback"
        not in subprocess.run(
            arguments, cwd=ROOT, capture_output=True, text=True, check=True
        ).stderr
    )


def test_a_folder_that_can_not_be_written(config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/run can't be written \(Not a directory\)"):
        loop.train(config, tmp_path / "file" / "run")
