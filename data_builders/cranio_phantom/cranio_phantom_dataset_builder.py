"""TFDS builder of the procedural cohort: paired X-rays and faces of synthetic people."""

import concurrent.futures
import dataclasses
import functools
import io
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_builders.conditions import VIEWS
from data_builders.cranio_phantom import cohort, exposures, head
from data_builders.cranio_phantom.skull import LANDMARKS, Skull, from_template
from data_builders.cranio_phantom.tissue import Tissue
from data_builders.local import LocalBuilder
from data_builders.rendering.volume import Frame, Number, project_point, voxel_for
from data_builders.shards import Record, shards

SIZES = (64, 128, 256)
PAIRINGS = ("matched", "all_views")

# Template positions on the skin, for the alignment of faces: ArcFace's five, the chin and the ears.
FACE_LANDMARKS = {
    "right eye": (32, 84, 16.5),
    "left eye": (-32, 84, 16.5),
    "nose tip": (0, 119, -16.5),
    "right mouth corner": (25.5, 89, -46),
    "left mouth corner": (-25.5, 89, -46),
    "chin": (0, 97, -88),
    "right tragus": (68, 4, 0),
    "left tragus": (-68, 4, 0),
}


# Settings in a configuration's name, where they differ from the default.
_TAGS = {
    "subjects": "n",
    "seed": "seed",
    "people": "",
    "appearances": "faces",
    "vary_xrays": "varied",
    "dry": "dry",
    "skin_spread": "skin",
    "hair_spread": "hair",
    "depth_spread": "depth",
}


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
    """Settings of a cohort. They determine its name, so different settings never share a folder.

    Attributes:
      size: pixels along each side of X-rays and faces.
      pairing: 'matched' (X-ray and face of the same view), or 'all_views' (each X-ray with each
        face).
      subjects: number of people.
      seed: of the draw of people.
      people: 'cohort', or 'networks': people whom no cohort has, for networks that others start
        from.
      appearances: at how many of the nine pairs of age and BMI each person is portrayed.
      vary_xrays: whether each face has X-rays of its own, with other rays, energies, processing and
        dental metal each; False: a person has one X-ray of each view, with parallel rays.
      dry: share of X-rays without soft tissue, as of a dry skull.
      skin_spread: standard deviation of the skin's luminance between people, relative.
      hair_spread: scale of differences in hair and eyes.
      depth_spread: scale of the personal tissue depths, 1 for the published standard deviations.
    """

    name: str = ""
    size: int = 64
    pairing: str = "matched"
    subjects: int = 120
    seed: int = 0
    people: str = "cohort"
    appearances: int = 9
    vary_xrays: bool = False
    dry: float = 0.0
    skin_spread: float = 0.06
    hair_spread: float = 1.0
    depth_spread: float = 1.0

    def __post_init__(self):
        if self.pairing not in PAIRINGS:
            raise ValueError(f"pairing={self.pairing!r} is not one of {', '.join(PAIRINGS)}")
        if self.size < 16:
            raise ValueError(f"size={self.size} is below 16 pixels. Use 16 or more.")
        if self.people not in cohort.PEOPLE:
            raise ValueError(f"people={self.people!r} is not one of {', '.join(cohort.PEOPLE)}")
        if not 1 <= self.appearances <= 9:
            raise ValueError(f"appearances={self.appearances} is not in 1..9")
        if not 0 <= self.dry <= 1:
            raise ValueError(f"dry={self.dry} is not in 0..1")
        cohort.split(self.seed, self.subjects)
        if not self.name:
            changed = [
                f"{_TAGS[field.name]}{_text(getattr(self, field.name))}"
                for field in dataclasses.fields(self)
                if field.name in _TAGS and getattr(self, field.name) != field.default
            ]
            self.name = "-".join([f"{self.pairing}_{self.size}", *changed])

    @property
    def spread(self) -> cohort.Spread:
        """How much people differ in traits that the skull does not determine."""
        return cohort.Spread(self.skin_spread, self.hair_spread, self.depth_spread)


