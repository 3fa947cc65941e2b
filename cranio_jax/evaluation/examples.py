"""Test examples, with the faces that are compared with the true ones."""

import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import UInt8

from cranio_jax import data
from cranio_jax.data import radiographs
from cranio_jax.distributed import cluster
from cranio_jax.files.atomic import whole_file
from cranio_jax.files.pictures import read_face
from cranio_jax.runs.log import Writer

# What a true face may be.
PHOTOGRAPH = "photograph"
SYNTHETIC = "synthetic face"


def read_examples(
    config: ml_collections.ConfigDict,
    builder: Any,
    images: tuple[str, ...] = ("xray", "face", "head_mask"),
) -> list[dict[str, Any]]:
    """Returns the examples of `evaluate.split`, sorted by id.

    They are those of the first `evaluate.max_subjects` subjects.

    Their X-rays are varied as `evaluate.radiograph` says, each always in the same way. Heads stay
    in their place: a framing of their own, shared by X-ray and true face, would tell people apart.
    """
    source = data.Examples(builder, config.evaluate.split, config, images)
    examples = sorted((source[i] for i in range(len(source))), key=lambda e: e["id"])
    if limit := config.evaluate.max_subjects:
        subjects = sorted({e["subject"] for e in examples})[:limit]
        examples = [e for e in examples if e["subject"] in subjects]
    strength = config.evaluate.radiograph
    if strength and "xray" in images:
        for number, example in enumerate(examples):
            # The pixels decide, since ids depend on everybody's own secret.
            rng = np.random.default_rng([config.seed, zlib.crc32(example["xray"].tobytes())])
            varied = radiographs.vary(example["xray"], rng, strength)
            examples[number] = example | {"xray": varied}
    return examples


def who_of(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns `subject`, `view` and `variant` of each example, and `kind` of its true face."""
    return [
        {
            "subject": e["subject"],
            "view": e["face_view"],
            "variant": f"{e['age']:g} {e['bmi_change']:+g}",
            "kind": SYNTHETIC if e.get("synthetic") else PHOTOGRAPH,
        }
        for e in examples
    ]


def count_synthetic(who: Sequence[Mapping[str, str]]) -> int:
    """Returns how many true faces are synthetic."""
    return sum(w.get("kind") == SYNTHETIC for w in who)


class MeanOf(tuple[pathlib.Path, ...]):
    """Files to average into one picture."""


# A picture, its file, or the files whose mean it is.
Face = UInt8[np.ndarray, "h w 3"] | pathlib.Path | MeanOf


class WithGenerated:
    """Examples with `generated` faces of several kinds, which are read on demand."""

    def __init__(
        self,
        examples: Sequence[dict[str, Any]],
        kinds: Mapping[str, Sequence[Any]],
        others: Sequence[dict[str, Any]] | None = None,
    ):
        """Joins examples and faces.

        Args:
          examples: with the true faces.
          kinds: by name, a `Face` for each example.
          others: the examples with another person's X-ray, which becomes `other_xray`.
        """
        self._examples = examples
        self._kinds = kinds
        self._others = others

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        faces = [_read(of_kind[index]) for of_kind in self._kinds.values()]
        example = self._examples[index] | {"generated": np.stack(faces)}
        if self._others is not None:
            example["other_xray"] = self._others[index]["xray"]
        return example


def _read(face: Any) -> UInt8[np.ndarray, "h w 3"]:
    if isinstance(face, MeanOf):
        mean = np.mean([read_face(file) for file in face], 0, dtype=np.float64)
        return np.round(mean).astype(np.uint8)
    return face if isinstance(face, np.ndarray) else read_face(face)


def write_pictures(
    workdir: pathlib.Path,
    step: int,
    examples: WithGenerated,
    kinds: Sequence[str],
    count: int,
) -> None:
    """Writes `count` examples with their faces to pictures.npz, for pages, and to TensorBoard.

    Args:
      workdir: of the run.
      step: of the checkpoint.
      examples: an even spread of them is written.
      kinds: names of the generated faces.
      count: 0 for none.
    """
    if count < 1 or not cluster.is_first():
        return
    places = np.unique(np.linspace(0, len(examples) - 1, count).round())
    chosen = [examples[int(i)] for i in places]
    captions = [
        f"{e['sex']}, {e['age']:.0f} years, BMI {e['bmi_change']:+.0f} %, {e['face_view']}"
        for e in chosen
    ]
    xrays = np.stack([e["xray"] for e in chosen])
    truth = np.stack([e["face"] for e in chosen])
    faces = np.stack([e["generated"] for e in chosen])
    with whole_file(workdir / "pictures.npz", "wb") as file:
        np.savez_compressed(
            file,
            rows=np.array(list(kinds)),
            captions=np.array(captions),
            xray=xrays,
            face=truth,
            faces=faces,
        )

    # One picture: a line for each example.
    columns = np.concatenate([np.repeat(xrays, 3, -1)[:, None], truth[:, None], faces], 1)
    sheet = np.concatenate([np.concatenate(list(line), 1) for line in columns])
    with Writer(workdir) as writer:
        writer.image(step, "X-ray, truth, " + ", ".join(kinds), sheet)
