"""Records in files of bounded size."""

import pytest
from tensorflow_datasets.core import shuffle

from cranio_jax import data
from data_builders import shards


def test_more_than_fits_in_memory_is_written_without_tensorflow(config, tmp_path, monkeypatch):
    """TFDS shuffles what is more than this through TensorFlow, which nobody has installed here."""
    with pytest.raises(ModuleNotFoundError):
        import tensorflow  # noqa: F401
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1000)
    monkeypatch.setattr(shards, "BYTES", 20 * 4 * 32**2)
    config.data.data_dir = str(tmp_path)
    config.data.cranio_phantom.subjects = 6
    builder = data.make_builder(config.data)
    files = sorted(path.name for path in builder.data_path.iterdir() if "array_record" in path.name)
    assert [name.rpartition(".")[2] for name in files if "-train" in name] == [
        f"array_record-{i:05d}-of-00005" for i in range(5)
    ]

    def read(split):
        return [record["id"].decode() for record in builder.as_data_source(split)]

    assert len(read("train")) == len(set(read("train"))) == 5 * 18 and len(read("test")) == 18
    # In the order in which they were made, so that a build is always the same.
    assert read("train") == sorted(read("train"), key=lambda key: key[:8])
