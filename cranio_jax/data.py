"""From records on disk to batches: a Grain pipeline over a TFDS data source."""

import contextlib
import hashlib
import importlib
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import filelock
import grain
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from jaxtyping import Float

from cranio_jax import buckets, cluster, mirror
from cranio_jax.errors import InputError
from cranio_jax.prompts import make_prompt, make_tokenizer

# Arrays that go to the device, where an example has them; everything else stays on the host.
DEVICE_FIELDS = (
    "xray",
    "face",
    "prompt_ids",
    "id_hash",
    "mask",
    "frontal",
    "landmarks",
    "subject_index",
    "latents",
    "context",
)
EVALUATION_FIELDS = ("generated", "other_xray", "head_mask", "place", "split")
GEOMETRY = ("flip", "rotation", "bend")  # of the augmentations, those that move the face
# Of the bend: knots along each side, about a feature of the face apart; rounds of its inversion.
_KNOTS, _ROUNDS = 4, 8
READING = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)

# From an example and random numbers to the one that is trained on.
Prepare = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]


def open_builder(config: ml_collections.ConfigDict) -> tfds.core.DatasetBuilder:
    """The TFDS builder that `config.builder` names, with its settings. Raises InputError where one is wrong."""
    module, builder_config = _configured(config)
    folder = _named_folder(config)
    if buckets.is_remote(folder):
        folder = str(mirror.local_root(folder, config.cache_dir))
    return module.Builder(config=builder_config, data_dir=folder or None)


def _named_folder(config: ml_collections.ConfigDict) -> str:
    """Returns the folder of all records, on a disk or in a bucket; empty for TFDS's own."""
    return config.data_dir or os.environ.get("TFDS_DATA_DIR", "")


def records_name(config: ml_collections.ConfigDict) -> str:
    """What the records are called, which changes with everything that decides them."""
    return f"{config.builder}/{_configured(config)[1].name}"


def builder_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What all builders ask for and what `config.builder` alone does."""
    return (
        config.settings.to_dict()
        | config.get(config.builder, ml_collections.ConfigDict()).to_dict()
    )


def _configured(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
    """The builder's module, and its own configuration. Raises InputError."""
    try:
        module = importlib.import_module(
            f"data_builders.{config.builder}.{config.builder}_dataset_builder"
        )
    except ModuleNotFoundError:
        raise InputError(
            f"data.builder={config.builder!r} is not a package in data_builders/"
        ) from None
    try:
        return module, module.make_config(**builder_settings(config))
    except (TypeError, ValueError) as error:
        raise InputError(f"data of {config.builder}: {error}") from None


def make_builder(config: ml_collections.ConfigDict) -> tfds.core.DatasetBuilder:
    """Returns `open_builder` with its records, which are built if need be.

    Records in a bucket are copied to a local disk once, and built there if the bucket has none;
    all processes call this. Raises InputError where the folder holds records built with other
    settings.
    """
    where = open_builder(config).data_path
    if buckets.is_remote(_named_folder(config)):
        where = _mirrored(config)
    elif not open_builder(config).is_prepared():
        with _alone(str(where)):
            _build(config)
    builder = open_builder(config)
    built = dict(builder.info.metadata or {})
    for name, value in builder_settings(config).items():
        if name in built and built[name] != value:
            raise InputError(
                f"{where} was built with {name}={built[name]!r}, not {value!r}; remove it or set data.data_dir to another folder"
            )
    return builder


def _build(config: ml_collections.ConfigDict) -> None:
    """Builds records on a local disk, unless they are there. Raises InputError if it is full."""
    builder, why = open_builder(config), None
    try:
        builder.download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:
        if not (why := _unwritable(error)):
            raise
    if why:  # out of the handler, which keeps the progress line open
        raise InputError(f"{builder.data_path}: the records can't be written ({why})")


