"""TFDS builder of IIT_Mandi_S2F: public skull X-rays with embeddings of faces instead of faces.

See README.md beside this file.
"""

import dataclasses
import io
import pathlib
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float
from numpy import ndarray as Array

from data_builders.conditions import VIEWS
from data_builders.errors import InputError, UnreadableError
from data_builders.images.prepare import squared_xray
from data_builders.images.radiograph import Radiograph, load_radiograph
from data_builders.lists.table_files import Fit, Line, read_sheet
from data_builders.local import LocalBuilder
from data_builders.shards import Record, shards

SUBJECTS = 51
WIDTH = 128  # of an embedding
VIEW_OF = dict(zip(("sf", "ss"), VIEWS, strict=True))  # by the suffix of a file's name
HELD_OUT = 10  # subjects
MAX_BYTES = 500_000_000  # of the unpacked zip
_NAME = re.compile(r"(\d{3})_(sf|ss)\.(?:png|jpe?g|bmp|tiff?)", re.IGNORECASE)

XrayKey = tuple[str, str]  # the subject's three digits, and 'sf' or 'ss'


@dataclasses.dataclass
class S2FConfig(tfds.core.BuilderConfig):
    """Settings, which determine the configuration's name.

    Attributes:
      folder: holds the authors' zip of X-rays (or its contents) and their CSV of embeddings.
      size: pixels along each side of X-rays.
      seed: of the split.
    """

    name: str = ""
    folder: str = ""
    size: int = 256
    seed: int = 0

    def __post_init__(self):
        if not 16 <= self.size <= 1024:
            raise ValueError(f"size={self.size} is outside 16 to 1024 pixels")
        if not self.name:
            self.name = f"xray_{self.size}"
            if self.seed:
                self.name += f"-seed{self.seed}"


class Builder(LocalBuilder):
    """X-rays of 51 skulls in two views, each with an embedding of its face."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First layout."}

    def _info(self):
        size = self.builder_config.size
        return self.dataset_info_from_configs(
            description=(
                "Public skull X-rays, text painted over, with embeddings of faces; "
                "for retrieval from X-ray to embedding."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "subject": tfds.features.Text(),
                    "xray": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "xray_view": tfds.features.Text(),
                    "xray_masked": np.float32,
                    "embedding": tfds.features.Tensor(shape=(WIDTH,), dtype=np.float32),
                }
            ),
            metadata=tfds.core.MetadataDict(size=size, seed=self.builder_config.seed),
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        config = self.builder_config
        # Read the set.
        if not config.folder:
            raise InputError(
                "data.iit_mandi_s2f.folder is empty; download the set from its authors and name "
                "the folder with its zip and its CSV"
            )
        folder = pathlib.Path(config.folder).expanduser()
        if not folder.is_dir():
            raise InputError(f"data.iit_mandi_s2f.folder: {folder} is not a folder")
        embeddings = read_embeddings(_one(folder, "*.csv"))
        xrays = dict(read_xrays(folder))
        check(embeddings, xrays)
        # Hold out subjects.
        order = np.random.default_rng([config.seed, 51]).permutation(sorted(embeddings))
        held_out = {str(name) for name in order[:HELD_OUT]}
        parts: dict[str, dict[XrayKey, Radiograph]] = {"train": {}, "test": {}}
        for key, xray in xrays.items():
            parts["test" if key[0] in held_out else "train"][key] = xray
        return {
            name: shards(name, self._records(part, embeddings), len(part), config.size)
            for name, part in parts.items()
        }

    def _records(
        self, xrays: dict[XrayKey, Radiograph], embeddings: dict[str, Array]
    ) -> Iterator[Record]:
        size = self.builder_config.size
        for (number, suffix), xray in sorted(xrays.items(), key=lambda item: item[0]):
            prepared = squared_xray(xray, size)
            view = VIEW_OF[suffix]
            key = f"s{number}-{view}"
            record = {
                "id": key,
                "subject": f"s{number}",
                "xray": io.BytesIO(cv2.imencode(".png", prepared.square)[1].tobytes()),
                "xray_view": view,
                "xray_masked": np.float32(prepared.masked),
                "embedding": embeddings[number],
            }
            yield key, record


def read_embeddings(path: pathlib.Path) -> dict[str, Float[Array, "128"]]:
    """Returns embeddings by the subject's three digits.

    A row is a name that holds the number (`007`, `7`, `007_ff.jpg`), then 128 numbers. A first row
    without a number in its name is a header. Raises InputError.
    """
    sheet = read_sheet(path, lambda names: Fit(len(names) > WIDTH, len(names)))
    embeddings: dict[str, np.ndarray] = {}
    for line, row, problem in [Line(1, sheet.names), *sheet.lines]:
        if problem:
            raise InputError(f"{path.name}, row {line}: {problem}")
        # Read the subject's number and the values.
        values = [value for value in row[1:] if value.strip()]
        number = re.match(r"\D{0,12}?(\d{1,3})(?!\d)", row[0].strip())
        if sheet.separator in (";", "\t"):
            values = [value.replace(",", ".") for value in values]
        try:
            numbers = np.array(values, np.float32)
        except ValueError:
            numbers = np.array([np.nan])
        # Check them.
        if line == 1 and not number:
            continue
        if not number or len(numbers) != WIDTH or not np.isfinite(numbers).all():
            raise InputError(
                f"{path.name}, row {line}: expected a subject's number and {WIDTH} numbers"
            )
        key = f"{int(number[1]):03d}"
        if key in embeddings:
            raise InputError(f"{path.name}, row {line}: subject {key} is listed twice")
        embeddings[key] = numbers
    return embeddings


def read_xrays(folder: pathlib.Path) -> Iterator[tuple[XrayKey, Radiograph]]:
    """Yields every X-ray of the folder's zip, or else of the folder. Raises InputError."""
    archives = sorted(folder.glob("*.zip"))
    if len(archives) > 1:
        raise InputError(f"{folder} holds {len(archives)} zip files; keep the one of the X-rays")
    with tempfile.TemporaryDirectory() as scratch:
        if archives:
            _unpack(archives[0], pathlib.Path(scratch))
            folder = pathlib.Path(scratch)
        for path in sorted(folder.rglob("*")):
            if match := _NAME.fullmatch(path.name):
                try:
                    xray = load_radiograph(path)
                    if _bone_dark(xray.picture):
                        xray = load_radiograph(path, inverted=True)
                except UnreadableError as error:
                    raise InputError(f"{path.name}: {error}") from None
                yield (match[1], match[2].lower()), xray


