"""From a checkpoint to faces of the test subjects, numbers with their uncertainty, and results.json."""

import importlib.metadata
import pathlib
import platform
import subprocess
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from clu import metrics as clu_metrics
from tqdm import tqdm

from cranio_jax import data, sharding
from cranio_jax.errors import InputError
from cranio_jax.methods import Method
from cranio_jax.metrics import psnr, ssim
from cranio_jax.metrics.resampling import bootstrap
from cranio_jax.train import restore
from cranio_jax.writers import Writer, whole_file, write_json

MEAN_FACE, SHUFFLED = "mean face", "shuffled X-rays"
METRICS = ("psnr", "ssim")


@flax.struct.dataclass
class PixelMetrics(clu_metrics.Collection):
    """Means over the examples whose mask is 1."""

    psnr: clu_metrics.Average.from_output("psnr")
    ssim: clu_metrics.Average.from_output("ssim")


def quantise(faces: jax.Array) -> jax.Array:
    """Faces in [-1, 1] as they would be stored, uint8: kept faces and fresh ones must score alike."""
    return jnp.round((faces + 1.0) * 127.5).astype(jnp.uint8)


def score(faces: jax.Array, truth: jax.Array, mask: jax.Array, totals: PixelMetrics) -> tuple[PixelMetrics, dict[str, jax.Array]]:
    """The metric step: adds a batch to `totals`, and gives each example's values for the bootstrap.

    Args:
      faces, truth: `(batch, height, width, 3)` uint8.
      mask: `(batch,)` 1 for examples, 0 for padding.
      totals: what came before.
    """
    a, b = faces.astype(jnp.float32) / 255.0, truth.astype(jnp.float32) / 255.0
    each = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
    return totals.merge(PixelMetrics.single_from_model_output(mask=mask, **each)), each


