"""Memory and communication of a training step at Stable Diffusion 1.5's size, on many devices.

python launch/scaling.py [--mfu=0.24]

prints the tables of SCALING.md. Parameters, operations and the memory of the backward pass are
counted in the program itself, at 512 pixels in bfloat16. The machines' numbers are from their
makers' data sheets. Two numbers were measured on one H200: the share of the peak that a step
reaches (MFU), and the memory of an image with cuDNN's attention.
"""

import argparse
import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from cranio_jax.distributed.sharding import MIN_SHARDED_SIZE
from cranio_jax.methods import make_method
from launch.measure import workload
from launch.measure.cases import Task
from launch.measure.flops import flops

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Machine:
    """A number of connected devices.

    Attributes:
      devices: their number.
      peak: dense bfloat16 TFLOP/s of a device.
      memory: of a device, in GB.
      link: GB/s that a device sends over its slowest link in a ring.
      cudnn: whether attention is cuDNN's, which does not store its logits.
    """

    devices: int
    peak: float
    memory: float
    link: float
    cudnn: bool = True


# A link of a v5e carries 50 GB/s each way, and a ring uses two of its four; a v5p has three times
# that. NVLink carries 450 GB/s each way within eight GPUs. Between such groups, each GPU has one
# adapter of 400 Gbit/s.
MACHINES = {
    "v5e-8": Machine(8, 197, 16, 100, cudnn=False),
    "v5p-64": Machine(64, 459, 95, 300, cudnn=False),
    "8 x H100": Machine(8, 989, 80, 450),
    "8 x H200": Machine(8, 989, 141, 450),
    "64 x H100": Machine(64, 989, 80, 50),
    "64 x H200": Machine(64, 989, 141, 50),
}
# Measured by launch/benchmark.py on one H200 with eight images of 512 pixels, 2026-11-26, by case:
# the share of the peak, and the bytes of an image in addition to the state.
MFU = {"controlnet": 0.24, "both": 0.20}
BESIDE_STATE = {"controlnet": 0.82 * GB, "both": 1.09 * GB}
TITLES = {"controlnet": "the ControlNet alone", "both": "U-Net and ControlNet"}
COLUMNS = (
    "",
    "fsdp",
    "state GB",
    "images fit",
    "images",
    "GB sent",
    "arithmetic ms",
    "links ms",
    "images/s",
)


@dataclasses.dataclass(frozen=True)
class Need:
    """The needs of a method's training step.

    Attributes:
      trained: number of trained parameters.
      sharded: number of those that `fsdp` shards.
      frozen: number of other parameters.
      flop: operations of an image.
      kept: bytes of an image that autodiff keeps for the backward pass, logits of attention
        included, before XLA recomputes any.
      measured: the same with cuDNN's attention, as measured.
    """

    trained: int
    sharded: int
    frozen: int
    flop: float
    kept: float
    measured: float


class Counts(NamedTuple):
    """Numbers of parameters: trained, sharded (of the trained ones), and frozen."""

    trained: int
    sharded: int
    frozen: int


def parameters(state: Any, frozen: Any) -> Counts:
    """Counts parameters by their shapes."""
    sizes = [leaf.size for leaf in jax.tree.leaves(state["params"])]
    return Counts(
        trained=sum(sizes),
        sharded=sum(size for size in sizes if size >= MIN_SHARDED_SIZE),
        frozen=sum(leaf.size for leaf in jax.tree.leaves(frozen)),
    )


