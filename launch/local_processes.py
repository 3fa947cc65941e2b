"""Several processes of cranio_jax on this machine, over loopback: a pod for tests and for learning.

python launch/local_processes.py --processes=2 --devices-per-process=4 -- --config=configs/demo.py:smoke --workdir=DIR

What follows `--` is given to each. The devices are the CPU's, virtual ones. What process 0 says is shown as it is, what the
others say behind their number. When one fails, the others get a minute to end by themselves. SIGTERM and SIGINT are passed
on. The exit code is that of the first that failed.
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

ROOT = pathlib.Path(__file__).resolve().parent.parent
GRACE_S = 60.0


def commands(
    processes: int, devices: int, port: int, arguments: list[str]
) -> list[tuple[dict[str, str], list[str]]]:
    """`(environment, command)` of each process; the environment is what is added to one's own."""
    xla = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    shared = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla,
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
    }
    shared |= {"JAX_NUM_PROCESSES": str(processes)}
    command = [sys.executable, "-m", "cranio_jax.main", *arguments]
    return [(shared | {"JAX_PROCESS_ID": str(number)}, command) for number in range(processes)]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def _pass_on(number: int, lines) -> None:
    for line in lines:
        print(f"[{number}] {line}", end="", file=sys.stderr, flush=True)


def run(started: list[subprocess.Popen]) -> int:
    """Waits for all; returns the exit code of the first that failed, or 0."""
    signal.signal(
        signal.SIGTERM, lambda number, _: [process.send_signal(number) for process in started]
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal has told them itself
    code, deadline = 0, None
    while any(process.poll() is None for process in started):
        failed = next((n for n, process in enumerate(started) if process.poll()), None)
        if failed is not None and deadline is None:
            code, deadline = started[failed].returncode, time.monotonic() + GRACE_S
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
    return code if code >= 0 else 128 - code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices-per-process", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="print what would be run")
    options, rest = parser.parse_known_args()
    arguments = rest[1:] if rest[:1] == ["--"] else rest
    if options.processes < 1 or options.devices_per_process < 1:
        parser.error("there is at least one process, and it has a device")
    made = commands(options.processes, options.devices_per_process, _free_port(), arguments)
    if options.dry_run:
        for environment, command in made:
            print(
                shlex.join(
                    ["env", *(f"{name}={value}" for name, value in environment.items()), *command]
                )
            )
        return
    started = []
    for number, (environment, command) in enumerate(made):
        pipe = (
            {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if number else {}
        )
        started.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, **pipe))
        if number:
            threading.Thread(
                target=_pass_on, args=(number, started[-1].stdout), daemon=True
            ).start()
    sys.exit(run(started))


if __name__ == "__main__":
    main()
