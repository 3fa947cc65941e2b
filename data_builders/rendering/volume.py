"""The volume that every renderer takes, and the study's two views.

Axes follow nibabel's RAS+ rule: array index 0 runs to the subject's right, 1 to
the front, 2 to the top. Pictures are as seen by somebody who faces the subject
(`frontal`: the subject's right is on the picture's left, as on a PA radiograph) or
stands at the subject's right (`lateral`: the subject looks to the picture's right).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data_builders.conditions import VIEWS

Number = float | Float[Array | np.ndarray, ""]


class Volume(NamedTuple):
    """A sampled scalar field, such as CT numbers in Hounsfield units.

    Attributes:
      values: `(right, front, top)` samples.
      spacing: `(3,)` mm between samples.
      origin: `(3,)` mm, the place of sample `[0, 0, 0]`.
    """

    values: Float[Array | np.ndarray, "x y z"]
    spacing: Float[Array | np.ndarray, "3"]
    origin: Float[Array | np.ndarray, "3"]


class Frame(NamedTuple):
    """A square picture plane seen by parallel rays.

    Attributes:
      size: pixels along each side.
      width: mm along each side.
      center: mm `(right, front, top)`, the place that the middle of the picture shows.
    """

    size: int
    width: float
    center: tuple[float, float, float]

    @property
    def pixel(self) -> float:
        """The distance between pixel centres in mm."""
        return self.width / self.size


def check_view(view: str) -> str:
    """Returns `view`; raises ValueError where it is not one of VIEWS."""
    if view not in VIEWS:
        raise ValueError(f"unknown view {view!r}; expected one of {', '.join(VIEWS)}")
    return view


def voxel_for(size: int) -> float:
    """Returns the voxel spacing in mm for pictures of `size` pixels.

    It is about a pixel, but fine enough for thin bone.
    """
    if size <= 64:
        return 2.5
    return 2.0 if size <= 128 else 1.25


def pixel_axes(frame: Frame, view: str) -> tuple[Array, Array]:
    """Returns the positions in mm of the pixel centres, `(columns, rows)`.

    Columns are the right axis (decreasing) in a frontal view and the front axis
    (increasing) in a lateral one; rows are the top axis, decreasing.
    """
    offset = (jnp.arange(frame.size) - (frame.size - 1) / 2) * frame.pixel
    rows = frame.center[2] - offset
    if check_view(view) == "frontal":
        return frame.center[0] - offset, rows
    return frame.center[1] + offset, rows


def ray_points(frame: Frame, view: str, depth: Float[Array, "h w"]) -> Float[Array, "h w 3"]:
    """Returns the places in mm at `depth` (on the front or right axis) along each pixel's ray."""
    columns, rows = pixel_axes(frame, view)
    columns = jnp.broadcast_to(columns[None, :], depth.shape)
    rows = jnp.broadcast_to(rows[:, None], depth.shape)
    if view == "frontal":
        return jnp.stack([columns, depth, rows], -1)
    return jnp.stack([depth, columns, rows], -1)


def magnification(
    depth: Float[Array | np.ndarray, "*n"],
    frame: Frame,
    view: str,
    distance: Number,
) -> Float[Array, "*n"]:
    """Returns how much larger than in the middle plane things at some depth show.

    The focal point stands behind the head in a frontal view, which is taken from back to front, and
    at the head's right in a lateral one.

    Args:
      depth: mm on the front axis (frontal) or the right axis (lateral).
      frame: its centre lies in the middle plane.
      view: 'frontal' or 'lateral'.
      distance: mm from the focal point to the middle plane.
    """
    if check_view(view) == "frontal":
        return 1.0 / (1.0 + jnp.asarray(depth - frame.center[1]) / distance)
    return 1.0 / (1.0 - jnp.asarray(depth - frame.center[0]) / distance)


def project_point(
    frame: Frame,
    view: str,
    point: Float[Array | np.ndarray, "*n 3"],
    distance: Number | None = None,
) -> Float[Array, "*n 2"]:
    """Returns the pixel coordinates `(column, row)` of places in mm.

    Pixel centres are whole numbers. The rays are parallel, or come from a focal point; see
    `magnification`.
    """
    middle = (frame.size - 1) / 2
    offset = (point - jnp.asarray(frame.center)) / frame.pixel
    if distance is not None:
        depth = point[..., 1] if view == "frontal" else point[..., 0]
        offset = offset * magnification(depth, frame, view, distance)[..., None]
    across = -offset[..., 0] if check_view(view) == "frontal" else offset[..., 1]
    return jnp.stack([middle + across, middle - offset[..., 2]], -1)


