"""Runs several processes of cranio_jax on this machine, to learn and to test.

python launch/local_processes.py --processes=2 --devices-per-process=4 -- \
    --config=configs/demo.py:smoke --workdir=DIR

The flags after `--` go to each process. The devices are virtual ones of the CPU. The output of
process 0 is shown as it is; the others' lines begin with their number. If one process fails, the
others have a minute to end by themselves. SIGTERM and SIGINT are passed on. The exit code is that
of the first process that failed.
"""

import argparse
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
GRACE_S = 60.0  # for the others, after one process has failed


class Command(NamedTuple):
    """A process's command, and the variables to add to its environment."""

    environment: dict[str, str]
    words: list[str]


def commands(processes: int, devices: int, port: int, arguments: list[str]) -> list[Command]:
    """Returns the command of each process.

    Args:
      processes: their number.
      devices: virtual devices of each.
      port: of the coordinator, which is process 0.
      arguments: flags of the program.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    shared = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    words = [sys.executable, "-m", "cranio_jax.main", *arguments]
    return [Command(shared | {"JAX_PROCESS_ID": str(n)}, words) for n in range(processes)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _pass_on(number: int, lines: Iterable[str]) -> None:
    """Prints a process's lines after its number."""
    for line in lines:
        print(f"[{number}] {line}", end="", file=sys.stderr, flush=True)


def start(commands: list[Command]) -> list[subprocess.Popen]:
    """Starts all processes; the output of all but the first is printed with their numbers."""
    started: list[subprocess.Popen] = []
    for number, (environment, words) in enumerate(commands):
        environment = os.environ | environment
        if number == 0:
            started.append(subprocess.Popen(words, cwd=ROOT, env=environment))
            continue
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        arguments = (number, process.stdout)
        threading.Thread(target=_pass_on, args=arguments, daemon=True).start()
    return started


def wait(started: list[subprocess.Popen]) -> int:
    """Waits for all processes. Returns the exit code of the first that failed, or 0."""

    def stop(number: int, _) -> None:
        for process in started:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to them itself
    code = 0
    deadline = None
    while any(process.poll() is None for process in started):
        failed = next((n for n, process in enumerate(started) if process.poll()), None)
        if failed is not None and deadline is None:
            code = started[failed].returncode
            deadline = time.monotonic() + GRACE_S
            print(
                f"process {failed} ended with {code}; the others have {GRACE_S:.0f} s to end",
                file=sys.stderr,
                flush=True,
            )
        if deadline is not None and time.monotonic() > deadline:
            for process in started:
                process.kill()
        time.sleep(0.1)
    code = code or next((process.returncode for process in started if process.returncode), 0)
    return code if code >= 0 else 128 - code  # as shells report a signal


def main() -> None:
    """Runs the processes, or prints their commands."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices-per-process", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="print the commands")
    options, arguments = parser.parse_known_args()
    if arguments[:1] == ["--"]:
        arguments = arguments[1:]
    for flag in ("processes", "devices_per_process"):
        if vars(options)[flag] < 1:
            name = flag.replace("_", "-")
            parser.error(f"--{name}={vars(options)[flag]}: it is too small. Use 1 or more.")
    planned = commands(
        processes=options.processes,
        devices=options.devices_per_process,
        port=_free_port(),
        arguments=arguments,
    )
    if options.dry_run:
        for environment, words in planned:
            variables = [f"{name}={value}" for name, value in environment.items()]
            print(shlex.join(["env", *variables, *words]))
        return
    sys.exit(wait(start(planned)))


if __name__ == "__main__":
    main()