class Evaluator:
    """The jitted steps of an evaluation, each compiled once."""

    def __init__(self, method: Method, mesh: jax.sharding.Mesh, params: Any, frozen: Any, seed: int, batch_size: int):
        self._mesh, self._params, self._frozen, self._batch_size = mesh, params, frozen, batch_size
        batch, same = sharding.batch_sharding(mesh), sharding.replicated(mesh)

        def generate(params, frozen, batch, draw):
            key = jax.random.fold_in(jax.random.key(seed + 2), draw)
            return quantise(method.generate(params, frozen, batch, key))

        def fused(params, frozen, batch, draw, totals):
            return score(generate(params, frozen, batch, draw), batch["face"], batch["mask"], totals)

        self._generate = jax.jit(generate, out_shardings=batch)
        self._score = jax.jit(score, out_shardings=same)
        self._fused = jax.jit(fused, out_shardings=same)
        self._empty = jax.jit(PixelMetrics.empty, out_shardings=same)

    def generate(self, examples: list[dict], draw: int = 0, say: str = "generating") -> np.ndarray:
        """Faces `(len(examples), height, width, 3)` uint8; `draw` numbers the sample."""
        faces = []
        for batch in self._batches(examples, say):
            faces.append(jax.device_get(self._generate(self._params, self._frozen, batch, self._number(draw))))
        return np.concatenate(faces)[: len(examples)]

    def score(self, faces: np.ndarray, examples: list[dict]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Means and each example's metrics of kept faces against `examples`."""
        fill = -len(examples) % self._batch_size
        padded = np.concatenate([faces, np.repeat(faces[-1:], fill, 0)])
        starts = range(0, len(padded), self._batch_size)
        totals, rows = self._empty(), []
        for start, batch in zip(starts, self._batches(examples, None), strict=True):
            part = sharding.put_batch({"face": padded[start : start + self._batch_size]}, self._mesh)["face"]
            totals, each = self._score(part, batch["face"], batch["mask"], totals)
            rows.append(jax.device_get(each))
        return self._finish(totals, rows, len(examples))

    def generate_and_score(self, examples: list[dict], draw: int = 0, say: str = "evaluating"):
        """As `generate` and `score`, in one step that keeps no face."""
        totals, rows = self._empty(), []
        for batch in self._batches(examples, say):
            totals, each = self._fused(self._params, self._frozen, batch, self._number(draw), totals)
            rows.append(jax.device_get(each))
        return self._finish(totals, rows, len(examples))

    def _number(self, draw):
        return jax.device_put(np.uint32(draw), sharding.replicated(self._mesh))

    def _batches(self, examples, say):
        count = -(-len(examples) // self._batch_size)
        for batch in tqdm(data.ordered_batches(examples, self._batch_size), total=count, desc=say, disable=say is None, mininterval=5):
            yield sharding.put_batch(batch, self._mesh)

    def _finish(self, totals, rows, count):
        means = {name: float(value) for name, value in totals.compute().items()}
        return means, {name: np.concatenate([r[name] for r in rows])[:count] for name in METRICS}


def load_evaluator(config: ml_collections.ConfigDict, workdir: pathlib.Path, batch_size: int) -> tuple[Evaluator, Method, int]:
    """The evaluator of the newest checkpoint, the method and the checkpoint's step."""
    sharding.check_batch(batch_size, sharding.make_mesh(config.mesh.data, config.mesh.fsdp), "evaluate.batch_size")
    method, mesh, state, frozen, step = restore(config, workdir)
    return Evaluator(method, mesh, method.generation_params(state), frozen, config.seed, batch_size), method, step


def mean_faces(examples: data.Examples) -> Callable[[dict], np.ndarray]:
    """The mean training face of a view, age and BMI change: what somebody would draw who never saw the X-ray."""
    sums, counts = defaultdict(float), defaultdict(int)
    kind = lambda e: (e["face_view"], e["age"], e["bmi_change"])
    for i in range(len(examples)):
        example = examples[i]
        sums[kind(example)] = sums[kind(example)] + example["face"].astype(np.float64)
        counts[kind(example)] += 1

    def mean_face(example):
        if kind(example) not in sums:
            raise InputError(f"no training face has the view, age and BMI change {kind(example)} of a test face")
        return np.round(sums[kind(example)] / counts[kind(example)]).astype(np.uint8)

    return mean_face


def shuffled_xrays(examples: list[dict], seed: int) -> list[dict]:
    """The same examples with the X-ray of somebody else of the same view and sex; nobody keeps their own."""
    xrays, order = {}, defaultdict(list)
    rng = np.random.default_rng([seed, 15485863])
    for e in examples:
        xrays[e["subject"], e["xray_view"]] = e["xray"]
    for subject, sex in sorted({(e["subject"], e["sex"]) for e in examples}):
        order[sex].append(subject)
    other = {}
    for sex, subjects in order.items():
        if len(subjects) < 2:
            raise InputError(
                f"the test split has one {sex} subject, so X-rays can't be shuffled within a sex; raise data.settings.subjects"
            )
        subjects = list(rng.permutation(subjects))
        other |= dict(zip(subjects, subjects[1:] + subjects[:1], strict=True))  # one cycle: a derangement
    return [e | {"xray": xrays[other[e["subject"]], e["xray_view"]]} for e in examples]


def provenance(config: ml_collections.ConfigDict, builder, method: Method, step: int) -> dict[str, Any]:
    """Where numbers come from: configuration, seed, data, versions, commit."""
    names = ("jax", "flax", "optax", "orbax-checkpoint", "clu", "grain", "tensorflow-datasets", "numpy")
    checkout = pathlib.Path(__file__).resolve().parent.parent
    git = lambda *a: subprocess.run(["git", "-C", str(checkout), *a], capture_output=True, text=True, check=False).stdout.strip()
    commit = git("rev-parse", "HEAD") or "unknown"
    if git("status", "--porcelain", "--untracked-files=no"):
        commit += " with uncommitted changes"
    public = config.to_dict()
    public["data"]["data_dir"] = ""  # a path says more of the user than of the run
    public["reconstruct"]["xrays"] = ""
    for field in ("trunk_file", "heads_file", "embedder_file", "decoder"):
        public["method"]["losses"][field] = pathlib.Path(public["method"]["losses"][field]).name
    for part in ("model", "controlnet"):
        if pathlib.Path(public["pretrained"][part]).expanduser().is_dir():
            public["pretrained"][part] = pathlib.Path(public["pretrained"][part]).name
    return {
        "config": public,
        "seed": config.seed,
        "step": step,
        "parameters": method.parameter_count(),
        "weights_sha256": method.weight_hashes(),
        "data": {"name": builder.info.full_name, "sha256": data.fingerprint(builder)},
        "versions": {name: importlib.metadata.version(name) for name in names} | {"python": platform.python_version()},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "commit": commit,
    }


def evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Scores the newest checkpoint on the test subjects with both controls; writes and returns results.json.

    Rows: one sample (the headline), the mean of `num_samples` (a picture of its own kind), shuffled X-rays, and
    the mean face. Differences are paired by example and bootstrapped over subjects.
    """
    c = config.evaluate
    evaluator, method, step = load_evaluator(config, workdir, c.batch_size)
    builder = data.make_builder(config.data)
    source = data.Examples(builder, "test", config)
    examples = [source[i] for i in range(len(source))]
    examples.sort(key=lambda e: e["id"])
    if c.max_subjects:
        kept = sorted({e["subject"] for e in examples})[: c.max_subjects]
        examples = [e for e in examples if e["subject"] in kept]
    subjects = [e["subject"] for e in examples]

    headline, scored, kept = config.method.name, {}, {}
    others = shuffled_xrays(examples, config.seed)
    if c.keep_faces:
        samples = [evaluator.generate(examples, draw, f"faces, sample {draw + 1} of {c.num_samples}") for draw in range(c.num_samples)]
        kept[headline] = samples[0]
        scored[headline] = evaluator.score(samples[0], examples)
        if c.num_samples > 1:
            name = f"{headline}, mean of {c.num_samples} samples"
            kept[name] = np.round(np.mean(samples, 0, dtype=np.float64)).astype(np.uint8)
            scored[name] = evaluator.score(kept[name], examples)
        scored[SHUFFLED] = evaluator.score(evaluator.generate(others, say="faces of shuffled X-rays"), examples)
    else:
        scored[headline] = evaluator.generate_and_score(examples)
        scored[SHUFFLED] = evaluator.generate_and_score(others, say="faces of shuffled X-rays")
    mean_face = mean_faces(data.Examples(builder, "train", config))
    kept[MEAN_FACE] = np.stack([mean_face(e) for e in examples])
    scored[MEAN_FACE] = evaluator.score(kept[MEAN_FACE], examples)

    interval = lambda values: dict(zip(("mean", "low", "high"), bootstrap(values, subjects, c.bootstrap, config.seed), strict=True))
    rows = {name: {m: interval(each[m]) for m in METRICS} for name, (_, each) in scored.items()}
    differences = {
        f"{headline} minus {control}": {m: interval(scored[headline][1][m] - scored[control][1][m]) for m in METRICS}
        for control in (MEAN_FACE, SHUFFLED)
    }
    results = provenance(config, builder, method, step) | {
        "rows": rows,
        "differences": differences,
        "examples": len(examples),
        "subjects": len(set(subjects)),
    }
    write_json(workdir / "results.json", results)
    _keep_pictures(workdir, step, examples, kept, c.pictures)
    return results


def _keep_pictures(workdir: pathlib.Path, step: int, examples: list[dict], kept: dict[str, np.ndarray], count: int) -> None:
    """Saves a spread of test examples with their faces, for the report and for TensorBoard."""
    if count < 1:
        return
    chosen = np.unique(np.linspace(0, len(examples) - 1, count).round().astype(int))
    xrays, truth = (np.stack([examples[i][name] for i in chosen]) for name in ("xray", "face"))
    faces = np.stack([[rows[i] for rows in kept.values()] for i in chosen])
    captions = [f"{e['sex']}, {e['age']:.0f} years, BMI {e['bmi_change']:+.0f} %, {e['face_view']}" for e in (examples[i] for i in chosen)]
    with whole_file(workdir / "pictures.npz", "wb") as file:
        np.savez_compressed(file, rows=np.array(list(kept)), captions=np.array(captions), xray=xrays, face=truth, faces=faces)
    lines = np.concatenate([np.repeat(xrays, 3, -1)[:, None], truth[:, None], faces], 1)
    with Writer(workdir) as writer:
        writer.image(step, "X-ray, truth, " + ", ".join(kept), np.concatenate([np.concatenate(list(line), 1) for line in lines]))


def summary(results: dict[str, Any]) -> str:
    """The table as text."""
    lines = []
    for name, row in (results["rows"] | results["differences"]).items():
        numbers = "  ".join(f"{m.upper()} {v['mean']:8.4f} [{v['low']:.4f}, {v['high']:.4f}]" for m, v in row.items())
        lines.append(f"{name:44s} {numbers}")
    return "\n".join(lines)
