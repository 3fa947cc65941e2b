"""Faces from a trained method: in memory, or kept as PNG files that metrics reuse."""

import hashlib
import json
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8, UInt32

import cranio_jax
from cranio_jax import data
from cranio_jax.data.radiographs import VARIED
from cranio_jax.distributed import cluster, sharding
from cranio_jax.errors import InputError
from cranio_jax.files.atomic import write_json
from cranio_jax.files.pictures import write_png
from cranio_jax.methods import Batch, Method
from cranio_jax.runs.state import published, restore


def quantised(
    method: Method, seed: int, params: Any, frozen: Any, batch: Batch, draw: Array
) -> tuple[UInt8[Array, "b h w 3"], Bool[Array, "b"]]:
    """Returns faces as they would be stored, and whether each holds finite numbers only.

    Kept faces and fresh ones are rounded alike, so that they score alike.

    Args:
      method: a generator.
      seed: of the run.
      params, frozen: of the method.
      batch: the examples.
      draw: the number of the sample.
    """
    key = jax.random.fold_in(jax.random.key(seed + 2), draw)
    return in_bytes(method.generate(params, frozen, batch, key))


def in_bytes(
    faces: Float[Array, "b h w 3"],
) -> tuple[UInt8[Array, "b h w 3"], Bool[Array, "b"]]:
    """Returns faces in [-1, 1] as they are stored, and whether each holds finite numbers only."""
    return jnp.round((faces + 1.0) * 127.5).astype(jnp.uint8), jnp.isfinite(faces).all((1, 2, 3))


def check_finite(finite: Bool[np.ndarray, "n"], names: Sequence[str]) -> None:
    """Raises InputError, with the example's name, if a face holds values that aren't finite."""
    for is_finite, name in zip(finite, names, strict=False):
        if not is_finite:
            raise InputError(
                f"the face generated for {name} holds values that are not numbers: the checkpoint "
                "has diverged. Lower train.learning_rate and train again."
            )


@jax.jit
def digests(tree: Any) -> list[UInt32[Array, "2"]]:
    """Returns two 32-bit sums over the bits of each leaf, the same on any mesh."""

    def digest(leaf: Array) -> UInt32[Array, "2"]:
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).reshape(-1)
        place = jax.lax.iota(jnp.uint32, bits.size)
        sums = [
            (bits * (place * jnp.uint32(factor) | 1)).sum(dtype=jnp.uint32)
            for factor in (2654435761, 2246822519)
        ]
        return jnp.stack(sums)

    # A list, since XLA takes minutes to compile a program that adds them up.
    return [digest(leaf) for leaf in jax.tree.leaves(tree)]


