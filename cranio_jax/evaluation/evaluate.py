"""Evaluation of a checkpoint, or of two folders of pictures: results.json."""

import json
import pathlib
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental import multihost_utils

from cranio_jax import assets, data, pretrained
from cranio_jax.distributed import cluster, sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation import depths, disturbances, generation, reliability, unpaired
from cranio_jax.evaluation.assembly import (
    RESIZING,
    assemble,
    embedding,
    origin_of,
    set_metrics,
)
from cranio_jax.evaluation.controls import MEAN_FACE, SHUFFLED, mean_faces, shuffled_xrays
from cranio_jax.evaluation.examples import (
    MeanOf,
    WithGenerated,
    count_synthetic,
    read_examples,
    who_of,
    write_pictures,
)
from cranio_jax.evaluation.groups import scores_by_group
from cranio_jax.evaluation.results import BySubject, Results, write
from cranio_jax.evaluation.retrieval import check_protocols, distractor_faces, retrieval
from cranio_jax.evaluation.scorer import Scorer, Scores
from cranio_jax.files import buckets
from cranio_jax.files.pictures import PairedFolders
from cranio_jax.methods import Batch, method_class
from cranio_jax.metrics.estimates import mean_interval
from cranio_jax.metrics.features import Features
from cranio_jax.metrics.masks import IOU, overlap
from cranio_jax.metrics.registry import PairMetric, SetMetric, of_kind
from cranio_jax.metrics.resampling import subject_means
from cranio_jax.runs.provenance import provenance
from cranio_jax.runs.state import restore


