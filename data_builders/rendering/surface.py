"""Pictures of a surface: its intersection with parallel rays, and its shading."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from data_builders.rendering.volume import (
    Frame,
    Volume,
    look_along,
    ray_points,
    resample_plane,
    sample,
)

MISS = -1e4  # mm; the depth of a ray that meets nothing
BACKGROUND = jnp.array([0.79, 0.82, 0.85])
RADII = (5.0, 14.0)  # mm; the scales of ambient occlusion


def first_crossing(
    volume: Volume, frame: Frame, view: str, level: float, outside: float
) -> Float[Array, "h w"]:
    """Returns the depth in mm where each pixel's ray first exceeds `level`.

    The depth lies on the front axis (frontal) or the right axis (lateral). It is exact for the
    trilinear interpolant, since rays run along a grid axis. It is MISS where a ray meets nothing.
    """
    axis = 1 if view == "frontal" else 0
    planes = _along_rays(volume, frame, view, outside)

    # The last sample that exceeds the level, and the crossing between it and the next one.
    inside = planes > level
    count = planes.shape[-1]
    hit = count - 1 - jnp.argmax(inside[..., ::-1], -1)
    here = _at(planes, hit)
    before = jnp.where(hit + 1 < count, _at(planes, hit + 1), outside)
    part = (here - level) / jnp.maximum(here - before, 1e-6)
    depth = volume.origin[axis] + volume.spacing[axis] * (hit + part)
    return jnp.where(inside.any(-1), depth, MISS)


def highest(
    volume: Volume, frame: Frame, view: str, outside: float
) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Returns the highest of the samples on each pixel's ray, and its depth in mm."""
    axis = 1 if view == "frontal" else 0
    planes = _along_rays(volume, frame, view, outside)
    return planes.max(-1), volume.origin[axis] + volume.spacing[axis] * planes.argmax(-1)


def _along_rays(
    volume: Volume, frame: Frame, view: str, outside: float
) -> Float[Array, "h w depth"]:
    """Returns the volume at the pixels, from the far side to the viewer."""
    seen = look_along(volume, view)
    return resample_plane(
        seen.values, rows=seen.rows, columns=seen.columns, frame=frame, view=view, outside=outside
    )


def _at(planes: Float[Array, "h w depth"], index: Int[Array, "h w"]) -> Float[Array, "h w"]:
    """Returns one value of each ray; indices beyond the last one are clipped."""
    index = jnp.clip(index, 0, planes.shape[-1] - 1)
    return jnp.take_along_axis(planes, index[..., None], -1)[..., 0]


def blur_volume(volume: Volume, sigma: float) -> Volume:
    """Returns a Gaussian blur with standard deviation `sigma` in mm, edge values repeated."""
    values = volume.values
    # The reach is fixed in samples so that the shapes do not depend on traced spacings.
    reach = 8
    for axis in range(3):
        offsets = jnp.arange(-reach, reach + 1)
        kernel = jnp.exp(-0.5 * (offsets * volume.spacing[axis] / sigma) ** 2)
        kernel = kernel / kernel.sum()
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(values, pad, mode="edge")
        size = values.shape[axis]
        slices = [padded.take(jnp.arange(i, i + size), axis) for i in range(2 * reach + 1)]
        values = sum(k * s for k, s in zip(kernel, slices, strict=True))
    return volume._replace(values=values)


def openness(inside: Volume, points: Float[Array, "*n 3"]) -> Float[Array, "*n"]:
    """Returns how much of the sky a surface point sees, in [0, 1.1].

    It is estimated from how full the point's surroundings are.

    Args:
      inside: 1 within the body, 0 without.
      points: places on its surface in mm.
    """
    factors = []
    for radius in RADII:
        filled = sample(blur_volume(inside, radius), points, outside=0.0)
        factors.append(jnp.clip(1.0 - 1.5 * (filled - 0.48), 0.15, 1.08))
    return functools.reduce(jnp.multiply, factors)


def openness_from_distances(distances: tuple[Float[Array, "*n"], ...]) -> Float[Array, "*n"]:
    """Returns what `openness` does, from distances to the surface.

    Args:
      distances: from the places at RADII mm above a surface point, in mm. They are less than the
        radius in a hollow.
    """
    factors = [
        jnp.clip(0.36 + 0.68 * distance / radius, 0.25, 1.05)
        for distance, radius in zip(distances, RADII, strict=True)
    ]
    return functools.reduce(jnp.multiply, factors)