class Generator:
    """Generates faces with the newest whole checkpoint, or with published weights as they are.

    Attributes:
      method, mesh, params, frozen: what it generates with.
      step: of the checkpoint; 0 for published weights.
      batch_size: of the job, rounded up to divide over the devices.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: pathlib.Path | None, job: str):
        """Restores the newest whole checkpoint of `workdir`; without one, loads published weights.

        The batch size is that of the section of `config` with the job's name. Raises InputError if
        there is no checkpoint, a network is not published, or a batch holds nothing.
        """
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        self.batch_size = sharding.padded_batch(config[job].batch_size, mesh, f"{job}.batch_size")
        self.step = 0
        if workdir is None:
            self.method, self.mesh, self.params, self.frozen = published(config)
        else:
            self.method, self.mesh, state, self.frozen, self.step = restore(config, workdir)
            self.params = self.method.generation_params(state)
        self._config = config

        def generate(params: Any, frozen: Any, batch: Batch, draw: Array):
            return quantised(self.method, config.seed, params, frozen, batch, draw)

        self._generate: Callable[..., Any] = jax.jit(
            generate, out_shardings=sharding.replicated(self.mesh)
        )

    def _faces(
        self, examples: Sequence[dict[str, Any]], draw: int, title: str
    ) -> Iterator[tuple[int, UInt8[np.ndarray, "n h w 3"]]]:
        """Yields `(start, faces)` of each batch, without padding."""
        number = jax.device_put(np.uint32(draw), sharding.replicated(self.mesh))
        for places, batch in data.device_batches(examples, self.batch_size, self.mesh, title):
            if not places.start:
                self._generate = cluster.compiled(
                    self._generate, self.params, self.frozen, batch, number
                )
            faces, finite = jax.device_get(self._generate(self.params, self.frozen, batch, number))
            check_finite(finite, [examples[i]["id"] for i in places])
            yield places.start, faces[: len(places)]

    def draw(
        self, examples: Sequence[dict[str, Any]], draw: int = 0, title: str = "generating"
    ) -> UInt8[np.ndarray, "n h w 3"]:
        """Returns a face of each example; `draw` is the number of the sample."""
        return np.concatenate([faces for _, faces in self._faces(examples, draw, title)])

    def conditions(self, examples: Sequence[dict[str, Any]]) -> UInt8[np.ndarray, "n h w 3"] | None:
        """Returns what the ControlNet sees of each `xray`, rounded to 8 bits.

        Red and blue are the X-ray, green is where an outline network finds the head. Returns None
        without such a network, since the ControlNet sees the X-ray then.
        """
        if "outline" not in self.method.networks:
            return None
        method: Any = self.method

        def see(params: Any, batch: Batch) -> Array:
            picture = method.condition(params, batch["xray"])
            return jnp.round(255.0 * picture.astype(jnp.float32)).astype(jnp.uint8)

        jitted = jax.jit(see, out_shardings=sharding.replicated(self.mesh))
        pictures = data.collected(
            lambda batch: {"condition": jitted(self.frozen, batch)},
            examples,
            self.batch_size,
            self.mesh,
            "outlines",
        )
        return pictures["condition"]

    def folder(self, workdir: pathlib.Path, records: str) -> pathlib.Path:
        """Returns the folder for faces of this checkpoint and these settings.

        Its name is the hash of everything that the faces depend on, which `made_by.json` in it
        lists. `records` is the fingerprint of the data.
        """
        c = self._config
        sums = np.array(jax.device_get(digests((self.params, self.frozen))))
        made_by = {
            "parameters": zlib.crc32(sums.tobytes()),
            "method": c.method.name,
            "sampling": c.sampling.to_dict(),
            "prompt": c.prompt.to_dict(),
            "seed": c.seed,
            "radiograph": [c.evaluate.radiograph, VARIED] if c.evaluate.radiograph else 0.0,
            "compute_dtype": c.compute_dtype,
            "records": records,
            "cranio_jax": cranio_jax.__version__,
        }
        name = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:12]
        folder = workdir / "faces" / f"{self.step}_{name}"
        if cluster.is_first() and not (folder / "made_by.json").exists():
            write_json(folder / "made_by.json", made_by)
        return folder

    def generate_missing(
        self, folder: pathlib.Path, examples: Sequence[dict[str, Any]], draw: int, title: str
    ) -> list[pathlib.Path]:
        """Generates the faces that `folder` lacks, and returns all files `folder`/ID.png.

        They are generated batch by batch; the seconds per face are written beside the folder.
        """
        files = [folder / f"{e['id']}.png" for e in examples]
        # A file that exists is whole: write_png renames it into place. There is a single listing,
        # since requests to a bucket take time. All processes use the first one's.
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        exist = cluster.of_first(np.array([file.name in names for file in files], bool))
        missing = [i for i, exists in enumerate(exist) if not exists]
        if not missing:
            return files

        began = 0.0
        timed = 0
        for start, faces in self._faces([examples[i] for i in missing], draw, title):
            # The first batch compiles, and is not timed.
            if began:
                timed += len(faces)
            else:
                began = time.monotonic()
            for i, face in zip(missing[start:], faces, strict=False):
                if cluster.is_first():
                    write_png(files[i], face)
        if timed and cluster.is_first():
            seconds = (time.monotonic() - began) / timed
            write_json(folder.parent / f"{folder.name}_seconds.json", seconds)
        cluster.wait_for_all(f"faces in {folder.name}")
        return files
