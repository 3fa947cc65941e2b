"""From records on disk to batches on devices: a Grain pipeline over a TFDS data source."""

from cranio_jax.data.augmentation import GEOMETRY, MOVES, augment, displacement, expose, move
from cranio_jax.data.batches import (
    READING,
    Batch,
    Prepare,
    TrainingBatches,
    collected,
    device_batches,
    ordered_batches,
    to_device_fields,
)
from cranio_jax.data.builders import (
    builder_settings,
    check_masks,
    make_builder,
    open_builder,
    records_name,
)
from cranio_jax.data.examples import Examples
from cranio_jax.data.splits import ExampleSource, fingerprint, read_split, split_subjects, subjects

__all__ = [
    "GEOMETRY",
    "MOVES",
    "READING",
    "Batch",
    "ExampleSource",
    "Examples",
    "Prepare",
    "TrainingBatches",
    "augment",
    "builder_settings",
    "check_masks",
    "collected",
    "device_batches",
    "displacement",
    "expose",
    "fingerprint",
    "make_builder",
    "move",
    "open_builder",
    "ordered_batches",
    "read_split",
    "records_name",
    "split_subjects",
    "subjects",
    "to_device_fields",
]
