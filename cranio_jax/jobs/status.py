"""Where a run stands, told from its folder alone."""

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

# A run logs at known times; one that is late by so many of them, or so many seconds, gives no sign of life.
_LATE, _LATE_S = 10, 300.0


def status(workdir: pathlib.Path) -> str:
    """What `workdir` tells: the step, the rate, the time left, the newest metrics and checkpoint, and whether it lives.

    Raises InputError where no run was begun.
    """
    path = workdir / "run.json"
    if not path.exists():
        raise InputError(f"{workdir} holds no run.json: no training was begun here")
    run = json.loads(path.read_text())
    lines = logged(workdir)
    training = [line for line in lines if "loss" in line]
    validated = [line for line in lines if any(name.startswith("validation/") for name in line)]
    step = training[-1]["step"] if training else 0
    rate = training[-1].get("images_per_second") if training else None

    words = [f"step {step:,} of {run['num_steps']:,} ({100 * step / run['num_steps']:.0f} %)"]
    words[0] += f", {rate:.3g} images/s" if rate else ""
    left = (run["num_steps"] - step) * run["batch_size"] / rate if rate else None
    words[0] += f", {_duration(left)} left" if left and run["state"] == "training" else ""
    words.append(
        _life(run, max([run["time"], *(line["time"] for line in lines if "time" in line)]), rate)
    )
    words += [_metrics("training", line) for line in training[-1:]] + [
        _metrics("validation", line) for line in validated[-1:]
    ]
    kept = workdir / "checkpoints"
    # In a bucket those that are being written have the same names.
    steps = ocp.utils.checkpoint_steps(kept) if kept.is_dir() else []
    words.append(f"newest checkpoint: step {max(steps):,}" if steps else "no checkpoint yet")
    return "\n".join(words)


def _life(run: dict[str, Any], sign: float, rate: float | None) -> str:
    where = (
        f"{run['processes']} process{'es' if run['processes'] > 1 else ''}, {run['devices']}"
        f" device{'s' if run['devices'] > 1 else ''}"
    )
    when = f"{datetime.datetime.fromtimestamp(run['time']):%Y-%m-%d %H:%M}"
    if run["state"] != "training":
        return f"{run['state']} at {when}" + (f": {run['why']}" if "why" in run else "")
    silent = time.time() - sign
    if run["host"] == platform.node():
        if not _exists(run["pid"]):
            return (
                f"DEAD: its process ended without a word, at most {_duration(silent)} ago; start it"
                " again to go on"
            )
        return (
            f"alive: process {run['pid']} of this machine, last line {_duration(silent)} ago"
            f" ({where})"
        )
    usual = run["log_every"] * run["batch_size"] / rate if rate else 0.0
    if silent > max(_LATE * usual, _LATE_S):
        return f"PROBABLY DEAD: no line for {_duration(silent)} ({where} of another machine)"
    return f"alive: last line {_duration(silent)} ago ({where} of another machine)"


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _metrics(title: str, line: dict[str, float]) -> str:
    left_out = ("step", "time", "images_per_second")
    values = ", ".join(
        f"{name.removeprefix('validation/')} {value:.4g}"
        for name, value in line.items()
        if name not in left_out
    )
    return f"{title}, step {line['step']:,}: {values}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
