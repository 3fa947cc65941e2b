"""CT series in DICOM files: every slice lies where its position says, or the series is refused."""

import itertools
import pathlib
import warnings
from typing import NamedTuple

import numpy as np
import pydicom
from jaxtyping import Float
from numpy import ndarray as Array
from pydicom.pixels import pixel_array
from scipy import ndimage

from data_builders.errors import UnreadableError
from data_builders.volumes.dicom import Plane, counted, places, planes_of, ranges
from data_builders.volumes.scan import MAX_SHEAR, MAX_VOXELS, Scan

AIR = -1000.0  # HU
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME = 0.01  # mm between positions that are one
REGION = 3  # equal steps in a row are a protocol, fewer a gap
WIDER = 1.6  # times its neighbours, a step is a gap
FINEST = 0.4  # mm between slices made of uneven ones


class Stack(NamedTuple):
    """Planes in the order of their positions.

    Attributes:
      planes: `n` slices, from the lowest place along their normal up.
      heights: `(n,)` mm along the normal.
      offsets: `(n, 2)` mm of the first pixel along rows and columns.
      axes: `(3, 3)` directions of row, column and normal in LPS, one a row.
    """

    planes: list[Plane]
    heights: Float[Array, "n"]
    offsets: Float[Array, "n 2"]
    axes: Float[Array, "3 3"]


def read_series(path: pathlib.Path) -> Scan:
    """Reads a folder's only CT series, or an enhanced CT of one file.

    Tilted and uneven slices are placed by their positions. Raises UnreadableError.
    """
    planes, remarks = planes_of(path)
    if len(planes) < 2:
        more = "; name the folder that holds the series" if path.is_file() else ""
        raise UnreadableError(f"holds 1 slice{more}")
    stack = _sorted(planes)
    if len(planes) * np.prod(planes[0].shape, dtype=np.int64) > MAX_VOXELS:
        raise UnreadableError("unpacks to more voxels than any CT has")
    values = _pixels(stack, remarks)
    stack, values = _without_copies(stack, values, remarks)
    _check_kernels(stack)
    _check_gaps(stack)
    _check_alike(stack, values)
    return _placed(stack, values, remarks)


def _sorted(planes: list[Plane]) -> Stack:
    """Planes by their positions along the normal."""
    cosines = np.median(
        [plane.numbers("ImageOrientationPatient", 6) for plane in planes], axis=0
    ).reshape(2, 3)
    row = cosines[0] / np.linalg.norm(cosines[0])
    normal = np.cross(row, cosines[1])
    normal /= np.linalg.norm(normal)
    axes = np.stack([row, np.cross(normal, row), normal])
    positions = np.array([plane.numbers("ImagePositionPatient", 3) for plane in planes]) @ axes.T
    order = np.argsort(positions[:, 2], kind="stable")
    return Stack([planes[k] for k in order], positions[order, 2], positions[order, :2], axes)


def _chosen(stack: Stack, keep: Array) -> Stack:
    planes = [plane for plane, kept in zip(stack.planes, keep, strict=True) if kept]
    return Stack(planes, stack.heights[keep], stack.offsets[keep], stack.axes)


def _pixels(stack: Stack, remarks: list[str]) -> Float[Array, "columns rows n"]:
    """HU of all planes. Raises UnreadableError with all that can't be decoded."""
    shape = stack.planes[0].shape
    values = np.empty((len(stack.planes), *shape), np.float32)
    failed, masked = [], []
    path, frames = None, None
    for k, plane in enumerate(stack.planes):
        try:
            if plane.path != path:
                path, frames = plane.path, _frames(plane.path)
            raw, changed = _stored_bits(frames[plane.frame], plane)
            values[k] = _hounsfield(raw, plane)
            masked += [plane] * changed
        except UnreadableError:
            raise
        except Exception:
            failed.append(k)
            path = None
    if failed:
        raise UnreadableError(
            f"{len(failed)} of {len(stack.planes)} slices are truncated or can't be decoded: "
            f"places {ranges(k + 1 for k in failed)} of the stack "
            f"({places(stack.planes[k] for k in failed)}). Copy the series again"
        )
    if masked:
        remarks.append(
            f"bits above BitsStored, such as overlays, were taken out of {counted(len(masked), 'slice')}"
        )
    return values.transpose(2, 1, 0)


