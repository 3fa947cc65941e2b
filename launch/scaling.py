"""What a training step at Stable Diffusion 1.5's size needs of memory and links on machines that are not at hand.

python launch/scaling.py [--mfu=0.24]

prints the tables of SCALING.md. Parameters, operations and what is kept for the backward pass are counted in the program
itself, at 512 pixels in bfloat16; machines are as their makers' data sheets have them; the share of the peak that is
reached (MFU), and what cuDNN's attention leaves to be kept, were measured on one H200.
"""

import argparse
import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from cranio_jax.distributed.sharding import MIN_SHARDED_SIZE
from cranio_jax.methods import make_method
from launch import benchmark
from launch.flops import flops

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Machine:
    """Per device: peak in dense bfloat16 TFLOP/s, memory in GB, and GB/s that it sends over its slowest link in a ring.

    `cudnn`: whether attention is cuDNN's, whose logits are not kept.
    """

    devices: int
    peak: float
    memory: float
    link: float
    cudnn: bool = True


# An inter-chip link of a v5e carries 50 GB/s each way and a ring uses two of its four; v5p has three times that; NVLink 450
# GB/s each way within eight GPUs, and one adapter of 400 Gbit/s for each GPU between them.
MACHINES = {
    "v5e-8": Machine(8, 197, 16, 100, cudnn=False),
    "v5p-64": Machine(64, 459, 95, 300, cudnn=False),
    "8 x H100": Machine(8, 989, 80, 450),
    "8 x H200": Machine(8, 989, 141, 450),
    "64 x H100": Machine(64, 989, 80, 50),
    "64 x H200": Machine(64, 989, 141, 50),
}
# By case, of launch/benchmark.py on one H200 with eight images of 512 pixels, 2026-11-26: the share of the peak, and the peak of
# memory less the state, an image.
MFU = {"controlnet": 0.24, "both": 0.20}
BESIDE_STATE = {"controlnet": 0.82 * GB, "both": 1.09 * GB}


@dataclasses.dataclass(frozen=True)
class Need:
    """Of a method.

    Attributes:
      trained: parameters that are trained.
      sharded: those of them that `fsdp` shards.
      frozen: parameters that are not.
      flop: operations of an image in a step.
      kept: bytes of an image that autodiff keeps for the backward pass, the logits of attention among them, before XLA
        recomputes any.
      measured: the same with cuDNN's attention, as it was measured.
    """

    trained: int
    sharded: int
    frozen: int
    flop: float
    kept: float
    measured: float


def parameters(state, frozen) -> tuple[int, int, int]:
    """Trained, of them sharded, and frozen; from shapes."""
    sizes = [leaf.size for leaf in jax.tree.leaves(state["params"])]
    return (
        sum(sizes),
        sum(n for n in sizes if n >= MIN_SHARDED_SIZE),
        sum(leaf.size for leaf in jax.tree.leaves(frozen)),
    )


def kept_for_backward(method, state, frozen, batch) -> int:
    """Bytes that autodiff keeps of a loss, parameters in the type they compute in among them."""
    count, side = batch["xray"].shape[0], method.size // method.factor
    array = lambda dtype, *shape: jax.ShapeDtypeStruct((count, *shape), dtype)
    draws = {
        "timesteps": array(np.int32),
        "noise": array(np.float32, side, side, method.channels),
        "drop_prompt": array(bool),
    }
    gradient = lambda params, *rest: jax.vjp(lambda params: method.loss(params, *rest)[0], params)[
        1
    ]
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(jax.eval_shape(gradient, state["params"], frozen, batch, draws))
    )


