"""From a checkpoint, or two folders of pictures, to numbers with their uncertainty: results.json and its table."""

import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from cranio_jax import data, pretrained
from cranio_jax.distributed import cluster, sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation import generation, unpaired
from cranio_jax.evaluation.controls import MEAN_FACE, SHUFFLED, mean_faces, shuffled_xrays
from cranio_jax.evaluation.retrieval import check_protocols, distractor_faces, retrieval
from cranio_jax.evaluation.scorer import Scorer, Scores
from cranio_jax.files import buckets
from cranio_jax.files.atomic import whole_file, write_json
from cranio_jax.files.pictures import PairedFolders, read_face
from cranio_jax.metrics.distributions import (
    frechet_distance,
    frechet_distance_of_rows,
    kernel_distance,
    root,
)
from cranio_jax.metrics.features import NEEDED, Features
from cranio_jax.metrics.resampling import bootstrap, subject_means
from cranio_jax.reporting import tables
from cranio_jax.runs.log import Writer
from cranio_jax.runs.provenance import provenance
from cranio_jax.runs.state import restore

RESIZING = "pictures are compared at their own size; the Inception scales them as TensorFlow 1 did (bilinear, corners alike, no smoothing)"


def evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Scores what the configuration names; writes and returns results.json, with table.md and table.tex beside it.

    That is `evaluate.generated` against `evaluate.reference`, two folders made by anything, in
    pairs or as sets; else the newest checkpoint in `workdir` on the test subjects, where rows are
    one sample (the headline), the mean of `num_samples` (a picture of its own kind), shuffled
    X-rays and the mean face; of an embedder, how well it tells real faces apart, and of a matcher,
    how well it finds a face by its X-ray.
    """
    c = config.evaluate
    if bool(c.generated) != bool(c.reference):
        raise InputError(
            "evaluate.generated and evaluate.reference are two folders; set both or none"
        )
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.padded_batch(c.batch_size, mesh, "evaluate.batch_size")
    if c.generated:
        why = unpaired.why_unpaired(c)
        results = _sets(config, mesh, why) if why else _folders(config, mesh)
    elif config.method.name == "arcface":
        results = _embedder(config, workdir)
    elif config.method.name == "siamese":
        results = _matcher(config, workdir)
    else:
        results = _checkpoint(config, workdir)
    if cluster.is_first():
        write_json(workdir / "results.json", results)
        for ending, write in (("md", tables.markdown), ("tex", tables.latex)):
            with whole_file(workdir / f"table.{ending}") as file:
                file.write(write(results))
    return results


def check(config: ml_collections.ConfigDict, builder: Any) -> None:
    """Raises InputError if the test people are too few for what `config.evaluate` asks.

    That is what `evaluate` would say after the training. No picture is decoded but one face, for
    its size.
    """
    if config.evaluate.generated:
        return
    examples = _test_examples(config, builder, images=())
    who = _who(examples)
    if config.method.name != "arcface":
        shuffled_xrays([e | {"xray": None} for e in examples], config.seed)
    if config.method.name in ("arcface", "siamese"):
        check_protocols(config, who)
        return
    _features(config, who, data.Examples(builder, "test", config, ("face",))[0]["face"].shape[:2])
    known = {view for view, *_ in data.Examples(builder, "train", config, ()).conditions()}
    if unknown := {w["view"] for w in who} - known:
        raise InputError(
            f"no training face is {min(unknown)}, as a test face is; there is no mean face of that view"
        )


def _features(
    config: ml_collections.ConfigDict, who: Sequence[dict[str, str]], size: tuple[int, int]
) -> Features:
    """The networks, after what can be checked before faces are made. Raises InputError.

    `size` is the height and width of all faces.
    """
    c, count = config.evaluate, len(who)
    features = Features(c.weights, c.crop)
    features.check_size(*size)
    if features.embedders:
        check_protocols(config, who)
    if features.distributions and not 2 <= c.kernel_subset <= count:
        raise InputError(
            f"evaluate.kernel_subset={c.kernel_subset} images don't fit in the {count} that are scored"
        )
    if features.has_inception and not 1 <= c.inception_splits <= count:
        raise InputError(
            f"evaluate.inception_splits={c.inception_splits} can't be made of the {count} images that are scored"
        )
    # What a method was trained to please can't be its judge.
    in_loss = config.method.get("losses", {}).get("embedder_file", "")
    if in_loss and config.method.losses.identity:
        trained = pretrained.open_embedder(pathlib.Path(in_loss).expanduser())
        for embedder in features.embedders.values():
            alike = (
                embedder.seed is not None
                and embedder.settings["network"] == trained.settings["network"]
                and trained.seed is not None
            )
            if embedder.sha256 == trained.sha256 or alike:
                raise InputError(
                    f"evaluate.weights: {embedder.file.name} is what method.losses.embedder_file was trained to please, or its twin; "
                    "score with another network"
                )
    return features


def _checkpoint(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    c, generator = config.evaluate, generation.Generator(config, workdir, "evaluate")
    builder = data.make_builder(config.data)
    examples = _test_examples(config, builder)
    size = examples[0]["face"].shape[:2]
    features = _features(config, _who(examples), size)
    others = shuffled_xrays(examples, config.seed)
    mean_face = mean_faces(data.Examples(builder, "train", config))

    headline, records = config.method.name, data.fingerprint(builder)
    kept: dict[str, Sequence[Any]] = {}
    if c.keep_faces:
        folder = generator.folder(workdir, records)
        crossed = zlib.crc32(" ".join(e["xray_of"] for e in others).encode())
        samples = [
            generator.keep(
                folder / f"sample_{draw}",
                examples,
                draw,
                f"faces, sample {draw + 1} of {c.num_samples}",
            )
            for draw in range(c.num_samples)
        ]
        kept[headline] = samples[0]
        if c.num_samples > 1:
            kept[f"{headline}, mean of {c.num_samples} samples"] = [
                MeanOf(files) for files in zip(*samples, strict=True)
            ]
        timed = folder / "sample_0_seconds.json"
        kept[SHUFFLED] = generator.keep(
            folder / f"shuffled_{crossed:08x}", others, 0, "faces of shuffled X-rays"
        )
    kept[MEAN_FACE] = [mean_face(e) for e in examples]
    fresh = () if c.keep_faces else (headline, SHUFFLED)

    def draw_both(given, batch):
        # One program for both X-rays.
        one = lambda xray: generation.quantised(
            generator.method, config.seed, *given, batch | {"xray": xray}, jnp.uint32(0)
        )
        return jax.lax.map(one, jnp.stack([batch["xray"], batch["other_xray"]]))

    scorer = Scorer(
        features,
        generator.mesh,
        (*fresh, *kept),
        size,
        len(examples),
        c.inception_splits,
        masked="head_mask" in examples[0],
        generate=draw_both if fresh else None,
    )
    beside = Beside(examples, kept, others if fresh else None)
    given = (generator.params, generator.frozen) if fresh else None
    truth, scored = scorer.run(
        beside, c.batch_size, "scoring" if c.keep_faces else "generating and scoring", given
    )

    results = provenance(config) | _origin(generator.method, generator.step, builder, records)
    results |= assemble(
        config,
        features,
        generator.mesh,
        _who(examples),
        truth,
        scored,
        headline,
        (MEAN_FACE, SHUFFLED),
    )
    results["not_computed"] |= features.left_out(*size)
    if c.keep_faces and timed.exists():
        results["seconds_per_face"] = json.loads(timed.read_text())
    _keep_pictures(workdir, generator.step, beside, kept, c.pictures)
    return results


def _test_examples(
    config: ml_collections.ConfigDict,
    builder: Any,
    images: tuple[str, ...] = ("xray", "face", "head_mask"),
) -> list[dict[str, Any]]:
    source = data.Examples(builder, "test", config, images)
    examples = sorted((source[i] for i in range(len(source))), key=lambda e: e["id"])
    if limit := config.evaluate.max_subjects:
        kept = sorted({e["subject"] for e in examples})[:limit]
        examples = [e for e in examples if e["subject"] in kept]
    return examples


def _who(examples: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What retrieval must know of each example."""
    return [
        {
            "subject": e["subject"],
            "view": e["face_view"],
            "variant": f"{e['age']:g} {e['bmi_change']:+g}",
        }
        for e in examples
    ]