def _mirrored(config: ml_collections.ConfigDict) -> pathlib.PurePath:
    """Makes the local copy of records equal to the bucket's; returns the folder in the bucket.

    The first of all processes builds what is missing there. The others of its machine wait for it,
    and those of other machines copy what it has completed.
    """
    name = _named_folder(config)
    local = pathlib.Path(str(open_builder(config).data_path))
    root = mirror.local_root(name, config.cache_dir)
    remote = buckets.open_folder(name, "data.data_dir") / local.relative_to(root).as_posix()
    both = mirror.Mirror(remote, local)
    if not cluster.is_first():
        both.wait()
    try:
        lock = _alone(str(local))
    except OSError as error:
        raise InputError(
            f"data.cache_dir: {root} can't be written ({error.strerror}). Set it to another folder."
        ) from None
    with lock:
        if mirror.MARKER in both.listing():
            both.fetch(lambda: _check_files(config, remote))
        else:
            both.forget()
            _build(config)
            both.publish()
    return remote


def _check_files(config: ml_collections.ConfigDict, remote: pathlib.PurePath) -> None:
    """Raises InputError where a file does not hold the records that its data set has in it."""
    builder = open_builder(config)
    for split in builder.info.splits.values():
        for name, count in zip(sorted(split.filenames), split.shard_lengths, strict=True):
            held = _record_count(builder.data_path / name)
            if held != count:
                what = "is damaged" if held is None else f"holds {held} records"
                if not (builder.data_path / name).exists():
                    what = "is missing"
                raise InputError(
                    f"{remote / name}: {what}; {mirror.MARKER} counts {count} records in it. "
                    f"Remove {remote} to build them again."
                )


def _record_count(path: pathlib.Path) -> int | None:
    """Returns how many records a file holds; None if it is missing or damaged."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()  # raises what was wrong at the start
        return count
    except (OSError, RuntimeError, ValueError):
        return None


def _unwritable(error: OSError | RuntimeError) -> str | None:
    """Why records can't be written; None where something else is wrong. ArrayRecord's writer raises a RuntimeError."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    told = re.match(r"write\(\) failed: ([^;]+)", str(error))
    return told and told[1]


def _alone(path: str) -> contextlib.AbstractContextManager:
    """Runs on one machine that start together write records once."""
    folder = pathlib.Path(path).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder.with_name(f".{folder.name}.lock"))


def fingerprint(builder: tfds.core.DatasetBuilder) -> str:
    """SHA-256 over the content of all records: the same for builds of the same records, whose files may differ in bytes."""
    digest = hashlib.sha256()
    for split in sorted(builder.info.splits):
        for record in _records(builder, split, images=()):
            for name in sorted(record):
                value = record[name]
                digest.update(name.encode())
                digest.update(value if isinstance(value, bytes) else np.asarray(value).tobytes())
    return digest.hexdigest()


def read_split(
    builder: tfds.core.DatasetBuilder,
    split: str,
    config: ml_collections.ConfigDict,
    images: tuple[str, ...],
):
    """`(records, rows)` of a split: a random-access source, and which of its places belong to the split.

    Without a split of that name, 'validation' is `data.validation_subjects` of the training subjects, whom 'train' then
    lacks: always the same ones, whatever the seed. Raises InputError where a split is empty.
    """
    held_out, splits = config.data.validation_subjects, builder.info.splits
    if held_out and "validation" in splits:
        raise InputError(
            f"{builder.info.full_name} has validation subjects of its own; set data.validation_subjects=0"
        )
    where = "train" if split == "validation" and held_out else split
    if where not in splits or not splits[where].num_examples:
        remedy = (
            "set data.validation_subjects" if split == "validation" else "more subjects are needed"
        )
        raise InputError(f"split {split!r} of {builder.info.full_name} is empty; {remedy}")
    records = _records(builder, where, images)
    if not held_out or where != "train":
        return records, range(len(records))
    names = split_subjects(builder, "train")
    order = sorted(set(names), key=lambda name: (zlib.crc32(name.encode()), name))
    if not 0 < held_out < len(order):
        raise InputError(
            f"data.validation_subjects={held_out} leaves nobody to train on; there are {len(order)} training subjects"
        )
    kept = set(order[:held_out] if split == "validation" else order[held_out:])
    return records, [row for row, name in enumerate(names) if name in kept]


def split_subjects(builder: tfds.core.DatasetBuilder, split: str) -> list[str]:
    """The subject of each record of a split on disk; no picture is decoded."""
    return [record["subject"].decode() for record in _records(builder, split, images=())]


