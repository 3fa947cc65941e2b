"""CT series in DICOM files: slices are placed by their positions, or the series is refused."""

import itertools
import pathlib
import warnings
from typing import NamedTuple

import numpy as np
import pydicom
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from pydicom.pixels import pixel_array
from scipy import ndimage

from data_builders.errors import UnreadableError
from data_builders.volumes.dicom import Plane, counted, places, planes_of, ranges
from data_builders.volumes.scan import AIR, LPS, MAX_SHEAR, MAX_VOXELS, Scan

SAME = 0.01  # mm between positions that count as one
REGION = 3  # this many equal steps in a row are a protocol's, fewer are a gap
WIDER = 1.6  # a step this many times wider than its neighbours is a gap
FINEST = 0.4  # mm between resampled slices, at least


class Stack(NamedTuple):
    """Planes in the order of their positions.

    Attributes:
      planes: `n` slices, upwards along their normal.
      heights: `(n,)`, positions in mm along the normal.
      offsets: `(n, 2)`, positions in mm of the first pixel along rows and columns.
      axes: `(3, 3)`, the directions of row, column and normal in LPS, one in each row.
    """

    planes: list[Plane]
    heights: Float[Array, "n"]
    offsets: Float[Array, "n 2"]
    axes: Float[Array, "3 3"]


def read_series(path: pathlib.Path) -> Scan:
    """Reads a folder's only CT series, or an enhanced CT of one file.

    Tilted and uneven slices are placed by their positions. Raises UnreadableError.
    """
    # Sort the slices.
    planes, remarks = planes_of(path)
    if len(planes) < 2:
        advice = "; name the folder that holds the series" if path.is_file() else ""
        raise UnreadableError(f"holds 1 slice{advice}")
    stack = _sorted(planes)
    if len(planes) * np.prod(planes[0].shape, dtype=np.int64) > MAX_VOXELS:
        raise UnreadableError("unpacks to more voxels than any CT has")

    # Decode, check and place them.
    values = _pixels(stack, remarks)
    stack, values = _without_copies(stack, values, remarks)
    _check_kernels(stack)
    _check_gaps(stack)
    _check_alike(stack, values)
    return _placed(stack, values, remarks)


def _sorted(planes: list[Plane]) -> Stack:
    """Returns the planes in the order of their positions along the normal."""
    orientations = [plane.required("ImageOrientationPatient", 6) for plane in planes]
    cosines = np.median(orientations, axis=0).reshape(2, 3)
    row = cosines[0] / np.linalg.norm(cosines[0])
    normal = np.cross(row, cosines[1])
    normal /= np.linalg.norm(normal)
    axes = np.stack([row, np.cross(normal, row), normal])
    positions = np.array([plane.required("ImagePositionPatient", 3) for plane in planes]) @ axes.T
    order = np.argsort(positions[:, 2], kind="stable")
    return Stack(
        planes=[planes[k] for k in order],
        heights=positions[order, 2],
        offsets=positions[order, :2],
        axes=axes,
    )


def _chosen(stack: Stack, keep: Bool[Array, "n"]) -> Stack:
    """Returns the planes of a stack that `keep` marks."""
    planes = [plane for plane, kept in zip(stack.planes, keep, strict=True) if kept]
    return stack._replace(planes=planes, heights=stack.heights[keep], offsets=stack.offsets[keep])


def _pixels(stack: Stack, remarks: list[str]) -> Float[Array, "columns rows n"]:
    """Returns all planes in HU. Raises UnreadableError that lists all undecodable ones."""
    # Decode. Frames of one file follow one another, so that it is read once.
    shape = stack.planes[0].shape
    values = np.empty((len(stack.planes), *shape), np.float32)
    failed: list[int] = []
    masked = 0
    path: pathlib.Path | None = None
    frames = np.empty((0, *shape))
    for k, plane in enumerate(stack.planes):
        try:
            if plane.path != path:
                path = plane.path
                frames = _frames(path)
            raw, changed = _stored_bits(frames[plane.frame], plane)
            values[k] = _hounsfield(raw, plane)
            masked += changed
        except UnreadableError:
            raise
        except Exception:
            failed.append(k)
            path = None

    # Report.
    if failed:
        raise UnreadableError(
            f"{len(failed)} of {len(stack.planes)} slices are truncated or can't be decoded: "
            f"places {ranges(k + 1 for k in failed)} of the stack "
            f"({places(stack.planes[k] for k in failed)}). Copy the series again"
        )
    if masked:
        slices = counted(masked, "slice")
        remarks.append(f"bits above BitsStored, such as overlays, were removed from {slices}")
    return values.transpose(2, 1, 0)


