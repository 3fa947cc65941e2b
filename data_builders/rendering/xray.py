"""Radiographs of a volume in Hounsfield units by the Beer-Lambert law."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from data_builders.rendering.volume import (
    Frame,
    Number,
    Volume,
    look_along,
    magnification,
    resample_plane,
    resample_slices,
)


class Beam(NamedTuple):
    """How an X-ray is taken and developed.

    Attributes:
      distance: mm from the focal point to the plane through the middle of the picture, at right
        angles to the view; 1,500 in cephalometry. None: the rays are parallel.
      calcium: 1/mm that 1,000 HU of calcium absorb beyond what a CT shows. It falls as the energy
        rises.
      scatter: photons scattered to each pixel, as a share of those without a head.
      sharpening: strength of the unsharp mask.
    """

    distance: Number | None = None
    calcium: Number = 0.014
    scatter: Number = 0.004
    sharpening: Number = 0.55


STANDARD = Beam()


def attenuation(
    hu: Float[Array | np.ndarray, "*n"], calcium: Number = STANDARD.calcium
) -> Float[Array, "*n"]:
    """Returns the linear attenuation in 1/mm at about 60 keV.

    Water has 0.02/mm, which defines the Hounsfield scale. Calcium absorbs more at the
    energies of a radiograph than of a CT; the second term, our choice, compensates for that.
    """
    water = 0.02 * jnp.maximum(0.0, 1.0 + hu / 1000.0)
    bone = calcium * jnp.maximum(0.0, hu - 150.0) / 1000.0
    return water + bone


def path_attenuation(
    volume: Volume, frame: Frame, view: str, beam: Beam = STANDARD
) -> Float[Array, "h w"]:
    """Returns the integral of the attenuation along each pixel's ray, -log(I / I0), unitless.

    From a focal point, a slice of the volume is magnified as it is near to that point. What lies in
    the plane through the middle of the picture keeps its place and size.
    """
    mu = Volume(attenuation(volume.values, beam.calcium), volume.spacing, volume.origin)
    seen = look_along(mu, view)
    step = volume.spacing[1] if view == "frontal" else volume.spacing[0]
    if beam.distance is not None:
        larger = magnification(seen.depths, frame, view, beam.distance)
        return resample_slices(seen, larger, frame, view) * step
    return resample_plane(
        seen.values.sum(-1) * step,
        rows=seen.rows,
        columns=seen.columns,
        frame=frame,
        view=view,
        outside=0.0,
    )


def silhouette(
    volume: Volume, frame: Frame, view: str, beam: Beam = STANDARD
) -> Bool[Array, "h w"]:
    """Returns the pixels of which the head covers a half or more, soft tissue included.

    Tissue that is too thin to be seen in the developed X-ray counts as well.
    """
    share = jnp.clip(1.0 + volume.values / 1000.0, 0.0, 1.0)
    seen = look_along(volume._replace(values=share), view)
    if beam.distance is not None:
        larger = magnification(seen.depths, frame, view, beam.distance)
        return resample_slices(seen, larger, frame, view, jnp.maximum) >= 0.5
    most = resample_plane(
        seen.values.max(-1),
        rows=seen.rows,
        columns=seen.columns,
        frame=frame,
        view=view,
        outside=0.0,
    )
    return most >= 0.5


def _blur(image: Float[Array, "h w"], sigma: float) -> Float[Array, "h w"]:
    """Returns a Gaussian blur with standard deviation `sigma` in pixels, edge values repeated."""
    reach = max(1, round(3 * sigma))
    kernel = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()

    def convolve(line):
        return jnp.convolve(line, kernel, mode="valid")

    for axis in range(2):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(2)]
        image = jnp.pad(image, pad, mode="edge")
        image = jax.vmap(convolve, 1 - axis, 1 - axis)(image)
    return image


def develop(path: Float[Array, "h w"], pixel: float, beam: Beam = STANDARD) -> Float[Array, "h w"]:
    """Returns a viewable radiograph in [0, 1], bone bright, from the path attenuation.

    It follows a digital chain: photon counts with a little scatter, logarithm, automatic
    exposure to the brightest percent, and an unsharp mask (radius 6 mm) that evens out
    thick and thin parts, as every vendor's processing does.

    Args:
      path: -log(I / I0) for each pixel.
      pixel: mm between pixel centres.
      beam: gives the scatter and the strength of the mask.
    """
    signal = -jnp.log((jnp.exp(-path) + beam.scatter) / (1.0 + beam.scatter))
    low = _blur(signal, 6.0 / pixel)
    signal = jnp.maximum(0.0, signal + beam.sharpening * (signal - low) * (signal > 0.05))
    white = jnp.percentile(signal, 99.6)
    scaled = jnp.clip(signal / jnp.maximum(white, 1e-3), 0.0, 1.0)
    return scaled**1.15


def radiograph(
    volume: Volume, frame: Frame, view: str, beam: Beam = STANDARD
) -> Float[Array, "h w"]:
    """Returns the developed X-ray of a volume in Hounsfield units, in [0, 1], bone bright."""
    return develop(path_attenuation(volume, frame, view, beam), frame.pixel, beam)


def bare_bone(volume: Volume) -> Volume:
    """Returns a head without its soft tissue, as a dry skull is X-rayed.

    Below 120 HU everything is air. Up to 240 HU it fades in, so that the edges of bone, which share
    their voxels with soft tissue, stay where they are.
    """
    share = jnp.clip((volume.values - 120.0) / 120.0, 0.0, 1.0)
    return volume._replace(values=-1000.0 + share * (volume.values + 1000.0))
