"""Two folders of pictures that do not pair: FID, KID and the Inception score of the sets."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cranio_jax import data
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.evaluation.scorer import Scores
from cranio_jax.files.pictures import find_pictures, name_of, picture_size, read_face
from cranio_jax.metrics.accumulators import InceptionScore
from cranio_jax.metrics.features import Features
from cranio_jax.metrics.sets import INCEPTION, FeatureSet
from cranio_jax.models.inception import tensorflow_resize

FIELDS = ("generated", "reference")
SCALING = (
    "each picture is scaled from its own size, as torch-fidelity does it for the Inception "
    "(bilinear without smoothing, as TensorFlow 1)"
)
NEEDS_PAIRS = "pictures that pair: the same names in both folders"


def why_unpaired(c: ml_collections.ConfigDict) -> str:
    """Returns why two folders are compared as sets; an empty text if all their pictures pair.

    They pair if both folders hold the same names. `c` is `config.evaluate`. Raises InputError if
    one of them is not a folder, or is empty.
    """
    folders = [pathlib.Path(c[field]).expanduser() for field in FIELDS]
    ours, theirs = (
        {name_of(path, folder) for path in find_pictures(folder, f"evaluate.{field}")}
        for folder, field in zip(folders, FIELDS, strict=True)
    )
    if not c.paired:
        return "evaluate.paired=False: the folders are compared as sets"
    if ours == theirs:
        return ""
    return (
        f"{len(ours & theirs)} names are in both folders, of {len(ours)} generated and "
        f"{len(theirs)} real pictures; not all pictures pair, so the folders are compared as sets"
    )


class PictureSet:
    """Examples from a folder: each a `face`, of its own size or scaled to the Inception's."""

    def __init__(self, folder: pathlib.Path, field: str):
        """Raises InputError, naming the setting `field` or the file, if one is not a picture."""
        self._files = find_pictures(folder, f"evaluate.{field}")
        self.sizes = {picture_size(path) for path in self._files}
        self.scaled = False
        if len(self._files) < 2:
            raise InputError(
                f"evaluate.{field}={str(folder)!r} holds one picture. Comparing sets needs at "
                "least two. Add pictures."
            )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = read_face(self._files[index])
        if self.scaled:
            return {"face": tensorflow_resize(picture[None].astype(np.float32))[0]}
        return {"face": picture}


def read_sets(c: ml_collections.ConfigDict, features: Features) -> tuple[PictureSet, PictureSet]:
    """Returns the sets of generated and of real pictures, after all checks of `config.evaluate`.

    Pictures that are not all of one size get scaled for the Inception. Raises InputError if
    nothing can be computed from them.
    """
    ours, theirs = sets = [PictureSet(pathlib.Path(c[f]).expanduser(), f) for f in FIELDS]
    sizes = set.union(*(pictures.sizes for pictures in sets))
    if not features.distributions:
        raise InputError(
            f"evaluate.weights={c.weights!r}: {why_unpaired(c)}, by FID, KID and the Inception "
            "score, but no network for these is given. Name pt_inception-2015-12-05-6726825d.pth, "
            "or give the same names to the pictures of both folders."
        )
    if len(sizes) == 1:
        features.check_size(*min(sizes))
    elif not features.has_inception:
        raise InputError(
            f"evaluate.weights={c.weights!r}: pictures are of {len(sizes)} sizes, from {min(sizes)}"
            f" to {max(sizes)}, which only the Inception network supports. Name"
            " pt_inception-2015-12-05-6726825d.pth, or scale the pictures to one size."
        )
    for pictures in sets:
        pictures.scaled = len(sizes) > 1
    smaller = min(len(ours), len(theirs))
    if not 2 <= c.kernel_subset <= smaller:
        raise InputError(
            f"evaluate.kernel_subset={c.kernel_subset}: the smaller folder has {smaller} "
            f"images. Set 2 to {smaller}."
        )
    if features.has_inception and not 1 <= c.inception_splits <= len(ours):
        raise InputError(
            f"evaluate.inception_splits={c.inception_splits}: there are {len(ours)} generated"
            f" images. Set 1 to {len(ours)}."
        )
    return ours, theirs


def describe_sets(
    sets: Sequence[PictureSet],
    features: Features,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    splits: int,
) -> list[Scores]:
    """Returns features, their moments and the Inception score of each set.

    `batch_size` pictures are described at a time; `splits` are those of the Inception score.
    """
    scaled = any(pictures.scaled for pictures in sets)
    names = ("inception",) if scaled else tuple(features.distributions)
    logits = ("logits",) if features.has_inception else ()

    def describe(params, batch):
        found = features.describe(params, batch["face"])
        return {name: found[name] for name in (*names, *logits)}

    params = features.load(mesh)
    jitted = jax.jit(describe, out_shardings=sharding.replicated(mesh))

    def described(batch):
        return jitted(params, batch)

    scores = []
    for pictures, field in zip(sets, FIELDS, strict=True):
        found = data.collected(described, pictures, batch_size, mesh, f"pictures, {field}")
        rows = {name: found[name] for name in names}
        of_network = {}
        for name, values in rows.items():
            exact = values.astype(np.float64)
            is_scored = name == INCEPTION and field == FIELDS[0]
            score = inception_score(found["logits"], splits) if is_scored else None
            of_network[name] = FeatureSet(values, exact.mean(0), np.cov(exact, rowvar=False), score)
        scores.append(Scores({}, rows, of_network))
    return scores


def inception_score(logits: np.ndarray, splits: int) -> tuple[float, float]:
    """Returns mean and standard deviation over random splits, of `(n, classes)` logits."""
    count, classes = logits.shape
    split = np.random.default_rng(0).permutation(count) * splits // count
    return (
        InceptionScore.empty(splits, classes)
        .add(jnp.asarray(logits), jnp.asarray(split), jnp.ones(count))
        .compute()
    )
