"""Times training, sampling and loading at Stable Diffusion 1.5's size with random weights, on the machine it is on.

python launch/benchmark.py --sizes=512 --batches=1,8,16 --dtype=bfloat16 [--against=torch] [--trace=DIR]
python launch/benchmark.py --sizes=256 --batches=1 --dtype=float32 --against=torch --cases=controlnet   # two cores

Each line is measured in a process of its own, so that its peak memory is its own; `--against=torch`
does the same work with diffusers and torch right after it (test extra). A step is one update with
AdamW and the average; latents and prompts are those of the cache. TFLOP are counted by
launch/flops.py. Cases:

  controlnet   the U-Net is frozen
  both         the U-Net is trained too
  losses       controlnet with the decoded LPIPS and identity terms
  controlnet-remat, both-remat, losses-remat
               the same with train.remat; diffusers' with gradient checkpointing. TFLOP are those of
               the step without, and so is what MFU says
  loop         the controlnet step as training runs it: read, placed, checked, logged, and saved
               every so often; its speed is relative to the step's own
  sample       DDIM with guidance, decoded
  load         published files onto the device
  batches, batches-cached
               what the host has ready for a step from records, all decoded and augmented, or with
               latents from the cache
  inception, lpips-vgg, lpips-alex, lpips-squeeze, iresnet50, mobilefacenet
               an evaluation's feature networks, in float32; LPIPS counts pairs
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import benchmark_metrics

REMAT = "-remat"
STEPS = ("controlnet", "both", "losses")
CASES = (
    *STEPS,
    *(case + REMAT for case in STEPS),
    "loop",
    "sample",
    "load",
    "batches",
    "batches-cached",
    *benchmark_metrics.CASES,
)
# Cases that torch is not asked to repeat.
OURS_ALONE = (
    "losses",
    "losses-remat",
    "loop",
    "batches",
    "batches-cached",
    "iresnet50",
    "mobilefacenet",
)
# Dense bfloat16 TFLOP/s by the makers' data sheets, by a word of the device's name.
PEAKS = {
    "H200": 989,
    "H100": 989,
    "A100": 312,
    "TPU v6": 918,
    "TPU v5p": 459,
    "TPU v5 lite": 197,
    "TPU v4": 275,
}
COLUMNS = "{case:18s}{size:>6}{batch:>6}  {engine:7s}{ms:>10}{rate:>10}{tflop:>9}{mfu:>7}{memory:>9}{compiling:>9}{ratio:>8}"
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
)
HEADS |= dict(compiling="start s", ratio="speed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    several = lambda kind: lambda text: [kind(part) for part in text.split(",")]
    parser.add_argument("--cases", type=several(str), default=list(CASES))
    parser.add_argument("--sizes", type=several(int), default=[512], help="pixels")
    parser.add_argument("--batches", type=several(int), default=[1])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--against", choices=("torch",))
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed steps, of which the median counts"
    )
    parser.add_argument("--sampling-steps", type=int, default=50)
    parser.add_argument("--trace", help="folder for a profiler trace of our steps")
    parser.add_argument("--output", help="file for the figures, as JSON")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"--cases: {min(unknown)} is not one of {', '.join(CASES)}")
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    print(COLUMNS.format(**HEADS), flush=True)
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        shared = dict(
            dtype=options.dtype,
            repeats=options.repeats,
            sampling_steps=options.sampling_steps,
            scratch=scratch,
        )
        for case in options.cases:
            sizes = (
                [(s, b) for s in options.sizes for b in options.batches]
                if case != "load"
                else [(0, 1)]
            )
            for size, batch in sizes:
                ours = None
                for engine in (
                    ("jax", options.against)
                    if options.against and case not in OURS_ALONE
                    else ("jax",)
                ):
                    task = shared | dict(
                        case=case,
                        size=size,
                        batch=batch,
                        engine=engine,
                        trace=options.trace if engine == "jax" else None,
                    )
                    line = task | child(task)
                    ours = ours or line
                    print(row(line, ours), flush=True)
                    lines.append(
                        {
                            name: value
                            for name, value in line.items()
                            if name not in ("scratch", "trace")
                        }
                    )
    if options.output:
        pathlib.Path(options.output).write_text(json.dumps(lines, indent=1) + "\n")


def child(task: dict) -> dict:
    """The figures of one line, from a process of its own; an `error` where that died."""
    found = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(task)], capture_output=True, text=True
    )
    if found.returncode:
        words = [line for line in found.stderr.splitlines() if "Error" in line] or [
            f"stopped by signal {-found.returncode}: out of memory?"
        ]
        return {"error": words[-1]}
    return json.loads(found.stdout.splitlines()[-1])


def row(line: dict, ours: dict) -> str:
    """A line of the table; `ours` is what its speed is relative to."""
    if "error" in line:
        return f"{line['case']:18s}{line['size']:>6}{line['batch']:>6}  {line['engine']:7s}{line['error'][:90]}"
    seconds, peak = line["seconds"], line.get("peak_tflops")
    tflop = line.get("tflop") or ours.get("tflop")
    alone = line.get("alone") or (ours.get("seconds") if line is not ours else None)
    return COLUMNS.format(
        case=line["case"],
        size=line["size"] or "",
        batch=line["batch"],
        engine=line["engine"],
        ms=f"{1000 * seconds:.0f}",
        rate=f"{line['batch'] / seconds:.3g}" if line["size"] else "",
        tflop=f"{tflop:.2f}" if tflop else "",
        mfu=f"{tflop * line['batch'] / seconds / peak:.0%}" if tflop and peak else "",
        memory=f"{line['memory']:.1f}",
        compiling=f"{line['starting']:.0f}",
        ratio=f"{alone / seconds:.{3 if 'alone' in line else 2}f}" if alone else "",
    )


def measure(task: dict) -> dict:
    """Seconds a step (or sampling, or load), TFLOP an image, peak memory in GB, seconds to start."""
    if task["case"].startswith("batches"):
        return batches_jax(task)
    measures = {
        "jax": {"load": load_jax, "sample": sample_jax, "loop": loop_jax},
        "torch": {"load": load_torch, "sample": sample_torch},
    }
    if task["case"] in benchmark_metrics.CASES:
        return getattr(benchmark_metrics, f"score_{task['engine']}")(task)
    usual = {"jax": step_jax, "torch": step_torch}[task["engine"]]
    return measures[task["engine"]].get(task["case"], usual)(task)


def timed(step, repeats: int) -> float:
    """The median of `repeats` calls; `step` returns when the work is done."""
    durations = []
    for _ in range(repeats):
        began = time.monotonic()
        step()
        durations.append(time.monotonic() - began)
    return statistics.median(durations)


def host_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# Ours.


def make_config(task: dict):
    from configs import cranio_diff
    from launch import sd15

    c = cranio_diff.get_config()
    c.compute_dtype = task["dtype"]
    c.data.settings.size = task["size"] or 512
    c.prompt.tokenizer = "words"
    c.method.update(unet=sd15.UNET | sd15.UP, vae=sd15.VAE, text_encoder=sd15.TEXT)
    case = task["case"].removesuffix(REMAT)
    c.train.remat = case != task["case"]
    c.method.trained = ("controlnet", "unet") if case == "both" else ("controlnet",)
    c.train.batch_size = task["batch"]
    c.sampling.num_steps = task["sampling_steps"]
    if case == "losses":
        c.method.losses.update(
            write_features(pathlib.Path(task["scratch"]) / "features"), decode_batch=0, gate="none"
        )
    else:
        c.method.losses.update(lpips=0.0, identity=0.0)
    return c


def write_features(folder: pathlib.Path) -> dict[str, str]:
    """Random weights of VGG16, LPIPS's heads and an IResNet-50, for their loader to find; settings that name them."""
    import jax

    from cranio_jax import models, pretrained
    from cranio_jax.models.functional import Network

    lpips, embedder = (
        Network(lambda rngs: models.LPIPS("vgg", rngs=rngs)),
        Network(lambda rngs: models.EMBEDDERS["iresnet50"](rngs=rngs)),
    )
    files = {
        "trunk_file": (lpips, "features."),
        "heads_file": (lpips, "lin"),
        "embedder_file": (embedder, ""),
    }
    for field, (network, prefix) in files.items():
        params = {
            path: p
            for path, p in jax.jit(network.init)(jax.random.key(0)).items()
            if path.startswith(prefix)
        }
        pretrained.save(folder / field, "", pretrained.tensors_of(params), "float32")
    return {field: str(folder / field) for field in files}