def kept_for_backward(method: Any, state: Any, frozen: Any, batch: Any) -> int:
    """Returns the bytes that autodiff keeps for a loss.

    They include parameters, in the type that they are used in.
    """
    count = batch["xray"].shape[0]
    side = method.size // method.factor

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((count, *shape), dtype)

    draws = {
        "timesteps": array(np.int32),
        "noise": array(np.float32, side, side, method.channels),
        "drop_prompt": array(bool),
    }

    def backward(params, *rest):
        return jax.vjp(lambda params: method.loss(params, *rest)[0], params)[1]

    kept = jax.eval_shape(backward, state["params"], frozen, batch, draws)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def need(case: str, size: int = 512) -> Need:
    """Counts what a case of launch/benchmark.py needs: 'controlnet' or 'both'."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    one = Task(case=case, size=size, batch=1, dtype="bfloat16", sampling_steps=1)

    # Memory of an image: the difference between one and two.
    kept = []
    for count in (1, 2):
        task = dataclasses.replace(one, batch=count)
        method = make_method(workload.make_config(task))
        state, frozen = jax.eval_shape(method.init, key)
        batch = workload.examples(method, task)
        kept.append(kept_for_backward(method, state, frozen, batch))

    # Operations, in the program for float32: every product is visible in it.
    exact = dataclasses.replace(one, dtype="float32")
    method = make_method(workload.make_config(exact))
    batch = workload.examples(method, exact)
    flop = flops(method.train_step, *jax.eval_shape(method.init, key), batch, key)

    return Need(
        *parameters(state, frozen),
        flop=flop,
        kept=kept[1] - kept[0],
        measured=BESIDE_STATE[case],
    )


def state_bytes(n: Need, fsdp: int) -> float:
    """Returns the bytes of a device for parameters.

    Trained ones need weights, average, two moments and a gradient in float32; frozen ones are
    bfloat16.
    """
    return (20 * n.trained + 2 * n.frozen) / fsdp


def link_bytes(n: Need, devices: int, fsdp: int) -> float:
    """Returns the bytes that a device sends in a step.

    To gather an array among d devices in a ring, each sends (d - 1) / d of it; to sum it, twice
    that. Gradients are float32. Among `fsdp` devices, each sharded parameter is gathered for the
    forward pass and again for the backward pass. Its gradient is scattered among them, and summed
    among the groups.
    """
    groups = devices // fsdp
    gathered = 2 * 4 * n.sharded * (fsdp - 1) / fsdp
    scattered = 4 * n.sharded * (fsdp - 1) / fsdp
    whole = n.trained - n.sharded
    shard = n.sharded / fsdp
    return (
        gathered
        + scattered
        + 8 * whole * (devices - 1) / devices
        + 8 * shard * (groups - 1) / groups
    )


def arithmetic_seconds(n: Need, machine: Machine, batch: int, mfu: float) -> float:
    """Returns the seconds of a step's arithmetic; `batch` is the images of a device."""
    return batch * n.flop / (mfu * machine.peak * 1e12)


def link_seconds(n: Need, machine: Machine, fsdp: int) -> float:
    """Returns the seconds of a step's communication, which may overlap with the arithmetic."""
    return link_bytes(n, machine.devices, fsdp) / (machine.link * GB)


def largest_batch(n: Need, machine: Machine, fsdp: int) -> int:
    """Returns how many images fit into nine tenths of a device's memory."""
    free = 0.9 * machine.memory * GB - state_bytes(n, fsdp)
    return int(free / (n.measured if machine.cudnn else n.kept))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("--mfu", type=float, help="share of the peak, in place of the measured one")
    options = parser.parse_args()
    for case, title in TITLES.items():
        n = need(case)
        mfu = options.mfu or MFU[case]
        print(f"\n{title}: {_summary(n, mfu)}\n")
        print(_row(COLUMNS))
        print(_row(["---"] * len(COLUMNS)))
        for name, machine in MACHINES.items():
            for fsdp in (1, 8):
                print(_row([name, str(fsdp), *_cells(n, machine, fsdp, mfu)]))


def _summary(n: Need, mfu: float) -> str:
    return (
        f"{n.trained / 1e6:.0f} M trained, {n.frozen / 1e6:.0f} M frozen, "
        f"{n.flop / 1e12:.2f} TFLOP an image, "
        f"{n.measured / GB:.2f} GB with cuDNN's attention and {n.kept / GB:.2f} without, "
        f"MFU {mfu:.0%}"
    )


def _row(cells: Iterable[str]) -> str:
    """Formats a row of a Markdown table."""
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _cells(n: Need, machine: Machine, fsdp: int, mfu: float) -> list[str]:
    """Returns a row's cells after the machine and `fsdp`."""
    state = f"{state_bytes(n, fsdp) / GB:.1f}"
    fit = largest_batch(n, machine, fsdp)
    if fit < 1:
        return [state, "none", "", "", "", "", ""]
    batch = min(fit, 8)
    work = arithmetic_seconds(n, machine, batch, mfu)
    wait = link_seconds(n, machine, fsdp)
    return [
        state,
        str(fit),
        str(batch),
        f"{link_bytes(n, machine.devices, fsdp) / GB:.1f}",
        f"{1000 * work:.0f}",
        f"{1000 * wait:.0f}",
        f"{machine.devices * batch / max(work, wait):.0f}",
    ]