def shade(
    view: str,
    normal: Float[Array, "*n 3"],
    albedo: Float[Array, "*n 3"],
    open_sky: Float[Array, "*n"],
    gloss: Float[Array, "*n"],
) -> Float[Array, "*n 3"]:
    """Returns the light reflected to the viewer, display RGB in [0, 1].

    A soft key light from above and the viewer's left, a fill from the other side, and sky
    light. The terminator is wrapped and warmer than the lit side, which stands for
    scattering under the skin.

    Args:
      view: where the viewer stands.
      normal: unit normals, `(right, front, top)`.
      albedo: display RGB in [0, 1].
      open_sky: from `openness`.
      gloss: strength of the highlight, about 0.1 for skin.
    """
    right = jnp.array([1.0, 0.0, 0.0])
    front = jnp.array([0.0, 1.0, 0.0])
    top = jnp.array([0.0, 0.0, 1.0])
    to_viewer, left = (front, right) if view == "frontal" else (right, front)

    def toward(a, b, c):
        light = a * left + b * to_viewer + c * top
        return light / jnp.linalg.norm(light)

    def wrapped(light, wrap):
        return jnp.clip((normal @ light + wrap) / (1.0 + wrap), 0.0, 1.0)

    # Diffuse light.
    key = toward(0.55, 1.0, 0.75)
    fill = toward(-0.9, 0.8, 0.1)
    red = wrapped(key, 0.45)
    blue = wrapped(key, 0.25)
    lit = jnp.stack([red, 0.4 * red + 0.6 * blue, blue], -1)
    sky = (0.6 + 0.4 * normal[..., 2])[..., None]
    light = (
        0.62 * lit * jnp.sqrt(open_sky)[..., None]
        + (0.2 * wrapped(fill, 0.3)[..., None] + 0.3 * sky) * open_sky[..., None]
    )

    # The key light's highlight.
    half = key + to_viewer
    half = half / jnp.linalg.norm(half)
    highlight = (gloss * open_sky * jnp.clip(normal @ half, 0.0, 1.0) ** 22)[..., None]
    return jnp.clip(albedo * light * 1.2 + highlight, 0.0, 1.0)


def normals_from_volume(
    volume: Volume, points: Float[Array, "h w 3"], outside: float
) -> Float[Array, "h w 3"]:
    """Returns unit normals, against the gradient, of a field that is high inside."""
    step = volume.spacing
    differences = [
        sample(volume, points - axis * step, outside)
        - sample(volume, points + axis * step, outside)
        for axis in jnp.eye(3)
    ]
    gradient = jnp.stack(differences, -1) / step
    return gradient / jnp.maximum(jnp.linalg.norm(gradient, axis=-1, keepdims=True), 1e-6)


def downsample(
    image: Float[Array, "h w c"], weight: Float[Array, "h w"], factor: int
) -> Float[Array, "h2 w2 c"]:
    """Returns the weighted means of `factor` x `factor` blocks.

    Blocks whose weights are all 0 become BACKGROUND.
    """
    weight = weight[..., None]
    total = _block_sums(weight, factor)
    mean = _block_sums(image * weight, factor) / jnp.maximum(total, 1e-6)
    return jnp.where(total > 0, mean, BACKGROUND)


def _block_sums(image: Float[Array, "h w c"], factor: int) -> Float[Array, "h2 w2 c"]:
    """Returns the sums over `factor` x `factor` blocks."""
    height, width, _ = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, -1)
    return blocks.sum((1, 3))


def isosurface_portrait(
    volume: Volume, frame: Frame, view: str, level: float = -300.0, supersample: int = 2
) -> Float[Array, "h w 3"]:
    """Returns a shaded picture of a CT volume's skin in one colour, display RGB in [0, 1].

    Args:
      volume: Hounsfield units, air masked to -1000.
      frame: the picture plane.
      view: 'frontal' or 'lateral'.
      level: Hounsfield units of the skin's surface.
      supersample: rays along each pixel's side.
    """
    # The surface.
    fine = frame._replace(size=frame.size * supersample)
    smooth = blur_volume(volume, 1.2)
    depth = first_crossing(smooth, fine, view, level=level, outside=-1000.0)
    points = ray_points(fine, view, depth)
    normal = normals_from_volume(smooth, points, outside=-1000.0)

    # Its shading.
    inside = volume._replace(values=jnp.clip((volume.values - level) / 400.0 + 0.5, 0.0, 1.0))
    skin = jnp.broadcast_to(jnp.array([0.80, 0.62, 0.52]), points.shape)
    gloss = jnp.full(depth.shape, 0.06)
    picture = shade(
        view=view, normal=normal, albedo=skin, open_sky=openness(inside, points), gloss=gloss
    )
    picture = jnp.where((depth > MISS)[..., None], picture, BACKGROUND)
    return downsample(picture, jnp.ones(depth.shape), supersample)