def _frames(path: pathlib.Path) -> Array:
    """All frames of a file, `(frames, rows, columns)`. Raises whatever its decoder raises."""
    with warnings.catch_warnings():
        # A value that ends early is a warning there.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*(end of file|End of file|delimiter).*")
        data = pydicom.dcmread(path, force=True)
        if not getattr(data.file_meta, "TransferSyntaxUID", None):
            implicit, little = data.original_encoding
            data.file_meta.TransferSyntaxUID = _plain_syntax(implicit, little)
        # Its own mask takes no notice of HighBit.
        pixels = pixel_array(data, correct_unused_bits=False)
    rows, columns = int(data.Rows), int(data.Columns)
    return pixels.reshape(-1, rows, columns)


def _plain_syntax(implicit: bool, little: bool) -> str:
    """The uncompressed transfer syntax that a file without one was read with."""
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian


def _stored_bits(raw: Array, plane: Plane) -> tuple[Array, bool]:
    """The values within BitsStored, and True if other bits were set."""
    header = plane.header
    allocated, stored = raw.dtype.itemsize * 8, int(header.get("BitsStored") or 0)
    if raw.dtype.kind not in "iu" or not 0 < stored < allocated:
        return raw, False
    high = int(header.get("HighBit") or stored - 1)
    shift = high + 1 - stored if stored - 1 <= high < allocated else 0
    # To the left, so that the sign is the highest bit, and back.
    left = (raw << (allocated - stored - shift)) if allocated > stored + shift else raw
    values = left >> (allocated - stored)
    return values, not np.array_equal(values, raw)


def _hounsfield(raw: Array, plane: Plane) -> Float[Array, "rows columns"]:
    """CT numbers; padding outside of the scan circle is air."""
    slope, intercept = _number(plane, "RescaleSlope", 1.0), _number(plane, "RescaleIntercept", 0.0)
    if slope == 0:
        raise UnreadableError("has a RescaleSlope of 0")
    values = raw.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    padding = _padding(raw, plane)
    if padding is not None:
        # Padding that looks like tissue is believed only where it reaches the picture's edge.
        outer = padding & ~_border_free(padding)
        values[outer] = AIR
    return values


def _number(plane: Plane, name: str, default: float) -> float:
    if plane.get(name) is None:
        return default
    value = plane.numbers(name, 1)
    if value is None:
        raise UnreadableError(f"has a {name} that is no number")
    return float(value[0])


def _padding(raw: Array, plane: Plane) -> Array | None:
    """Where a slice holds PixelPaddingValue, to PixelPaddingRangeLimit if there is one."""
    value = plane.numbers("PixelPaddingValue", 1)
    if value is None:
        return None
    limit = plane.numbers("PixelPaddingRangeLimit", 1)
    # The element's own sign says nothing: only its bits count.
    ends = (
        np.array([value[0], value[0] if limit is None else limit[0]])
        .astype(np.int64)
        .astype(raw.dtype)
    )
    padding = (raw >= ends.min()) & (raw <= ends.max())
    return padding if padding.any() else None


def _border_free(mask: Array) -> Array:
    """The parts of a mask that do not touch the picture's edge."""
    labels, _ = ndimage.label(mask)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return mask & ~np.isin(labels, np.unique(edge))