def need(case: str, size: int = 512) -> Need:
    """Counted for a case of launch/benchmark.py, `controlnet` or `both`."""
    task = dict(case=case, size=size, dtype="bfloat16", sampling_steps=1)
    key = jax.eval_shape(lambda: jax.random.key(0))
    kept = []
    for count in (1, 2):
        method = make_method(benchmark.make_config(task | {"batch": count}))
        state, frozen = jax.eval_shape(method.init, key)
        kept.append(
            kept_for_backward(
                method, state, frozen, benchmark.examples(method, task | {"batch": count})
            )
        )
    exact = make_method(
        benchmark.make_config(task | {"batch": 1, "dtype": "float32"})
    )  # in which every product is visible
    flop = flops(
        exact.train_step,
        *jax.eval_shape(exact.init, key),
        benchmark.examples(exact, task | {"batch": 1}),
        key,
    )
    return Need(*parameters(state, frozen), flop, kept[1] - kept[0], BESIDE_STATE[case])


def state_bytes(n: Need, fsdp: int) -> float:
    """Of a device: masters, average, two moments and a gradient in float32, and what is frozen in bfloat16."""
    return (20 * n.trained + 2 * n.frozen) / fsdp


def link_bytes(n: Need, devices: int, fsdp: int) -> float:
    """Bytes that a device sends in a step: a ring moves (d - 1) / d of an array to gather it among d, twice that to add it up.

    Gradients are float32. Among `fsdp` each sharded parameter is gathered for the forward pass, and again for the backward
    pass; its gradient is scattered, and added up among the rest.
    """
    groups = devices // fsdp
    gathered = 2 * 4 * n.sharded * (fsdp - 1) / fsdp
    scattered = 4 * n.sharded * (fsdp - 1) / fsdp
    whole, parts = n.trained - n.sharded, n.sharded / fsdp
    return (
        gathered
        + scattered
        + 8 * whole * (devices - 1) / devices
        + 8 * parts * (groups - 1) / groups
    )


def step_seconds(
    n: Need, machine: Machine, fsdp: int, batch: int, mfu: float
) -> tuple[float, float]:
    """Seconds of arithmetic, and of the links, which may run beside it."""
    return batch * n.flop / (mfu * machine.peak * 1e12), link_bytes(n, machine.devices, fsdp) / (
        machine.link * GB
    )


def largest_batch(n: Need, machine: Machine, fsdp: int) -> int:
    """Images a device that fit into nine tenths of its memory."""
    return int(
        (0.9 * machine.memory * GB - state_bytes(n, fsdp))
        / (n.measured if machine.cudnn else n.kept)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--mfu", type=float, help="share of the peak, in place of what was measured"
    )
    options = parser.parse_args()
    for case, title in (("controlnet", "the ControlNet alone"), ("both", "U-Net and ControlNet")):
        n = need(case)
        counted = f"{n.trained / 1e6:.0f} M trained, {n.frozen / 1e6:.0f} M frozen, {n.flop / 1e12:.2f} TFLOP"
        mfu = options.mfu or MFU[case]
        print(
            f"\n{title}: {counted} an image, {n.measured / GB:.2f} GB with cuDNN's attention and {n.kept / GB:.2f} without, MFU {mfu:.0%}\n"
        )
        heads = (
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
        print(f"| {' | '.join(heads)} |")
        print("| --- " * len(heads) + "|")
        for name, machine in MACHINES.items():
            for fsdp in (1, 8):
                fit = largest_batch(n, machine, fsdp)
                if fit < 1:
                    print(f"| {name} | {fsdp} | {state_bytes(n, fsdp) / GB:.1f} | none | | | | | |")
                    continue
                batch = min(fit, 8)
                work, wait = step_seconds(n, machine, fsdp, batch, mfu)
                rate = machine.devices * batch / max(work, wait)
                cells = f"{state_bytes(n, fsdp) / GB:.1f} | {fit} | {batch} | {link_bytes(n, machine.devices, fsdp) / GB:.1f}"
                print(
                    f"| {name} | {fsdp} | {cells} | {1000 * work:.0f} | {1000 * wait:.0f} | {rate:.0f} |"
                )


if __name__ == "__main__":
    main()
