"""What a training notes of itself while it runs."""

import contextlib
import os
import pathlib
import platform
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections

from cranio_jax.distributed import cluster
from cranio_jax.files.atomic import write_json


@contextlib.contextmanager
def running(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Iterator[None]:
    """Notes in run.json that a training runs here, and in the end how it ended."""
    t = config.train
    told = {
        "state": "training",
        "num_steps": t.num_steps,
        "batch_size": t.batch_size,
        "log_every": t.log_every,
    }
    told |= {
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "host": platform.node(),
        "pid": os.getpid(),
    }

    def note(**more: Any) -> None:
        if cluster.is_first():
            with contextlib.suppress(OSError):  # a full disk is told of by what needs it more
                write_json(workdir / "run.json", told | {"time": round(time.time(), 1)} | more)

    note()
    try:
        yield
    except BaseException as error:
        note(
            state="stopped" if isinstance(error, cluster.Preempted) else "failed",
            why=f"{error}" or type(error).__name__,
        )
        raise
    note(state="finished")