def _without_copies(stack: Stack, values: Array, remarks: list[str]) -> tuple[Stack, Array]:
    """One plane a position. Copies are left out, and one place where two scans meet is settled."""
    together = np.flatnonzero(np.diff(stack.heights) < SAME) + 1
    if not len(together):
        return stack, values
    differ = [k for k in together if not np.array_equal(values[..., k], values[..., k - 1])]
    if np.ptp(stack.heights) < SAME:
        raise UnreadableError("states one position for all slices (ImagePositionPatient)")
    if len(differ) > 1:
        raise UnreadableError(
            f"holds {len(differ)} positions twice with other values"
            f"{_difference(stack, differ)}: two reconstructions, phases or "
            "scans. Keep the files of one in the folder"
        )
    if len(together) > len(differ):
        remarks.append(f"left out {counted(len(together) - len(differ), 'slice')} held twice")
    if differ:
        remarks.append(
            f"two slices lie at one place (place {differ[0]} of the stack); the first was taken"
        )
    keep = np.ones(len(stack.planes), bool)
    keep[together] = False
    return _chosen(stack, keep), values[..., keep]


def _difference(stack: Stack, where: list[int]) -> str:
    """The element that tells two slices at one position apart."""
    for name in ("ConvolutionKernel", "AcquisitionNumber", "ImageType", "AcquisitionTime", "KVP"):
        if all(stack.planes[k].words(name) != stack.planes[k - 1].words(name) for k in where):
            return f" ({name} differs)"
    return ""


def _check_kernels(stack: Stack) -> None:
    """Raises UnreadableError where slices of two reconstructions alternate."""
    for name in ("ConvolutionKernel", "ImageType"):
        words = [plane.words(name) for plane in stack.planes]
        changes = sum(a != b for a, b in itertools.pairwise(words))
        if len(set(words)) > 1 and changes > 4 * len(set(words)):
            raise UnreadableError(
                f"slices of {len(set(words))} reconstructions alternate ({name} differs); keep the files of one in the folder"
            )


def _check_gaps(stack: Stack) -> None:
    """Raises UnreadableError where slices are missing, with the count and the places."""
    steps = np.diff(stack.heights)
    if is_even(stack.heights):
        return
    numbers = [plane.numbers("InstanceNumber", 1) for plane in stack.planes]
    known = None if any(n is None for n in numbers) else np.array([n[0] for n in numbers])
    missing = gaps(steps, known)
    if missing:
        count = sum(missing.values())
        where = ", ".join(
            f"{k + 1} and {k + 2} ({steps[k]:.1f} mm apart)" for k in list(missing)[:3]
        )
        more = f" and {len(missing) - 3} more places" if len(missing) > 3 else ""
        raise UnreadableError(
            f"about {counted(count, 'slice')} of {len(stack.planes) + count} "
            f"{'is' if count == 1 else 'are'} missing: between slices {where}{more} "
            "of the stack. Copy the series again"
        )


def _check_alike(stack: Stack, values: Float[Array, "columns rows n"]) -> None:
    """Raises UnreadableError for slices that look like neither of two like neighbours."""
    few = np.clip(values[::4, ::4], AIR, 2000.0)
    between = np.abs(few[..., 1:-1] - (few[..., :-2] + few[..., 2:]) / 2).mean((0, 1))
    across = np.abs(few[..., 2:] - few[..., :-2]).mean((0, 1))
    odd = np.flatnonzero((between > 100) & (between > 3 * across)) + 1
    # Slices without any picture between others.
    varied = np.ptp(few, axis=(0, 1)) > 0
    first, last = np.flatnonzero(varied)[[0, -1]] if varied.any() else (0, 0)
    flat = first + np.flatnonzero(~varied[first:last])
    wrong = sorted({*odd, *flat})
    if wrong:
        raise UnreadableError(
            f"{len(wrong)} of {len(stack.planes)} slices do not look like their neighbours: places "
            f"{ranges(int(k) + 1 for k in wrong)} of the stack "
            f"({places(stack.planes[k] for k in wrong)}). Are they damaged or of another scan?"
        )


