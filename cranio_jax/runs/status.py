"""The status file that a run writes."""

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
    """Records in run.json that a run is in progress here, and finally how it ended."""
    t = config.train
    run = {
        "state": "training",
        "num_steps": t.num_steps,
        "batch_size": t.batch_size,
        "log_every": t.log_every,
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "host": platform.node(),
        "pid": os.getpid(),
    }

    def note(**changes: Any) -> None:
        if cluster.is_first():
            # Other writers report a full disk.
            with contextlib.suppress(OSError):
                write_json(workdir / "run.json", run | {"time": round(time.time(), 1)} | changes)

    note()
    try:
        yield
    except BaseException as error:
        state = "stopped" if isinstance(error, cluster.Preempted) else "failed"
        note(state=state, why=f"{error}" or type(error).__name__)
        raise
    note(state="finished")