def evaluate(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
    """Scores what the configuration names as `score` does; writes and returns results.json."""
    results = score(config, workdir)
    if cluster.is_first():
        write(workdir / "results.json", results)
    return results


def score(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
    """Scores what the configuration names, and writes no results.

    It writes faces, pictures of some of them, and the file of an embedder or outline network.

    If `evaluate.generated` and `evaluate.reference` are set, these two folders of pictures are
    compared, in pairs or as sets. Otherwise the newest whole checkpoint in `workdir` is scored on
    the subjects of `evaluate.split`:

    - A generator's rows are one sample (the headline), the mean of `num_samples` samples, faces of
      shuffled X-rays if it reads X-rays, and the mean face.
    - An embedder is scored by how well it tells real faces apart.
    - A matcher is scored by how well it finds a face by its X-ray.
    - An outline network is scored by the overlap of the heads that it finds with the true ones.

    Of a generator, errors in millimetres are measured too if `data.cephalograms.manifest` is set.
    With data.builder=cephalograms they are all that is measured, of published weights.

    Raises InputError if that can't be done.
    """
    c = config.evaluate
    if bool(c.generated) != bool(c.reference):
        raise InputError(
            "evaluate.generated and evaluate.reference are two folders; set both or none"
        )
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
    sharding.padded_batch(c.batch_size, mesh, "evaluate.batch_size")
    if c.generated:
        reason = unpaired.why_unpaired(c)
        return _sets(config, mesh, reason) if reason else _folders(config, mesh)
    if config.data.builder == "cephalograms":
        return depths.score_published(config, workdir)
    scorers = {
        "generator": _generator,
        "embedder": _embedder,
        "matcher": _matcher,
        "outline": _outline,
    }
    return scorers[method_class(config).kind](config, workdir)


def check(config: ml_collections.ConfigDict, builder: Any) -> None:
    """Raises InputError if the test people are too few for what `config.evaluate` asks.

    `evaluate` would raise it after the training. No picture is decoded but one face, for
    its size.
    """
    c = config.evaluate
    if c.generated:
        return
    kind = method_class(config).kind
    if kind == "outline":
        data.check_masks(builder, "xray_mask", config.method.name)
        return
    examples = read_examples(config, builder, images=())
    who = who_of(examples)
    if kind != "embedder" and method_class(config).reads_xrays:
        shuffled_xrays([e | {"xray": None} for e in examples], config.seed)
    if kind != "generator":
        check_protocols(config, who)
        return
    _features(config, who, data.Examples(builder, c.split, config, ("face",))[0]["face"].shape[:2])
    if config.data.cephalograms.manifest:
        depths.check(config)
    known = {view for view, *_ in data.Examples(builder, "train", config, ()).conditions()}
    if unknown := {w["view"] for w in who} - known:
        raise InputError(
            f"a test face is {min(unknown)}, but no training face is. Add such training faces."
        )


def _features(
    config: ml_collections.ConfigDict, who: Sequence[dict[str, str]], size: tuple[int, int]
) -> Features:
    """Returns the networks, after all checks that need no generated faces.

    `size` is the height and width of all faces. Raises InputError.
    """
    c, count = config.evaluate, len(who)
    features = Features(c.weights, c.crop)
    features.check_size(*size)
    if features.embedders:
        check_protocols(config, who)
    if features.distributions and not 2 <= c.kernel_subset <= count:
        raise InputError(
            f"evaluate.kernel_subset={c.kernel_subset}: only {count} images are scored. Set 2 to"
            f" {count}."
        )
    if features.has_inception and not 1 <= c.inception_splits <= count:
        raise InputError(
            f"evaluate.inception_splits={c.inception_splits}: only {count} images are scored."
            f" Set 1 to {count}."
        )
    # An embedder in a method's loss can't be its judge.
    in_loss = config.method.get("losses", {}).get("embedder_file", "")
    if in_loss and config.method.losses.identity:
        trained = pretrained.open_embedder(assets.located(in_loss))
        for embedder in features.embedders.values():
            alike = (
                embedder.seed is not None
                and embedder.settings["network"] == trained.settings["network"]
                and trained.seed is not None
            )
            if embedder.sha256 == trained.sha256 or alike:
                raise InputError(
                    f"evaluate.weights: {embedder.file.name} is the embedder in"
                    " method.losses.embedder_file, or its twin; score with another network"
                )
    return features


def _generator(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
    """Scores a generator's newest whole checkpoint on the subjects of `evaluate.split`."""
    c = config.evaluate
    generator = generation.Generator(config, workdir, "evaluate")
    builder = data.make_builder(config.data)
    examples = read_examples(config, builder)
    size = examples[0]["face"].shape[:2]
    features = _features(config, who_of(examples), size)
    reads_xrays = generator.method.reads_xrays
    others = shuffled_xrays(examples, config.seed) if reads_xrays else None
    controls = (MEAN_FACE, SHUFFLED) if reads_xrays else (MEAN_FACE,)
    disturbed_rows = {disturbances.row_of(n): n for n in c.disturbances} if reads_xrays else {}
    records = data.fingerprint(builder)
    headline = config.method.name

    # Faces: kept as files, or generated in the step that scores them.
    ready: dict[str, Sequence[Any]] = {}
    samples: list[list[pathlib.Path]] = []
    seconds = None
    if c.keep_faces:
        folder = generator.folder(workdir, records)
        samples = [
            generator.generate_missing(
                folder / f"sample_{k}", examples, k, f"faces, sample {k + 1} of {c.num_samples}"
            )
            for k in range(c.num_samples)
        ]
        ready = _kept_faces(generator, folder, examples, others, headline, samples)
        for row, name in disturbed_rows.items():
            ready[row] = generator.generate_missing(
                folder / disturbances.folder_of(name),
                disturbances.disturbed(examples, name),
                0,
                f"faces of {name} X-rays",
            )
        timed = folder / "sample_0_seconds.json"
        if timed.exists():
            seconds = json.loads(timed.read_text())
    mean_face = mean_faces(data.Examples(builder, "train", config))
    ready[MEAN_FACE] = [mean_face(example) for example in examples]
    fresh = () if c.keep_faces else (headline, *controls[1:])

    def generate_both(given: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns faces from the person's own X-ray and from another's; one program for both.

        A method that reads no X-rays makes the first alone.
        """
        params, frozen = given

        def generate(xray: jax.Array) -> tuple[jax.Array, jax.Array]:
            own = batch | {"xray": xray}
            return generation.quantised(
                generator.method, config.seed, params, frozen, own, jnp.uint32(0)
            )

        names = ("xray", "other_xray")
        return jax.lax.map(generate, jnp.stack([batch[name] for name in names if name in batch]))

    # Score them.
    scorer = Scorer(
        features,
        generator.mesh,
        kinds=(*fresh, *ready),
        size=size,
        count=len(examples),
        splits=c.inception_splits,
        masked="head_mask" in examples[0],
        generate=generate_both if fresh else None,
    )
    with_faces = WithGenerated(examples, ready, others if fresh else None)
    given = (generator.params, generator.frozen) if fresh else None
    title = "generating and scoring" if fresh else "scoring"
    truth, scored = scorer.run(with_faces, c.batch_size, title, given)

    results = assemble(
        config,
        features,
        generator.mesh,
        who_of(examples),
        truth,
        scored,
        headline,
        controls=(*controls, *disturbed_rows),
        size=size,
        seconds_per_face=seconds,
        radiograph=c.radiograph,
        split=c.split,
        **origin_of(generator.method, generator.step, builder, records),
    )
    # Who is drawn well, and whether the samples' spread says so.
    if len(samples) > 1:
        # Other networks' rows are features of distributions, not vectors of identity.
        vectors = reliability.Vectors(
            truth={name: truth.rows[name] for name in features.embedders},
            first={name: scored[headline].rows[name] for name in features.embedders},
        )
        reliable = reliability.score(
            config, examples, samples, vectors, embed=embedding(features, generator.mesh)
        )
        results.reliability = {headline: reliable} if reliable else {}
    if groups := scores_by_group(config, examples, scored[headline].pairs):
        results.groups = {headline: groups}
    write_pictures(workdir, generator.step, with_faces, list(ready), c.pictures)
    if config.data.cephalograms.manifest:
        results.depths = depths.score(config, generator, workdir)
    return results


def _kept_faces(
    generator: generation.Generator,
    folder: pathlib.Path,
    examples: Sequence[dict[str, Any]],
    others: Sequence[dict[str, Any]] | None,
    headline: str,
    samples: Sequence[Sequence[pathlib.Path]],
) -> dict[str, Sequence[Any]]:
    """Returns files of the headline's samples, their means, and of shuffled X-rays, by row.

    Without `others`, the examples with another person's X-ray, there are no such faces.
    """
    rows: dict[str, Sequence[Any]] = {headline: samples[0]}
    if len(samples) > 1:
        means = [MeanOf(files) for files in zip(*samples, strict=True)]
        rows[f"{headline}, mean of {len(samples)} samples"] = means
    if others is None:
        return rows
    # Which X-ray each person got is in the folder's name.
    names = zlib.crc32(" ".join(e["xray_of"] for e in others).encode())
    rows[SHUFFLED] = generator.generate_missing(
        folder / f"shuffled_{names:08x}", others, 0, "faces of shuffled X-rays"
    )
    return rows


def _folders(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Results:
    """Scores two folders of pictures that pair by their names."""
    c = config.evaluate
    generated, reference = (pathlib.Path(c[name]).expanduser() for name in unpaired.FIELDS)
    pairs = PairedFolders(generated, reference, c.names)
    features = _features(config, pairs.who, pairs.size)
    scorer = Scorer(features, mesh, ("generated",), pairs.size, len(pairs), c.inception_splits)
    truth, scored = scorer.run(pairs, c.batch_size, "scoring")
    return assemble(config, features, mesh, pairs.who, truth, scored, "generated", size=pairs.size)


def _sets(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, reason: str) -> Results:
    """Scores two folders as sets; `reason` says why they are not compared in pairs."""
    c = config.evaluate
    features = Features(c.weights, c.crop)
    # Check both folders before anything is computed.
    ours, theirs = unpaired.read_sets(c, features)
    cluster.say(reason)
    scores, truth = unpaired.describe_sets(
        (ours, theirs), features, mesh, c.batch_size, c.inception_splits
    )
    needs_pairs = {", ".join(m.name for m in of_kind(PairMetric)): unpaired.NEEDS_PAIRS}
    return Results(
        rows={"generated": set_metrics(config, truth, scores)},
        differences={},
        by_subject=BySubject(subjects=[], rows={}),
        retrieval={},
        images=len(ours),
        reference_images=len(theirs),
        unpaired=reason,
        networks=features.sha256,
        not_computed=needs_pairs | features.missing(SetMetric),
        resizing=unpaired.SCALING if ours.scaled else RESIZING,
        **provenance(config),
    )


def _embedder(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
    """Writes embedder.safetensors, and scores that file on the real faces of `evaluate.split`."""
    # Write the file.
    method, mesh, state, _, step = restore(config, workdir)
    path = workdir / "embedder.safetensors"
    crop = config.method.crop
    params = multihost_utils.process_allgather(method.generation_params(state), tiled=True)
    if cluster.is_first():
        pretrained.save_embedder(
            path, params, dict(method.settings), crop, config.seed, config.export.dtype
        )
    cluster.wait_for_all("embedder")

    # Score it like any other weights file.
    config = config.copy_and_resolve_references()
    config.evaluate.weights = str(buckets.local_file(path))
    features = Features(config.evaluate.weights, crop)
    builder = data.make_builder(config.data)
    examples = read_examples(config, builder)
    embed = embedding(features, mesh)
    vectors = data.collected(embed, examples, config.evaluate.batch_size, mesh, "embedding")
    truth = Scores({}, {name: vectors[name] for name in features.embedders}, {})
    origin = origin_of(method, step, builder, data.fingerprint(builder))
    origin |= {"radiograph": config.evaluate.radiograph, "split": config.evaluate.split}
    return assemble(config, features, mesh, who_of(examples), truth, {}, "", **origin)


def _matcher(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
    """Scores retrieval in the method's own space.

    Queries are X-rays, and other people's X-rays as the control; the gallery is real faces.
    """
    method, mesh, state, frozen, step = restore(config, workdir)
    builder = data.make_builder(config.data)
    name = config.method.name
    size = config.evaluate.batch_size
    examples = read_examples(config, builder)
    check_protocols(config, who_of(examples))

    # Embed X-rays and faces.
    params = method.generation_params(state)
    jitted = jax.jit(method.embed, out_shardings=sharding.replicated(mesh))

    def embed(batch: Batch) -> dict[str, jax.Array]:
        return jitted(params, frozen, batch)

    def embed_faces(batch: Batch) -> dict[str, jax.Array]:
        return {name: embed(batch)["face"]}

    vectors = data.collected(embed, examples, size, mesh, "embedding")
    shuffled = shuffled_xrays(examples, config.seed)
    others = data.collected(embed, shuffled, size, mesh, "embedding shuffled X-rays")
    distractors = distractor_faces(config, embed_faces, mesh).get(name)

    queries = {name: vectors["xray"], SHUFFLED: others["xray"]}
    protocols = retrieval(config, who_of(examples), vectors["face"], queries, distractors, name)
    subjects = sorted({e["subject"] for e in examples})
    return Results(
        rows={},
        differences={},
        by_subject=BySubject(subjects=subjects, rows={}),
        retrieval={name: protocols},
        images=len(examples),
        subjects=len(subjects),
        synthetic=count_synthetic(who_of(examples)),
        radiograph=config.evaluate.radiograph,
        split=config.evaluate.split,
        networks={},
        not_computed={},
        resizing=RESIZING,
        **origin_of(method, step, builder, data.fingerprint(builder)),
        **provenance(config),
    )


def _outline(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
    """Writes outline.safetensors, and scores that file on the X-rays of `evaluate.split`."""
    # Write the file.
    method, mesh, state, _, step = restore(config, workdir)
    path = workdir / pretrained.OUTLINE
    params = multihost_utils.process_allgather(method.generation_params(state), tiled=True)
    if cluster.is_first():
        pretrained.save_outline(path, params, method.settings, config.export.dtype)
    cluster.wait_for_all("outline")

    # Score it as Cranio-Diff uses it.
    builder = data.make_builder(config.data)
    data.check_masks(builder, "xray_mask", config.method.name)
    examples = read_examples(config, builder, ("xray", "xray_mask"))
    opened = pretrained.open_outline(buckets.local_file(path))
    dtype = jnp.dtype(config.compute_dtype)
    network = opened.network(dtype)
    placed = opened.load(network, mesh, dtype)

    def overlaps(params: Any, batch: Batch) -> dict[str, jax.Array]:
        predicted = network.bind(params)(batch["xray"]) > 0
        return {IOU.name: overlap(predicted, batch["xray_mask"] > 0)}

    jitted = jax.jit(overlaps, out_shardings=sharding.replicated(mesh))
    scores = data.collected(
        lambda batch: jitted(placed, batch),
        examples,
        config.evaluate.batch_size,
        mesh,
        "finding heads",
    )

    subjects = [e["subject"] for e in examples]
    name = config.method.name
    intervals = {
        metric: mean_interval(values, subjects, config.evaluate.bootstrap, config.seed)
        for metric, values in scores.items()
    }
    each = {metric: subject_means(v, subjects).tolist() for metric, v in scores.items()}
    return Results(
        rows={name: intervals},
        differences={},
        by_subject=BySubject(subjects=sorted(set(subjects)), rows={name: each}),
        retrieval={},
        images=len(examples),
        subjects=len(set(subjects)),
        radiograph=config.evaluate.radiograph,
        split=config.evaluate.split,
        networks={name: opened.sha256},
        not_computed={},
        resizing="X-rays are seen at the side that the network was trained with",
        **origin_of(method, step, builder, data.fingerprint(builder)),
        **provenance(config),
    )