def _text(value: str | float | bool) -> str:
    if value is True:
        return ""
    return value if isinstance(value, str) else f"{value:g}"


def _png(picture: np.ndarray | jax.Array) -> bytes:
    data = io.BytesIO()
    pixels = np.round(np.asarray(picture) * 255.0).astype(np.uint8)
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(data, "PNG")
    return data.getvalue()


class Builder(LocalBuilder):
    """Paired skull X-rays and faces of a procedural cohort. See README.md beside this file."""

    # Increase it whenever the same settings give different records.
    VERSION = tfds.core.Version("1.6.0")
    RELEASE_NOTES = {
        "1.0.0": "First cohort.",
        "1.1.0": "Skulls differ more; jaws and necks taper.",
        "1.2.0": "Rounder jaws, no specks in nostrils.",
        "1.3.0": "A mask of the head in the portrait.",
        "1.4.0": "In the order of the subjects; more than a gigabyte can be written.",
        "1.5.0": "Portraits end where the head does; they were up to 2.4 mm too wide.",
        "1.6.0": "In X-rays the soft nose is as grey as the lips. A mask of the head in the X-ray.",
    }
    BUILDER_CONFIGS = [
        PhantomConfig(size=size, pairing=pairing) for size in SIZES for pairing in PAIRINGS
    ]

    def _info(self):
        size = self.builder_config.size
        return self.dataset_info_from_configs(
            description=(
                "A procedural cohort of head volumes: X-rays by Beer-Lambert projection, "
                "faces by shading."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "subject": tfds.features.Text(),
                    "xray": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "face": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "head_mask": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "xray_mask": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "xray_view": tfds.features.Text(),
                    "face_view": tfds.features.Text(),
                    "sex": tfds.features.Text(),
                    "age": np.float32,
                    "bmi_change": np.float32,
                    "xray_landmarks": _points(len(LANDMARKS)),
                    "face_landmarks": _points(len(FACE_LANDMARKS)),
                }
            ),
            metadata=tfds.core.MetadataDict(
                {
                    f.name: getattr(self.builder_config, f.name)
                    for f in dataclasses.fields(PhantomConfig)
                    if f.name in _SETTINGS
                }
                | {
                    "reference_age": cohort.REFERENCE_AGE,
                    "reference_bmi_change": cohort.REFERENCE_BMI_CHANGE,
                    "xray_landmark_names": list(LANDMARKS),
                    "face_landmark_names": list(FACE_LANDMARKS),
                }
            ),
            homepage="https://arxiv.org/abs/2606.09699",
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager
        config = self.builder_config
        pairs = len(_view_pairs(config.pairing)) * config.appearances
        return {
            name: shards(name, self._records(members), pairs * len(members), config.size)
            for name, members in cohort.split(config.seed, config.subjects).items()
        }

    def _records(self, members):
        records_of = functools.partial(subject_records, self.builder_config)
        yield from records_of(members[0])  # alone, so that every program is compiled once
        # XLA releases the interpreter lock while it computes, so threads keep all cores busy.
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for records in pool.map(records_of, members[1:]):
                yield from records


_SETTINGS = ("size", "pairing", *_TAGS)


def _points(count: int) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=(count, 2), dtype=np.float32)


def _view_pairs(pairing: str) -> list[tuple[str, str]]:
    """Returns the views of X-ray and face that are paired."""
    return [(x, f) for x in VIEWS for f in VIEWS if pairing == "all_views" or x == f]


class _Xrays(NamedTuple):
    """X-rays of a subject, and the landmarks in them.

    Attributes:
      png: the X-rays' files, by view.
      masks: files of where the head is in them, soft tissue included, by view.
      landmarks: `(len(LANDMARKS), 2)` pixels, by view.
    """

    png: dict[str, bytes]
    masks: dict[str, bytes]
    landmarks: dict[str, np.ndarray]


