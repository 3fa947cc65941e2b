"""Examples: a record as training and evaluation see it."""

import zlib
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from cranio_jax.data.prompts import make_prompt, make_tokenizer, profile_numbers
from cranio_jax.data.splits import read_split
from cranio_jax.errors import InputError


class Examples:
    """A random-access source of examples.

    Pictures are uint8, the prompt is token ids, everything else is Python values.
    """

    def __init__(
        self,
        builder: tfds.core.DatasetBuilder,
        split: str,
        config: ml_collections.ConfigDict,
        images: tuple[str, ...] = ("xray", "face"),
        numbered: Sequence[str] = (),
    ):
        """Opens a split.

        Args:
          builder: of the records.
          split: its name.
          config: of the run; `prompt`, `data.validation_subjects` and `data.synthetic*` count.
          images: the pictures to decode.
          numbered: subjects; each example then has its subject's index in them, `subject_index`.

        Raises:
          InputError: the split is empty, or the prompt settings are invalid.
        """
        self._images = images
        self._source, self._rows = read_split(builder, split, config, images)
        self._unread, _ = read_split(builder, split, config, images=())
        self._prompt = config.prompt
        self._synthetic_weight = config.data.synthetic_weight
        self._tokenize = make_tokenizer(config)
        self._numbers = {name: np.int32(i) for i, name in enumerate(numbered)}

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:  # Grain puts it into its checkpoints; a path has no place there
        return f"Examples({len(self)})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self._source[self._rows[int(index)]]
        names = ("id", "subject", "xray_view", "face_view", "sex")
        example: dict[str, Any] = {name: record[name].decode() for name in names}
        example["age"] = float(record["age"])
        example["bmi_change"] = float(record["bmi_change"])
        example |= {name: record[name] for name in self._images if name in record}
        example["synthetic"] = bool(record.get("synthetic", False))
        is_frontal = example["face_view"] == "frontal"
        if "face_landmarks" in record:
            # Eyes, nose tip, mouth corners: the order of alignment.TEMPLATE, a frontal face's.
            landmarks = record["face_landmarks"][:5] if is_frontal else np.full((5, 2), np.nan)
            example["landmarks"] = np.asarray(landmarks, np.float32)
        if self._numbers:
            example["subject_index"] = self._numbers[example["subject"]]
        example["index"] = int(index)
        profile = tuple(example[name] for name in ("face_view", "sex", "age", "bmi_change"))
        example["prompt_ids"] = self.prompt_ids(*profile)
        example["profile"] = profile_numbers(*profile)
        example["id_hash"] = np.uint32(zlib.crc32(example["id"].encode()))
        example["mask"] = np.float32(1.0)
        example["frontal"] = np.float32(is_frontal)
        return example

    def conditions(self) -> list[tuple[str, float, float]]:
        """Returns view, age and BMI change of each example's face; no picture is decoded."""
        records = (self._unread[row] for row in self._rows)
        return [
            (record["face_view"].decode(), float(record["age"]), float(record["bmi_change"]))
            for record in records
        ]

    def weights(self) -> list[float] | None:
        """Returns how often each example is trained on, in relation to others; None: all alike.

        Raises InputError if synthetic faces have a weight and the records do not tell them apart.
        """
        if self._synthetic_weight == 1.0:
            return None
        synthetic = [self._unread[row].get("synthetic") for row in self._rows]
        if None in synthetic:
            raise InputError(
                f"data.synthetic_weight={self._synthetic_weight}: these records do not tell "
                "synthetic faces apart. Set it to 1."
            )
        return [self._synthetic_weight if made else 1.0 for made in synthetic]

    def prompt_ids(self, view: str, sex: str, age: float, bmi_change: float) -> np.ndarray:
        """Returns the token ids `(length,)` of a profile."""
        prompt = make_prompt(
            self._prompt.template, view, sex, age, bmi_change, self._prompt.known_ages
        )
        return self._tokenize([prompt])[0]
