"""Scores by group: view, sex, age, change of BMI, and skin tone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import ml_collections
import numpy as np
from jaxtyping import Float, UInt8

from cranio_jax.evaluation.results import LEAST_PEOPLE, Group, Groups
from cranio_jax.metrics.estimates import mean_interval
from cranio_jax.metrics.registry import metric_of
from cranio_jax.metrics.resampling import subject_means
from cranio_jax.models import alignment
from data_builders.conditions import SEXES, VIEWS

# Each group's lower bound.
_AGES = ((-np.inf, "under 18"), (18, "18 to 29"), (30, "30 to 44"), (45, "45 to 59"), (60, "60+"))
_WEIGHTS = ((-np.inf, "less weight"), (-0.5, "usual weight"), (0.5, "more weight"))
# Individual typology angles in degrees (Chardon et al. 1991).
_TONES = (
    *((-np.inf, "dark"), (-30, "brown"), (10, "tan"), (28, "intermediate"), (41, "light")),
    (55, "very light"),
)


def scores_by_group(
    config: ml_collections.ConfigDict,
    examples: Sequence[Mapping[str, Any]],
    values: Mapping[str, Float[np.ndarray, "n"]],
) -> Groups:
    """Returns the main metrics of each group of at least LEAST_PEOPLE people, by attribute.

    An attribute is left out if fewer than two of its groups have so many.

    Args:
      config: of the run.
      examples: with the true faces.
      values: of each example, by metric.
    """
    names = np.array([example["subject"] for example in examples])
    main = {key: array for key, array in values.items() if metric_of(key).main}
    attributes: Groups = {}
    for attribute, (order, labels) in _labels(examples, tuple(config.evaluate.crop)).items():
        groups = {}
        for label in order:
            here = np.array(labels) == label
            people = names[here].tolist()
            if len(set(people)) < LEAST_PEOPLE:
                continue
            groups[label] = Group(
                subjects=sorted(set(people)),
                images=int(here.sum()),
                metrics={
                    key: mean_interval(array[here], people, config.evaluate.bootstrap, config.seed)
                    for key, array in main.items()
                },
                values={
                    key: subject_means(array[here], people).tolist() for key, array in main.items()
                },
            )
        if len(groups) > 1:
            attributes[attribute] = groups
    return attributes


def _labels(
    examples: Sequence[Mapping[str, Any]], crop: tuple[float, float, float, float]
) -> dict[str, tuple[Sequence[str], list[str]]]:
    """Returns by attribute the groups in order, and each example's group; "" for none."""
    tones = _tones(examples, crop)
    banded: dict[str, tuple[Any, Callable[[Mapping[str, Any]], float]]] = {
        "age": (_AGES, lambda example: example["age"]),
        "change of BMI": (_WEIGHTS, lambda example: example["bmi_change"]),
        "skin tone": (_TONES, lambda example: tones[example["subject"]]),
    }
    labels: dict[str, tuple[Sequence[str], list[str]]] = {
        "view": (VIEWS, [example["face_view"] for example in examples]),
        "sex": (SEXES, [example["sex"] for example in examples]),
    }
    for attribute, (bands, value_of) in banded.items():
        each = [_band(bands, value_of(example)) for example in examples]
        labels[attribute] = ([name for _, name in bands], each)
    return labels


def _band(bands: Sequence[tuple[float, str]], value: float) -> str:
    """Returns the name of the last band that begins at or below a value; "" for NaN."""
    return next((name for low, name in reversed(bands) if value >= low), "")


def _tones(
    examples: Sequence[Mapping[str, Any]], crop: tuple[float, float, float, float]
) -> dict[str, float]:
    """Returns the median skin tone of each subject's frontal true faces; NaN without any.

    Light changes it as skin does: groups are those of the pictures, not of the people.
    """
    angles: dict[str, list[float]] = {example["subject"]: [] for example in examples}
    for example in examples:
        if example["face_view"] == "frontal":
            rows, columns = alignment.crop_box(crop, *example["face"].shape[:2])
            angles[example["subject"]].append(typology_angle(example["face"][rows, columns]))
    known = {name: [a for a in each if np.isfinite(a)] for name, each in angles.items()}
    return {name: float(np.median(each)) if each else np.nan for name, each in known.items()}


def typology_angle(skin: UInt8[np.ndarray, "h w 3"]) -> float:
    """Returns the individual typology angle of the median colour, in degrees from -90 to 90.

    It is the arctangent of (L* - 50) / b* (Chardon et al. 1991): large for light skin. NaN if the
    colour is bluish, which skin is not.
    """
    lab = cv2.cvtColor(skin.astype(np.float32) / 255.0, cv2.COLOR_RGB2LAB)
    lightness, _, blue_to_yellow = np.median(lab, (0, 1))
    if blue_to_yellow <= 0.0:
        return float("nan")
    return float(np.degrees(np.arctan((lightness - 50.0) / blue_to_yellow)))
