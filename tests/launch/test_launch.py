"""The launchers: their commands, and that they restart a preempted run and no other."""

import os
import pathlib
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
POD = ("--name=pod", "--zone=zone", "--type=v5litepod-16", "--spot")
PROGRAM = ("--config=configs/demo.py", "--workdir=gs://bucket/run")


def bash(script, *arguments, path="", **environment):
    """What a launcher did, with commands of the test's own before the machine's."""
    environment = os.environ | environment | {"PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def command(folder, name, body):
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def cloud(tmp_path):
    """A stand-in for gcloud that records its calls.

    The file `state` holds the slice's state, `codes` the exit codes of the trainings to come.
    """
    command(
        tmp_path,
        "gcloud",
        f"""cd {tmp_path}; echo "$@" >> asked
        case "$*" in
          *describe*) cat state 2> none || exit 1 ;;
          *create*) echo READY > state ;;
          *delete*) rm state ;;
          *cranio_jax.main*)
            code=$(head -n 1 codes); sed -i 1d codes
            [ "$code" != 255 ] || echo PREEMPTED > state
            exit "$code" ;;
        esac""",
    )
    return tmp_path


def asked(cloud):
    """The verbs, in order; trainings as 'train'."""
    lines = (cloud / "asked").read_text().splitlines()
    words = [
        "train" if "cranio_jax.main" in line else line.split()[3]
        for line in lines
        if line.startswith("compute")
    ]
    return [word for word in words if word in ("create", "delete", "train")]


def test_a_pod_dry_run_asks_for_nothing(cloud):
    done = bash(
        "tpu_pod.sh", *POD, "--dry-run", "--", *PROGRAM, "--config.name=two words", path=cloud
    )
    assert done.returncode == 0 and not (cloud / "asked").exists()
    create, archive, copy, install, start = done.stdout.splitlines()
    assert (
        "tpu-vm create pod" in create
        and "--accelerator-type=v5litepod-16" in create
        and create.rstrip().endswith("--spot")
    )
    assert archive.startswith("git archive") and "--worker=all" in copy and "jax" in install
    assert "cranio_jax.main" in start and "two" in start


def test_a_preempted_pod_is_made_anew(cloud):
    """The first start ends in a notice, the second with the slice, the third well."""
    (cloud / "codes").write_text("75\n255\n0\n")
    done = bash("tpu_pod.sh", *POD, "--delete", "--", *PROGRAM, path=cloud, PAUSE="0")
    assert done.returncode == 0, done.stderr
    assert asked(cloud) == ["create", "train", "train", "delete", "create", "train", "delete"]


def test_a_training_that_fails_is_not_started_again(cloud):
    (cloud / "codes").write_text("1\n")
    done = bash("tpu_pod.sh", *POD, "--", *PROGRAM, path=cloud, PAUSE="0")
    assert (
        done.returncode == 1
        and "not started again" in done.stderr
        and asked(cloud) == ["create", "train"]
    )


@pytest.mark.parametrize(
    "arguments,words",
    [
        (("--name=pod", "--zone=z", "--", *PROGRAM), "--type= is missing"),
        ((*POD, "--", "--config=c", "--workdir=here"), "--workdir=gs://... is missing after --"),
        (("--color=red",), "--color=red is not a flag"),
    ],
)
def test_a_pod_is_not_asked_for_in_vain(arguments, words):
    done = bash("tpu_pod.sh", *arguments)
    assert done.returncode == 2 and words in done.stderr


@pytest.mark.parametrize("code", [0, 1, 75])
def test_slurm_requeues_what_was_told_to_stop(tmp_path, code):
    command(tmp_path, "srun", f'echo "$@" > {tmp_path}/ran; exit {code}')
    command(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/requeued')
    done = bash(
        "slurm.sbatch",
        "--config=c",
        "--workdir=d",
        path=tmp_path,
        SLURM_JOB_ID="7",
        SLURM_SUBMIT_DIR=str(LAUNCH.parent),
    )
    assert (
        done.returncode == code
        and "-m cranio_jax.main --config=c --workdir=d" in (tmp_path / "ran").read_text()
    )
    assert (tmp_path / "requeued").exists() == (code == 75)


def test_slurm_dry_run():
    assert (
        "cranio_jax.main --config=c --workdir=d"
        in bash("slurm.sbatch", "--config=c", "--workdir=d", DRY_RUN="1").stdout
    )
    assert "are missing" in bash("slurm.sbatch", "--config=c", DRY_RUN="1").stderr


def test_local_processes_dry_run():
    arguments = (
        "--processes=3",
        "--devices-per-process=2",
        "--dry-run",
        "--",
        "--config=c",
        "--workdir=d",
    )
    done = subprocess.run(
        [sys.executable, str(LAUNCH / "local_processes.py"), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(f"JAX_PROCESS_ID={n}" in line for n, line in enumerate(lines))
    assert all(
        "device_count=2" in line and "-m cranio_jax.main --config=c --workdir=d" in line
        for line in lines
    )
    assert len({line.split("JAX_COORDINATOR_ADDRESS=")[1].split()[0] for line in lines}) == 1
