"""Errors in millimetres on real people: the depth of soft tissue in front of the facial bones."""

import pathlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float, UInt8

from cranio_jax import data
from cranio_jax.data.prompts import make_prompt, make_tokenizer, profile_numbers
from cranio_jax.distributed import cluster
from cranio_jax.errors import InputError
from cranio_jax.evaluation.assembly import origin_of
from cranio_jax.evaluation.generation import Generator
from cranio_jax.evaluation.results import OUTLINE, BySubject, Depths, Results
from cranio_jax.files.pictures import write_png
from cranio_jax.methods import method_class
from cranio_jax.metrics.depths import depths
from cranio_jax.metrics.estimates import Estimate, mean_interval
from cranio_jax.metrics.resampling import subject_means
from cranio_jax.runs.provenance import provenance
from data_builders.cephalograms.landmarks import BONE, CORNERS, DEPTHS, LANDMARKS

# Rivals, which know the truth of everybody but the person.
MEAN_DEPTH = "mean depth of the others"
RIDGE = "ridge regression on bone"
ALL = "all"
_REACH = 45.0  # mm; how far a profile is looked for
_LEAST_PEOPLE = 5
# Where the two landmarks of each depth are in LANDMARKS.
_ENDS = np.array([[LANDMARKS.index(name) for name in pair] for pair in DEPTHS.values()])
# Where the profile nearest to the bone is looked for, at corners; elsewhere along one ray.
_SPREAD = np.deg2rad([30.0 if skin in CORNERS else 0.0 for _, skin in DEPTHS.values()])
_depths = jax.jit(depths)  # once for all samples
PICTURE = "cephalograms.png"
_COLUMNS = 3
_BONE, _SKIN = (255, 255, 255), (200, 20, 20)  # colours of landmarks


class People(NamedTuple):
    """The cephalograms that are scored.

    Attributes:
      examples: as a generator takes them.
      subjects: whose each is.
      mm: a pixel's side, of each.
      landmarks: `(n, 19, 2)` in pixels.
      truth: `(n, len(DEPTHS))` in mm.
      unknown: how many have no sex or no age in the list.
    """

    examples: list[dict[str, Any]]
    subjects: list[str]
    mm: Float[np.ndarray, "n"]
    landmarks: Float[np.ndarray, "n 19 2"]
    truth: Float[np.ndarray, "n k"]
    unknown: int