class MeanOf(tuple):
    """Files whose mean picture counts."""


class Beside(Sequence):
    """Examples with faces of several kinds beside the true one, read when asked for."""

    def __init__(
        self,
        examples: Sequence[dict[str, Any]],
        kinds: dict[str, Sequence[Any]],
        others: Sequence[dict[str, Any]] | None = None,
    ):
        """`kinds`: of each example an array, a file, or a `MeanOf` files; `others`: the examples with another's X-ray."""
        self._examples, self._kinds, self._others = examples, kinds, others

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._examples[index] | {
            "generated": np.stack([_picture(faces[index]) for faces in self._kinds.values()])
        }
        return (
            example
            if self._others is None
            else example | {"other_xray": self._others[index]["xray"]}
        )


def _picture(face: Any) -> np.ndarray:
    if isinstance(face, MeanOf):
        return np.round(np.mean([read_face(file) for file in face], 0, dtype=np.float64)).astype(
            np.uint8
        )
    return read_face(face) if isinstance(face, pathlib.PurePath) else face


def _folders(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Scores two folders of pictures that pair by their names."""
    c = config.evaluate
    folder = lambda name: pathlib.Path(c[name]).expanduser()
    pairs = PairedFolders(folder("generated"), folder("reference"), c.names)
    features = _features(config, pairs.who, pairs.size)
    scorer = Scorer(features, mesh, ("generated",), pairs.size, len(pairs), c.inception_splits)
    truth, scored = scorer.run(pairs, c.batch_size, "scoring")
    results = provenance(config) | assemble(
        config, features, mesh, pairs.who, truth, scored, "generated", ()
    )
    results["not_computed"] |= features.left_out(*pairs.size)
    return results


def _sets(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, why: str) -> dict[str, Any]:
    """Scores two folders as sets, by what compares no pairs; `why` says why they do not pair."""
    c = config.evaluate
    features = Features(c.weights, c.crop)
    # Check both folders before anything is computed.
    ours, theirs = unpaired.read_sets(c, features)
    cluster.say(why)
    # Describe each, then compare.
    sets = (ours, theirs)
    made, truth = unpaired.describe_sets(sets, features, mesh, c.batch_size, c.inception_splits)
    smaller = min(len(ours), len(theirs))
    roots = _roots(truth, smaller)
    needs = {"psnr, ssim, lpips and identity": unpaired.NEEDS_PAIRS}
    if not features.has_inception:
        needs |= {name: file for name, file in NEEDED.items() if name.startswith("fid")}
    return provenance(config) | {
        "rows": {"generated": _of_sets(config, roots, truth, made)},
        "differences": {},
        "by_subject": {"subjects": [], "rows": {}},
        "retrieval": {},
        "images": len(ours),
        "reference_images": len(theirs),
        "unpaired": why,
        "networks": features.sha256,
        "not_computed": needs,
        "resizing": unpaired.SCALING if ours.scaled else RESIZING,
    }


def _embedder(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Writes embedder.safetensors, and scores that file on the real faces of the test subjects."""
    method, mesh, state, _, step = restore(config, workdir)
    path, m = workdir / "embedder.safetensors", config.method
    params = multihost_utils.process_allgather(method.generation_params(state), tiled=True)
    if cluster.is_first():
        pretrained.save_embedder(path, params, method.settings, m.crop, config.seed)
    cluster.wait_for_all("embedder")
    config = config.copy_and_resolve_references()
    config.evaluate.weights = str(buckets.local_file(path))
    features = Features(config.evaluate.weights, m.crop)
    builder = data.make_builder(config.data)
    examples = _test_examples(config, builder)
    found = data.collected(
        _embedding(features, mesh), examples, config.evaluate.batch_size, mesh, "embedding"
    )
    truth = Scores({}, {name: found[name] for name in features.embedders}, {}, None)
    results = provenance(config) | _origin(method, step, builder, data.fingerprint(builder))
    return results | assemble(config, features, mesh, _who(examples), truth, {}, "", ())


def _embedding(features: Features, mesh: jax.sharding.Mesh):
    """The jitted function from a batch to vectors of its faces, by embedder."""
    params = features.load(mesh)
    embed = jax.jit(
        lambda params, batch: features.embed(params, batch["face"]),
        out_shardings=sharding.replicated(mesh),
    )
    return lambda batch: embed(params, batch)


def _matcher(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, Any]:
    """Retrieval in the method's own space: X-rays, and for comparison other people's, as queries, real faces as the gallery."""
    method, mesh, state, frozen, step = restore(config, workdir)
    builder, name, size = (
        data.make_builder(config.data),
        config.method.name,
        config.evaluate.batch_size,
    )
    examples = _test_examples(config, builder)
    check_protocols(config, _who(examples))
    params = method.generation_params(state)
    jitted = jax.jit(method.embed, out_shardings=sharding.replicated(mesh))
    embed = lambda batch: jitted(params, frozen, batch)
    own = data.collected(embed, examples, size, mesh, "embedding")
    crossed = data.collected(
        embed, shuffled_xrays(examples, config.seed), size, mesh, "embedding shuffled X-rays"
    )
    others = distractor_faces(config, lambda batch: {name: embed(batch)["face"]}, mesh)
    queries = {name: own["xray"], SHUFFLED: crossed["xray"]}
    found = {name: retrieval(config, _who(examples), own["face"], queries, others.get(name), name)}
    subjects = sorted({e["subject"] for e in examples})
    results = provenance(config) | _origin(method, step, builder, data.fingerprint(builder))
    results |= {
        "rows": {},
        "differences": {},
        "by_subject": {"subjects": subjects, "rows": {}},
        "retrieval": found,
    }
    return results | {
        "images": len(examples),
        "subjects": len(subjects),
        "networks": {},
        "not_computed": {},
        "resizing": RESIZING,
    }


def _origin(method: Any, step: int, builder: Any, records: str) -> dict[str, Any]:
    """What a checkpoint's numbers come of; `records` is the fingerprint of the data."""
    told = {
        "step": step,
        "parameters": method.parameter_count(),
        "weights_sha256": method.weight_hashes(),
    }
    return told | {"data": {"name": builder.info.full_name, "sha256": records}}


def assemble(
    config: ml_collections.ConfigDict,
    features: Features,
    mesh: jax.sharding.Mesh,
    who: Sequence[dict[str, str]],
    truth: Scores,
    scored: dict[str, Scores],
    headline: str,
    controls: Sequence[str],
) -> dict[str, Any]:
    """Numbers with their intervals: rows, differences of the headline to the controls, retrieval by embedder and protocol."""
    c, subjects = config.evaluate, [w["subject"] for w in who]
    interval = lambda values: dict(
        zip(
            ("mean", "low", "high"),
            bootstrap(values, subjects, c.bootstrap, config.seed),
            strict=True,
        )
    )
    roots = _roots(truth, len(who))
    rows = {
        name: {metric: interval(values) for metric, values in scores.pairs.items()}
        | _of_sets(config, roots, truth, scores)
        for name, scores in scored.items()
    }
    differences = {
        f"{headline} minus {control}": {
            metric: interval(values - scored[control].pairs[metric])
            for metric, values in scored[headline].pairs.items()
        }
        for control in controls
    }
    found = {}
    if features.embedders:
        others = distractor_faces(config, _embedding(features, mesh), mesh)
        for name in features.embedders:
            kinds = {row: scores.rows[name] for row, scores in scored.items()}
            found[name] = retrieval(
                config, who, truth.rows[name], kinds, others.get(name), headline
            )
    have = {
        "fid, kid and the inception score": features.has_inception,
        "lpips": bool(features.heads),
        "arcface": any(n.startswith("arcface") for n in features.embedders),
    }
    return {
        "rows": rows,
        "differences": differences,
        "by_subject": {
            "subjects": sorted(set(subjects)),
            "rows": {
                name: {
                    metric: subject_means(values, subjects).tolist()
                    for metric, values in scores.pairs.items()
                }
                for name, scores in scored.items()
            },
        },
        "retrieval": found,
        "images": len(who),
        "subjects": len(set(subjects)),
        "networks": features.sha256,
        "not_computed": {metric: needs for metric, needs in NEEDED.items() if not have[metric]}
        if scored
        else {},
        "resizing": RESIZING,
    }


def _roots(truth: Scores, smaller: int) -> dict[str, np.ndarray | None]:
    """Returns the roots of the true covariances, by network; None where the smaller set is small.

    Few pictures are compared by their features, many by their moments.
    """
    return {
        name: root(covariance) if smaller > len(covariance) else None
        for name, (_, covariance) in truth.moments.items()
    }


def _of_sets(
    config: ml_collections.ConfigDict,
    roots: dict[str, np.ndarray | None],
    truth: Scores,
    scores: Scores,
) -> dict[str, dict[str, float]]:
    """What compares all faces with all true ones: FID and KID, or the same of another network's features by their own names.

    `roots` are those of the true covariances, by network; None where features are compared themselves.
    """
    c, found = config.evaluate, {}
    for network, root_of_truth in roots.items():
        frechet, kernel = (
            ("fid", "kid")
            if network == "inception"
            else (f"frechet/{network}", f"kernel/{network}")
        )
        a, b = scores.rows[network], truth.rows[network]
        if root_of_truth is None:
            found[frechet] = {"mean": frechet_distance_of_rows(a, b)}
        else:
            found[frechet] = {
                "mean": frechet_distance(
                    scores.moments[network], truth.moments[network], root_of_truth
                )
            }
        found[kernel] = dict(
            zip(
                ("mean", "sd"),
                kernel_distance(a, b, c.kernel_subset, c.kernel_rounds, config.seed),
                strict=True,
            )
        )
    if scores.inception:
        found["inception score"] = dict(zip(("mean", "sd"), scores.inception, strict=True))
    return found


def _keep_pictures(
    workdir: pathlib.Path, step: int, beside: Beside, kinds: Sequence[str], count: int
) -> None:
    """Saves a spread of test examples with their faces, for the report and for TensorBoard."""
    if count < 1 or not cluster.is_first():
        return
    examples = [beside[int(i)] for i in np.unique(np.linspace(0, len(beside) - 1, count).round())]
    xrays, truth, faces = (
        np.stack([e[name] for e in examples]) for name in ("xray", "face", "generated")
    )
    captions = [
        f"{e['sex']}, {e['age']:.0f} years, BMI {e['bmi_change']:+.0f} %, {e['face_view']}"
        for e in examples
    ]
    with whole_file(workdir / "pictures.npz", "wb") as file:
        np.savez_compressed(
            file,
            rows=np.array(list(kinds)),
            captions=np.array(captions),
            xray=xrays,
            face=truth,
            faces=faces,
        )
    lines = np.concatenate([np.repeat(xrays, 3, -1)[:, None], truth[:, None], faces], 1)
    with Writer(workdir) as writer:
        writer.image(
            step,
            "X-ray, truth, " + ", ".join(kinds),
            np.concatenate([np.concatenate(list(line), 1) for line in lines]),
        )
