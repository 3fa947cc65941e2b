"""Builders of records: the one that the configuration names, with its records on a local disk."""

import contextlib
import importlib
import os
import pathlib
import re
from typing import Any

import filelock
import ml_collections
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from cranio_jax.data import mirror
from cranio_jax.distributed import cluster
from cranio_jax.errors import InputError
from cranio_jax.files import buckets


def open_builder(config: ml_collections.ConfigDict) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder that `config.builder` names, with its settings.

    `config` is `config.data` of a run, here and below. Raises InputError if a setting is wrong.
    """
    module, builder_config = _configured(config)
    folder = _named_folder(config)
    if buckets.is_remote(folder):
        folder = str(mirror.local_root(folder, config.cache_dir))
    return module.Builder(config=builder_config, data_dir=folder or None)


def _named_folder(config: ml_collections.ConfigDict) -> str:
    """Returns the folder of all records, on a disk or in a bucket; empty for TFDS's own."""
    return config.data_dir or os.environ.get("TFDS_DATA_DIR", "")


def records_name(config: ml_collections.ConfigDict) -> str:
    """Returns the name of the records, which changes with every setting that they depend on."""
    return f"{config.builder}/{_configured(config)[1].name}"


def builder_settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the settings of all builders, and those of `config.builder` alone."""
    own_settings = config.get(config.builder, ml_collections.ConfigDict())
    return config.settings.to_dict() | own_settings.to_dict()


def _configured(config: ml_collections.ConfigDict) -> tuple[Any, Any]:
    """Returns the builder's module and its own configuration. Raises InputError."""
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
        raise InputError(f"data.settings or data.{config.builder}: {error}") from None


def make_builder(config: ml_collections.ConfigDict) -> tfds.core.DatasetBuilder:
    """Returns `open_builder` with its records, which are built if missing.

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
    # Where settings hold paths, records tell less.
    told = getattr(builder.builder_config, "told", None)
    for name, value in (told() if told else builder_settings(config)).items():
        if name in built and built[name] != value:
            raise InputError(
                f"{where} was built with {name}={built[name]!r}, not {value!r}; remove it or set "
                "data.data_dir to another folder"
            )
    return builder


def _build(config: ml_collections.ConfigDict) -> None:
    """Builds records on a local disk, unless they are there. Raises InputError if it is full."""
    builder = open_builder(config)
    reason = None
    try:
        builder.download_and_prepare(file_format="array_record")
    except (OSError, RuntimeError) as error:
        reason = _unwritable(error)
        if reason is None:
            raise
    if reason:  # outside the handler, which would keep the progress line open
        raise InputError(f"{builder.data_path}: can't be written ({reason}). Set data.data_dir.")


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
    """Raises InputError if a file does not hold as many records as its data set says."""
    builder = open_builder(config)
    for split in builder.info.splits.values():
        for name, count in zip(sorted(split.filenames), split.shard_lengths, strict=True):
            present = _record_count(builder.data_path / name)
            if present != count:
                problem = "is damaged" if present is None else f"holds {present} records"
                if not (builder.data_path / name).exists():
                    problem = "is missing"
                raise InputError(
                    f"{remote / name}: {problem}; {mirror.MARKER} counts {count} records in it. "
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
    """Returns why records can't be written; None if the error says something else.

    ArrayRecord's writer raises a RuntimeError.
    """
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    message = re.match(r"write\(\) failed: ([^;]+)", str(error))
    return message[1] if message else None


def _alone(path: str) -> contextlib.AbstractContextManager:
    """Returns a lock, so that runs started together on one machine write records once."""
    folder = pathlib.Path(path).parent
    folder.parent.mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder.with_name(f".{folder.name}.lock"))


def check_masks(builder: tfds.core.DatasetBuilder, field: str, needed_by: str) -> None:
    """Raises InputError if records lack `xray_mask` or `head_mask`, which something needs."""
    if field not in builder.info.features:
        raise InputError(
            f"data.builder={builder.name}: its records hold no {field}, which {needed_by} needs. "
            "Use cranio_phantom."
        )
