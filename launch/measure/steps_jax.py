"""The benchmark's cases of training, sampling and loading, in JAX."""

import dataclasses
import itertools
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cranio_jax import data
from cranio_jax.distributed import sharding
from cranio_jax.methods import make_method
from cranio_jax.runs.checkpoints import Checkpoints
from cranio_jax.training import loop
from launch.measure import workload
from launch.measure.cases import ROOT, Figures, Task, host_peak, median_seconds
from launch.measure.flops import flops

# Dense bfloat16 TFLOP/s by the makers' data sheets, by a part of the device's name.
PEAKS = {
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "TPU v6": 918,
    "TPU v5p": 459,
    "TPU v5 lite": 197,
    "TPU v4": 275,
}


def measure(task: Task) -> Figures:
    """Measures a task."""
    if task.case.startswith("batches"):
        return _batches(task)
    measures = {"load": _load, "sample": _sample, "loop": _loop}
    return measures.get(task.case, _step)(task)


def figures(
    task: Task, seconds: float, starting: float, tflop: float, step: Callable[[], Any]
) -> Figures:
    """Returns a task's figures, with the memory so far; traces a `step` if the task asks for it."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    memory = host_peak()
    if "peak_bytes_in_use" in stats:
        memory = stats["peak_bytes_in_use"] / 2**30
    if task.trace:
        folder = os.path.join(task.trace, f"{task.case}_{task.size}_{task.batch}")
        with jax.profiler.trace(folder):
            step()
    kind = device.device_kind
    peaks = [peak for name, peak in PEAKS.items() if name.lower() in kind.lower()]
    known = peaks and task.dtype == "bfloat16"
    return Figures(
        seconds=seconds,
        starting=starting,
        tflop=tflop,
        memory=memory,
        device=f"{jax.device_count()} x {kind}, jax {jax.__version__}",
        peak_tflops=peaks[0] * jax.device_count() if known else None,
    )


def _tflop(function: str, task: Task, *args: Any) -> float:
    """Returns TFLOP of an image in a call of a method's function.

    They are counted in the program for float32, where every product is visible, and without
    recomputation.
    """
    exact = dataclasses.replace(task, dtype="float32", case=task.base_case)
    method = make_method(workload.make_config(exact))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return flops(getattr(method, function), *args, key) / task.batch / 1e12


def _step(task: Task) -> Figures:
    """Measures a training step."""
    method, mesh, state, frozen, batch, began = workload.start(task)
    key = sharding.random_key(1, mesh)
    compiled = loop.jit_step(method, mesh).lower(state, frozen, batch, key).compile()

    def step():
        nonlocal state
        state, metrics = compiled(state, frozen, batch, key)
        jax.block_until_ready((state, metrics))

    step()
    starting = time.monotonic() - began
    seconds = median_seconds(step, task.repeats)
    tflop = _tflop("train_step", task, state, frozen, batch)
    return figures(task, seconds, starting, tflop, step)


def _loop(task: Task) -> Figures:
    """Measures a step within the training loop, with its share of a checkpoint.

    Each step is awaited, so the loop's work never overlaps the device's. In training
    the two overlap, which takes less time.
    """
    # Compile the step.
    method, mesh, state, frozen, _, began = workload.start(
        dataclasses.replace(task, case="controlnet")
    )
    batches = _training_batches(dataclasses.replace(task, case="batches-cached"), method)
    batch = sharding.put_batch(next(batches), mesh)
    key = sharding.random_key(1, mesh)
    compiled = loop.jit_step(method, mesh).lower(state, frozen, batch, key).compile()
    times: list[tuple[float, float]] = []  # start and end of each step

    def watched(*args):
        start = time.monotonic()
        result = jax.block_until_ready(compiled(*args))
        times.append((start, time.monotonic()))
        return result

    def step():
        nonlocal state
        state, _ = watched(state, frozen, batch, key)

    step()
    starting = time.monotonic() - began
    times.clear()

    # Train, and save a checkpoint.
    c = workload.make_config(task)
    steps_per_checkpoint = c.train.checkpoint_every
    c.train.checkpoint_every = 0
    c.train.log_every = 2
    workdir = pathlib.Path(task.scratch) / "loop"
    count = 2 * task.repeats + 1
    with Checkpoints(workdir / "checkpoints", 1) as checkpoints:
        run = loop.Run(
            config=c,
            workdir=workdir,
            mesh=mesh,
            step=watched,
            validation=None,
            frozen=frozen,
            batches=batches,
            checkpoints=checkpoints,
            first=0,
            last=count,
        )
        state, _ = loop.run_steps(run, state)
        before_saving = time.monotonic()
        checkpoints.save(count, state, batches.get_state())
        saving = time.monotonic() - before_saving

    # Divide the time. The first step is left out: the loop's own start came after it.
    del times[0]
    alone = statistics.mean(end - start for start, end in times)
    between = statistics.mean(later[0] - earlier[1] for earlier, later in itertools.pairwise(times))
    seconds = alone + between + saving / steps_per_checkpoint
    result = figures(task, seconds, starting, tflop=0.0, step=step)
    return dataclasses.replace(result, alone=alone, saving=saving)


def _sample(task: Task) -> Figures:
    """Measures the sampling of a batch, once."""
    method, _, state, frozen, batch, began = workload.start(task)
    params = {
        name: {path: p.astype(method.dtype) for path, p in part.items()}
        for name, part in state["params"].items()
    }
    del state
    key = jax.random.key(0)
    generate = jax.jit(method.generate).lower(params, frozen, batch, key).compile()

    def sample():
        return jax.block_until_ready(generate(params, frozen, batch, key))

    if jax.default_backend() != "cpu":
        sample()
    starting = time.monotonic() - began
    seconds = median_seconds(sample, 1)
    tflop = _tflop("generate", task, params, frozen, batch)
    return figures(task, seconds, starting, tflop, sample)


def _load(task: Task) -> Figures:
    """Measures how long published files take onto the device."""
    folder = pathlib.Path(task.scratch) / "pipeline"
    if not folder.exists():
        # In its own process, whose memory is not counted here.
        code = (
            "import pathlib, sys; from launch.measure.workload import write_pipeline; "
            "write_pipeline(pathlib.Path(sys.argv[1]))"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)
    config = workload.make_config(task)
    config.pretrained.model = str(folder)
    mesh = sharding.make_mesh()
    method = make_method(config)
    start = time.monotonic()
    jax.block_until_ready(method.load(mesh, frozen_only=False))
    seconds = time.monotonic() - start
    return figures(task, seconds, starting=0.0, tflop=0.0, step=lambda: None)


def _training_batches(task: Task, method: Any = None) -> data.TrainingBatches:
    """Returns batches of the procedural cohort, as training reads them.

    Cached fields are zeros, of the type of `method` if there is one.
    """
    c = workload.make_config(task)
    c.data.data_dir = str(pathlib.Path(task.scratch) / "records")
    c.data.cranio_phantom.subjects = 3
    cached = task.case.endswith("cached")
    images = ("xray",) if cached else ("xray", "face")
    examples = data.Examples(data.make_builder(c.data), "train", c, images)
    dtype = method.dtype if method else np.float32
    fields = {}
    if cached:
        side = task.size // workload.FACTOR
        fields["latents"] = np.zeros((side, side, workload.LATENT_CHANNELS), dtype)
    if method:
        fields["context"] = np.zeros((workload.TOKENS, workload.TEXT_WIDTH), dtype)

    def prepare(example, rng):
        return data.augment(example, rng, c.augment) | fields

    return data.TrainingBatches(examples, task.batch, 0, prepare)


def _batches(task: Task) -> Figures:
    """Measures how fast the host prepares batches."""
    began = time.monotonic()
    batches = _training_batches(task)
    ahead = data.READING.prefetch_buffer_size + data.READING.num_threads
    count = 2 * ahead  # more than are prepared in advance

    def read():
        return [next(batches) for _ in range(count)]

    read()
    starting = time.monotonic() - began
    seconds = median_seconds(read, task.repeats) / count
    return figures(task, seconds, starting, tflop=0.0, step=read)