def _frames(path: pathlib.Path) -> Array:
    """Returns all frames of a file, `(frames, rows, columns)`. Raises any error of its decoder."""
    with warnings.catch_warnings():
        # pydicom only warns of values that end early.
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*(end of file|End of file|delimiter).*")
        data = pydicom.dcmread(path, force=True)
        if not getattr(data.file_meta, "TransferSyntaxUID", None):
            data.file_meta.TransferSyntaxUID = _plain_syntax(data)
        # Unused bits are corrected here, since pydicom ignores HighBit.
        pixels = pixel_array(data, correct_unused_bits=False)
    return pixels.reshape(-1, int(data.Rows), int(data.Columns))


def _plain_syntax(data: pydicom.Dataset) -> pydicom.uid.UID:
    """Returns the uncompressed transfer syntax that a file without one was read with."""
    implicit, little = data.original_encoding
    if implicit:
        return pydicom.uid.ImplicitVRLittleEndian
    return pydicom.uid.ExplicitVRLittleEndian if little else pydicom.uid.ExplicitVRBigEndian


def _stored_bits(raw: Array, plane: Plane) -> tuple[Array, bool]:
    """Returns the values within BitsStored, and True if other bits were set."""
    header = plane.header
    allocated = raw.dtype.itemsize * 8
    stored = int(header.get("BitsStored") or 0)
    if raw.dtype.kind not in "iu" or not 0 < stored < allocated:
        return raw, False
    high = int(header.get("HighBit") or stored - 1)
    shift = high + 1 - stored if stored - 1 <= high < allocated else 0
    # To the left, so that the sign is the highest bit, and back.
    left = (raw << (allocated - stored - shift)) if allocated > stored + shift else raw
    values = left >> (allocated - stored)
    return values, not np.array_equal(values, raw)


def _hounsfield(raw: Array, plane: Plane) -> Float[Array, "rows columns"]:
    """Returns CT numbers, with air for padding outside of the scan circle."""
    slope = _number(plane, "RescaleSlope", 1.0)
    intercept = _number(plane, "RescaleIntercept", 0.0)
    if slope == 0:
        raise UnreadableError("has a RescaleSlope of 0")
    values = raw.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    padding = _padding(raw, plane)
    if padding is not None:
        values[_reaching_edge(padding)] = AIR  # elsewhere it may be tissue
    return values


def _number(plane: Plane, name: str, default: float) -> float:
    """Returns an element's number, `default` without the element. Raises UnreadableError."""
    if plane.get(name) is None:
        return default
    value = plane.numbers(name, 1)
    if value is None:
        raise UnreadableError(f"has a {name} that is not a number")
    return float(value[0])


def _padding(raw: Array, plane: Plane) -> Bool[Array, "rows columns"] | None:
    """Returns the pixels of PixelPaddingValue, or up to PixelPaddingRangeLimit; None for none."""
    value = plane.numbers("PixelPaddingValue", 1)
    if value is None:
        return None
    limit = plane.numbers("PixelPaddingRangeLimit", 1)
    # Only the elements' bits count: their sign may be that of another type.
    stated = np.array([value[0], value[0] if limit is None else limit[0]])
    ends = stated.astype(np.int64).astype(raw.dtype)
    padding = (raw >= ends.min()) & (raw <= ends.max())
    return padding if padding.any() else None


def _reaching_edge(mask: Bool[Array, "rows columns"]) -> Bool[Array, "rows columns"]:
    """Returns the parts of a mask that reach the picture's edge."""
    labels, _ = ndimage.label(mask)
    edge = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return mask & np.isin(labels, np.unique(edge))


