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
from cranio_jax.evaluation.results import BySubject, Records, Results, write
from cranio_jax.evaluation.retrieval import check_protocols, distractor_faces, retrieval
from cranio_jax.evaluation.scorer import Scorer, Scores
from cranio_jax.files import buckets
from cranio_jax.files.atomic import whole_file
from cranio_jax.files.pictures import PairedFolders, read_face
from cranio_jax.metrics.estimates import Estimate, mean_interval
from cranio_jax.metrics.features import Features
from cranio_jax.metrics.registry import PairMetric, SetMetric, of_kind
from cranio_jax.metrics.resampling import subject_means
from cranio_jax.metrics.sets import SetOptions
from cranio_jax.runs.log import Writer
from cranio_jax.runs.provenance import provenance
from cranio_jax.runs.state import restore

RESIZING = (
    "pictures are compared at their own size; the Inception scales them as TensorFlow 1 did"
    " (bilinear, corners alike, no smoothing)"
)


def evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
    """Scores what the configuration names; writes and returns results.json.

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
        write(workdir / "results.json", results)
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
            f"no training face is {min(unknown)}, as a test face is; there is no mean face of that"
            " view"
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
            f"evaluate.kernel_subset={c.kernel_subset} images don't fit in the {count} that are"
            " scored"
        )
    if features.has_inception and not 1 <= c.inception_splits <= count:
        raise InputError(
            f"evaluate.inception_splits={c.inception_splits} can't be made of the {count} images"
            " that are scored"
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
                    f"evaluate.weights: {embedder.file.name} is what method.losses.embedder_file"
                    " was trained to please, or its twin; score with another network"
                )
    return features


def _checkpoint(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
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

    seconds = json.loads(timed.read_text()) if c.keep_faces and timed.exists() else None
    results = assemble(
        config,
        features,
        generator.mesh,
        _who(examples),
        truth,
        scored,
        headline,
        controls=(MEAN_FACE, SHUFFLED),
        size=size,
        seconds_per_face=seconds,
        **_origin(generator.method, generator.step, builder, records),
    )
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


def _folders(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Results:
    """Scores two folders of pictures that pair by their names."""
    c = config.evaluate
    folder = lambda name: pathlib.Path(c[name]).expanduser()
    pairs = PairedFolders(folder("generated"), folder("reference"), c.names)
    features = _features(config, pairs.who, pairs.size)
    scorer = Scorer(features, mesh, ("generated",), pairs.size, len(pairs), c.inception_splits)
    truth, scored = scorer.run(pairs, c.batch_size, "scoring")
    return assemble(config, features, mesh, pairs.who, truth, scored, "generated", size=pairs.size)


def _sets(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, why: str) -> Results:
    """Scores two folders as sets, by what compares no pairs; `why` says why they do not pair."""
    c = config.evaluate
    features = Features(c.weights, c.crop)
    # Check both folders before anything is computed.
    ours, theirs = unpaired.read_sets(c, features)
    cluster.say(why)
    # Describe each, then compare.
    sets = (ours, theirs)
    made, truth = unpaired.describe_sets(sets, features, mesh, c.batch_size, c.inception_splits)
    return Results(
        rows={"generated": _of_sets(config, truth, made)},
        differences={},
        by_subject=BySubject(subjects=[], rows={}),
        retrieval={},
        images=len(ours),
        reference_images=len(theirs),
        unpaired=why,
        networks=features.sha256,
        not_computed={"psnr, ssim, lpips and identity": unpaired.NEEDS_PAIRS}
        | features.missing(SetMetric),
        resizing=unpaired.SCALING if ours.scaled else RESIZING,
        **provenance(config),
    )


def _embedder(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
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
    truth = Scores({}, {name: found[name] for name in features.embedders}, {})
    origin = _origin(method, step, builder, data.fingerprint(builder))
    return assemble(config, features, mesh, _who(examples), truth, {}, "", **origin)


def _embedding(features: Features, mesh: jax.sharding.Mesh):
    """The jitted function from a batch to vectors of its faces, by embedder."""
    params = features.load(mesh)
    embed = jax.jit(
        lambda params, batch: features.embed(params, batch["face"]),
        out_shardings=sharding.replicated(mesh),
    )
    return lambda batch: embed(params, batch)


def _matcher(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
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
    return Results(
        rows={},
        differences={},
        by_subject=BySubject(subjects=subjects, rows={}),
        retrieval=found,
        images=len(examples),
        subjects=len(subjects),
        networks={},
        not_computed={},
        resizing=RESIZING,
        **_origin(method, step, builder, data.fingerprint(builder)),
        **provenance(config),
    )


def _origin(method: Any, step: int, builder: Any, records: str) -> dict[str, Any]:
    """Returns what a checkpoint's numbers come from; `records` is the fingerprint of the data."""
    return {
        "step": step,
        "parameters": method.parameter_count(),
        "weights_sha256": method.weight_hashes(),
        "data": Records(name=builder.info.full_name, sha256=records),
    }


