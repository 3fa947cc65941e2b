"""Feature networks: recognising the user's files, and describing pictures and pairs."""

import functools
import glob
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from cranio_jax import assets, models, pretrained
from cranio_jax.distributed import sharding
from cranio_jax.errors import InputError
from cranio_jax.metrics.pairs import Pairs
from cranio_jax.metrics.registry import Metric, PairMetric, SetMetric, of_kind
from cranio_jax.models import alignment
from cranio_jax.models.functional import Network, shared_network

_UNPUBLISHED = " (unpublished heads)"


def in_full_precision(method):
    """Returns a method whose traced matrix products are computed in float32.

    By default a GPU would use TF32 and a TPU bfloat16.
    """

    @functools.wraps(method)
    def called(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return method(*args, **kwargs)

    return called


def find_weights(pattern: str) -> list[pathlib.Path]:
    """Returns the files of a comma-separated list of paths and glob patterns.

    Raises InputError if a part matches nothing.
    """
    files = []
    for part in filter(None, (p.strip() for p in pattern.split(","))):
        names = sorted(glob.glob(str(assets.located(part))))
        if not names:
            raise InputError(f"evaluate.weights: {part}: no such file")
        files += [path for path in map(pathlib.Path, names) if path.is_file()]
    return files


class Features:
    """The feature networks of an evaluation, in float32; none without weights.

    Attributes:
      trunks: names of LPIPS's trunks; their last features give Fréchet and kernel distances.
      heads: the trunks that have heads too, for LPIPS itself.
      embedders: by the key of their metric.
      has_inception: True if FID, KID and the Inception score can be computed.
      sha256: of each file, by what it holds.
    """

    def __init__(self, weights: str, crop: tuple[float, float, float, float]):
        """Recognises the files; nothing is loaded.

        Args:
          weights: files, with commas and wildcards.
          crop: (top, left, height, width) that published embedders see, as fractions of the
            picture.

        Raises:
          InputError: a file is missing, damaged, unknown, or the second of its kind.
        """
        alignment.check_crop(crop, "evaluate.crop")
        self._crop = crop
        self.embedders: dict[str, pretrained.Embedder] = {}
        self.sha256: dict[str, str] = {}
        # The files that each network is read from, and what they hold.
        self._files: dict[str, list[tuple[pathlib.Path, pretrained.Kind]]] = {}
        self._networks: dict[str, Network] = {}
        for file in find_weights(weights):
            digest = pretrained.check_hash(file)
            for kind in pretrained.kinds_of(file):
                self._add(file, kind, digest)
        # A file with the heads of all trunks may hold heads of a trunk that is missing.
        for trunk in set(self._kinds("heads")) - set(self._kinds("trunk")):
            del self.sha256[self._kinds("heads")[trunk].title], self._files[trunk]
        self.has_inception = bool(self._kinds("inception"))
        self.trunks = tuple(sorted(self._kinds("trunk")))
        self.heads = tuple(trunk for trunk in self.trunks if trunk in self._kinds("heads"))
        if self.has_inception:
            self._networks["inception"] = shared_network(models.FIDInception)
        for trunk in self.trunks:
            self._networks[trunk] = shared_network(functools.partial(models.LPIPS, trunk))

    def _add(self, file: pathlib.Path, kind: pretrained.Kind, digest: str) -> None:
        title, network = kind.title, kind.network
        if kind.part == "embedder":
            embedder = pretrained.open_embedder(file)
            title = network = embedder.name
            self.embedders[network] = embedder
            self._networks[network] = embedder.network()
        held = [k for _, k in self._files.get(network, []) if k.part == kind.part]
        if held or title in self.sha256:
            raise InputError(f"evaluate.weights: {file.name} is a second file of {title}; name one")
        self.sha256[title] = digest
        self._files.setdefault(network, []).append((file, kind))

    def _kinds(self, part: str) -> dict[str, pretrained.Kind]:
        """Returns the kinds of files that hold this part, by network."""
        kinds = [kind for held in self._files.values() for _, kind in held]
        return {kind.network: kind for kind in kinds if kind.part == part}

    def lpips_part(self, trunk: str) -> str:
        """Returns the name of LPIPS with a trunk, which marks heads that are not published ones."""
        return trunk + ("" if self._kinds("heads")[trunk].published else _UNPUBLISHED)

    @staticmethod
    def trunk_of(part: str) -> str:
        """Returns the trunk that `lpips_part` names."""
        return part.removesuffix(_UNPUBLISHED)

    def bind(self, name: str, params: Any) -> Any:
        """Returns a network with its parameters, from `load`."""
        return self._networks[name].bind(params[name])

    def load(self, mesh: jax.sharding.Mesh) -> dict[str, dict[str, Array]]:
        """Returns parameters by network, on every device."""
        everywhere = sharding.replicated(mesh)
        loaded: dict[str, dict[str, Array]] = {}
        for name, network in self._networks.items():
            loaded[name] = {}
            for file, kind in self._files[name]:
                with pretrained.open_part(file, kind.part, kind.network) as own:
                    shapes = network.shapes()
                    if kind.part in ("trunk", "heads"):
                        shapes, own = pretrained.pick(shapes, own)
                    places = dict.fromkeys(shapes, everywhere)
                    loaded[name] |= pretrained.load(shapes, own, places, file.name)
            # A trunk may lack heads, which then are not called.
            for path, shape in network.shapes().items():
                if path not in loaded[name]:
                    zeros = functools.partial(jnp.zeros, shape)
                    loaded[name][path] = jax.jit(zeros, out_shardings=everywhere)()
        return loaded

    @property
    def distributions(self) -> dict[str, int]:
        """The width of the features for Fréchet and kernel distances, by network."""
        widths = {trunk: models.TRUNKS[trunk][1][-1] for trunk in self.trunks}
        return {"inception": 2048} | widths if self.has_inception else widths

    @in_full_precision
    def embed(self, params: Any, pictures: Num[Array, "b h w 3"]) -> dict[str, Float[Array, "b _"]]:
        """Returns each embedder's vectors of pictures in [0, 255]."""
        x = pictures.astype(jnp.float32) / 127.5 - 1.0
        vectors = {}
        for name, embedder in self.embedders.items():
            network = self.bind(name, params)
            crop = embedder.crop or self._crop
            vectors[name] = network(alignment.crop_face(x, crop, network.height, network.width))
        return vectors

    @in_full_precision
    def describe(self, params: Any, pictures: Num[Array, "b h w 3"]) -> dict[str, Any]:
        """Returns the networks' outputs for pictures in [0, 255].

        These are `(batch, width)` features and vectors by network, `logits` of the Inception, and
        `taps` by trunk, for LPIPS. Raises InputError if the pictures are too small for a network.
        """
        outputs: dict[str, Any] = self.embed(params, pictures) | {"taps": {}}
        if self.has_inception:
            inception = self.bind("inception", params)
            outputs["inception"], outputs["logits"] = inception(pictures)
        for trunk in self.trunks:
            network = self.bind(trunk, params)
            taps = network.describe(pictures.astype(jnp.float32) / 127.5 - 1.0)
            outputs[trunk] = network.summary(taps)
            if trunk in self.heads:
                outputs["taps"][trunk] = taps
        return outputs

    def pair_metrics(
        self, height: int, width: int, masked: bool
    ) -> dict[str, tuple[PairMetric, str]]:
        """Returns the metrics that `compare` gives for pictures of that size.

        Each key in results has its metric and what it is computed from. `masked` says whether the
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
        """Raises InputError if pictures of that size are too small for one of the networks."""
        for trunk in self.trunks:
            models.check_side(trunk, height, width)
        for embedder in self.embedders.values():
            alignment.crop_box(embedder.crop or self._crop, height, width)

    @staticmethod
    def too_small(height: int, width: int) -> dict[str, str]:
        """Returns what main metrics need that can't be computed at that size, by name."""
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
        """Returns each pair's metrics, by their keys in results.

        Args:
          params: from `load`.
          a, b: what `describe` gives for `faces` and `truth`.
          faces, truth: `(batch, height, width, 3)` uint8.
          where: `(batch, height, width, 1)`, not 0 at the true head, if that is known.
        """
        pictures = faces.astype(jnp.float32) / 255.0, truth.astype(jnp.float32) / 255.0
        head = None if where is None else (where > 0).astype(jnp.float32)
        pairs = Pairs(self, params, *pictures, head, of_faces=a, of_truth=b)
        height, width = faces.shape[1:3]
        metrics = self.pair_metrics(height, width, where is not None)
        return {key: metric.compute(pairs, part) for key, (metric, part) in metrics.items()}