def _unpack(path: pathlib.Path, scratch: pathlib.Path) -> None:
    """Unpacks the X-rays of a zip without their folders. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [
                member
                for member in archive.infolist()
                if _NAME.fullmatch(pathlib.PurePosixPath(member.filename).name)
            ]
            size = sum(member.file_size for member in members)
            if size > MAX_BYTES or len(members) > 10 * SUBJECTS:
                raise InputError(f"{path.name} is too large for {SUBJECTS} people's X-rays")
            for member in members:
                name = pathlib.PurePosixPath(member.filename).name
                (scratch / name).write_bytes(archive.read(member))
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        RuntimeError,
        NotImplementedError,
        EOFError,
    ) as error:
        raise InputError(f"{path.name}: not a readable zip file ({type(error).__name__})") from None


def _bone_dark(picture: Float[Array, "h w"]) -> bool:
    """Returns True if a picture is inverted, as some of the set are: its rim is brighter."""
    edge = max(2, min(picture.shape) // 30)
    sides = picture[:edge], picture[-edge:], picture[:, :edge], picture[:, -edge:]
    rim = np.median(np.concatenate([side.ravel() for side in sides]))
    inner = tuple(slice(n // 4, n - n // 4) for n in picture.shape)
    return bool(rim > max(0.5, float(np.median(picture[inner]))))


def check(embeddings: dict[str, Array], xrays: dict[XrayKey, Radiograph]) -> None:
    """Raises InputError where the set is incomplete: it has 51 subjects with two X-rays each."""
    numbers = {number for number, _ in xrays}
    if not numbers:
        raise InputError("no X-ray named NNN_sf or NNN_ss is in the folder or its zip")
    missing = [
        f"{number}_{view}"
        for number in sorted(numbers | set(embeddings))
        for view in VIEW_OF
        if (number, view) not in xrays
    ]
    if missing:
        raise InputError(
            f"X-rays are missing: {', '.join(missing[:10])}; perhaps some are mislabelled"
        )
    if numbers != set(embeddings):
        unmatched = sorted(numbers ^ set(embeddings))[:10]
        raise InputError(
            f"X-rays without an embedding, or embeddings without X-rays: {', '.join(unmatched)}"
        )
    if len(numbers) != SUBJECTS:
        raise InputError(f"only {len(numbers)} of {SUBJECTS} subjects are there; download it again")


def _one(folder: pathlib.Path, pattern: str) -> pathlib.Path:
    """Returns the one file of a pattern `*.ENDING` in a folder. Raises InputError."""
    paths = sorted(folder.glob(pattern))
    if len(paths) != 1:
        raise InputError(
            f"{folder} holds {len(paths) or 'no'} {pattern[2:].upper()} files; "
            "one, of embeddings, is expected"
        )
    return paths[0]


def make_config(**settings) -> S2FConfig:
    """Returns the configuration with these settings; without faces, `pairing` has no effect."""
    settings.pop("pairing", None)
    return S2FConfig(**settings)