def _records(
    builder: tfds.core.DatasetBuilder, split: str, images: tuple[str, ...]
) -> Sequence[dict[str, Any]]:
    """A split's records, of whose pictures only `images` are decoded."""
    pictures = [
        name
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    ]
    unread = {name: tfds.decode.SkipDecoding() for name in pictures if name not in images}
    return _Readable(
        builder.as_data_source(split, decoders=unread or None),
        f"{builder.data_dir}, split {split!r}",
    )


class _Readable(Sequence):
    """Records, where what can't be read is told in a sentence."""

    def __init__(self, source: Sequence[dict[str, Any]], where: str):
        self._source, self._where = source, where

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._source[index]
        except Exception as error:  # whatever a library says of damaged bytes
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{self._where}: record {index} is damaged ({reason}); remove the folder, and it is built again"
            ) from None


def subjects(
    builder: tfds.core.DatasetBuilder, split: str, config: ml_collections.ConfigDict
) -> list[str]:
    """The subjects of a split, sorted."""
    records, rows = read_split(builder, split, config, images=())
    return sorted({records[row]["subject"].decode() for row in rows})


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
            # Eyes, nose tip, mouth corners: the order of losses.TEMPLATE, which is a frontal face's.
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


def displacement(
    rng: np.random.Generator, side: int, bend: float, mirrored: bool
) -> Float[np.ndarray, "side side 2"]:
    """A smooth random displacement (x, y) in pixels that shifts nothing on the whole.

    Args:
      rng: what is drawn from.
      side: of the picture.
      bend: its standard deviation, in parts of the side.
      mirrored: alike on both sides of the middle column, as faces seen from the front are.
    """
    knots = rng.standard_normal((_KNOTS, _KNOTS, 2)).astype(np.float32)
    if mirrored:
        knots = (knots + knots[:, ::-1] * np.float32([-1, 1])) / np.sqrt(np.float32(2))
    return (
        bend
        * side
        * cv2.resize(knots - knots.mean((0, 1)), (side, side), interpolation=cv2.INTER_CUBIC)
    )


def move(
    example: dict[str, Any], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """What moves the (square) X-ray, face and landmarks, alike and as far as the example has them.

    Flip and rotation are the paper's. The bend is ours: where people are few, an X-ray and a face that are in register, which
    they are in one view alone, are made those of somebody else.
    """
    images = {name: example[name] for name in ("xray", "face") if name in example}
    moved = dict(example)
    side = next(iter(images.values())).shape[1]
    if rng.random() < settings.flip:
        images = {name: image[:, ::-1] for name, image in images.items()}
        if "landmarks" in moved:
            moved["landmarks"] = moved["landmarks"][[1, 0, 2, 4, 3]] * np.float32(
                [-1, 1]
            ) + np.float32([side - 1, 0])
    bend = settings.bend if example.get("xray_view") == example.get("face_view") else 0.0
    if settings.rotation or bend:
        degrees = rng.uniform(-settings.rotation, settings.rotation)
        middle, (cos, sin) = (
            np.float32((side - 1) / 2),
            (np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))),
        )
        turn = np.array(
            [[cos, -sin], [sin, cos]], np.float32
        )  # counterclockwise, rows running down
        mirrored = example.get("face_view") == "frontal"
        push = displacement(rng, side, bend, mirrored) if bend else np.zeros((1, 1, 2), np.float32)
        columns_rows = np.moveaxis(np.indices((side, side), dtype=np.float32)[::-1], 0, -1)
        source = (columns_rows - middle) @ turn.T + middle + push  # of each pixel
        images = {
            name: _sampled(image, source, fill=(0,) if name == "xray" else image[0, 0])
            for name, image in images.items()
        }
        if "landmarks" in moved:
            # Where the source is the landmark; a fixed point, which a smooth displacement brings near in a few rounds.
            places = moved["landmarks"]
            for _ in range(_ROUNDS if bend else 1):
                pushed = cv2.remap(
                    push, places[:, None], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
                )[:, 0]
                places = (moved["landmarks"] - pushed - middle) @ turn + middle
            moved["landmarks"] = places
    return moved | {name: np.ascontiguousarray(image) for name, image in images.items()}


