"""Who the subjects are: draws of skull, soft tissue and colour, and what age and BMI do to them."""

from typing import NamedTuple

import jax
import numpy as np

from data_builders.cranio_phantom.head import Colour
from data_builders.cranio_phantom.skull import FACTORS, MODES, Skull
from data_builders.cranio_phantom.tissue import DEPTHS, Tissue

AGES = (25, 45, 65)  # years
BMI_CHANGES = (-10, 0, 10)  # percent of the subject's own BMI
REFERENCE_AGE, REFERENCE_BMI_CHANGE = 45, 0  # at which the one X-ray of each view is taken
_CUT = 1.6  # standard deviations; beyond this a skull becomes a caricature


class Subject(NamedTuple):
    """One person at no particular age or weight.

    Attributes:
      sex: 'female' or 'male'.
      skull: the skull, in full.
      depth_noise: `(len(DEPTHS),)` tissue depth beyond what the skull and the mean say, in published
        standard deviations.
      soft: features of the soft parts as standard normals, by name.
      look: colours and hair as standard normals, by name.
    """

    sex: str
    skull: Skull
    depth_noise: np.ndarray
    soft: dict[str, float]
    look: dict[str, float]


class Spread(NamedTuple):
    """How much of a face no skull determines.

    Attributes:
      skin: standard deviation of the skin's luminance, relative.
      hair: scale of the differences in hair and eye colour and hair style, 1 by default.
      depth: scale of the personal tissue depths, 1 for the published standard deviations.
    """

    skin: float = 0.06
    hair: float = 1.0
    depth: float = 1.0


_SOFT = (
    "nose_width",
    "nose_length",
    "nose_tip",
    "lips",
    "mouth_width",
    "eye_opening",
    "ear",
    "ear_flare",
    "brow_height",
    "neck",
)
_LOOK = (
    "skin",
    "skin_hue",
    "hair",
    "hair_hue",
    "iris",
    "hair_volume",
    "hair_length",
    "hairline",
    "grey",
    "flush",
    "stubble",
    "brow",
)


def _normal(rng: np.random.Generator, size=None):
    """Standard normals cut at _CUT, by rejection."""
    values = rng.standard_normal(size)
    while np.any(wild := np.abs(values) > _CUT):
        values = np.where(wild, rng.standard_normal(size), values)
    return values


def sex_of(seed: int, index: int) -> str:
    """Men and women alternate, from a start that the seed decides."""
    return ("female", "male")[(index + seed) % 2]


def _personal_traits(rng: np.random.Generator):
    common = _normal(rng)  # some people have more tissue everywhere
    depth = 0.45 * common + np.sqrt(1 - 0.45**2) * _normal(rng, len(DEPTHS))
    return depth, {k: float(_normal(rng)) for k in _SOFT}, {k: float(_normal(rng)) for k in _LOOK}


def draw(seed: int, index: int) -> Subject:
    """Subject `index` of the cohort `seed`; independent of how many subjects there are."""
    rng = np.random.default_rng([seed, index])
    sex = sex_of(seed, index)
    sign = 1.0 if sex == "male" else -1.0
    factors = {name: _normal(rng) for name in FACTORS}
    own = _normal(rng, len(MODES))
    shape = np.empty(len(MODES), np.float32)
    for i, mode in enumerate(MODES):
        loads = {f: weights[mode.name] for f, weights in FACTORS.items() if mode.name in weights}
        shared = sum(load * factors[f] for f, load in loads.items())
        rest = np.sqrt(1.0 - sum(load**2 for load in loads.values()))
        shape[i] = np.clip(shared + rest * own[i], -_CUT, _CUT) + 0.9 * sign * mode.male
    skull = Skull(
        shape=shape,
        size=1.0 + 0.018 * sign + 0.014 * _normal(rng),
        skew=1.2 * _normal(rng),
        thickness=5.3 + 0.6 * _normal(rng),
        sinus=max(0.0, 0.9 + 0.18 * sign + 0.35 * _normal(rng)),
        sinus_skew=0.25 * _normal(rng),
        mastoid=1.0 + 0.25 * sign + 0.2 * _normal(rng),
        seed=float(rng.uniform(0, 20)),
    )
    return Subject(sex, skull, *_personal_traits(rng))


def with_other_traits(subject: Subject, seed: int) -> Subject:
    """The same skull and sex with everything that the skull leaves open drawn anew."""
    depth, soft, look = _personal_traits(np.random.default_rng([seed, 7919]))
    return subject._replace(depth_noise=depth, soft=soft, look=look)


def _float32(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float32), tree)


