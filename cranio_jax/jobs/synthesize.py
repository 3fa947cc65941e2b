"""Job `synthesize`: faces of the same people at other ages and weights, from their photographs.

The paper trains on such faces and does not name its tool: how they are made here is our choice.
"""

import csv
import hashlib
import json
import pathlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Int32, UInt8

import cranio_jax
from cranio_jax import data
from cranio_jax.data.prompts import check_profile, make_prompt, make_tokenizer
from cranio_jax.distributed import cluster, sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation.generation import check_finite, digests, in_bytes
from cranio_jax.files.atomic import whole_file, write_json
from cranio_jax.files.pictures import write_png
from cranio_jax.methods import check_method, method_class
from cranio_jax.methods.cranio_diff import variants
from cranio_jax.methods.cranio_diff.method import CranioDiff
from cranio_jax.metrics.features import Features
from cranio_jax.runs.state import published, restore
from data_builders.lists.pseudonyms import alias
from data_builders.skull_face.manifest import LANDMARKS, Face, Row

# Columns of the list that is written, before those of the landmarks.
_COLUMNS = (
    *("subject", "sex", "xray", "xray_view", "xray_inverted"),
    *("face", "face_view", "age", "bmi_change", "synthetic", "split"),
)


class Target(NamedTuple):
    """A face to be made.

    Attributes:
      row: of the list, whose photograph it is made of.
      age: years.
      bmi_change: percent.
      photograph: the prepared square.
      prompt_ids: of the wanted profile.
      true_ids: of the photograph's profile.
      path: of the picture. A JSON file beside it says how alike it is, and is written last.
    """

    row: Row
    age: float
    bmi_change: float
    photograph: UInt8[np.ndarray, "h w 3"]
    prompt_ids: Int32[np.ndarray, "length"]
    true_ids: Int32[np.ndarray, "length"]
    path: pathlib.Path

    @property
    def where(self) -> str:
        """The target in words."""
        return f"row {self.row.number} at {self.age:g} years, BMI {self.bmi_change:+g} %"

    @property
    def example(self) -> dict[str, Any]:
        """The target as `Maker.best` takes it."""
        seed = zlib.crc32(self.path.name.encode())
        return example_of(self.where, seed, self.photograph, self.prompt_ids, self.true_ids)


def example_of(
    name: str,
    seed: int,
    photograph: UInt8[np.ndarray, "h w 3"],
    prompt_ids: Int32[np.ndarray, "length"],
    true_ids: Int32[np.ndarray, "length"],
) -> dict[str, Any]:
    """Returns a face to be made, as `Maker.best` takes it.

    Args:
      name: for messages.
      seed: of the noise, from 0 to 2**32 - 1.
      photograph: the prepared square.
      prompt_ids: of the wanted profile.
      true_ids: of the photograph's profile.
    """
    return {
        "id": name,
        "id_hash": np.uint32(seed),
        "face": photograph,
        "xray": np.zeros((*photograph.shape[:2], 1), np.uint8),
        "prompt_ids": prompt_ids,
        "true_ids": true_ids,
    }


