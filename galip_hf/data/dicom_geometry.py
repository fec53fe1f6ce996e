"""Where DICOM slices lie: their order, the step from one to the next, and what to do if steps differ.

Positions are ImagePositionPatient in LPS+, mm; a slice's place is its position along the normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np

from ..model.errors import GalipError

SAME_DIRECTION, SAME_POSITION, UNEVEN = 1e-3, 1e-3, 0.1  # unit vectors; mm; share of the slices' distance
_MOST_SLICES = 8  # resampling may make so many slices of one


@dataclass(frozen=True, eq=False)
class SliceOrder:
    """How slices become a stack.

    Attributes:
        order: (n,) the slices' indices along their normal.
        step: (3,) LPS+, mm from one slice of the stack to the next.
        count: slices of the stack.
        places: (n,) where each of the ordered slices lies in the stack, in steps from its first slice;
            None where slice k lies at k.
    """

    order: np.ndarray
    step: np.ndarray
    count: int
    places: np.ndarray | None = None


def numbers(dataset: Any, tag: str) -> np.ndarray:
    """An element's values as a flat float64 array, empty where it is missing."""
    value = dataset.get(tag)
    return np.array([] if value is None else value, dtype=np.float64).reshape(-1)


def normal_of(orientation: Sequence[float] | np.ndarray) -> np.ndarray:
    """(3,) the direction across the slices, from ImageOrientationPatient."""
    rows, columns = np.asarray(orientation, dtype=np.float64).reshape(2, 3)
    return np.cross(rows, columns)


def evenly_spaced(positions: np.ndarray, normal: np.ndarray) -> bool:
    """Whether (n, 3) positions, sorted along the normal, are distinct and at even steps on a line."""
    if len(positions) < 2:
        return True
    distances = np.diff(positions @ normal)
    usual = float(np.median(distances))
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(positions))[:, None] * step, axis=1)
    return bool(
        distances.min() >= SAME_POSITION
        and off.max() <= UNEVEN * usual
        and np.abs(distances - usual).max() <= UNEVEN * usual
    )


def order_slices(headers: Sequence[Any], files: Sequence[str], name: str, uneven: str) -> SliceOrder:
    """Sort slices along their normal and find the step between them.

    Args:
        headers: one a slice, with ImagePositionPatient and an ImageOrientationPatient that all share.
        files: the file of each slice, for messages.
        name: the series, for messages.
        uneven: `refuse`, or `resample` to accept uneven distances.

    Raises:
        GalipError: two slices at one place, slices off a common line, or unevenly spaced ones.
    """
    normal = normal_of(numbers(headers[0], "ImageOrientationPatient"))
    positions = np.array([numbers(header, "ImagePositionPatient") for header in headers])
    order = np.argsort(positions @ normal, kind="stable")
    if len(headers) == 1:
        thickness = [numbers(headers[0], tag) for tag in ("SpacingBetweenSlices", "SliceThickness")]
        usable = [
            float(value[0]) for value in thickness if len(value) and np.isfinite(value[0]) and value[0] > 0
        ]
        return SliceOrder(order, normal * (usable[0] if usable else 1.0), 1)
    positions, names = positions[order], [files[index] for index in order]
    places = positions @ normal
    double = np.flatnonzero(np.diff(places) < SAME_POSITION)
    if len(double):
        raise GalipError(
            f"{name}: {len(double)} of {len(headers)} slices lie where another lies, the first at "
            f"{places[double[0]]:g} mm ({names[double[0]]} and {names[double[0] + 1]}), and no element that "
            "is looked at tells them apart; remove duplicates, or choose with --select Keyword=value"
        )
    if evenly_spaced(positions, normal):
        return SliceOrder(order, (positions[-1] - positions[0]) / (len(headers) - 1), len(headers))
    if uneven != "resample":
        raise GalipError(_uneven_message(positions, normal, names, name))
    return _resampled_order(order, positions, normal, names, name)


