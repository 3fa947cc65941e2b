"""TFDS builder of the procedural cohort: X-rays and faces of people who never lived."""

import concurrent.futures
import dataclasses
import functools
import io
import os

import jax
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_builders.cranio_phantom import cohort, head
from data_builders.cranio_phantom.skull import LANDMARKS, from_template
from data_builders.local import LocalBuilder
from data_builders.rendering.volume import VIEWS, project_point, voxel_for
from data_builders.shards import shards

SIZES = (64, 128, 256)
PAIRINGS = ("matched", "all_views")

# Places of the template on the skin, for alignment of faces: the five of ArcFace, the chin and the ears.
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


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
    """Settings of a cohort. The name is made from them, so different settings never share a folder.

    Attributes:
      size: pixels along each side of X-rays and faces.
      pairing: 'matched' (X-ray and face of the same view) or 'all_views' (each X-ray with each face).
      subjects: how many people.
      seed: which people.
      skin_spread: standard deviation of the skin's luminance between people, relative.
      hair_spread: scale of differences in hair and eyes.
      depth_spread: scale of the personal tissue depths, 1 for the published standard deviations.
    """

    name: str = ""
    size: int = 64
    pairing: str = "matched"
    subjects: int = 120
    seed: int = 0
    skin_spread: float = 0.06
    hair_spread: float = 1.0
    depth_spread: float = 1.0

    def __post_init__(self):
        if self.pairing not in PAIRINGS:
            raise ValueError(f"pairing={self.pairing!r} is not one of {', '.join(PAIRINGS)}")
        if self.size < 16:
            raise ValueError(f"size={self.size} is below 16 pixels")
        cohort.split(self.seed, self.subjects)
        if not self.name:
            short = {
                "subjects": "n",
                "seed": "seed",
                "skin_spread": "skin",
                "hair_spread": "hair",
                "depth_spread": "depth",
            }
            other = [
                f"{tag}{getattr(self, f.name):g}"
                for f in dataclasses.fields(self)
                if (tag := short.get(f.name)) and getattr(self, f.name) != f.default
            ]
            self.name = "-".join([f"{self.pairing}_{self.size}", *other])

    @property
    def spread(self) -> cohort.Spread:
        return cohort.Spread(self.skin_spread, self.hair_spread, self.depth_spread)


def _png(picture: np.ndarray) -> bytes:
    data = io.BytesIO()
    pixels = np.uint8(np.round(np.asarray(picture) * 255.0))
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(data, "PNG")
    return data.getvalue()


class Builder(LocalBuilder):
    """Paired skull X-rays and faces of a procedural cohort. See README.md beside this file."""

    VERSION = tfds.core.Version(
        "1.4.0"
    )  # to be raised whenever the same settings give other records
    RELEASE_NOTES = {
        "1.0.0": "First cohort.",
        "1.1.0": "Skulls differ more; jaws and necks taper.",
        "1.2.0": "Rounder jaws, no specks in nostrils.",
        "1.3.0": "A mask of the head in the portrait.",
        "1.4.0": "In the order of the subjects; more than a gigabyte can be written.",
    }
    BUILDER_CONFIGS = [
        PhantomConfig(size=size, pairing=pairing) for size in SIZES for pairing in PAIRINGS
    ]

    def _info(self):
        size = self.builder_config.size
        landmarks = lambda names: tfds.features.Tensor(shape=(len(names), 2), dtype=np.float32)
        return self.dataset_info_from_configs(
            description="A procedural cohort of head volumes: X-rays by Beer-Lambert projection, faces by shading.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "subject": tfds.features.Text(),
                    "xray": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "face": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "head_mask": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                    "xray_view": tfds.features.Text(),
                    "face_view": tfds.features.Text(),
                    "sex": tfds.features.Text(),
                    "age": np.float32,
                    "bmi_change": np.float32,
                    "xray_landmarks": landmarks(LANDMARKS),
                    "face_landmarks": landmarks(FACE_LANDMARKS),
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
        config, views = (
            self.builder_config,
            len(VIEWS) ** (1 if self.builder_config.pairing == "matched" else 2),
        )
        pairs = views * len(cohort.AGES) * len(cohort.BMI_CHANGES)
        return {
            name: shards(name, self._records(members), pairs * len(members), config.size)
            for name, members in cohort.split(config.seed, config.subjects).items()
        }

    def _records(self, members):
        make = functools.partial(subject_records, self.builder_config)
        yield from make(members[0])  # alone, so that every program is compiled once
        # XLA leaves the interpreter free while it computes, so threads keep all cores busy.
        with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for records in pool.map(make, members[1:]):
                yield from records


_SETTINGS = ("size", "pairing", "subjects", "seed", "skin_spread", "hair_spread", "depth_spread")


@jax.numpy_rank_promotion("allow")  # colours meet fields of places on purpose
def subject_records(config: PhantomConfig, index: int):
    """All pairs of one subject: `[(id, record)]`."""
    records = []
    subject = cohort.draw(config.seed, index)
    name = f"p{config.seed:02d}{index:05d}"
    frame = head.frame(config.size)
    skull, tissue, _ = cohort.appearance(
        subject, cohort.REFERENCE_AGE, cohort.REFERENCE_BMI_CHANGE, config.spread
    )
    xrays = [_png(x) for x in head.radiographs(skull, tissue, config.size, voxel_for(config.size))]
    places = {
        kind: np.stack(
            from_template(tuple(np.array(list(names.values()), np.float32).T), skull), -1
        )
        for kind, names in (("xray", LANDMARKS), ("face", FACE_LANDMARKS))
    }
    project = lambda kind, view: np.asarray(project_point(frame, view, places[kind]), np.float32)
    for age in cohort.AGES:
        for change in cohort.BMI_CHANGES:
            faces, heads = head.portraits(
                *cohort.appearance(subject, age, change, config.spread), config.size
            )
            faces, heads = [_png(face) for face in faces], [_png(mask) for mask in heads]
            for i, xray_view in enumerate(VIEWS):
                for j, face_view in enumerate(VIEWS):
                    if config.pairing == "matched" and i != j:
                        continue
                    key = f"{name}-{xray_view}-{face_view}-{age}-{change:+d}"
                    records.append(
                        (
                            key,
                            {
                                "id": key,
                                "subject": name,
                                "xray": io.BytesIO(xrays[i]),
                                "face": io.BytesIO(faces[j]),
                                "head_mask": io.BytesIO(heads[j]),
                                "xray_view": xray_view,
                                "face_view": face_view,
                                "sex": subject.sex,
                                "age": np.float32(age),
                                "bmi_change": np.float32(change),
                                "xray_landmarks": project("xray", xray_view),
                                "face_landmarks": project("face", face_view),
                            },
                        )
                    )
    return records


def make_config(**settings) -> PhantomConfig:
    """The configuration with these settings; the builder's own where it has one of that name, as TFDS demands."""
    config = PhantomConfig(**settings)
    return Builder.builder_configs.get(config.name, config)
