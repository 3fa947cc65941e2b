"""Times training, sampling and loading at Stable Diffusion 1.5's size, with random weights.

python launch/benchmark.py --sizes=512 --batches=1,8,16 --dtype=bfloat16 \
    [--against=torch] [--trace=DIR]
python launch/benchmark.py --sizes=256 --batches=1 --dtype=float32 --against=torch \
    --cases=controlnet   # two cores

Each line of the table is measured in its own process, so that peak memory is its own.
`--against=torch` repeats a line with diffusers and torch (test extra). A step is one update with
AdamW and the moving average; latents and prompts are as from the cache. TFLOP are counted by
launch/measure/flops.py. Cases:

  controlnet   the U-Net is frozen
  both         the U-Net is trained too
  losses       controlnet with the decoded LPIPS and identity terms
  controlnet-remat, both-remat, losses-remat
               the same with train.remat; diffusers' with gradient checkpointing. TFLOP and MFU
               count the step without recomputation
  loop         the controlnet step within the training loop: records are read and placed, metrics
               are logged, checkpoints are saved; its speed is relative to the step's own
  sample       DDIM with guidance, decoded
  load         published files onto the device
  batches, batches-cached
               batches that the host prepares from records: decoded and augmented, or with latents
               from the cache
  inception, lpips-vgg, lpips-alex, lpips-squeeze, iresnet50, mobilefacenet
               the feature networks of an evaluation, in float32; LPIPS counts pairs
"""

import argparse
import dataclasses
import importlib
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from launch.measure.cases import REMAT, ROOT, Figures, Task

STEPS = ("controlnet", "both", "losses")
FEATURES = ("inception", "lpips-vgg", "lpips-alex", "lpips-squeeze", "iresnet50", "mobilefacenet")
CASES = (
    *STEPS,
    *(case + REMAT for case in STEPS),
    "loop",
    "sample",
    "load",
    "batches",
    "batches-cached",
    *FEATURES,
)
# Cases that are not repeated with torch.
JAX_ONLY = (
    "losses",
    "losses-remat",
    "loop",
    "batches",
    "batches-cached",
    "iresnet50",
    "mobilefacenet",
)
COLUMNS = (
    "{case:18s}{size:>6}{batch:>6}  {engine:7s}{ms:>10}{rate:>10}{tflop:>9}{mfu:>7}{memory:>9}"
    "{compiling:>9}{ratio:>8}"
)
HEADS = dict(
    case="case",
    size="px",
    batch="batch",
    engine="",
    ms="ms",
    rate="images/s",
    tflop="TFLOP/im",
    mfu="MFU",
    memory="peak GB",
    compiling="start s",
    ratio="speed",
)


@dataclasses.dataclass(frozen=True)
class Line:
    """A task with its figures, or with the error that ended it."""

    task: Task
    figures: Figures | None = None
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns what --output holds of the line."""
        fields = dataclasses.asdict(self.task)
        del fields["scratch"], fields["trace"]
        return fields | (self.figures.as_dict() if self.figures else {"error": self.error})


def main() -> None:
    """Prints the table, line by line as they are measured."""
    options = _options()
    if options.one:
        print(json.dumps(measure(Task(**options.one)).as_dict()))
        return
    print(COLUMNS.format(**HEADS), flush=True)
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        ours: Line | None = None
        for task in _tasks(options, scratch):
            line = _measured(task)
            if task.engine == "jax":
                ours = line
                print(row(line), flush=True)
            else:
                print(row(line, ours), flush=True)
            lines.append(line.as_dict())
    if options.output:
        pathlib.Path(options.output).write_text(json.dumps(lines, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--cases", type=_words, default=list(CASES))
    parser.add_argument("--sizes", type=_numbers, default=[512], help="pixels")
    parser.add_argument("--batches", type=_numbers, default=[1])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--against", choices=("torch",))
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed steps; the median is reported"
    )
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--trace", help="folder for a profiler trace of our steps")
    parser.add_argument("--output", help="file for the figures, as JSON")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"--cases={min(unknown)}: it is unknown. Use some of {', '.join(CASES)}.")
    return options


def _words(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _tasks(options: argparse.Namespace, scratch: str) -> list[Task]:
    """Returns the tasks in the table's order; torch's follows ours of the same case."""
    tasks = []
    for case in options.cases:
        sizes = [(size, batch) for size in options.sizes for batch in options.batches]
        if case == "load":
            sizes = [(0, 1)]
        for size, batch in sizes:
            ours = Task(
                dtype=options.dtype,
                repeats=options.repeats,
                sampling_steps=options.sampling_steps,
                scratch=scratch,
                case=case,
                size=size,
                batch=batch,
                trace=options.trace,
            )
            tasks.append(ours)
            if options.against and case not in JAX_ONLY:
                tasks.append(dataclasses.replace(ours, engine=options.against, trace=None))
    return tasks


def _measured(task: Task) -> Line:
    try:
        return Line(task, child(task))
    except ChildProcessError as error:
        return Line(task, error=str(error))


def child(task: Task) -> Figures:
    """Measures a task in its own process. Raises ChildProcessError if that process fails."""
    script = str(ROOT / "launch" / "benchmark.py")
    command = [sys.executable, script, "--one", json.dumps(dataclasses.asdict(task))]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        errors = [line for line in process.stderr.splitlines() if "Error" in line]
        if not errors:
            errors = [f"stopped by signal {-process.returncode}: out of memory?"]
        raise ChildProcessError(errors[-1])
    return Figures(**json.loads(process.stdout.splitlines()[-1]))


def row(line: Line, ours: Line | None = None) -> str:
    """Formats a line of the table.

    For a line of torch's, `ours` is the line of the same case that its speed is relative to.
    """
    task = line.task
    figures = line.figures
    reference = ours.figures if ours else None
    if figures is None:
        start = f"{task.case:18s}{task.size:>6}{task.batch:>6}  {task.engine:7s}"
        return start + line.error[:90]
    cells = dict.fromkeys(HEADS, "") | dict(
        case=task.case,
        size=str(task.size or ""),
        batch=str(task.batch),
        engine=task.engine,
        ms=f"{1000 * figures.seconds:.0f}",
        memory=f"{figures.memory:.1f}",
        compiling=f"{figures.starting:.0f}",
    )
    if task.size:
        cells["rate"] = f"{task.batch / figures.seconds:.3g}"
    # Torch's operations are not counted: they are the same as ours.
    tflop = figures.tflop or (reference.tflop if reference else None)
    if tflop:
        cells["tflop"] = f"{tflop:.2f}"
    if tflop and figures.peak_tflops:
        share = tflop * task.batch / figures.seconds / figures.peak_tflops
        cells["mfu"] = f"{share:.0%}"
    if figures.alone:
        cells["ratio"] = f"{figures.alone / figures.seconds:.3f}"
    elif reference:
        cells["ratio"] = f"{reference.seconds / figures.seconds:.2f}"
    return COLUMNS.format(**cells)


def measure(task: Task) -> Figures:
    """Measures a task in this process."""
    # JAX and torch are imported only where they are measured: each takes memory.
    kind = "features" if task.case in FEATURES else "steps"
    module = importlib.import_module(f"launch.measure.{kind}_{task.engine}")
    return module.measure(task)