def _uneven_message(positions: np.ndarray, normal: np.ndarray, names: Sequence[str], name: str) -> str:
    places = positions @ normal
    distances = np.diff(places)
    usual = float(np.median(distances))
    worst = int(np.argmax(np.abs(distances - usual)))
    stray = _stray(positions, normal)
    if np.abs(distances - usual).max() <= UNEVEN * usual:
        what = "the slices do not follow one another on a straight line."
    else:
        what = (
            f"the slices are not evenly spaced: {distances[worst]:g} mm between those at {places[worst]:g} "
            f"and {places[worst + 1]:g} mm, usually {usual:g} mm; are slices missing (between {names[worst]} "
            f"and {names[worst + 1]})?"
        )
    advice = "" if stray is None else f" Without {names[stray]} the others are evenly spaced (a localiser?)."
    return f"{name}: {what}{advice} --uneven resample (uneven='resample' in Python) interpolates"


def _stray(positions: np.ndarray, normal: np.ndarray) -> int | None:
    """The slice without which the others are evenly spaced; None if there is no such slice."""
    if len(positions) < 4:
        return None
    for index in range(len(positions)):
        if evenly_spaced(np.delete(positions, index, axis=0), normal):
            return index
    return None


def _resampled_order(
    order: np.ndarray, positions: np.ndarray, normal: np.ndarray, names: Sequence[str], name: str
) -> SliceOrder:
    """Even steps as wide as the usual distance, from the first slice to the last."""
    places = positions @ normal
    span = positions[-1] - positions[0]
    share = (places - places[0]) / (places[-1] - places[0])
    off = np.linalg.norm(positions - positions[0] - share[:, None] * span, axis=1)
    usual = float(np.percentile(np.diff(places), 50, method="lower"))
    if off.max() > UNEVEN * usual:
        worst = int(np.argmax(off))
        raise GalipError(
            f"{name}: {names[worst]} lies {off[worst]:g} mm beside the line on which the first and the last "
            "slice lie, so the slices cannot be resampled; leave it out"
        )
    count = round(float(places[-1] - places[0]) / usual) + 1
    if count > _MOST_SLICES * len(positions):
        raise GalipError(
            f"{name}: resampling its {len(positions)} slices to {usual:g} mm would make {count} slices; "
            "leave out those that lie far from the others"
        )
    return SliceOrder(order, span / (count - 1), count, share * (count - 1))


def interpolate_slices(voxels: np.ndarray, places: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Linear interpolation between slices.

    Args:
        voxels: (columns, rows, n) float32.
        places: (n,) where the slices lie, increasing.
        wanted: (m,) where slices are wanted, between the first and the last of `places`.

    Returns:
        (columns, rows, m) float32. A slice wanted where one lies is that slice, unchanged.
    """
    above = np.clip(np.searchsorted(places, wanted), 1, len(places) - 1)
    weight = np.clip((wanted - places[above - 1]) / (places[above] - places[above - 1]), 0, 1)
    weight = np.where(np.abs(weight - np.rint(weight)) < 1e-6, np.rint(weight), weight)
    result = np.empty((*voxels.shape[:2], len(wanted)), np.float32)
    for index, (upper, part) in enumerate(zip(above, weight.astype(np.float32), strict=True)):
        result[..., index] = voxels[..., upper - 1] * (1 - part) + voxels[..., upper] * part
    return result


def nifti_header(first: Any, step: np.ndarray, shape: tuple[int, ...]) -> nib.Nifti1Header:
    """A NIfTI header that says where the voxels lie.

    Args:
        first: header of the first slice.
        step: (3,) LPS+, mm from slice to slice.
        shape: (columns, rows, slices).
    """
    rows, columns = numbers(first, "ImageOrientationPatient").reshape(2, 3)
    row_distance, column_distance = numbers(first, "PixelSpacing")
    # The first direction is that in which the column index grows, by the distance between columns.
    lps = np.column_stack([rows * column_distance, columns * row_distance, step])
    to_ras = np.diag([-1.0, -1.0, 1.0])
    affine = nib.affines.from_matvec(to_ras @ lps, to_ras @ numbers(first, "ImagePositionPatient"))
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.float32)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    if not np.allclose(header.get_qform(), affine, atol=SAME_POSITION):
        header["qform_code"] = 0  # a tilted gantry: quaternions cannot say it
    return header
