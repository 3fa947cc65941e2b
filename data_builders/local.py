"""The builder that all data sets here derive from."""

import os

import tensorflow_datasets as tfds

from data_builders.errors import InputError


class LocalBuilder(tfds.core.ShardBasedBuilder):
    """Builds and reads records on a local disk, because array_record can't use a bucket."""

    def __init__(self, *, data_dir: str | os.PathLike | None = None, **options):
        """Raises InputError if `data_dir`, or TFDS's own folder in its place, is in a bucket."""
        folder = str(data_dir or tfds.core.constants.DATA_DIR)
        if "://" in folder:
            raise InputError(
                f"data_dir={folder}: records are built and read on a local disk. Name a folder "
                "there, or set --config.data.data_dir of cranio_jax.main, which copies them."
            )
        super().__init__(data_dir=data_dir, **options)