def is_even(heights: Float[Array, "n"]) -> bool:
    """Returns True if slices lie at equal steps, but for rounding."""
    steps = (heights[-1] - heights[0]) / (len(heights) - 1)
    off = np.abs(heights - np.linspace(heights[0], heights[-1], len(heights))).max()
    return off <= max(0.05, 0.1 * steps)


def gaps(steps: Float[Array, "n"], numbers: Float[Array, "m"] | None = None) -> dict[int, int]:
    """Where slices are missing: how many, by the index of the step.

    A wide step is a gap where fewer than three equal ones follow each other between narrower
    ones; more are a region that was scanned so, as is a wide step that recurs over the whole
    stack. `numbers` are InstanceNumbers: where they skip as the steps do, slices are missing in
    any case.
    """
    runs = _runs(steps)
    found: dict[int, int] = {}
    for at, (first, last) in enumerate(runs):
        neighbours = [
            steps[runs[i][1 if i < at else 0]] for i in (at - 1, at + 1) if 0 <= i < len(runs)
        ]
        wide = neighbours and steps[first : last + 1].min() > WIDER * max(neighbours)
        if wide and last - first + 1 < REGION:
            found |= {
                k: max(1, round(steps[k] / max(neighbours)) - 1) for k in range(first, last + 1)
            }
    if _recur(sorted(found), len(steps)):
        found = {}
    return found | _skipped(steps, numbers)


def _runs(steps: Float[Array, "n"]) -> list[tuple[int, int]]:
    """First and last index of steps in a row that are about equal."""
    runs = [[0, 0]]
    for k in range(1, len(steps)):
        first = steps[runs[-1][0]]
        if max(steps[k], first) <= 1.25 * min(steps[k], first):
            runs[-1][1] = k
        else:
            runs.append([k, k])
    return [tuple(run) for run in runs]


def _recur(where: list[int], count: int) -> bool:
    """Returns True if the indices recur at one distance over the whole stack."""
    if len(where) < REGION:
        return False
    distances = np.diff(where)
    return (
        np.ptp(distances) == 0
        and where[0] <= distances[0]
        and count - where[-1] <= distances[0] + 1
    )


def _skipped(steps: Float[Array, "n"], numbers: Float[Array, "m"] | None) -> dict[int, int]:
    """Wide steps at which numbers skip as many slices as fit there."""
    if numbers is None or len(set(np.sign(np.diff(numbers)))) > 1:
        return {}
    jumps = np.abs(np.diff(numbers))
    jumps = jumps / np.median(jumps)
    usual = np.flatnonzero(jumps == 1)
    found = {}
    for k in np.flatnonzero(jumps >= 2) if len(usual) else ():
        # Nearest steps without a skip, on both sides.
        around = steps[[usual[usual < k][-1:].sum(), usual[usual > k][:1].sum()]]
        if np.abs(steps[k] / around / jumps[k] - 1).min() < 0.3:
            found[int(k)] = round(jumps[k]) - 1
    return found


def _placed(stack: Stack, values: Array, remarks: list[str]) -> Scan:
    """The volume on even steps, with an affine that holds the tilt."""
    slopes = _slopes(stack)
    angle = np.rad2deg(np.arctan(np.linalg.norm(slopes)))
    if angle > MAX_SHEAR:
        raise UnreadableError(
            f"its slices are shifted against each other by {angle:.0f} degrees, more than any gantry tilts"
        )
    if angle > 0.5:
        remarks.append(
            f"the gantry was tilted by {angle:.1f} degrees; the slices lie where they were taken"
        )
    elif _lies_about_tilt(stack):
        remarks.append(
            "GantryDetectorTilt says that the gantry was tilted, the slices' positions do not; they were followed"
        )
    stack, values = _aligned(stack, values, slopes, remarks)
    heights = stack.heights
    if is_even(heights):
        step = (heights[-1] - heights[0]) / (len(heights) - 1)
    else:
        steps = np.diff(heights)
        values, step = _evened(values, heights)
        remarks.append(
            f"slices lie {steps.min():.2f} to {steps.max():.2f} mm apart; they were resampled to {step:.2f} mm by their positions"
        )
    spacing = _spacings(stack).max(0)
    affine = np.eye(4)
    affine[:3, 0] = stack.axes[0] * spacing[0]
    affine[:3, 1] = stack.axes[1] * spacing[1]
    affine[:3, 2] = step * (np.append(slopes, 1.0) @ stack.axes)
    affine[:3, 3] = np.append(stack.offsets[0], heights[0]) @ stack.axes
    return Scan(values, LPS @ affine, remarks)