def synthesize(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Makes faces of the photographs of `config.data.skull_face.manifest`.

    Of the candidates for a face, the one is kept that the embedder finds most like the photograph,
    if it is like enough. A job that was stopped goes on where it was.

    Writes the pictures into `config.synthesize.folder`, synthesize.json into `workdir`, and beside
    the list a list with the same photographs and the faces made of them, whose path it returns.

    Raises InputError if a setting, the list, or a photograph is wrong.
    """
    # Check everything that can be checked.
    s = config.synthesize
    _check(config)
    features = Features(s.embedder_file, config.evaluate.crop)
    if len(features.embedders) != 1:
        raise InputError(
            f"synthesize.embedder_file={s.embedder_file!r}: name one face-recognition network, "
            "which chooses among the candidates"
        )
    variants.check(check_method(config), s)
    builder = data.open_builder(config.data)
    rows, ready = builder.photographs()

    # Load the networks.
    if (workdir / "checkpoints").is_dir():
        method, mesh, state, frozen, _ = restore(config, workdir)
        params = method.generation_params(state)
    else:
        method, mesh, params, frozen = published(config)
    assert isinstance(method, CranioDiff)  # text_to_image is one without a ControlNet

    # Make what is missing.
    weights = np.array(jax.device_get(digests((params, frozen)))).tobytes()
    mark = hashlib.sha256(weights + _made_by(config, features).encode()).hexdigest()
    targets = list(_targets(config, builder, rows, ready, mark))
    maker = Maker(config, method, mesh, params | frozen, features)
    _make_missing(maker, [target for target in targets if not _record(target).exists()])

    # Write the list.
    cosines = [json.loads(_record(target).read_text())["cosine"] for target in targets]
    pairs = list(zip(targets, cosines, strict=True))
    kept = [target for target, cosine in pairs if cosine >= s.least_cosine]
    refused = [(target, cosine) for target, cosine in pairs if cosine < s.least_cosine]
    _report(workdir, kept, refused, s.least_cosine)
    return _write_list(config, builder, rows, kept)


def _check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError if the job does not fit the configuration."""
    s = config.synthesize
    if config.data.builder != "skull_face":
        raise InputError(
            f"data.builder={config.data.builder!r}: job=synthesize reads a list of photographs. "
            "Set it to skull_face."
        )
    if config.method.name != "text_to_image" or method_class(config).kind != "generator":
        raise InputError(
            f"method.name={config.method.name!r}: job=synthesize makes faces by prompts alone. "
            "Use configs/synthesize.py or configs/text_to_image.py."
        )
    for age in s.ages:
        for change in s.bmi_changes:
            try:
                check_profile("frontal", "female", age, change)
            except InputError as error:
                raise InputError(f"synthesize: {error}. Set another one.") from None
    # A prompt names the nearest known age, so the face would be of another age than its row.
    known = config.prompt.known_ages
    if other := [age for age in s.ages if known and age not in known]:
        raise InputError(
            f"synthesize.ages: {other[0]:g} is not one of prompt.known_ages, "
            f"{', '.join(f'{age:g}' for age in known)}. Use these, or change prompt.known_ages."
        )
    if not s.embedder_file:
        raise InputError(
            "synthesize.embedder_file is empty. Name a face-recognition network, which chooses "
            "the faces that are most like the photograph."
        )
    folder = pathlib.PurePath(s.folder)
    if not s.folder or folder.is_absolute() or ".." in folder.parts:
        raise InputError(f"synthesize.folder={s.folder!r}: it is not a folder within data's root.")


def _made_by(config: ml_collections.ConfigDict, features: Features) -> str:
    """Returns what the faces depend on beside photographs and weights."""
    s = config.synthesize
    made_by = {
        "synthesize": {name: s[name] for name in ("way", "strength", "iterations")},
        "candidates": s.num_candidates,
        "sampling": config.sampling.to_dict(),
        "prompt": config.prompt.to_dict(),
        "seed": config.seed,
        "compute_dtype": config.compute_dtype,
        "embedder": features.sha256,
        "cranio_jax": cranio_jax.__version__,
    }
    return json.dumps(made_by, sort_keys=True, default=list)


def _targets(
    config: ml_collections.ConfigDict,
    builder: Any,
    rows: Sequence[Row],
    ready: dict[Face, Any],
    mark: str,
) -> Iterator[Target]:
    """Yields the faces to be made of each photograph, once, but for its own age and weight."""
    s = config.synthesize
    settings = builder.builder_config
    tokenize = make_tokenizer(config)

    def ids(row: Row, age: float, change: float) -> Int32[np.ndarray, "length"]:
        profile = (row.face.view, row.sex, age, change)
        return tokenize([make_prompt(config.prompt.template, *profile, config.prompt.known_ages)])[
            0
        ]

    first = {row.face: row for row in reversed(rows)}
    for face, row in reversed(first.items()):
        square = cv2.cvtColor(cv2.imread(str(ready[face].png)), cv2.COLOR_BGR2RGB)
        name = alias(settings.secret, "face", face.path.relative_to(settings.root_path).as_posix())
        true_ids = ids(row, face.age, face.bmi_change)
        for age in s.ages:
            for change in s.bmi_changes:
                if (age, change) == (face.age, face.bmi_change):
                    continue
                prompt_ids = ids(row, age, change)
                content = square.tobytes() + prompt_ids.tobytes() + true_ids.tobytes()
                digest = hashlib.sha256(mark.encode() + content).hexdigest()[:8]
                file = f"{name}_{age:g}_{change:+g}_{digest}.png"
                yield Target(
                    row=row,
                    age=age,
                    bmi_change=change,
                    photograph=square,
                    prompt_ids=prompt_ids,
                    true_ids=true_ids,
                    path=settings.root_path / s.folder / file,
                )


def _record(target: Target) -> pathlib.Path:
    return target.path.with_suffix(".json")


class Maker:
    """Makes candidates for faces, and keeps those most like the photographs.

    Attributes:
      candidates: how many are drawn for each face.
      batch_size: rounded up so that it divides over the devices.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        method: CranioDiff,
        mesh: jax.sharding.Mesh,
        params: Any,
        features: Features,
    ):
        s = config.synthesize
        self.candidates = s.num_candidates
        self.batch_size = sharding.padded_batch(s.batch_size, mesh, "synthesize.batch_size")
        self._mesh = mesh
        self._params = params
        self._feature_params = features.load(mesh)

        def make(params: Any, feature_params: Any, batch: Any, draw: Array):
            key = jax.random.fold_in(jax.random.key(config.seed + 2), draw)
            faces, finite = in_bytes(variants.vary(method, params, batch, key, s))
            both = jnp.concatenate([faces, batch["face"]])
            (vectors,) = features.embed(feature_params, both).values()
            vectors /= jnp.linalg.norm(vectors, axis=-1, keepdims=True)
            made, real = jnp.split(vectors, 2)
            return faces, finite, (made * real).sum(-1)

        self._make: Any = jax.jit(make, out_shardings=sharding.replicated(mesh))

    def best(
        self, examples: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"], float]]:
        """Yields `(place, face, cosine)`: each example's best candidate, in order."""
        everywhere = sharding.replicated(self._mesh)
        batches = data.device_batches(examples, self.batch_size, self._mesh, "faces")
        for places, batch in batches:
            faces: list[np.ndarray] = []
            cosines: list[np.ndarray] = []
            for draw in range(self.candidates):
                number = jax.device_put(np.uint32(draw), everywhere)
                if not faces and not places.start:
                    self._make = cluster.compiled(
                        self._make, self._params, self._feature_params, batch, number
                    )
                made, finite, cosine = jax.device_get(
                    self._make(self._params, self._feature_params, batch, number)
                )
                check_finite(finite, [examples[i]["id"] for i in places])
                faces.append(made)
                cosines.append(cosine)
            choice = np.argmax(cosines, axis=0)
            for k, i in enumerate(places):
                yield i, faces[choice[k]][k], float(cosines[choice[k]][k])


def _make_missing(maker: Maker, targets: Sequence[Target]) -> None:
    """Writes each target's best face and then its record."""
    examples = [target.example for target in targets]
    for place, face, cosine in maker.best(examples) if examples else ():
        write_png(targets[place].path, face)
        write_json(_record(targets[place]), {"cosine": round(cosine, 6)})


def _report(
    workdir: pathlib.Path,
    kept: Sequence[Target],
    refused: Sequence[tuple[Target, float]],
    least: float,
) -> None:
    """Prints and writes how many faces are kept, and which are not."""
    total = len(kept) + len(refused)
    print(f"{len(kept)} of {total} faces are like their photographs", file=sys.stderr)
    for target, cosine in refused[:50]:
        print(f"{target.where}: cosine {cosine:.2f}, below {least:g}", file=sys.stderr)
    content = {
        "kept": len(kept),
        "least_cosine": least,
        "refused": [
            {
                "row": target.row.number,
                "age": target.age,
                "bmi_change": target.bmi_change,
                "cosine": cosine,
            }
            for target, cosine in refused
        ],
    }
    write_json(workdir / "synthesize.json", content)


def _write_list(
    config: ml_collections.ConfigDict, builder: Any, rows: Sequence[Row], kept: Sequence[Target]
) -> pathlib.Path:
    """Writes the list of all pairs, photographs and made faces, and returns its path."""
    settings = builder.builder_config
    root = settings.root_path
    made: dict[Face, list[Target]] = {}
    for target in kept:
        made.setdefault(target.row.face, []).append(target)

    path = root / f"{settings.manifest_path.stem}_synthesized.csv"
    with whole_file(path) as file:
        writer = csv.DictWriter(file, [*_COLUMNS, *LANDMARKS], restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            same = {
                "subject": row.subject,
                "sex": row.sex,
                "xray": row.xray.path.relative_to(root).as_posix(),
                "xray_view": row.xray.view,
                "xray_inverted": "yes" if row.xray.inverted else "",
                "face_view": row.face.view,
                "split": row.split,
            }
            photograph = {
                "face": row.face.path.relative_to(root).as_posix(),
                "age": f"{row.face.age:g}",
                "bmi_change": f"{row.face.bmi_change / 100:g}",
            }
            marks = dict(zip(LANDMARKS, row.face.landmarks, strict=False))
            writer.writerow(same | photograph | marks)
            for target in made.get(row.face, []):
                face = {
                    "face": target.path.relative_to(root).as_posix(),
                    "age": f"{target.age:g}",
                    "bmi_change": f"{target.bmi_change / 100:g}",
                    "synthetic": "yes",
                }
                writer.writerow(same | face)
    return path
