"""Draws subjects: their skull, soft tissue and colours, and how age and BMI change them."""

from typing import NamedTuple

import jax
import numpy as np

from data_builders.conditions import SEXES
from data_builders.cranio_phantom.head import Colour
from data_builders.cranio_phantom.skull import FACTORS, MODES, Skull
from data_builders.cranio_phantom.tissue import DEPTHS, Tissue

AGES = (25, 45, 65)  # years
BMI_CHANGES = (-10, 0, 10)  # percent of the subject's own BMI
# Those of a seed's cohort, or others, to train networks that users start from.
PEOPLE = ("cohort", "networks")
# The one X-ray of each view is taken at these.
REFERENCE_AGE = 45
REFERENCE_BMI_CHANGE = 0
_CUT = 1.6  # standard deviations; beyond this a skull becomes a caricature


class Subject(NamedTuple):
    """One person at no particular age or weight.

    Attributes:
      sex: 'female' or 'male'.
      skull: all parameters of the skull.
      depth_noise: `(len(DEPTHS),)` deviation of the tissue depths from their means, in published
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
    """How much people differ in traits that the skull does not determine.

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
    while np.any(outside := np.abs(values) > _CUT):
        values = np.where(outside, rng.standard_normal(size), values)
    return values


def sex_of(seed: int, index: int) -> str:
    """Returns the sex of a subject. Women and men alternate; the seed decides who comes first."""
    return SEXES[(index + seed) % 2]


class _Traits(NamedTuple):
    """The parts of a `Subject` that its skull does not determine."""

    depth_noise: np.ndarray
    soft: dict[str, float]
    look: dict[str, float]


def _personal_traits(rng: np.random.Generator) -> _Traits:
    common = _normal(rng)  # some people have more tissue everywhere
    depth_noise = 0.45 * common + np.sqrt(1 - 0.45**2) * _normal(rng, len(DEPTHS))
    soft = {name: float(_normal(rng)) for name in _SOFT}
    look = {name: float(_normal(rng)) for name in _LOOK}
    return _Traits(depth_noise, soft, look)


def draw(seed: int, index: int, people: str = "cohort") -> Subject:
    """Returns subject `index` of the seed, whatever the number of subjects.

    The random generator of `networks` is seeded with one number more, so that its people are in no
    cohort.
    """
    entropy = {"cohort": [seed, index], "networks": [seed, index, 1]}[people]
    rng = np.random.default_rng(entropy)
    sex = sex_of(seed, index)
    sign = 1.0 if sex == "male" else -1.0
    # Shape modes are correlated through the factors they share.
    factors = {name: _normal(rng) for name in FACTORS}
    residuals = _normal(rng, len(MODES))
    shape = np.empty(len(MODES), np.float32)
    for i, mode in enumerate(MODES):
        loads = {f: weights[mode.name] for f, weights in FACTORS.items() if mode.name in weights}
        shared = sum(load * factors[f] for f, load in loads.items())
        rest = np.sqrt(1.0 - sum(load**2 for load in loads.values()))
        shape[i] = np.clip(shared + rest * residuals[i], -_CUT, _CUT) + 0.9 * sign * mode.male
    # The other parameters are independent.
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
    """Returns a subject with the same skull and sex, and new draws of all other traits."""
    traits = _personal_traits(np.random.default_rng([seed, 7919]))
    return subject._replace(**traits._asdict())


def conditions(seed: int, index: int, count: int) -> list[tuple[int, int]]:
    """Returns `count` of the nine pairs of age and change of BMI, drawn for this subject."""
    every = [(age, change) for age in AGES for change in BMI_CHANGES]
    chosen = np.random.default_rng([seed, index, 15485863]).permutation(len(every))[:count]
    return [every[i] for i in sorted(chosen)]


class Appearance(NamedTuple):
    """A subject at one age and weight, ready to render. All leaves are float32."""

    skull: Skull
    tissue: Tissue
    colour: Colour


def _float32(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float32), tree)


def appearance(subject: Subject, age: float, bmi_change: float, spread: Spread) -> Appearance:
    """Returns a subject's skull, soft tissue and colours.

    Args:
      subject: the person.
      age: years.
      bmi_change: percent of the subject's own BMI.
      spread: how much people differ.
    """
    sag = np.clip((age - 25.0) / 40.0, -0.2, 1.4)
    tissue = _tissue(subject, age, bmi_change / 10.0, sag, spread)
    colour = _colour(subject, age, sag, spread)
    return Appearance(_float32(subject.skull), _float32(tissue), _float32(colour))


def _tissue(subject: Subject, age: float, weight: float, sag: float, spread: Spread) -> Tissue:
    """Returns the soft tissue; `weight` is the change of BMI in units of 10 %."""
    male = subject.sex == "male"
    soft = subject.soft
    look = subject.look
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
    # The soft nose depends in part on the bony opening and root, as in life.
    bone = dict(zip((m.name for m in MODES), subject.skull.shape, strict=True))
    long_hair = not male and look["hair_length"] > -0.9
    return Tissue(
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


def _colour(subject: Subject, age: float, sag: float, spread: Spread) -> Colour:
    """Returns the colours of skin, hair and eyes."""
    male = subject.sex == "male"
    look = subject.look
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
    return Colour(
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


def split(seed: int, subjects: int) -> dict[str, list[int]]:
    """Returns the subjects' indices in 'train' and 'test'.

    One subject in six is held out at random, in the same proportion for each sex.
    Raises ValueError where a split would be empty.
    """
    rng = np.random.default_rng([seed, 104729])
    by_sex = {sex: [i for i in range(subjects) if sex_of(seed, i) == sex] for sex in SEXES}
    ranks: list[tuple[float, int]] = []
    for members in by_sex.values():
        ranks += [((k + 0.5) / len(members), i) for k, i in enumerate(rng.permutation(members))]
    order = [int(i) for _, i in sorted(ranks)]
    held_out = (subjects + 3) // 6
    if not 0 < held_out < subjects:
        raise ValueError(f"subjects={subjects}: the split 'test' would be empty. Use 3 or more.")
    return {"train": sorted(order[held_out:]), "test": sorted(order[:held_out])}
