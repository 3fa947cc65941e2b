"""Faces from a trained method: in memory, or kept as PNG files that no change of a metric makes anew."""

import hashlib
import json
import pathlib
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, UInt8

import cranio_jax
from cranio_jax import data
from cranio_jax.distributed import cluster, sharding
from cranio_jax.errors import InputError
from cranio_jax.files.atomic import write_json
from cranio_jax.files.pictures import write_png
from cranio_jax.methods import Batch, Method
from cranio_jax.runs.state import restore


def quantised(
    method: Method, seed: int, params: Any, frozen: Any, batch: Batch, draw: Array
) -> tuple[UInt8[Array, "b h w 3"], Bool[Array, "b"]]:
    """Faces as they would be stored, and whether each was made of numbers: kept faces and fresh ones must score alike."""
    faces = method.generate(
        params, frozen, batch, jax.random.fold_in(jax.random.key(seed + 2), draw)
    )
    return jnp.round((faces + 1.0) * 127.5).astype(jnp.uint8), jnp.isfinite(faces).all((1, 2, 3))


def check_finite(finite: np.ndarray, names: Sequence[str]) -> None:
    """Raises InputError where a face is not made of numbers."""
    for good, name in zip(finite, names, strict=False):
        if not good:
            raise InputError(
                f"the face generated for {name} holds values that are not numbers: the checkpoint"
                " has diverged, and nothing is scored"
            )


@jax.jit
def digests(tree: Any) -> list[Array]:
    """Two 32-bit sums over the bits of each leaf, the same on any mesh."""

    def one(leaf: Array) -> Array:
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).reshape(-1)
        place = jax.lax.iota(jnp.uint32, bits.size)
        return jnp.stack(
            [
                (bits * (place * jnp.uint32(k) | 1)).sum(dtype=jnp.uint32)
                for k in (2654435761, 2246822519)
            ]
        )

    return [one(leaf) for leaf in jax.tree.leaves(tree)]  # XLA takes minutes for what adds them up


class Generator:
    """The newest checkpoint's faces.

    Attributes:
      method, mesh, params, frozen, step: what is generated with.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path, job: str):
        """Takes its batches from the section of `config` that is named as the job.

        Raises InputError where there is no checkpoint, or a batch holds nothing.
        """
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        self.batch_size = sharding.padded_batch(config[job].batch_size, mesh, f"{job}.batch_size")
        self.method, self.mesh, state, self.frozen, self.step = restore(config, workdir)
        self.params = self.method.generation_params(state)
        self._config = config
        draw = lambda params, frozen, batch, draw: quantised(
            self.method, config.seed, params, frozen, batch, draw
        )
        self._generate = jax.jit(draw, out_shardings=sharding.replicated(self.mesh))

    def _faces(
        self, examples: Sequence[dict], draw: int, say: str
    ) -> Iterator[tuple[int, np.ndarray]]:
        """`(start, faces)` of each batch, without what filled it up."""
        number = jax.device_put(np.uint32(draw), sharding.replicated(self.mesh))
        for places, batch in data.device_batches(examples, self.batch_size, self.mesh, say):
            if not places.start:
                self._generate = cluster.compiled(
                    self._generate, self.params, self.frozen, batch, number
                )
            faces, finite = jax.device_get(self._generate(self.params, self.frozen, batch, number))
            check_finite(finite, [examples[i]["id"] for i in places])
            yield places.start, faces[: len(places)]

    def draw(
        self, examples: Sequence[dict], draw: int = 0, say: str = "generating"
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """A face of each example; `draw` numbers the sample."""
        return np.concatenate([faces for _, faces in self._faces(examples, draw, say)])

    def folder(self, workdir: pathlib.Path, records: str) -> pathlib.Path:
        """Where faces of this checkpoint and these settings are kept: its name is the hash of all they depend on.

        `records` is the fingerprint of the data.
        """
        c = self._config
        made_by = {
            "parameters": zlib.crc32(
                np.array(jax.device_get(digests((self.params, self.frozen)))).tobytes()
            ),
            "method": c.method.name,
            "sampling": c.sampling.to_dict(),
            "prompt": c.prompt.to_dict(),
            "seed": c.seed,
            "compute_dtype": c.compute_dtype,
            "records": records,
            "cranio_jax": cranio_jax.__version__,
        }
        name = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
        folder = workdir / "faces" / f"{self.step}_{name}"
        if cluster.is_first() and not (folder / "made_by.json").exists():
            write_json(folder / "made_by.json", made_by)
        return folder

    def keep(
        self, folder: pathlib.Path, examples: Sequence[dict], draw: int, say: str
    ) -> list[pathlib.Path]:
        """The files `folder`/ID.png of the examples' faces; only those that are missing are generated, batch by batch."""
        files = [folder / f"{e['id']}.png" for e in examples]
        # One listing: in a bucket each question takes its time.
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        exist = cluster.of_first(np.array([file.name in names for file in files], bool))
        missing = [i for i, there in enumerate(exist) if not there]
        if missing:
            began, made = 0.0, 0
            for start, faces in self._faces([examples[i] for i in missing], draw, say):
                made, began = (
                    (made + len(faces), began) if began else (0, time.monotonic())
                )  # the first batch compiles
                for i, face in zip(missing[start:], faces, strict=False):
                    if cluster.is_first():
                        write_png(files[i], face)
            if made and cluster.is_first():
                write_json(
                    folder.parent / f"{folder.name}_seconds.json", (time.monotonic() - began) / made
                )
            cluster.wait_for_all(f"faces in {folder.name}")
        return files