def _without_copies(stack: Stack, values: Array, remarks: list[str]) -> tuple[Stack, Array]:
    """Returns one plane for each position.

    Copies are left out. Two scans may meet at one position. Raises UnreadableError for more.
    """
    # Planes at the position of the one before, and those of them that differ from it.
    together = np.flatnonzero(np.diff(stack.heights) < SAME) + 1
    if not len(together):
        return stack, values
    differ = [int(k) for k in together if not np.array_equal(values[..., k], values[..., k - 1])]
    if np.ptp(stack.heights) < SAME:
        raise UnreadableError("states one position for all slices (ImagePositionPatient)")
    if len(differ) > 1:
        raise UnreadableError(
            f"holds {len(differ)} positions twice with different values"
            f"{_difference(stack, differ)}: two reconstructions, phases or "
            "scans. Keep the files of one in the folder"
        )

    # Leave them out.
    if len(together) > len(differ):
        remarks.append(f"left out {counted(len(together) - len(differ), 'slice')} held twice")
    if differ:
        remarks.append(
            f"two slices lie at one place (place {differ[0]} of the stack); the first was used"
        )
    keep = np.ones(len(stack.planes), bool)
    keep[together] = False
    return _chosen(stack, keep), values[..., keep]


def _difference(stack: Stack, indices: list[int]) -> str:
    """Returns words on the element in which slices differ from those before, "" without one."""
    for name in ("ConvolutionKernel", "AcquisitionNumber", "ImageType", "AcquisitionTime", "KVP"):
        if all(stack.planes[k].words(name) != stack.planes[k - 1].words(name) for k in indices):
            return f" ({name} differs)"
    return ""


def _check_kernels(stack: Stack) -> None:
    """Raises UnreadableError where slices of two reconstructions alternate."""
    for name in ("ConvolutionKernel", "ImageType"):
        words = [plane.words(name) for plane in stack.planes]
        kinds = len(set(words))
        changes = sum(a != b for a, b in itertools.pairwise(words))
        if kinds > 1 and changes > 4 * kinds:
            raise UnreadableError(
                f"slices of {kinds} reconstructions alternate ({name} differs); "
                "keep the files of one in the folder"
            )


def _check_gaps(stack: Stack) -> None:
    """Raises UnreadableError where slices are missing, with the count and the places."""
    if is_even(stack.heights):
        return
    steps = np.diff(stack.heights)
    missing = gaps(steps, _instance_numbers(stack))
    if missing:
        count = sum(missing.values())
        slices = counted(count, "slice")
        are = "is" if count == 1 else "are"
        listed = ", ".join(
            f"{k + 1} and {k + 2} ({steps[k]:.1f} mm apart)" for k in list(missing)[:3]
        )
        more = f" and {len(missing) - 3} more places" if len(missing) > 3 else ""
        raise UnreadableError(
            f"about {slices} of {len(stack.planes) + count} {are} missing: "
            f"between slices {listed}{more} of the stack. Copy the series again"
        )


def _instance_numbers(stack: Stack) -> Float[Array, "n"] | None:
    """Returns the slices' InstanceNumbers, None where one is absent."""
    numbers: list[float] = []
    for plane in stack.planes:
        number = plane.numbers("InstanceNumber", 1)
        if number is None:
            return None
        numbers.append(number[0])
    return np.array(numbers)


def _check_alike(stack: Stack, values: Float[Array, "columns rows n"]) -> None:
    """Raises UnreadableError for slices unlike both neighbours where these are alike."""
    # Slices that differ.
    few = np.clip(values[::4, ::4], AIR, 2000.0)
    between = np.abs(few[..., 1:-1] - (few[..., :-2] + few[..., 2:]) / 2).mean((0, 1))
    across = np.abs(few[..., 2:] - few[..., :-2]).mean((0, 1))
    odd = np.flatnonzero((between > 100) & (between > 3 * across)) + 1

    # Slices without any picture between others.
    varied = np.flatnonzero(np.ptp(few, axis=(0, 1)) > 0)
    flat = np.setdiff1d(np.arange(varied[0], varied[-1]), varied) if len(varied) else varied
    wrong = sorted({*odd, *flat})
    if wrong:
        raise UnreadableError(
            f"{len(wrong)} of {len(stack.planes)} slices do not look like their neighbours: places "
            f"{ranges(int(k) + 1 for k in wrong)} of the stack "
            f"({places(stack.planes[k] for k in wrong)}). Are they damaged or of another scan?"
        )


def is_even(heights: Float[Array, "n"]) -> bool:
    """Returns True if slices lie at equal steps, up to rounding."""
    step = (heights[-1] - heights[0]) / (len(heights) - 1)
    off = np.abs(heights - np.linspace(heights[0], heights[-1], len(heights))).max()
    return bool(off <= max(0.05, 0.1 * step))