def _sampled(
    image: np.ndarray, source: Float[np.ndarray, "h w 2"], fill: Sequence[int]
) -> np.ndarray:
    """The image at the places (x, y) of `source`, bilinearly; `fill` beyond its edge."""
    edge = [float(value) for value in fill]
    return cv2.remap(
        image, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=edge
    ).reshape(image.shape)


def expose(
    example: dict[str, Any], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """The paper's exposure and erasing.

    The paper does not say what they apply to; changing the face would teach the model to paint at random exposures, so
    the X-ray alone is ours.
    """
    exposed = example["xray"].astype(np.float32)
    contrast = 1.0 + rng.uniform(-settings.contrast, settings.contrast)
    exposed = (
        (exposed - exposed.mean()) * contrast
        + exposed.mean()
        + 255.0 * rng.uniform(-settings.brightness, settings.brightness)
    )
    exposed = np.clip(np.round(exposed), 0, 255).astype(np.uint8)
    if settings.erase:
        height, width = exposed.shape[:2]
        area, aspect = (
            rng.uniform(0, settings.erase) * height * width,
            np.exp(rng.uniform(-1.0, 1.0)),
        )
        h, w = min(height, round((area * aspect) ** 0.5)), min(width, round((area / aspect) ** 0.5))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        exposed[top : top + h, left : left + w] = rng.integers(0, 256)
    return example | {"xray": exposed}


def augment(
    example: dict[str, Any], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """The paper's augmentations."""
    return expose(move(example, rng, settings), rng, settings)


def to_device_fields(example: dict[str, Any]) -> dict[str, np.ndarray]:
    """Drops what stays on the host."""
    return {name: example[name] for name in (*DEVICE_FIELDS, *EVALUATION_FIELDS) if name in example}


class TrainingBatches(Iterator[dict[str, np.ndarray]]):
    """Endless shuffled batches, or of each the `rows` that are this process's.

    The order of the examples, and how each is augmented, depends on the seed alone. So any number
    of processes may go on from a position, and with batches of another size.
    """

    def __init__(
        self,
        examples: Sequence[dict[str, Any]],
        batch_size: int,
        seed: int,
        prepare: Prepare,
        rows: Sequence[int] | None = None,
        position: dict[str, int] | None = None,
    ):
        """Starts at `position`, from `get_state`, or at the first example."""
        position = position or {}
        # Checkpoints of version 0.1 count batches.
        self._start = position.get("examples", position.get("next_index", 0) * batch_size)
        self._batch_size = batch_size

        def prepared(example, rng):
            return to_device_fields(prepare(example, rng))

        dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
        dataset = dataset.random_map(prepared)[self._start :]
        self._batches = iter(_of_each_batch(dataset, batch_size, rows).to_iter_dataset(READING))

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._batches)

    def get_state(self) -> dict[str, int]:
        """Returns the position: how many examples all processes have seen, as JSON."""
        batches = self._batches.get_state()["next_index"]
        return {"examples": self._start + batches * self._batch_size}


def ordered_batches(
    examples: Sequence[dict[str, Any]], batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Batches in order, or of each the `rows`, read ahead; the last is filled up with copies whose mask is 0."""
    count = len(examples)

    def one(place: int) -> dict[str, np.ndarray]:
        return to_device_fields(examples[min(place, count - 1)]) | {
            "mask": np.float32(place < count)
        }

    places = grain.MapDataset.range(-(-count // batch_size) * batch_size)
    return iter(_of_each_batch(places.map(one), batch_size, rows).to_iter_dataset(READING))


def _of_each_batch(
    dataset: grain.MapDataset, batch_size: int, rows: Sequence[int] | None
) -> grain.MapDataset:
    """Batches of the `rows` of each whole batch."""
    if rows is None or len(rows) == batch_size:
        return dataset.batch(batch_size, drop_remainder=True)
    each = len(rows)
    places = grain.MapDataset.range(len(dataset) // batch_size * each)
    return places.map(
        lambda place: dataset[place // each * batch_size + int(rows[place % each])]
    ).batch(each)
