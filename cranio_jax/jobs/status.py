"""Job `status`: the progress of a run, from its folder alone."""

import datetime
import json
import os
import pathlib
import platform
import time
from typing import Any

import orbax.checkpoint as ocp

from cranio_jax.errors import InputError
from cranio_jax.runs.log import logged

# A run logs at regular intervals. It is probably dead when it is late by this many of them, and
# by this many seconds.
_LATE = 10
_LATE_SECONDS = 300.0


def status(workdir: pathlib.Path) -> str:
    """Returns a run's progress: step, rate, time left, metrics, checkpoint, whether it is alive.

    Raises InputError if none was started in `workdir`.
    """
    path = workdir / "run.json"
    if not path.exists():
        raise InputError(f"{workdir} holds no run.json. Name the workdir of a run.")
    run = json.loads(path.read_text())
    log = logged(workdir)
    training = [line for line in log if "loss" in line]
    validation = [line for line in log if any(name.startswith("validation/") for name in line)]
    step = training[-1]["step"] if training else 0
    rate = training[-1].get("images_per_second") if training else None

    # Progress.
    total = run["num_steps"]
    progress = f"step {step:,} of {total:,} ({100 * step / total:.0f} %)"
    if rate:
        progress += f", {rate:.3g} images/s"
        seconds = (total - step) * run["batch_size"] / rate
        if seconds and run["state"] == "training":
            progress += f", {_duration(seconds)} left"

    # Whether it runs; its last sign of life may be a line of the log.
    last_sign = max([run["time"], *(line["time"] for line in log if "time" in line)])
    lines = [progress, _life(run, last_sign, rate)]

    # Metrics and checkpoint.
    lines += [_metrics("training", line) for line in training[-1:]]
    lines += [_metrics("validation", line) for line in validation[-1:]]
    checkpoints = workdir / "checkpoints"
    # In a bucket, checkpoints that are being written have the same names.
    steps = ocp.utils.checkpoint_steps(checkpoints) if checkpoints.is_dir() else []
    lines.append(f"newest checkpoint: step {max(steps):,}" if steps else "no checkpoint yet")
    return "\n".join(lines)


def _plural(count: int, word: str, ending: str) -> str:
    return f"{count} {word}{ending if count > 1 else ''}"


def _life(run: dict[str, Any], last_sign: float, rate: float | None) -> str:
    """Returns whether the training runs, as far as this machine can tell."""
    processes = _plural(run["processes"], "process", "es")
    where = f"{processes}, {_plural(run['devices'], 'device', 's')}"
    if run["state"] != "training":
        when = f"{datetime.datetime.fromtimestamp(run['time']):%Y-%m-%d %H:%M}"
        reason = f": {run['why']}" if "why" in run else ""
        return f"{run['state']} at {when}{reason}"

    silence = time.time() - last_sign
    ago = f"{_duration(silence)} ago"
    if run["host"] == platform.node():
        if _exists(run["pid"]):
            return f"alive: process {run['pid']} of this machine, last line {ago} ({where})"
        return f"DEAD: its process ended unexpectedly, at most {ago}; start it again to resume"
    usual = run["log_every"] * run["batch_size"] / rate if rate else 0.0
    if silence > max(_LATE * usual, _LATE_SECONDS):
        return f"PROBABLY DEAD: no line for {_duration(silence)} ({where} of another machine)"
    return f"alive: last line {ago} ({where} of another machine)"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _metrics(title: str, line: dict[str, float]) -> str:
    values = ", ".join(
        f"{name.removeprefix('validation/')} {value:.4g}"
        for name, value in line.items()
        if name not in ("step", "time", "images_per_second")
    )
    return f"{title}, step {line['step']:,}: {values}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
