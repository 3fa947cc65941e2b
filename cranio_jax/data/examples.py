"""Examples: a record as training and evaluation see it."""

import zlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from cranio_jax.data.prompts import make_prompt, make_tokenizer
from cranio_jax.data.splits import read_split


class Examples:
    """A random-access source of examples: `images` as uint8, the prompt as token ids, the rest as Python values.

    With `numbered`, the subjects of the split, an example says which of them is its own: `subject_index`.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        config: ml_collections.ConfigDict,
        images: tuple[str, ...] = ("xray", "face"),
        numbered: Sequence[str] = (),
    ):
        self._images = images
        self._source, self._rows = read_split(builder, split, config, images)
        self._unread, _ = read_split(builder, split, config, images=())
        self._prompt = config.prompt
        self._tokenize = make_tokenizer(config)
        self._numbers = {name: np.int32(i) for i, name in enumerate(numbered)}

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:  # Grain puts it into its checkpoints; a path has no place there
        return f"Examples({len(self)})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[self._rows[int(index)]]
        text = lambda name: record[name].decode()
        example = {name: text(name) for name in ("id", "subject", "xray_view", "face_view", "sex")}
        example |= {"age": float(record["age"]), "bmi_change": float(record["bmi_change"])}
        if "face_landmarks" in record:
            # Eyes, nose tip, mouth corners: the order of alignment.TEMPLATE, which is a frontal face's.
            known = example["face_view"] == "frontal"
            example["landmarks"] = np.asarray(
                record["face_landmarks"][:5] if known else np.full((5, 2), np.nan), np.float32
            )
        if self._numbers:
            example["subject_index"] = self._numbers[example["subject"]]
        return example | {
            **{name: record[name] for name in self._images if name in record},
            "index": int(index),
            "prompt_ids": self.prompt_ids(
                example["face_view"], example["sex"], example["age"], example["bmi_change"]
            ),
            "id_hash": np.uint32(zlib.crc32(example["id"].encode())),
            "mask": np.float32(1.0),
            "frontal": np.float32(example["face_view"] == "frontal"),
        }

    def conditions(self) -> list[tuple[str, float, float]]:
        """View, age and BMI change of each example's face; no picture is decoded."""
        read = lambda record: (
            record["face_view"].decode(),
            float(record["age"]),
            float(record["bmi_change"]),
        )
        return [read(self._unread[self._rows[i]]) for i in range(len(self))]

    def prompt_ids(self, view: str, sex: str, age: float, bmi_change: float) -> np.ndarray:
        """Token ids `(length,)` of a profile."""
        return self._tokenize(
            [
                make_prompt(
                    self._prompt.template, view, sex, age, bmi_change, self._prompt.known_ages
                )
            ]
        )[0]