def assemble(
    config: ml_collections.ConfigDict,
    features: Features,
    mesh: jax.sharding.Mesh,
    who: Sequence[dict[str, str]],
    truth: Scores,
    scored: dict[str, Scores],
    headline: str,
    *,
    controls: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    **origin: Any,
) -> Results:
    """Returns numbers with their intervals.

    Args:
      config: of the run.
      features: the networks.
      mesh: to embed distractors on.
      who: `subject`, `view` and `variant` of each example.
      truth: scores of the true faces.
      scored: scores by kind of faces.
      headline: the kind that is compared with the `controls`.
      controls: other kinds.
      size: height and width of the pictures; None if no metric of pictures was asked for.
      **origin: further fields of `Results`.
    """
    c = config.evaluate
    subjects = [w["subject"] for w in who]

    def interval(values: np.ndarray) -> Estimate:
        return mean_interval(values, subjects, c.bootstrap, config.seed)

    # Metrics of pairs and of sets, and the headline's differences to the controls.
    rows = {
        name: (
            {metric: interval(values) for metric, values in scores.pairs.items()}
            | _of_sets(config, truth, scores)
        )
        for name, scores in scored.items()
    }
    differences = {
        f"{headline} minus {control}": {
            metric: interval(values - scored[control].pairs[metric])
            for metric, values in scored[headline].pairs.items()
        }
        for control in controls
    }
    values_of_subjects = {
        name: {
            metric: subject_means(values, subjects).tolist()
            for metric, values in scores.pairs.items()
        }
        for name, scores in scored.items()
    }

    # Retrieval with each embedder.
    found = {}
    if features.embedders:
        others = distractor_faces(config, _embedding(features, mesh), mesh)
        for name in features.embedders:
            kinds = {row: scores.rows[name] for row, scores in scored.items()}
            found[name] = retrieval(
                config, who, truth.rows[name], kinds, others.get(name), headline
            )

    not_computed = features.missing(SetMetric, PairMetric) if scored else {}
    return Results(
        rows=rows,
        differences=differences,
        by_subject=BySubject(subjects=sorted(set(subjects)), rows=values_of_subjects),
        retrieval=found,
        images=len(who),
        subjects=len(set(subjects)),
        networks=features.sha256,
        not_computed=not_computed | (features.too_small(*size) if size else {}),
        resizing=RESIZING,
        **provenance(config),
        **origin,
    )


def _of_sets(
    config: ml_collections.ConfigDict, truth: Scores, scores: Scores
) -> dict[str, Estimate]:
    """Returns the metrics that compare all faces with all true ones, by their keys in results."""
    c = config.evaluate
    options = SetOptions(c.kernel_subset, c.kernel_rounds, config.seed)
    found = {}
    for network, theirs in truth.sets.items():
        for metric in of_kind(SetMetric):
            key = metric.key_of(network)
            value = metric.compute(scores.sets[network], theirs, options) if key else None
            if key and value:
                found[key] = value
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
