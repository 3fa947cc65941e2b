"""The training loop, the same for every method."""

import contextlib
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from cranio_jax import data
from cranio_jax.distributed import cluster, sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation import evaluate
from cranio_jax.evaluation.validation import Validation
from cranio_jax.files import buckets
from cranio_jax.methods import Method, make_method
from cranio_jax.runs.checkpoints import Checkpoints
from cranio_jax.runs.log import Writer
from cranio_jax.runs.state import restore_or_init, shardings_of
from cranio_jax.runs.status import running
from cranio_jax.runs.workdir import claim
from cranio_jax.training import latent_cache

# XLA's CPU compiler would merge what a step with `train.remat` computes twice, and keep it in
# memory.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}

State = dict[str, Any]
Metrics = dict[str, jax.Array]
# `(state, frozen, batch, key) -> (state, metrics)`
Step = Callable[..., tuple[State, Metrics]]


class NonFiniteLossError(RuntimeError):
    """Training diverged; the message names the step and the examples."""


@dataclasses.dataclass
class Run:
    """What the loop works with.

    Attributes:
      config: of the run.
      workdir: for the log and the profiler's trace.
      mesh: the devices.
      step: the jitted training step.
      validation: scores held-out faces on the way; None if it is not asked for.
      frozen: parameters that are not trained.
      batches: of this process, from where the run resumes.
      checkpoints: where states are saved.
      first: how many steps are done already.
      last: the step to end with.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    step: Step
    validation: Validation | None
    frozen: Any
    batches: data.TrainingBatches
    checkpoints: Checkpoints
    first: int
    last: int


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> State:
    """Trains until `config.train.num_steps`, from the newest whole checkpoint in `workdir`.

    Returns the state. Raises InputError on impossible settings, NonFiniteLossError on divergence,
    and Preempted after SIGTERM, when the state is saved.
    """
    t = config.train
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    method = make_method(config)
    claim(workdir, config, method)
    last = min(t.num_steps, t.stop_at or t.num_steps)
    with running(config, workdir):
        builder = data.make_builder(config.data)
        if config.job == "train_and_evaluate":
            evaluate.check(config, builder)
        # Closing the checkpoints waits for what is still being written.
        with Checkpoints(workdir / "checkpoints", t.keep, t.keep_period, clean=True) as checkpoints:
            run, state = _start(config, workdir, method, mesh, builder, checkpoints, last)
            state, done = run_steps(run, state)
            checkpoints.save(done, state, run.batches.get_state())
        if done < last:
            raise cluster.Preempted(
                f"stopped on request after step {done}, which is saved; start again to resume"
            )
    return state


def _start(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    method: Method,
    mesh: jax.sharding.Mesh,
    builder: Any,
    checkpoints: Checkpoints,
    last: int,
) -> tuple[Run, State]:
    """Returns what the loop works with, and the state that it starts from."""
    t = config.train
    # The state: the newest checkpoint's, or a fresh one.
    state, frozen, first, position = restore_or_init(method, mesh, config, workdir, checkpoints)
    if first > last:
        raise InputError(
            f"train.num_steps={t.num_steps}: {first} steps are done. Set it (and train.stop_at) to "
            "more, or use job=evaluate."
        )

    # The examples, from where that state stands.
    examples, prepare = latent_cache.training_examples(config, method, mesh, frozen, builder)
    rows = sharding.local_rows(t.batch_size, mesh)
    batches = data.TrainingBatches(
        examples, t.batch_size, config.seed, prepare, rows, position, examples.weights()
    )
    if position is not None:
        cluster.say(f"resuming from step {first}")
    run = Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        step=jit_step(method, mesh),
        validation=Validation(config, mesh, builder) if config.validation.every else None,
        frozen=frozen,
        batches=batches,
        checkpoints=checkpoints,
        first=first,
        last=last,
    )
    return run, state


def jit_step(method: Method, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
    """Returns the jitted step `(state, frozen, batch, key) -> (state, metrics)`."""
    state, frozen = shardings_of(method, mesh)[1]
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        method.train_step,
        in_shardings=(state, frozen, sharding.batch_sharding(mesh), sharding.replicated(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
        compiler_options=KEEP_BARRIERS if method.remat and on_cpu else None,
    )


@contextlib.contextmanager
def progress(start: int, total: int) -> Iterator[tqdm]:
    """Shows a line with images per second and the time left."""
    form = (
        "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {elapsed} gone, "
        "{remaining} left{postfix}"
    )
    quiet = 0.1 if sys.stderr.isatty() else 20.0  # a log file needs few lines
    with tqdm(
        total=total,
        initial=start,
        desc="training",
        bar_format=form,
        mininterval=quiet,
        disable=not cluster.is_first(),
    ) as bar:
        yield bar


class Trace:
    """A profiler's trace of `count` steps, once the first ten have passed; TensorBoard shows it."""

    def __init__(self, folder: pathlib.Path, first: int, count: int):
        self._folder, self._steps = folder, range(first + 10, first + 10 + count)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exc) -> None:
        self._open.close()

    def after(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Begins or ends the trace, when it is time."""
        if self._steps and step in (self._steps.start, self._steps.stop):
            jax.block_until_ready(metrics)
            if step == self._steps.start:
                local = self._open.enter_context(buckets.local_folder(self._folder))
                jax.profiler.start_trace(str(local))
                self._open.callback(self._stop)
            else:
                self._open.close()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        cluster.say(f"a trace of {len(self._steps)} steps: tensorboard --logdir={self._folder}")


class _Guard:
    """Looks at the metrics of each step, one step later, while the devices compute the next."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints = checkpoints
        self._waiting: tuple[int, Metrics, np.ndarray] | None = None

    def take(self, step: int, metrics: Metrics, id_hashes: np.ndarray) -> None:
        """Checks the step before, and keeps this one for later."""
        self.check()
        self._waiting = (step, metrics, id_hashes)

    def check(self) -> None:
        """Raises NonFiniteLossError if a metric of the newest step is not a finite number."""
        if self._waiting is None:
            return
        step, metrics, id_hashes = self._waiting
        values = jax.device_get(metrics)
        wrong = [name for name, value in values.items() if not np.isfinite(value)]
        if wrong:
            name = "loss" if "loss" in wrong else wrong[0]
            examples = ", ".join(f"{i:08x}" for i in id_hashes)
            raise NonFiniteLossError(
                f"the {name.replace('_', ' ')} is {values[name]} at step {step}, whose batch held "
                f"the examples {examples}; the newest checkpoint is of step "
                f"{self._checkpoints.latest or 0}: lower train.learning_rate and start again"
            )


class _Rate:
    """Images per second, without the first step, which compiles."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._began = 0.0
        self._first = 0

    def begin(self, step: int) -> None:
        """Begins to count after a step."""
        self._began = time.monotonic()
        self._first = step

    def after(self, step: int) -> float | None:
        """Returns the rate until a step; None if no step was counted."""
        if step <= self._first:
            return None
        return (step - self._first) * self._batch_size / (time.monotonic() - self._began)


def run_steps(run: Run, state: State) -> tuple[State, int]:
    """Trains from `run.first` to `run.last`, or until the notice to stop.

    Logs, scores held-out faces and saves on the way.

    Returns:
      The state and how many steps are done; that state is not saved yet.

    Raises:
      NonFiniteLossError: training diverged.
    """
    t = run.config.train
    key = sharding.random_key(run.config.seed + 1, run.mesh)
    guard, rate = _Guard(run.checkpoints), _Rate(t.batch_size)
    step_fn = run.step
    done = run.first
    with (
        Writer(run.workdir) as writer,
        progress(run.first, t.num_steps) as bar,
        Trace(run.workdir / "profile", run.first, run.config.profile_steps) as trace,
        cluster.notice() as told_to_stop,
        jax.transfer_guard("disallow"),
    ):
        bar.set_postfix_str("compiling")
        for done in range(run.first + 1, run.last + 1):
            is_first = done == run.first + 1
            local = next(run.batches)
            batch = sharding.put_batch(local, run.mesh)
            if is_first:
                step_fn = cluster.compiled(step_fn, state, run.frozen, batch, key)
            state, metrics = step_fn(state, run.frozen, batch, key)
            guard.take(done, metrics, local["id_hash"])
            if is_first:
                jax.block_until_ready(metrics)
                rate.begin(done)
                bar.unpause()
                bar.set_postfix_str("")
            bar.update(1)
            trace.after(done, metrics)

            # Log.
            stop = told_to_stop(done)
            if done % t.log_every == 0 or done == run.last or stop:
                guard.check()
                values = {name: float(v) for name, v in jax.device_get(metrics).items()}
                images_per_second = rate.after(done)
                if images_per_second is not None:
                    values["images_per_second"] = images_per_second
                    bar.set_postfix_str(
                        f"{images_per_second:.0f} images/s, loss {values['loss']:.4f}"
                    )
                writer.scalars(done, values)
            if stop:
                break

            # Score held-out faces.
            validation = run.validation
            if validation and (done % validation.every == 0 or done == run.last):
                writer.scalars(done, validation(state, run.frozen))

            # Save; only a finite state may replace an older one.
            if t.checkpoint_every and done % t.checkpoint_every == 0 and done < run.last:
                guard.check()
                run.checkpoints.save(done, state, run.batches.get_state())
    return state, done