class Planes(NamedTuple):
    """A volume as a viewer sees it.

    Attributes:
      values: `(row, column, depth)`, with depth from the far side to the viewer.
      rows: positions in mm along the top axis, increasing.
      columns: positions in mm along the right axis (frontal) or the front axis (lateral),
        increasing.
      depths: positions in mm along the front axis (frontal) or the right axis (lateral).
    """

    values: Float[Array | np.ndarray, "row column depth"]
    rows: Float[Array, "row"]
    columns: Float[Array, "column"]
    depths: Float[Array, "depth"]


def look_along(volume: Volume, view: str) -> Planes:
    """Returns the volume with its axes in the order of a view."""
    right, front, top = (
        volume.origin[i] + volume.spacing[i] * jnp.arange(volume.values.shape[i]) for i in range(3)
    )
    if check_view(view) == "frontal":
        return Planes(volume.values.transpose(2, 0, 1), top, right, front)
    return Planes(volume.values.transpose(2, 1, 0), top, front, right)


def sample(volume: Volume, points: Float[Array, "*n 3"], outside: float) -> Float[Array, "*n"]:
    """Returns trilinear samples of `volume` at `points` in mm; `outside` beyond its edge."""
    index = (points - volume.origin) / volume.spacing
    return jax.scipy.ndimage.map_coordinates(
        volume.values, list(jnp.moveaxis(index, -1, 0)), order=1, mode="constant", cval=outside
    )


def resample_plane(
    planes: Float[Array | np.ndarray, "row column *rest"],
    rows: Float[Array, "row"],
    columns: Float[Array, "column"],
    frame: Frame,
    view: str,
    outside: float,
) -> Float[Array, "h w *rest"]:
    """Resamples the first two axes, at `rows` and `columns` mm, to the pixels of `frame`.

    The interpolation is linear. Where pixels are wider than samples they average over their width
    (a tent as wide as the coarser of the two), so a shrunken picture does not alias.
    """
    to_columns, to_rows = pixel_axes(frame, view)
    planes = planes - outside
    planes = jnp.tensordot(_weights(to_rows, rows, frame.pixel), planes, axes=1)
    planes = jnp.tensordot(_weights(to_columns, columns, frame.pixel), planes, axes=(1, 1))
    return jnp.swapaxes(planes, 0, 1) + outside


def resample_slices(
    planes: Planes,
    larger: Float[Array, "depth"],
    frame: Frame,
    view: str,
    combine: Callable[[Array, Array], Array] = jnp.add,
) -> Float[Array, "h w"]:
    """Returns the sum over slices, each magnified about the middle of the picture.

    What lies outside of the volume is 0.

    Args:
      planes: the slices.
      larger: how much each of them is magnified.
      frame: the picture.
      view: 'frontal' or 'lateral'.
      combine: how a slice is added to those before; `jnp.maximum` gives the largest of each pixel.
    """
    to_columns, to_rows = pixel_axes(frame, view)
    across = frame.center[0] if view == "frontal" else frame.center[1]
    up = frame.center[2]

    def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
        values, scale = one
        pixel = frame.pixel / scale
        by_row = _weights(up + (to_rows - up) / scale, planes.rows, pixel)
        by_column = _weights(across + (to_columns - across) / scale, planes.columns, pixel)
        return combine(total, by_row @ values @ by_column.T), None

    empty = jnp.zeros((frame.size, frame.size))
    total, _ = jax.lax.scan(add, empty, (jnp.moveaxis(planes.values, -1, 0), larger))
    return total


def _weights(
    target: Float[Array, "pixels"],
    source: Float[Array, "samples"],
    pixel: Number,
) -> Float[Array, "pixels samples"]:
    """Returns the weight of each sample in each pixel, both given by their places in mm."""
    step = source[1] - source[0]
    reach = jnp.maximum(step, pixel)
    tent = jnp.maximum(0.0, 1.0 - jnp.abs(target[:, None] - source[None, :]) / reach)
    # The weights are normalised over samples that go on beyond the volume's edge. What lies there
    # counts as `outside`.
    phase = source[0] + step * jnp.round((target - source[0]) / step)
    around = phase[:, None] + step * jnp.arange(-8, 9)
    total = jnp.maximum(0.0, 1.0 - jnp.abs(target[:, None] - around) / reach).sum(1)
    return tent / total[:, None]
