"""Several processes as one program: how they find each other, what the first one says to all, and when they are told to stop."""

import contextlib
import faulthandler
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from cranio_jax.errors import InputError

# The exit code of a run that was told to stop and has kept its state (EX_TEMPFAIL): launchers start it again.
START_AGAIN = 75
# A process that says nothing for so long is taken for dead, and the others end.
HEARTBEAT_S = 60
# So long one process waits for others that live: some compile while others find their programs in a cache.
_WAIT_S = 3600
_NUMBERS = itertools.count()


class Preempted(RuntimeError):
    """The machine was asked back; the message tells what is kept."""


def join() -> None:
    """Joins the other processes, if the environment tells of any; comes before anything that asks for devices.

    JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID, a SLURM step of several tasks, Open MPI, or a TPU
    slice. Raises InputError where the first are not complete or nobody answers.
    """
    told = {
        name: os.environ.get(f"JAX_{name}")
        for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
    }
    if told["COORDINATOR_ADDRESS"]:
        try:
            numbers = {
                "num_processes": int(told["NUM_PROCESSES"]),
                "process_id": int(told["PROCESS_ID"]),
            }
        except (TypeError, ValueError):
            raise InputError(
                "JAX_COORDINATOR_ADDRESS is set; JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers beside it"
            ) from None
    elif os.environ.get("SLURM_NTASKS") == "1":
        return  # JAX would take one of the machine's devices for the one task
    else:
        numbers = {}
    try:
        jax.distributed.initialize(
            told["COORDINATOR_ADDRESS"], **numbers, heartbeat_timeout_seconds=HEARTBEAT_S
        )
    except ValueError as error:
        if numbers:
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID: {error}"
            ) from None
        return  # nothing tells of others
    faulthandler.disable()  # where another process dies JAX ends this one; its stack, which absl would print, says nothing


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def say(words: str) -> None:
    """A line to the person at the terminal, from one process."""
    if is_first():
        print(words, file=sys.stderr, flush=True)


def of_first(value: np.ndarray) -> np.ndarray:
    """What the first process has, on all: folders may look different from each machine, for a moment or for good."""
    wait_for_all("of_first")
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def all_agree(good: bool) -> bool:
    """Whether it is so on all processes."""
    wait_for_all("all_agree")
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def wait_for_all(name: str) -> None:
    """Returns when all processes have come here, by way of the coordinator: collectives of a CPU wait half a minute at most."""
    if jax.process_count() > 1:
        everybody = set(range(jax.process_count()))
        multihost.sync_global_processes(
            f"{name} {next(_NUMBERS)}", timeout=_WAIT_S, processes=everybody
        )


def compiled(function: Callable, *args) -> Callable:
    """A jitted function, compiled for such arguments by all processes before one of them waits for the others in it."""
    if jax.process_count() == 1 or isinstance(function, jax.stages.Compiled):
        return function
    made = function.lower(*args).compile()
    wait_for_all("compiled")
    return made


@contextlib.contextmanager
def notice() -> Iterator[Callable[[int], bool]]:
    """Yields `told(step)`: whether SIGTERM came, to any of the processes, and all shall stop after this same step."""
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        yield lambda step: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(words: str, code: int) -> None:
    """Ends this process at once, with words: an orderly exit would wait for the others, who may wait for this one."""
    try:
        print(words, file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # also where nobody listens any more
        os._exit(code)