def gaps(steps: Float[Array, "s"], numbers: Float[Array, "n"] | None = None) -> dict[int, int]:
    """Returns how many slices are missing, by the index of the step where they are.

    A wide step is a gap where fewer than three equal ones follow each other between narrower
    ones. More of them are a region that was scanned so, as is a wide step that recurs over the
    whole stack. `numbers` are InstanceNumbers: where they skip as the steps do, slices are missing
    in any case.
    """
    runs = _runs(steps)
    missing: dict[int, int] = {}
    for index, run in enumerate(runs):
        # The last step before this run, and the first one after it.
        neighbours: list[float] = []
        if index > 0:
            neighbours.append(steps[runs[index - 1].last])
        if index + 1 < len(runs):
            neighbours.append(steps[runs[index + 1].first])
        if not neighbours or run.last - run.first + 1 >= REGION:
            continue
        usual = max(neighbours)
        if steps[run.first : run.last + 1].min() > WIDER * usual:
            for k in range(run.first, run.last + 1):
                missing[k] = max(1, round(steps[k] / usual) - 1)
    if _recur(sorted(missing), len(steps)):
        missing = {}
    return missing | _skipped(steps, numbers)


class _Run(NamedTuple):
    """The first and the last index of about equal steps in a row."""

    first: int
    last: int


def _runs(steps: Float[Array, "s"]) -> list[_Run]:
    """Returns all runs of about equal steps."""
    runs: list[_Run] = []
    first = 0
    for k in range(1, len(steps)):
        if max(steps[k], steps[first]) > 1.25 * min(steps[k], steps[first]):
            runs.append(_Run(first, k - 1))
            first = k
    return [*runs, _Run(first, len(steps) - 1)]


def _recur(indices: list[int], count: int) -> bool:
    """Returns True if the indices recur at one distance over the whole stack."""
    if len(indices) < REGION:
        return False
    distances = np.diff(indices)
    distance = distances[0]
    whole = indices[0] <= distance and count - indices[-1] <= distance + 1
    return bool(np.ptp(distances) == 0 and whole)


def _skipped(steps: Float[Array, "s"], numbers: Float[Array, "n"] | None) -> dict[int, int]:
    """Returns the wide steps at which numbers skip as many slices as fit there."""
    if numbers is None or len(set(np.sign(np.diff(numbers)))) > 1:
        return {}
    jumps = np.abs(np.diff(numbers))
    jumps = jumps / np.median(jumps)
    usual = np.flatnonzero(jumps == 1)
    if not len(usual):
        return {}
    missing: dict[int, int] = {}
    for k in np.flatnonzero(jumps >= 2):
        # The nearest steps without a skip, on both sides.
        around = steps[[usual[usual < k][-1:].sum(), usual[usual > k][:1].sum()]]
        if np.abs(steps[k] / around / jumps[k] - 1).min() < 0.3:
            missing[int(k)] = round(jumps[k]) - 1
    return missing


def _placed(stack: Stack, values: Array, remarks: list[str]) -> Scan:
    """Returns the volume on even steps, with an affine that includes the tilt."""
    # Tilt.
    slopes = _slopes(stack)
    _check_tilt(stack, slopes, remarks)

    # Pixels and steps of one size.
    stack, values = _aligned(stack, values, slopes, remarks=remarks)
    heights = stack.heights
    if is_even(heights):
        step = (heights[-1] - heights[0]) / (len(heights) - 1)
    else:
        steps = np.diff(heights)
        values, step = _evened(values, heights)
        remarks.append(
            f"slices lie {steps.min():.2f} to {steps.max():.2f} mm apart; "
            f"they were resampled to {step:.2f} mm by their positions"
        )

    # The affine.
    spacing = _spacings(stack).max(0)
    affine = np.eye(4)
    affine[:3, 0] = stack.axes[0] * spacing[0]
    affine[:3, 1] = stack.axes[1] * spacing[1]
    affine[:3, 2] = step * (np.append(slopes, 1.0) @ stack.axes)
    affine[:3, 3] = np.append(stack.offsets[0], heights[0]) @ stack.axes
    return Scan(values, LPS @ affine, remarks)