def appearance(
    subject: Subject, age: float, bmi_change: float, spread: Spread
) -> tuple[Skull, Tissue, Colour]:
    """Skull, soft tissue and colours of a subject at an age (years) and a change of BMI (percent)."""
    male = subject.sex == "male"
    soft, look = subject.soft, subject.look
    sag = np.clip((age - 25.0) / 40.0, -0.2, 1.4)
    weight = bmi_change / 10.0
    depth = np.array(
        [
            max(
                2.0,
                (d.mean + spread.depth * d.spread * n * 0.85) * (1.0 + d.bmi * weight)
                + d.age * (age - 45.0) / 20.0,
            )
            for d, n in zip(DEPTHS, subject.depth_noise, strict=True)
        ]
    )
    # The bony opening and root of the nose say something about the soft nose, as in life.
    bone = dict(zip((m.name for m in MODES), subject.skull.shape, strict=True))
    long_hair = not male and look["hair_length"] > -0.9
    tissue = Tissue(
        depth=depth,
        nose_width=(1.02 if male else 0.93) + 0.05 * (soft["nose_width"] + bone["midface breadth"]),
        nose_length=(1.0 if male else 0.93)
        + 0.05 * (soft["nose_length"] + bone["nasal root"])
        + 0.02 * sag,
        nose_tip=(-1.0 if male else 3.0) + 5.0 * soft["nose_tip"] - 4.0 * sag,
        lips=((0.9 if male else 1.15) + 0.14 * soft["lips"]) * (1.05 - 0.22 * sag),
        mouth_width=(1.02 if male else 0.96) + 0.05 * soft["mouth_width"],
        eye_opening=(0.95 if male else 1.08) + 0.08 * soft["eye_opening"] - 0.14 * sag,
        ear=(1.02 if male else 0.92) + 0.06 * soft["ear"] + 0.05 * sag,
        ear_flare=1.0 + 0.25 * soft["ear_flare"],
        brow_height=(-0.5 if male else 1.5) + 1.0 * soft["brow_height"] - 1.5 * sag,
        neck=(1.04 if male else 0.86) + 0.03 * soft["neck"] + 0.045 * weight,
        sag=sag,
        fat=weight,
        hair_length=1.0 if long_hair else 0.0,
        hair_volume=(6.0 if male else 8.5) + 1.3 * spread.hair * look["hair_volume"] - 1.0 * sag,
        hairline=(sag * (5.0 + 4.0 * look["hairline"]) + 2.0 if male else 0.0)
        * min(1.0, spread.hair),
    )
    luminance = 1.0 + spread.skin * look["skin"]
    hue = 0.012 * look["skin_hue"] * min(1.5, spread.skin / 0.06)
    skin = np.array([0.80 + hue, 0.605, 0.495 - hue]) * luminance + (0.015 if not male else 0.0)
    dark = np.clip(0.5 + 0.18 * spread.hair * look["hair"], 0.0, 1.0)
    hair = (1 - dark) * np.array([0.42, 0.29, 0.17]) + dark * np.array([0.15, 0.11, 0.09])
    hair = hair * np.array(
        [
            1.0 + 0.10 * spread.hair * look["hair_hue"],
            1.0,
            1.0 - 0.06 * spread.hair * look["hair_hue"],
        ]
    )
    blue = 1.0 / (1.0 + np.exp(-4.0 * (spread.hair * look["iris"] - 0.3)))
    iris = blue * np.array([0.36, 0.47, 0.52]) + (1 - blue) * np.array([0.33, 0.21, 0.12])
    colour = Colour(
        skin=np.clip(skin * (1.0 - np.array([0.02, 0.03, 0.03]) * sag), 0.05, 1.0),
        hair=hair,
        iris=iris,
        grey=float(
            np.clip(1.0 / (1.0 + np.exp(-(age - 56.0 + 5.0 * look["grey"]) / 6.0)), 0.0, 0.95)
        ),
        flush=1.0 + 0.3 * look["flush"],
        blotch=max(0.0, 0.9 * sag - 0.1),
        stubble=max(0.0, 0.32 + 0.15 * look["stubble"]) if male else 0.0,
        makeup=0.0 if male else 0.45,
        brow=(1.0 if male else 0.85) + 0.15 * look["brow"],
        seed=subject.skull.seed + 3.0,
    )
    return _float32(subject.skull), _float32(tissue), _float32(colour)


def split(seed: int, subjects: int) -> dict[str, list[int]]:
    """Subject indices of 'train' and 'test': every sixth subject of a shuffle is held out, each sex alike.

    Raises ValueError where a split would be empty.
    """
    rng = np.random.default_rng([seed, 104729])
    by_sex = {
        sex: [i for i in range(subjects) if sex_of(seed, i) == sex] for sex in ("female", "male")
    }
    ranks = []
    for members in by_sex.values():
        ranks += [((k + 0.5) / len(members), i) for k, i in enumerate(rng.permutation(members))]
    order = [int(i) for _, i in sorted(ranks)]
    held_out = (subjects + 3) // 6
    if not 0 < held_out < subjects:
        raise ValueError(f"subjects={subjects} leaves the split 'test' empty; use 3 or more")
    return {"train": sorted(order[held_out:]), "test": sorted(order[:held_out])}
