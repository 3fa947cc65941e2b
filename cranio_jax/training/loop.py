"""The training loop, the same for every method."""

import contextlib
import pathlib
import sys
import time

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

# XLA's CPU compiler would merge what a step with `train.remat` computes twice, and keep it in memory.
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


class NonFiniteLossError(RuntimeError):
    """Training diverged; the message names the step and the examples."""


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict:
    """Trains until `config.train.num_steps`, going on from the newest whole checkpoint in `workdir`.

    Returns the state. Raises InputError on impossible settings, NonFiniteLossError on divergence, Preempted after SIGTERM,
    when the state is saved.
    """
    t = config.train
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    method = make_method(config)
    claim(workdir, config, method)
    last = min(t.num_steps, t.stop_at or t.num_steps)
    with running(config, workdir):
        state, done = _train(config, workdir, method, mesh, last)
        if done < last:
            raise cluster.Preempted(
                f"told to stop after step {done}, whose state is kept; start it again to go on"
            )
    return state


def _train(config, workdir, method, mesh, last):
    t, builder = config.train, data.make_builder(config.data)
    if config.job == "train_and_evaluate":
        evaluate.check(config, builder)
    with Checkpoints(workdir / "checkpoints", t.keep, t.keep_period, clean=True) as checkpoints:
        state, frozen, first, position = restore_or_init(method, mesh, config, workdir, checkpoints)
        if first > last:
            raise InputError(
                f"train.num_steps={t.num_steps}: {first} steps are done. Set it (and train.stop_at) to more, or use job=evaluate."
            )
        examples, prepare = latent_cache.training_examples(config, method, mesh, frozen, builder)
        rows = sharding.local_rows(t.batch_size, mesh)
        batches = data.TrainingBatches(examples, t.batch_size, config.seed, prepare, rows, position)
        if position is not None:
            cluster.say(f"going on from step {first}")
        step_fn = jit_step(method, mesh)
        validate = Validation(config, mesh, builder) if config.validation.every else None
        state, done = loop(
            config,
            workdir,
            mesh,
            step_fn,
            validate,
            state,
            frozen,
            batches,
            first,
            last,
            checkpoints,
        )
        checkpoints.save(done, state, batches.get_state())
    return state, done


def jit_step(method: Method, mesh: jax.sharding.Mesh):
    """The jitted step `(state, frozen, batch, key) -> (state, metrics)`."""
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
def progress(start: int, total: int):
    """A line with images per second and the time left."""
    form = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, {elapsed} gone, {remaining} left{postfix}"
    quiet = 0.1 if sys.stderr.isatty() else 20.0  # a log file wants few lines
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


def loop(
    config, workdir, mesh, step_fn, validate, state, frozen, batches, first, last, checkpoints
):
    """Steps from `first` to `last`, or to the notice to stop; logs, looks at held-out faces, saves.

    Returns `(state, steps done)`; what was done last is not saved yet.
    """
    t, key = config.train, sharding.random_key(config.seed + 1, mesh)

    def check(done, metrics, ids):
        values = jax.device_get(metrics)
        if wrong := [name for name, value in values.items() if not np.isfinite(value)]:
            name = "loss" if "loss" in wrong else wrong[0]
            raise NonFiniteLossError(
                f"the {name.replace('_', ' ')} is {values[name]} at step {done}, whose batch held the examples "
                f"{', '.join(f'{i:08x}' for i in ids)}; "
                f"the newest checkpoint is of step {checkpoints.latest or 0}: lower train.learning_rate and start again"
            )

    began, began_step, before, done = None, first, None, first
    with (
        Writer(workdir) as writer,
        progress(first, t.num_steps) as bar,
        Trace(workdir / "profile", first, config.profile_steps) as trace,
        cluster.notice() as told,
        jax.transfer_guard("disallow"),
    ):
        bar.set_postfix_str("compiling")
        for done in range(first + 1, last + 1):
            local = next(batches)
            batch = sharding.put_batch(local, mesh)
            if done == first + 1:
                step_fn = cluster.compiled(step_fn, state, frozen, batch, key)
            state, metrics = step_fn(state, frozen, batch, key)
            if before is not None:  # while this step computes, look at the one before it
                check(*before)
            before = (done, metrics, local["id_hash"])
            if done == first + 1:  # the first step compiles; rates are of the others
                jax.block_until_ready(metrics)
                began, began_step = time.monotonic(), done
                bar.unpause()
                bar.set_postfix_str("")
            bar.update(1)
            trace.after(done, metrics)
            stop = told(done)
            if done % t.log_every == 0 or done == last or stop:
                check(*before)
                values = {name: float(v) for name, v in jax.device_get(metrics).items()}
                if done > began_step:
                    values["images_per_second"] = (
                        (done - began_step) * t.batch_size / (time.monotonic() - began)
                    )
                    bar.set_postfix_str(
                        f"{values['images_per_second']:.0f} images/s, loss {values['loss']:.4f}"
                    )
                writer.scalars(done, values)
            if stop:
                break
            if validate and (done % validate.every == 0 or done == last):
                writer.scalars(done, validate(state, frozen))
            if t.checkpoint_every and done % t.checkpoint_every == 0 and done < last:
                check(*before)  # only a finite state may replace an older one
                checkpoints.save(done, state, batches.get_state())
    return state, done