def _lies_about_tilt(stack: Stack) -> bool:
    tilt = stack.planes[0].numbers("GantryDetectorTilt", 1)
    return tilt is not None and abs(tilt[0]) > 1 and np.abs(stack.axes[2]).max() > 0.9999


def _spacings(stack: Stack) -> Float[Array, "n 2"]:
    """Millimetres between columns and between rows of each slice."""
    return np.array([plane.numbers("PixelSpacing", 2)[::-1] for plane in stack.planes])


def _slopes(stack: Stack) -> Float[Array, "2"]:
    """Shift along rows and columns for each mm along the normal, as most slices have it."""
    gradients = np.diff(stack.offsets, axis=0) / np.diff(stack.heights)[:, None]
    line = np.polyfit(stack.heights, stack.offsets, 1)[0]
    median = np.median(gradients, axis=0)
    # Rounded positions make single steps coarse; a line is better where all lie on it.
    off = _off_line(stack, line)
    return line if np.ptp(off, axis=0).max() < 0.5 * _spacings(stack).min() else median


def _off_line(stack: Stack, slopes: Float[Array, "2"]) -> Float[Array, "n 2"]:
    """Where a line at these slopes through each slice's first pixel starts, in mm."""
    return stack.offsets - (stack.heights - stack.heights[0])[:, None] * slopes


def _aligned(stack: Stack, values: Array, slopes: Array, remarks: list[str]) -> tuple[Stack, Array]:
    """Slices on the pixels of the widest one, where their place or PixelSpacing is another."""
    spacings, off = _spacings(stack), _off_line(stack, slopes)
    widest = int(spacings[:, 0].argmax())
    common, start = spacings[widest], off[widest]
    zoomed = np.abs(spacings / common - 1).max(1) > 1e-3
    moved = (np.abs(off - start) > 0.25 * common).any(1) | zoomed
    if moved.any():
        values = np.array(values)
        for k in np.flatnonzero(moved):
            scale, shift = common / spacings[k], (start - off[k]) / spacings[k]
            values[..., k] = ndimage.affine_transform(
                values[..., k], scale, shift, order=1, mode="constant", cval=AIR
            )
        what = "pixel sizes" if zoomed.any() else "places of the first pixel"
        remarks.append(
            f"{counted(int(moved.sum()), 'slice')} with other {what} were resampled to those of the widest"
        )
    return stack._replace(offsets=stack.offsets - off + start), values


def _evened(values: Array, heights: Float[Array, "n"]) -> tuple[Array, float]:
    """Slices at even steps, as fine as the finest region, each between its two neighbours."""
    span = heights[-1] - heights[0]
    step = max(FINEST, float(np.percentile(np.diff(heights), 10)))
    count = round(span / step) + 1
    if count * np.prod(values.shape[:2], dtype=np.int64) > MAX_VOXELS:
        raise UnreadableError("unpacks to more voxels than any CT has")
    positions = np.linspace(heights[0], heights[-1], count)
    below = np.clip(np.searchsorted(heights, positions, side="right") - 1, 0, len(heights) - 2)
    weights = (positions - heights[below]) / (heights[below + 1] - heights[below])
    evened = np.empty((count, *values.shape[1::-1]), np.float32)
    for k, (low, weight) in enumerate(zip(below, weights, strict=True)):
        evened[k] = ((1 - weight) * values[..., low] + weight * values[..., low + 1]).T
    return evened.transpose(2, 1, 0), float(span / (count - 1))
