"""Several processes as one program: joining, agreeing, and stopping together."""

import contextlib
import faulthandler
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from cranio_jax.errors import InputError

# Exit code (EX_TEMPFAIL) of a run that was stopped and kept its state: launchers start it again.
START_AGAIN = 75
# A process that is silent for this long counts as dead, and the others end.
HEARTBEAT_S = 60
# How long a process waits for live ones: some compile while others use a cache.
_WAIT_S = 3600
_NUMBERS = itertools.count()


class Preempted(RuntimeError):
    """The machine is being preempted; the message says which state is kept."""


def join() -> None:
    """Joins the other processes that the environment names; call it before using any device.

    They are named by JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID, a SLURM
    step of several tasks, Open MPI, or a TPU slice. Raises InputError if variables are missing
    or nobody answers.
    """
    # Read the environment.
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    numbers: dict[str, Any] = {}
    if address:
        try:
            numbers = {
                "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
                "process_id": int(os.environ["JAX_PROCESS_ID"]),
            }
        except (KeyError, ValueError):
            raise InputError(
                "JAX_COORDINATOR_ADDRESS is set, so JAX_NUM_PROCESSES and JAX_PROCESS_ID must "
                "be set to numbers"
            ) from None
    elif os.environ.get("SLURM_NTASKS") == "1":
        return  # JAX would take one of the machine's devices for the one task
    # Join.
    try:
        jax.distributed.initialize(address, **numbers, heartbeat_timeout_seconds=HEARTBEAT_S)
    except ValueError as error:
        if numbers:
            raise InputError(
                f"JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID: {error}"
            ) from None
        return  # there are no others
    # If another process dies, JAX ends this one, and absl would print its useless stack.
    faulthandler.disable()


def is_first() -> bool:
    """Returns True for the one process that writes files and messages."""
    return jax.process_index() == 0


def say(words: str) -> None:
    """Prints a line to stderr, from the first process only."""
    if is_first():
        print(words, file=sys.stderr, flush=True)


def of_first(value: np.ndarray) -> np.ndarray:
    """Returns the first process's value on all processes.

    For example, one folder may look different from each machine.
    """
    wait_for_all("of_first")
    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def all_agree(good: bool) -> bool:
    """Returns True if `good` holds on every process."""
    wait_for_all("all_agree")
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def wait_for_all(name: str) -> None:
    """Returns when all processes have called it with the same name.

    They wait through the coordinator, since collectives of a CPU time out after half a minute.
    """
    if jax.process_count() > 1:
        everybody = set(range(jax.process_count()))
        multihost.sync_global_processes(
            f"{name} {next(_NUMBERS)}", timeout=_WAIT_S, processes=everybody
        )


def compiled(function: Any, *args) -> Callable:
    """Returns a jitted function, compiled for these arguments.

    All processes have compiled it when this returns, so that none waits in it for the others.
    """
    if jax.process_count() == 1 or isinstance(function, jax.stages.Compiled):
        return function
    program = function.lower(*args).compile()
    wait_for_all("compiled")
    return program


@contextlib.contextmanager
def notice() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step that returns True if all processes should stop after it.

    That is so once any of them has received SIGTERM.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    signals: list[bool] = []
    handler = signal.signal(signal.SIGTERM, lambda *_: signals.append(True))
    try:
        yield lambda step: bool(signals)
    finally:
        signal.signal(signal.SIGTERM, handler)


def leave(words: str, code: int) -> None:
    """Prints a message and ends this process at once.

    An orderly exit would wait for the other processes, which may be waiting for this one.
    """
    try:
        print(words, file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # even if the streams are closed
        os._exit(code)