def _check_tilt(stack: Stack, slopes: Float[Array, "2"], remarks: list[str]) -> None:
    """Adds a remark on a tilted gantry. Raises UnreadableError for more than one can tilt."""
    angle = np.rad2deg(np.arctan(np.linalg.norm(slopes)))
    if angle > MAX_SHEAR:
        raise UnreadableError(
            f"its slices are shifted against each other by {angle:.0f} degrees, "
            "more than any gantry tilts"
        )
    if angle > 0.5:
        remarks.append(
            f"the gantry was tilted by {angle:.1f} degrees; the slices lie where they were taken"
        )
    elif _contradicts_tilt(stack):
        remarks.append(
            "GantryDetectorTilt says that the gantry was tilted, but the slices' positions do "
            "not; the positions were used"
        )


def _contradicts_tilt(stack: Stack) -> bool:
    """Returns True if the header states a tilt, and the slices' normal is an axis."""
    tilt = stack.planes[0].numbers("GantryDetectorTilt", 1)
    if tilt is None:
        return False
    return bool(abs(tilt[0]) > 1 and np.abs(stack.axes[2]).max() > 0.9999)


def _spacings(stack: Stack) -> Float[Array, "n 2"]:
    """Returns the distance in mm between columns and between rows, for each slice."""
    return np.array([plane.required("PixelSpacing", 2)[::-1] for plane in stack.planes])


def _slopes(stack: Stack) -> Float[Array, "2"]:
    """Returns the shift along rows and columns for each mm along the normal, of most slices."""
    gradients = np.diff(stack.offsets, axis=0) / np.diff(stack.heights)[:, None]
    line = np.polyfit(stack.heights, stack.offsets, 1)[0]
    median = np.median(gradients, axis=0)
    # Rounded positions make single steps coarse; a line is better where all lie on it.
    off = _off_line(stack, line)
    return line if np.ptp(off, axis=0).max() < 0.5 * _spacings(stack).min() else median


def _off_line(stack: Stack, slopes: Float[Array, "2"]) -> Float[Array, "n 2"]:
    """Returns the offsets without the slopes, in mm: all equal where they are on one line."""
    return stack.offsets - (stack.heights - stack.heights[0])[:, None] * slopes


def _aligned(stack: Stack, values: Array, slopes: Array, remarks: list[str]) -> tuple[Stack, Array]:
    """Returns all slices on the pixels of the widest one.

    Slices at other places or with another PixelSpacing are resampled.
    """
    # Slices that differ from the widest.
    spacings = _spacings(stack)
    off = _off_line(stack, slopes)
    widest = int(spacings[:, 0].argmax())
    common = spacings[widest]
    start = off[widest]
    zoomed = np.abs(spacings / common - 1).max(1) > 1e-3
    moved = (np.abs(off - start) > 0.25 * common).any(1) | zoomed

    # Resample them.
    if moved.any():
        values = np.array(values)
        for k in np.flatnonzero(moved):
            values[..., k] = ndimage.affine_transform(
                values[..., k],
                common / spacings[k],
                (start - off[k]) / spacings[k],
                order=1,
                mode="constant",
                cval=AIR,
            )
        slices = counted(int(moved.sum()), "slice")
        difference = "pixel sizes" if zoomed.any() else "places of the first pixel"
        remarks.append(f"{slices} with other {difference} were resampled to those of the widest")
    return stack._replace(offsets=stack.offsets - off + start), values


def _evened(values: Array, heights: Float[Array, "n"]) -> tuple[Array, float]:
    """Returns slices at even steps, and the step in mm.

    The steps are as fine as the finest region's. Each slice is interpolated between two neighbours.
    """
    # The positions, and the slices below them.
    span = heights[-1] - heights[0]
    step = max(FINEST, float(np.percentile(np.diff(heights), 10)))
    count = round(span / step) + 1
    if count * np.prod(values.shape[:2], dtype=np.int64) > MAX_VOXELS:
        raise UnreadableError("unpacks to more voxels than any CT has")
    positions = np.linspace(heights[0], heights[-1], count)
    below = np.clip(np.searchsorted(heights, positions, side="right") - 1, 0, len(heights) - 2)
    weights = (positions - heights[below]) / (heights[below + 1] - heights[below])

    # Interpolate.
    evened = np.empty((count, *values.shape[1::-1]), np.float32)
    for k, (low, weight) in enumerate(zip(below, weights, strict=True)):
        evened[k] = ((1 - weight) * values[..., low] + weight * values[..., low + 1]).T
    return evened.transpose(2, 1, 0), float(span / (count - 1))
