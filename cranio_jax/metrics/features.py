"""What the user's files of weights let us measure: which networks they hold, and what these say of pictures and pairs."""

import functools
import glob
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from cranio_jax import models, pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.metrics.pairs import Pairs
from cranio_jax.metrics.registry import Metric, PairMetric, SetMetric, of_kind
from cranio_jax.models import alignment
from cranio_jax.models.functional import Network

_UNPUBLISHED = " (unpublished heads)"


def in_full_precision(method):
    """Has the products of arrays that are traced inside computed in float32, where a GPU's own choice is TF32 and a TPU's bfloat16."""

    @functools.wraps(method)
    def called(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return method(*args, **kwargs)

    return called


def find_weights(pattern: str) -> list[pathlib.Path]:
    """Files of a comma-separated list of paths and glob patterns. Raises InputError where a part of it finds none."""
    files = []
    for part in filter(None, (p.strip() for p in pattern.split(","))):
        found = sorted(glob.glob(str(pathlib.Path(part).expanduser())))
        if not found:
            raise InputError(f"evaluate.weights: {part}: no such file")
        files += [pathlib.Path(name) for name in found if pathlib.Path(name).is_file()]
    return files


class Features:
    """The feature networks of an evaluation, in float32; none where no weights are given.

    Attributes:
      trunks: of LPIPS, by name; their last features give Frechet and kernel distances.
      heads: the trunks whose heads are known too, for LPIPS itself.
      embedders: by the name of their metric.
      has_inception: whether FID, KID and the Inception score can be had.
      sha256: of each file, by what it holds.
    """

    def __init__(self, weights: str, crop: tuple[float, float, float, float]):
        """`weights`: files, comma-separated, with wildcards; `crop`: what published embedders see of a picture.

        Raises InputError, naming the file, where one is missing, damaged, of nothing known, or a second of its kind.
        """
        alignment.check_crop(crop, "evaluate.crop")
        self._crop = crop
        self.embedders: dict[str, pretrained.Embedder] = {}
        self.sha256: dict[str, str] = {}
        # Which files each network is read from, and as what.
        self._files: dict[str, list[tuple[pathlib.Path, pretrained.Kind]]] = {}
        self._networks: dict[str, Network] = {}
        for file in find_weights(weights):
            digest = pretrained.check_hash(file)
            for kind in pretrained.kinds_of(file):
                self._add(file, kind, digest)
        # A file with the heads of all trunks may hold some that no trunk is there for.
        for trunk in set(self._kinds("heads")) - set(self._kinds("trunk")):
            del self.sha256[self._kinds("heads")[trunk].title], self._files[trunk]
        self.has_inception = bool(self._kinds("inception"))
        self.trunks = tuple(sorted(self._kinds("trunk")))
        self.heads = tuple(trunk for trunk in self.trunks if trunk in self._kinds("heads"))
        if self.has_inception:
            self._networks["inception"] = Network(lambda rngs: models.FIDInception(rngs=rngs))
        for trunk in self.trunks:
            self._networks[trunk] = Network(
                lambda rngs, trunk=trunk: models.LPIPS(trunk, rngs=rngs)
            )

    def _add(self, file: pathlib.Path, kind: pretrained.Kind, digest: str) -> None:
        title, network = kind.title, kind.network
        if kind.part == "embedder":
            embedder = pretrained.open_embedder(file)
            title = network = embedder.name
            self.embedders[network] = embedder
            self._networks[network] = embedder.network()
        held = [k for _, k in self._files.get(network, []) if k.part == kind.part]
        if held or title in self.sha256:
            raise InputError(f"evaluate.weights: {file.name} is a second {title}; name one")
        self.sha256[title] = digest
        self._files.setdefault(network, []).append((file, kind))

    def _kinds(self, part: str) -> dict[str, pretrained.Kind]:
        """The networks of which the files hold this part."""
        kinds = [kind for held in self._files.values() for _, kind in held]
        return {kind.network: kind for kind in kinds if kind.part == part}

    def lpips_part(self, trunk: str) -> str:
        """Returns what LPIPS of a trunk is called, which says so if the heads are not the published ones."""
        return trunk + ("" if self._kinds("heads")[trunk].published else _UNPUBLISHED)

    @staticmethod
    def trunk_of(part: str) -> str:
        """Returns the trunk that `lpips_part` names."""
        return part.removesuffix(_UNPUBLISHED)

    def bind(self, name: str, params: Any) -> Any:
        """Returns a network with its parameters, from `load`."""
        return self._networks[name].bind(params[name])

    def load(self, mesh: jax.sharding.Mesh) -> dict[str, dict[str, Array]]:
        """Parameters by network, on every device."""
        everywhere, loaded = sharding.replicated(mesh), {}
        for name, network in self._networks.items():
            loaded[name] = {}
            for file, kind in self._files[name]:
                with pretrained.open_part(file, kind.part, kind.network) as own:
                    shapes = network.shapes()
                    if kind.part in ("trunk", "heads"):
                        shapes, own = pretrained.pick(shapes, own)
                    places = dict.fromkeys(shapes, everywhere)
                    loaded[name] |= pretrained.load(shapes, own, places, file.name)
            for path, shape in network.shapes().items():
                if path not in loaded[name]:  # a trunk without heads, which then are not called
                    loaded[name][path] = jax.jit(
                        lambda shape=shape: jnp.zeros(shape), out_shardings=everywhere
                    )()
        return loaded

    @property
    def distributions(self) -> dict[str, int]:
        """The networks whose features make Frechet and kernel distances, and how many features these are."""
        return ({"inception": 2048} if self.has_inception else {}) | {
            trunk: models.TRUNKS[trunk][1][-1] for trunk in self.trunks
        }

    @in_full_precision
    def embed(self, params: Any, pictures: Num[Array, "b h w 3"]) -> dict[str, Float[Array, "b d"]]:
        """Each embedder's vectors."""
        x, found = pictures.astype(jnp.float32) / 127.5 - 1.0, {}
        for name, embedder in self.embedders.items():
            network = self._networks[name].bind(params[name])
            found[name] = network(
                alignment.crop_face(x, embedder.crop or self._crop, network.height, network.width)
            )
        return found

    @in_full_precision
    def describe(self, params: Any, pictures: Num[Array, "b h w 3"]) -> dict[str, Any]:
        """What the networks make of pictures: `(batch, width)` features and vectors by network, `logits`, and `taps` by trunk.

        Pictures are in [0, 255]. Raises InputError if they are too small for one of the networks.
        """
        found = self.embed(params, pictures) | {"taps": {}}
        if self.has_inception:
            found["inception"], found["logits"] = self._networks["inception"].bind(
                params["inception"]
            )(pictures)
        for trunk in self.trunks:
            network = self._networks[trunk].bind(params[trunk])
            taps = network.describe(pictures.astype(jnp.float32) / 127.5 - 1.0)
            found[trunk] = network.summary(taps)
            if trunk in self.heads:
                found["taps"][trunk] = taps
        return found

    def pair_metrics(
        self, height: int, width: int, masked: bool
    ) -> dict[str, tuple[PairMetric, str]]:
        """Returns the metrics that `compare` gives for pictures of that size.

        Each key in results has its metric and what it is computed of. `masked` says whether the
        true head is known.
        """
        side = min(height, width)
        return {
            metric.key(part): (metric, part)
            for metric in of_kind(PairMetric)
            if side >= metric.least_side
            for part in metric.parts(self, masked)
        }

    def missing(self, *kinds: type[Metric]) -> dict[str, str]:
        """Returns the files that metrics of these kinds would need, by the metrics' common name."""
        needed: dict[str, str] = {}
        present: set[str] = set()
        for metric in (m for kind in kinds for m in of_kind(kind)):
            if metric.weights:
                needed[metric.weights.metrics] = metric.weights.files
                if self._has(metric):
                    present.add(metric.weights.metrics)
        return {name: files for name, files in needed.items() if name not in present}

    def _has(self, metric: Metric) -> bool:
        if isinstance(metric, PairMetric):
            return bool(list(metric.parts(self, False)))
        if isinstance(metric, SetMetric):
            return any(metric.key_of(network) for network in self.distributions)
        return False

    def check_size(self, height: int, width: int) -> None:
        """Raises InputError if pictures of that many pixels are too small for one of the networks."""
        for trunk in self.trunks:
            models.check_side(trunk, height, width)
        for embedder in self.embedders.values():
            alignment.crop_box(embedder.crop or self._crop, height, width)

    @staticmethod
    def too_small(height: int, width: int) -> dict[str, str]:
        """Returns what the main metrics that can't be had at that size would need, by their names."""
        return {
            metric.name: (
                f"pictures of at least {metric.least_side} x {metric.least_side} pixels, "
                f"not {height} x {width}"
            )
            for metric in of_kind(PairMetric)
            if metric.main and min(height, width) < metric.least_side
        }

    @in_full_precision
    def compare(
        self, params: Any, a: Any, b: Any, faces: Any, truth: Any, where: Any = None
    ) -> dict[str, Float[Array, "b"]]:
        """Each pair's metrics.

        Args:
          params: from `load`.
          a, b: what `describe` gave of `faces` and `truth`.
          faces, truth: `(batch, height, width, 3)` uint8.
          where: `(batch, height, width, 1)`, not 0 at the true head, if that is known.
        """
        pictures = faces.astype(jnp.float32) / 255.0, truth.astype(jnp.float32) / 255.0
        head = None if where is None else (where > 0).astype(jnp.float32)
        pairs = Pairs(self, params, *pictures, head, of_faces=a, of_truth=b)
        metrics = self.pair_metrics(*faces.shape[1:3], where is not None)
        return {key: metric.compute(pairs, part) for key, (metric, part) in metrics.items()}
