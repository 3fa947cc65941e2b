"""Types that all cases of the benchmark share: a case, its figures, and a stopwatch."""

import dataclasses
import pathlib
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
REMAT = "-remat"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One line of the benchmark.

    Attributes:
      dtype: 'float32' or 'bfloat16'.
      repeats: timed repetitions.
      sampling_steps: steps of the case `sample`.
      scratch: folder for files of random weights and records.
      case: see benchmark.py.
      size: side of the pictures in pixels; 0 if the case has none.
      batch: pictures of a step.
      engine: 'jax' or 'torch'.
      trace: folder for a profiler trace, or None.
    """

    dtype: str
    repeats: int = 1
    sampling_steps: int
    scratch: str = ""
    case: str
    size: int
    batch: int
    engine: str = "jax"
    trace: str | None = None

    @property
    def base_case(self) -> str:
        """The case without '-remat'."""
        return self.case.removesuffix(REMAT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figures:
    """The measurements of a task.

    Attributes:
      seconds: of a step (or of sampling or loading), the median.
      starting: seconds until the first step was done, compilation included.
      tflop: TFLOP of an image; None if not counted.
      memory: peak in GB, of the device if it reports one and else of the process.
      device: devices and version of the library.
      peak_tflops: bfloat16 TFLOP/s of all devices by the data sheet; None if unknown.
      alone: seconds of the jitted step within the training loop; only for `loop`.
      saving: seconds of a checkpoint; only for `loop`.
    """

    seconds: float
    starting: float
    tflop: float | None = None
    memory: float
    device: str
    peak_tflops: int | None = None
    alone: float | None = None
    saving: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns the known figures, by name."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}


def median_seconds(step: Callable[[], Any], repeats: int) -> float:
    """Returns the median duration of calls of `step`, which must wait for its own work."""
    durations = []
    for _ in range(repeats):
        start = time.monotonic()
        step()
        durations.append(time.monotonic() - start)
    return statistics.median(durations)


def random_pictures(task: Task) -> np.ndarray:
    """Returns two batches of random pictures, `(2, batch, size, size, 3)` in uint8."""
    shape = (2, task.batch, task.size, task.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def host_peak() -> float:
    """Returns the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