def examples(method, task: dict) -> dict:
    import numpy as np

    rng, count, size = np.random.default_rng(0), task["batch"], task["size"]
    batch = {
        "xray": rng.integers(0, 256, (count, size, size, 1), np.uint8),
        "id_hash": np.arange(count, dtype=np.uint32),
    }
    if task["case"] == "sample":
        return batch | {"prompt_ids": np.ones((count, 77), np.int32)}
    kind = method.dtype
    batch["latents"] = rng.standard_normal((count, size // 8, size // 8, 4)).astype(kind)
    batch["context"] = rng.standard_normal((count, 77, 768)).astype(kind)
    if task["case"].removesuffix(REMAT) == "losses":
        batch |= {
            "face": rng.integers(0, 256, (count, size, size, 3), np.uint8),
            "frontal": np.ones(count, np.float32),
        }
    return batch


def start_jax(task: dict):
    """`(method, mesh, state, frozen, batch, seconds)`."""
    import jax
    import jax.numpy as jnp

    from cranio_jax.distributed import sharding
    from cranio_jax.methods import make_method
    from cranio_jax.runs.state import shardings_of

    began = time.monotonic()
    mesh = sharding.make_mesh()
    sharding.check_batch(task["batch"], mesh, "--batches")
    method = make_method(make_config(task))
    shardings = shardings_of(method, mesh)[1]
    features = method.load(mesh, frozen_only=False)
    # As if all had been loaded: drawing a billion normal numbers takes minutes on two cores.
    wave = lambda shape: (
        0.02 * jnp.sin(jnp.arange(math.prod(shape), dtype=jnp.float32)).reshape(shape)
    )

    def init(features):
        made = {
            name: {path: wave(shape) for path, shape in network.shapes().items()}
            for name, network in method.networks.items()
        }
        return method.init(jax.random.key(0), made | features)

    state, frozen = jax.jit(init, out_shardings=shardings, donate_argnums=0)(features)
    batch = sharding.put_batch(examples(method, task), mesh)
    return method, mesh, jax.block_until_ready(state), jax.block_until_ready(frozen), batch, began


def tflop(function: str, task: dict, *args) -> float:
    """Counted on the float32 program, in which every product is visible, and none is computed twice."""
    import jax

    from cranio_jax.methods import make_method
    from launch.flops import flops

    method = make_method(
        make_config(task | {"dtype": "float32", "case": task["case"].removesuffix(REMAT)})
    )
    return (
        flops(getattr(method, function), *args, jax.eval_shape(lambda: jax.random.key(0)))
        / task["batch"]
        / 1e12
    )


def finish_jax(task: dict, seconds: float, starting: float, count: float, again) -> dict:
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    memory = stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else host_peak()
    if task["trace"]:
        with jax.profiler.trace(
            os.path.join(task["trace"], f"{task['case']}_{task['size']}_{task['batch']}")
        ):
            again()
    peak = (
        [value for word, value in PEAKS.items() if word.lower() in device.device_kind.lower()]
        if task["dtype"] == "bfloat16"
        else []
    )
    device = f"{jax.device_count()} x {device.device_kind}, jax {jax.__version__}"
    found = {
        "seconds": seconds,
        "starting": starting,
        "tflop": count,
        "memory": memory,
        "device": device,
    }
    return found | ({"peak_tflops": peak[0] * jax.device_count()} if peak else {})


def step_jax(task: dict) -> dict:
    import jax

    from cranio_jax.distributed import sharding
    from cranio_jax.training import loop

    method, mesh, state, frozen, batch, began = start_jax(task)
    key = sharding.random_key(1, mesh)
    step = loop.jit_step(method, mesh).lower(state, frozen, batch, key).compile()

    def once():
        nonlocal state
        state, metrics = step(state, frozen, batch, key)
        jax.block_until_ready((state, metrics))

    once()
    starting = time.monotonic() - began
    seconds = timed(once, task["repeats"])
    return finish_jax(
        task, seconds, starting, tflop("train_step", task, state, frozen, batch), once
    )


def loop_jax(task: dict) -> dict:
    """`seconds` of a step in train's loop, a checkpoint's share among them; `alone`, what the jitted step takes of that.

    Each step is waited for, so that nothing the loop does hides behind the device's work: in training it takes less.
    """
    import jax

    from cranio_jax.distributed import sharding
    from cranio_jax.runs.checkpoints import Checkpoints
    from cranio_jax.training import loop

    method, mesh, state, frozen, _, began = start_jax(task | {"case": "controlnet"})
    batches = batches_of(task | {"case": "batches-cached"}, method)
    batch, key = sharding.put_batch(next(batches), mesh), sharding.random_key(1, mesh)
    step = loop.jit_step(method, mesh).lower(state, frozen, batch, key).compile()
    c, workdir, count = (
        make_config(task),
        pathlib.Path(task["scratch"]) / "loop",
        2 * task["repeats"] + 1,
    )
    saved_every, c.train.checkpoint_every, c.train.log_every = c.train.checkpoint_every, 0, 2
    times = []

    def watched(*args):
        entered = time.monotonic()
        found = jax.block_until_ready(step(*args))
        times.append((entered, time.monotonic()))
        return found

    def once():
        nonlocal state
        state, _ = watched(state, frozen, batch, key)

    once()
    starting = time.monotonic() - began
    times.clear()
    with Checkpoints(workdir / "checkpoints", 1) as checkpoints:
        state, _ = loop.loop(
            c, workdir, mesh, watched, None, state, frozen, batches, 0, count, checkpoints
        )
        saving = time.monotonic()
        checkpoints.save(count, state, batches.get_state())
        saving = time.monotonic() - saving
    del times[0]  # the loop's own start came after it
    alone = statistics.mean(left - entered for entered, left in times)
    between = statistics.mean(later[0] - earlier[1] for earlier, later in itertools.pairwise(times))
    return finish_jax(task, alone + between + saving / saved_every, starting, 0.0, once) | {
        "alone": alone,
        "saving": saving,
    }


def sample_jax(task: dict) -> dict:
    import jax

    method, _, state, frozen, batch, began = start_jax(task)
    params = {
        name: {path: p.astype(method.dtype) for path, p in part.items()}
        for name, part in state["params"].items()
    }
    del state
    generate = jax.jit(method.generate).lower(params, frozen, batch, jax.random.key(0)).compile()
    once = lambda: jax.block_until_ready(generate(params, frozen, batch, jax.random.key(0)))
    if jax.default_backend() != "cpu":
        once()
    starting = time.monotonic() - began
    return finish_jax(
        task, timed(once, 1), starting, tflop("generate", task, params, frozen, batch), once
    )


def write_pipeline(folder: pathlib.Path) -> None:
    """A pipeline of random weights in Stable Diffusion 1.5's files."""
    import jax
    import numpy as np

    from cranio_jax import models, pretrained
    from cranio_jax.files.atomic import write_json
    from cranio_jax.models.functional import Network
    from cranio_jax.pretrained.names import torch_key, torch_shape
    from launch import sd15

    unet = sd15.UNET | sd15.UP
    parts = {
        "unet": (
            unet,
            models.UNet2DConditionConfig,
            models.UNet2DConditionModel,
            "UNet2DConditionModel",
        ),
        "controlnet": (
            sd15.UNET,
            models.ControlNetConfig,
            models.ControlNetModel,
            "ControlNetModel",
        ),
        "vae": (sd15.VAE, models.AutoencoderKLConfig, models.AutoencoderKL, "AutoencoderKL"),
        "text_encoder": (sd15.TEXT, models.CLIPTextConfig, models.CLIPTextModel, "CLIPTextModel"),
    }
    rng = np.random.default_rng(0)
    for part, (settings, config, model, kind) in parts.items():
        made = config.from_mapping(settings)
        shapes = Network(lambda rngs, model=model, made=made: model(made, rngs=rngs)).shapes()
        tensors = (
            (torch_key(path), rng.standard_normal(torch_shape(path, shape), np.float32))
            for path, shape in shapes.items()
        )
        pretrained.save(folder / part, part, tensors, "float32")
        extra = (
            {"model_type": "clip_text_model", **sd15.EOS}
            if part == "text_encoder"
            else {"_class_name": kind}
        )
        write_json(folder / part / "config.json", settings | extra)
    write_json(folder / "tokenizer" / "vocab.json", {})
    write_json(folder / "scheduler" / "scheduler_config.json", {})
    write_json(
        folder / "model_index.json", {part: ["", ""] for part in (*parts, "tokenizer", "scheduler")}
    )
    jax.clear_caches()


def load_jax(task: dict) -> dict:
    import jax

    from cranio_jax.distributed import sharding
    from cranio_jax.methods import make_method

    folder = pathlib.Path(task["scratch"]) / "pipeline"
    if not folder.exists():
        # In a process of its own, so that its memory is not counted here.
        subprocess.run([sys.executable, "-c", f"from launch.benchmark import *; write_pipeline(pathlib.Path({str(folder)!r}))"],
                       cwd=pathlib.Path(__file__).resolve().parent.parent, check=True)  # fmt: skip
    config = make_config(task)
    config.pretrained.model = str(folder)
    mesh, method = sharding.make_mesh(), make_method(config)
    began = time.monotonic()
    jax.block_until_ready(method.load(mesh, frozen_only=False))
    return finish_jax(task, time.monotonic() - began, 0.0, 0.0, lambda: None)


def batches_of(task: dict, method=None):
    """Batches as training reads them, of the embedded cohort; zeros in place of what is cached, of the method's type."""
    import numpy as np

    from cranio_jax import data

    c = make_config(task)
    c.data.data_dir = str(pathlib.Path(task["scratch"]) / "records")
    c.data.cranio_phantom.subjects = 3
    cached = task["case"].endswith("cached")
    examples = data.Examples(
        data.make_builder(c.data), "train", c, ("xray",) if cached else ("xray", "face")
    )
    zeros = lambda *shape: np.zeros(shape, method.dtype if method else np.float32)
    ready = {"latents": zeros(task["size"] // 8, task["size"] // 8, 4)} if cached else {}
    ready |= {"context": zeros(77, 768)} if method else {}
    return data.TrainingBatches(
        examples,
        task["batch"],
        0,
        lambda example, rng: data.augment(example, rng, c.augment) | ready,
    )


def batches_jax(task: dict) -> dict:
    from cranio_jax import data

    began = time.monotonic()
    batches = batches_of(task)
    ahead = data.READING.prefetch_buffer_size + data.READING.num_threads
    some = lambda: [next(batches) for _ in range(2 * ahead)]  # more than lie ready
    some()
    starting = time.monotonic() - began
    return finish_jax(task, timed(some, task["repeats"]) / (2 * ahead), starting, 0.0, some)


# PyTorch's.


def torch_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_networks(task: dict):
    """`(U-Net, ControlNet)`: what is trained in float32, what is not in the type it is used in."""
    import diffusers
    import torch

    from launch import sd15

    torch.manual_seed(0)
    with torch.device(torch_device()):
        unet = diffusers.UNet2DConditionModel(**sd15.UNET, **sd15.UP)
        controlnet = diffusers.ControlNetModel(**sd15.UNET)
    if task["case"].removesuffix(REMAT) != "both":
        unet = unet.to(getattr(torch, task["dtype"])).requires_grad_(False)
    if task["case"].endswith(REMAT):
        unet.enable_gradient_checkpointing()
        controlnet.enable_gradient_checkpointing()
    return unet, controlnet


def finish_torch(seconds: float, starting: float) -> dict:
    import torch

    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else host_peak()
    return {
        "seconds": seconds,
        "starting": starting,
        "memory": memory,
        "device": f"torch {torch.__version__}",
    }


def step_torch(task: dict) -> dict:
    import torch

    began, device, kind = time.monotonic(), torch_device(), getattr(torch, task["dtype"])
    unet, controlnet = torch_networks(task)
    trained = [p for model in (unet, controlnet) for p in model.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=1e-5, fused=True)
    count, side = task["batch"], task["size"] // 8
    latents = torch.randn(count, 4, side, side, device=device)
    context, picture = (
        torch.randn(count, 77, 768, device=device),
        torch.rand(count, 3, task["size"], task["size"], device=device),
    )

    def once():
        noise, t = torch.randn_like(latents), torch.randint(0, 1000, (count,), device=device)
        noisy = 0.7 * latents + 0.7 * noise
        with torch.autocast(device, kind, enabled=task["dtype"] != "float32"):
            down, middle = controlnet(noisy, t, context, controlnet_cond=picture, return_dict=False)
            output = unet(
                noisy,
                t,
                context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(average, [p.detach() for p in trained], 1e-3)
        loss.item()

    once()
    starting = time.monotonic() - began
    return finish_torch(timed(once, task["repeats"]), starting)


def sample_torch(task: dict) -> dict:
    import diffusers
    import torch

    from launch import sd15

    began, device, kind = time.monotonic(), torch_device(), getattr(torch, task["dtype"])
    unet, controlnet = (model.to(kind).eval() for model in torch_networks(task))
    with torch.device(device):
        vae = diffusers.AutoencoderKL(**sd15.VAE).to(kind).eval()
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    count, side = task["batch"], task["size"] // 8
    context = torch.randn(2 * count, 77, 768, device=device, dtype=kind)
    picture = torch.rand(2 * count, 3, task["size"], task["size"], device=device, dtype=kind)

    @torch.inference_mode()
    def once():
        scheduler.set_timesteps(task["sampling_steps"])
        x = torch.randn(count, 4, side, side, device=device, dtype=kind)
        for t in scheduler.timesteps:
            both = torch.cat([x, x])
            down, middle = controlnet(both, t, context, controlnet_cond=picture, return_dict=False)
            output = unet(
                both,
                t,
                context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
            empty, full = output.chunk(2)
            x = scheduler.step(empty + 7.5 * (full - empty), t, x).prev_sample
        return vae.decode(x / vae.config.scaling_factor).sample.float().cpu()

    if device != "cpu":
        once()
    starting = time.monotonic() - began
    return finish_torch(timed(once, 1), starting)


def load_torch(task: dict) -> dict:
    import diffusers
    import torch
    import transformers

    folder, kind = pathlib.Path(task["scratch"]) / "pipeline", getattr(torch, task["dtype"])
    kinds = {
        "unet": diffusers.UNet2DConditionModel,
        "controlnet": diffusers.ControlNetModel,
        "vae": diffusers.AutoencoderKL,
    }
    kinds["text_encoder"] = transformers.CLIPTextModel
    began = time.monotonic()
    # The ControlNet is trained: float32, as ours.
    models = [
        k.from_pretrained(
            folder / part, torch_dtype=torch.float32 if part == "controlnet" else kind
        )
        for part, k in kinds.items()
    ]
    models = [model.to(torch_device()) for model in models]
    # Files are mapped: a sum over each parameter makes that they have been read.
    sum(float(p.sum()) for model in models for p in model.parameters())
    return finish_torch(time.monotonic() - began, 0.0)


if __name__ == "__main__":
    main()