@jax.numpy_rank_promotion("allow")  # colours are broadcast over fields of places
def subject_records(config: PhantomConfig, index: int) -> list[Record]:
    """Returns all pairs of one subject, as ids with records."""
    subject = cohort.draw(config.seed, index, config.people)
    letter = "p" if config.people == "cohort" else "n"
    name = f"{letter}{config.seed:02d}{index:05d}"
    conditions = cohort.conditions(config.seed, index, config.appearances)
    # X-rays and landmarks are those of the reference age and BMI.
    skull, tissue, _ = cohort.appearance(
        subject, cohort.REFERENCE_AGE, cohort.REFERENCE_BMI_CHANGE, config.spread
    )
    face_landmarks = _projected(FACE_LANDMARKS, skull, head.frame(config.size))
    records = []
    xrays_of_faces = _xrays(config, skull, tissue, index)
    for xrays, (age, change) in zip(xrays_of_faces, conditions, strict=True):
        look = cohort.appearance(subject, age, change, config.spread)
        portraits = head.portraits(*look, config.size)
        faces = dict(zip(VIEWS, map(_png, portraits.faces), strict=True))
        masks = dict(zip(VIEWS, map(_png, portraits.masks), strict=True))
        for xray_view, face_view in _view_pairs(config.pairing):
            key = f"{name}-{xray_view}-{face_view}-{age}-{change:+d}"
            record = {
                "id": key,
                "subject": name,
                "xray": io.BytesIO(xrays.png[xray_view]),
                "face": io.BytesIO(faces[face_view]),
                "head_mask": io.BytesIO(masks[face_view]),
                "xray_mask": io.BytesIO(xrays.masks[xray_view]),
                "xray_view": xray_view,
                "face_view": face_view,
                "sex": subject.sex,
                "age": np.float32(age),
                "bmi_change": np.float32(change),
                "xray_landmarks": xrays.landmarks[xray_view],
                "face_landmarks": face_landmarks[face_view],
            }
            records.append((key, record))
    return records


def _xrays(config: PhantomConfig, skull: Skull, tissue: Tissue, index: int) -> list[_Xrays]:
    """Returns the X-rays of a subject that go with each face."""
    volume = head.volume(skull, tissue, voxel_for(config.size))
    frame = head.frame(config.size)
    rng = np.random.default_rng([config.seed, index, 32452843])
    made = []
    for _ in range(config.appearances if config.vary_xrays else 1):
        exposure = exposures.draw(rng, skull) if config.vary_xrays else None
        dry = bool(rng.uniform() < config.dry)
        pictures = head.expose(volume, config.size, exposure, dry)
        masks = head.silhouettes(volume, config.size, exposure)[..., None]
        distance = exposure.beam.distance if exposure else None
        landmarks = _projected(LANDMARKS, skull, frame, distance)
        made.append(
            _Xrays(
                png=dict(zip(VIEWS, map(_png, pictures), strict=True)),
                masks=dict(zip(VIEWS, map(_png, masks), strict=True)),
                landmarks=landmarks,
            )
        )
    return made if config.vary_xrays else made * config.appearances


def _projected(
    landmarks: Mapping[str, tuple[float, float, float]],
    skull: Skull,
    frame: Frame,
    distance: Number | None = None,
) -> dict[str, np.ndarray]:
    """Returns the pixels of template places, by view, with the focal point at a distance in mm."""
    template = tuple(np.array(list(landmarks.values()), np.float32).T)
    places = jnp.stack(from_template(template, skull), -1)
    return {
        view: np.asarray(project_point(frame, view, places, distance), np.float32) for view in VIEWS
    }


def make_config(**settings) -> PhantomConfig:
    """Returns the configuration with these settings.

    It is taken from BUILDER_CONFIGS where one has its name, as TFDS requires.
    """
    config = PhantomConfig(**settings)
    return Builder.builder_configs.get(config.name, config)