def score_published(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Results:
    """Scores published weights as they are on `config.data`, which holds cephalograms alone.

    Raises InputError if that can't be done.
    """
    if (workdir / "checkpoints").is_dir():
        raise InputError(
            "data.builder=cephalograms: this workdir holds a run with other data. Keep its "
            "data.builder, and set data.cephalograms.manifest."
        )
    check(config)
    generator = Generator(config, None, "evaluate")
    found = score(config, generator, workdir)
    builder = data.make_builder(config.data)
    return Results(
        rows={},
        differences={},
        depths=found,
        by_subject=BySubject(subjects=[], rows={}),
        retrieval={},
        images=found.images,
        subjects=found.subjects,
        networks={},
        not_computed={},
        resizing="",
        **origin_of(generator.method, generator.step, builder, data.fingerprint(builder)),
        **provenance(config),
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError if there are no cephalograms, or the method can't make faces of them."""
    method = method_class(config)
    if method.kind != "generator" or not method.reads_xrays:
        raise InputError(
            f"data.cephalograms: {config.method.name} does not make faces of X-rays. Name the "
            "configuration of a method that does."
        )
    read_people(config)


def score(config: ml_collections.ConfigDict, generator: Generator, workdir: pathlib.Path) -> Depths:
    """Makes lateral faces of `config.data.cephalograms`, and measures their soft tissue.

    Where the list does not tell sex or age, prompts take them from `config.reconstruct`. Writes
    cephalograms.png into `workdir`.
    """
    people = read_people(config)
    name = config.method.name

    # Make faces, and measure them.
    count = config.evaluate.num_samples
    faces = [
        generator.draw(people.examples, k, f"cephalograms, sample {k + 1} of {count}")
        for k in range(count)
    ]
    measured = [measure(people, one) for one in faces]
    rows = {name: measured[0]}
    if count > 1:
        rows[f"{name}, mean of {count} samples"] = np.mean(measured, 0)
    conditions = generator.conditions(people.examples)
    if conditions is not None:
        rows[OUTLINE] = measure(people, np.repeat(conditions[..., 1:2], 3, -1))
    others = rivals(people)

    # Compare.
    errors = {row: np.abs(mm - people.truth) for row, mm in (rows | others).items()}
    differences = {
        f"{name} minus {rival}": _estimates(config, people, errors[name] - errors[rival])
        for rival in others
    }
    if cluster.is_first():
        _write_pictures(workdir, people, faces[0])
    by_subject = {
        row: {
            site: subject_means(values, people.subjects).tolist()
            for site, values in _by_site(error).items()
        }
        for row, error in errors.items()
    }
    return Depths(
        rows={row: _estimates(config, people, error) for row, error in errors.items()},
        differences=differences,
        images=len(people.examples),
        subjects=len(set(people.subjects)),
        masked=config.data.cephalograms.soft_tissue == "mask",
        unknown=people.unknown,
        by_subject=BySubject(subjects=sorted(set(people.subjects)), rows=by_subject),
    )


def read_people(config: ml_collections.ConfigDict) -> People:
    """Returns the cephalograms whose depths are known. Raises InputError if they are too few."""
    config = config.copy_and_resolve_references()
    config.data.update(builder="cephalograms", validation_subjects=0)
    builder = data.make_builder(config.data)
    source, places = data.read_split(builder, "test", config, images=("xray",))
    records = sorted((source[i] for i in places), key=lambda record: record["id"])
    if limit := config.evaluate.max_subjects:
        kept = sorted({record["subject"] for record in records})[:limit]
        records = [record for record in records if record["subject"] in kept]
    records = [r for r in records if np.isfinite(r["xray_landmarks"][_ENDS]).all()]
    subjects = [record["subject"].decode() for record in records]
    if len(set(subjects)) < _LEAST_PEOPLE:
        raise InputError(
            f"data.cephalograms: {len(set(subjects))} people have all of "
            f"{', '.join(sorted({name for pair in DEPTHS.values() for name in pair}))}. Add "
            f"X-rays with these landmarks, of {_LEAST_PEOPLE} people or more."
        )
    landmarks = np.stack([record["xray_landmarks"] for record in records]).astype(np.float64)
    mm = np.array([record["mm_per_pixel"] for record in records], np.float64)
    bone, skin = landmarks[:, _ENDS[:, 0]], landmarks[:, _ENDS[:, 1]]
    return People(
        examples=_examples(config, records),
        subjects=subjects,
        mm=mm,
        landmarks=landmarks,
        truth=np.linalg.norm(skin - bone, axis=-1) * mm[:, None],
        unknown=sum(not r["sex"] or not np.isfinite(r["age"]) for r in records),
    )


def _examples(
    config: ml_collections.ConfigDict, records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns records as a generator takes them."""
    r = config.reconstruct
    tokenize = make_tokenizer(config)
    examples = []
    for record in records:
        sex = record["sex"].decode() or r.sex
        age = float(record["age"]) if np.isfinite(record["age"]) else r.age
        profile = ("lateral", sex, age, r.bmi_change)
        prompt = make_prompt(config.prompt.template, *profile, config.prompt.known_ages)
        name = record["id"].decode()
        examples.append(
            {
                "id": name,
                # The pixels decide the noise, since names depend on everybody's own secret.
                "id_hash": np.uint32(zlib.crc32(record["xray"].tobytes())),
                "xray": record["xray"],
                "face": np.zeros((*record["xray"].shape[:2], 3), np.uint8),
                "prompt_ids": tokenize([prompt])[0],
                "frontal": np.float32(0.0),
                "profile": profile_numbers(*profile),
            }
        )
    return examples


def measure(people: People, faces: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n k"]:
    """Returns the depths of soft tissue in faces, in mm.

    They are measured from the true bone landmark in the direction of the true one on skin, and to
    the nearest place within 30 degrees of it where that is the bottom of a corner.
    """
    ends = (people.landmarks[:, _ENDS[:, 0]], people.landmarks[:, _ENDS[:, 1]], _REACH / people.mm)
    found = _depths(faces, *map(jnp.float32, ends), jnp.float32(_SPREAD))
    return np.asarray(found, np.float64) * people.mm[:, None]


def rivals(people: People) -> dict[str, Float[np.ndarray, "n k"]]:
    """Returns what practitioners would say, in mm, from the other people's depths.

    These are their mean, and a ridge regression on the bone landmarks, in mm from the nasion along
    the Frankfurt plane. Its penalty is chosen among the others too. Landmarks that somebody lacks
    are left out; without any, there is no regression.
    """
    # Only here: they slow each program's start.
    from sklearn.dummy import DummyRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    at = dict(zip(LANDMARKS, np.moveaxis(people.landmarks, 1, 0), strict=True))
    front = at["orbitale"] - at["porion"]
    front /= np.linalg.norm(front, axis=-1, keepdims=True)
    offsets = [(at[name] - at["nasion"]) * people.mm[:, None] for name in BONE if name != "nasion"]
    along = [(offset * front).sum(-1) for offset in offsets]
    across = [offset[:, 0] * front[:, 1] - offset[:, 1] * front[:, 0] for offset in offsets]
    features = np.stack(along + across, -1)
    features = features[:, np.isfinite(features).all(0)]

    models: dict[str, Any] = {MEAN_DEPTH: DummyRegressor()}
    if features.shape[1]:
        models[RIDGE] = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11)))
    else:
        features = np.zeros((len(features), 1))
    return {
        name: cross_val_predict(
            model, features, people.truth, groups=people.subjects, cv=LeaveOneGroupOut()
        )
        for name, model in models.items()
    }


def _by_site(errors: Float[np.ndarray, "n k"]) -> dict[str, Float[np.ndarray, "n"]]:
    """Returns the errors of each depth, and their mean."""
    return dict(zip(DEPTHS, errors.T, strict=True)) | {ALL: errors.mean(-1)}


def _estimates(
    config: ml_collections.ConfigDict, people: People, errors: Float[np.ndarray, "n k"]
) -> dict[str, Estimate]:
    """Returns means over people with intervals."""
    return {
        site: mean_interval(values, people.subjects, config.evaluate.bootstrap, config.seed)
        for site, values in _by_site(errors).items()
    }


def _write_pictures(
    workdir: pathlib.Path, people: People, faces: UInt8[np.ndarray, "n h w 3"]
) -> None:
    """Writes cephalograms.png: X-ray, face, both overlaid, and face with landmarks of everybody.

    The landmarks are those of the X-ray. Skin should lie on the outline of the face.
    """
    xrays = np.repeat(np.stack([example["xray"] for example in people.examples]), 3, -1)
    both = (0.5 * xrays + 0.5 * faces).round().astype(np.uint8)
    marked = faces.copy()
    for face, places in zip(marked, people.landmarks, strict=True):
        for ends, colour in zip(_ENDS.T, (_BONE, _SKIN), strict=True):
            columns, rows = np.clip(places[ends].round().astype(int), 1, len(face) - 1).T
            for row, column in zip(rows, columns, strict=True):
                face[row - 1 : row + 1, column - 1 : column + 1] = colour
    quadruples = np.concatenate([xrays, faces, both, marked], 2)
    blank = np.zeros((-len(quadruples) % _COLUMNS, *quadruples.shape[1:]), np.uint8)
    lines = np.concatenate([quadruples, blank]).reshape(-1, _COLUMNS, *quadruples.shape[1:])
    write_png(workdir / PICTURE, np.concatenate(np.concatenate(lines, 1), 1))
