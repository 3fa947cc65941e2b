"""Augmentation: what moves an X-ray with its face, and what changes its exposure."""

from collections.abc import Sequence
from typing import Any

import cv2
import ml_collections
import numpy as np
from jaxtyping import Float

GEOMETRY = ("flip", "rotation", "bend")  # of the augmentations, those that move the face

# Of the bend: knots along each side, about a feature of the face apart; rounds of its inversion.
_KNOTS, _ROUNDS = 4, 8


def displacement(
    rng: np.random.Generator, side: int, bend: float, mirrored: bool
) -> Float[np.ndarray, "side side 2"]:
    """A smooth random displacement (x, y) in pixels that shifts nothing on the whole.

    Args:
      rng: what is drawn from.
      side: of the picture.
      bend: its standard deviation, in parts of the side.
      mirrored: alike on both sides of the middle column, as faces seen from the front are.
    """
    knots = rng.standard_normal((_KNOTS, _KNOTS, 2)).astype(np.float32)
    if mirrored:
        knots = (knots + knots[:, ::-1] * np.float32([-1, 1])) / np.sqrt(np.float32(2))
    return (
        bend
        * side
        * cv2.resize(knots - knots.mean((0, 1)), (side, side), interpolation=cv2.INTER_CUBIC)
    )


def move(
    example: dict[str, Any], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """What moves the (square) X-ray, face and landmarks, alike and as far as the example has them.

    Flip and rotation are the paper's. The bend is ours: where people are few, an X-ray and a face that are in register, which
    they are in one view alone, are made those of somebody else.
    """
    images = {name: example[name] for name in ("xray", "face") if name in example}
    moved = dict(example)
    side = next(iter(images.values())).shape[1]
    if rng.random() < settings.flip:
        images = {name: image[:, ::-1] for name, image in images.items()}
        if "landmarks" in moved:
            moved["landmarks"] = moved["landmarks"][[1, 0, 2, 4, 3]] * np.float32(
                [-1, 1]
            ) + np.float32([side - 1, 0])
    bend = settings.bend if example.get("xray_view") == example.get("face_view") else 0.0
    if settings.rotation or bend:
        degrees = rng.uniform(-settings.rotation, settings.rotation)
        middle, (cos, sin) = (
            np.float32((side - 1) / 2),
            (np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))),
        )
        turn = np.array(
            [[cos, -sin], [sin, cos]], np.float32
        )  # counterclockwise, rows running down
        mirrored = example.get("face_view") == "frontal"
        push = displacement(rng, side, bend, mirrored) if bend else np.zeros((1, 1, 2), np.float32)
        columns_rows = np.moveaxis(np.indices((side, side), dtype=np.float32)[::-1], 0, -1)
        source = (columns_rows - middle) @ turn.T + middle + push  # of each pixel
        images = {
            name: _sampled(image, source, fill=(0,) if name == "xray" else image[0, 0])
            for name, image in images.items()
        }
        if "landmarks" in moved:
            # Where the source is the landmark; a fixed point, which a smooth displacement brings near in a few rounds.
            places = moved["landmarks"]
            for _ in range(_ROUNDS if bend else 1):
                pushed = cv2.remap(
                    push, places[:, None], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
                )[:, 0]
                places = (moved["landmarks"] - pushed - middle) @ turn + middle
            moved["landmarks"] = places
    return moved | {name: np.ascontiguousarray(image) for name, image in images.items()}


def _sampled(
    image: np.ndarray, source: Float[np.ndarray, "h w 2"], fill: Sequence[int]
) -> np.ndarray:
    """The image at the places (x, y) of `source`, bilinearly; `fill` beyond its edge."""
    edge = [float(value) for value in fill]
    return cv2.remap(
        image, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=edge
    ).reshape(image.shape)


def expose(
    example: dict[str, Any], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """The paper's exposure and erasing.

    The paper does not say what they apply to; changing the face would teach the model to paint at random exposures, so
    the X-ray alone is ours.
    """
    exposed = example["xray"].astype(np.float32)
    contrast = 1.0 + rng.uniform(-settings.contrast, settings.contrast)
    exposed = (
        (exposed - exposed.mean()) * contrast
        + exposed.mean()
        + 255.0 * rng.uniform(-settings.brightness, settings.brightness)
    )
    exposed = np.clip(np.round(exposed), 0, 255).astype(np.uint8)
    if settings.erase:
        height, width = exposed.shape[:2]
        area, aspect = (
            rng.uniform(0, settings.erase) * height * width,
            np.exp(rng.uniform(-1.0, 1.0)),
        )
        h, w = min(height, round((area * aspect) ** 0.5)), min(width, round((area / aspect) ** 0.5))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        exposed[top : top + h, left : left + w] = rng.integers(0, 256)
    return example | {"xray": exposed}


def augment(
    example: dict[str, Any], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """The paper's augmentations."""
    return expose(move(example, rng, settings), rng, settings)
