"""DICOM series: files in, `Volume` out (`dicom_writer` has the way back).

DICOM's world axes are LPS+ (PS3.3, C.7.6.2.1): x towards the patient's left, y posterior. A series becomes
a `Volume` whose file axes are (columns, rows, slices), the slices sorted along their normal, under the RAS+
affine that NIfTI has for the same scan; what is kept of each slice's header is `FileLayout.instances`.
`dicom_series` finds the series, `dicom_pixels` reads a file, `dicom_geometry` puts slices in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..model.errors import GalipError
from .dicom_decoding import PixelDecoder
from .dicom_geometry import (
    SAME_POSITION,
    interpolate_slices,
    nifti_header,
    normal_of,
    numbers,
    order_slices,
)
from .dicom_pixels import Slice, read_slices
from .dicom_series import Series, find_series
from .dicom_stacks import check_one_grid
from .volumes import Volume, nifti_layout, nifti_spacing

UNEVEN = ("refuse", "resample")
_AIR_HU = -1000.0
# These modalities measure: the values mean the same however they are to be shown.
_MEASURED = ("CT", "PT", "NM")


def read_series(
    series: Series | Sequence[Path], *, axis: str | None = None, uneven: str = "refuse", part: str = ""
) -> Volume:
    """Read one DICOM series: single-frame images, or frames of Enhanced multi-frame files.

    - Rescale slope and intercept (or the Modality LUT) are applied: CT comes in HU.
    - Padding (PixelPaddingValue, PixelPaddingRangeLimit) becomes air: -1000 HU in CT, elsewhere the smallest
      value that is not padding, or 0 if that is lower.
    - MONOCHROME1 images are inverted, so that air is dark; `Volume.to_source_array` inverts them back.
    - Copies of an image are dropped; Siemens mosaics are cut into their slices.

    What was assumed or mended is in `Volume.notes`. Transfer syntaxes: all those pydicom decodes by itself or
    through GDCM (RLE, JPEG lossless, JPEG-LS, JPEG 2000, deflated).

    Args:
        series: one of `find_series`; or the files of one series in any order.
        axis: `axial`, `coronal` or `sagittal` slices by the affine; None: axial, see `Volume`.
        uneven: `refuse` slices at uneven distances, or `resample` them linearly to even ones.
        part: of files that hold several stacks, which to read (`Series.part`).

    Raises:
        GalipError: a corrupt file, DICOM without a grey image or without geometry, data compressed in a way
            nothing installed decodes, files of several series, slices that are missing, double or differ in
            size or orientation, a mosaic whose tiles are not described.
    """
    if uneven not in UNEVEN:
        raise GalipError(f"uneven is {uneven!r}; expected {' or '.join(UNEVEN)}")
    series = series if isinstance(series, Series) else _single_series(list(series), part)
    name = str(series.path)
    check_one_grid(series.frames)
    slices = _read_all(series)
    slices, notes = _without_copies(slices, name)
    _check_mosaics(slices)
    notes = [*series.notes, *notes, *_unit_notes(slices)]
    order = order_slices([one.header for one in slices], [one.file.name for one in slices], name, uneven)
    slices = [slices[index] for index in order.order]
    padding_notes, inverted_at = _mend_values(slices)
    headers = _with_study([one.header for one in slices])
    if slices[0].guessed_direction:
        notes.append(
            "Siemens mosaic without a CSA header: its slices are taken to follow one another along the "
            "normal of the image, which may be the wrong way round"
        )
    voxels = np.stack([one.image for one in slices]).transpose(2, 1, 0)
    del slices
    if order.places is not None:
        voxels = interpolate_slices(voxels, order.places, np.arange(order.count, dtype=np.float64))
        notes.append(
            f"slices at uneven distances: {len(headers)} slices were resampled to {order.count}, "
            f"{np.linalg.norm(order.step):g} mm apart; NIfTI and other files have these, a derived DICOM "
            "series the source's positions"
        )
    layout = nifti_layout(nifti_header(headers[0], order.step, voxels.shape), name, axis)
    layout = replace(
        layout,
        instances=tuple(headers),
        instance_places=None if order.places is None else tuple(map(float, order.places)),
        inverted_at=inverted_at,
    )
    return Volume(
        array=layout.arrange(voxels),
        path=Path(name),
        spacing=nifti_spacing(layout),
        source=layout,
        notes=(*notes, *padding_notes),
    )


def _single_series(files: list[Path], part: str) -> Series:
    """The one series that files are, or the stack of it named `part`."""
    found = find_series(files)
    chosen = [one for one in found if one.part == part] if part and len(found) > 1 else found
    if len(chosen) == 1:
        return chosen[0]
    for one in found:
        if not one.frames:
            raise GalipError(f"{one.path}: not a readable DICOM file; copy it again")
    if len({one.uid for one in found}) == 1:
        parts = ", ".join(one.part or one.path.name for one in found[:4])
        raise GalipError(f"{found[0].path}: holds {len(found)} stacks ({parts}); give one of them")
    other = next(one for one in found if one.uid != found[0].uid)
    raise GalipError(
        f"{other.files[0]}: is of another series ({other.uid}) than {found[0].files[0].name} "
        f"({found[0].uid}); give each series by itself"
    )


def _read_all(series: Series) -> list[Slice]:
    wanted: dict[Path, set[int] | None] = {file: None for file in series.files}
    for frame in series.frames:
        if frame.number is not None:
            wanted[frame.path] = (wanted[frame.path] or set()) | {frame.number}
    slices: list[Slice] = []
    with PixelDecoder() as decoder:
        for file, frames in wanted.items():
            slices += read_slices(file, decoder, None if frames is None else frozenset(frames))
    return slices


def _without_copies(slices: list[Slice], name: str) -> tuple[list[Slice], list[str]]:
    """Drop images that are there twice: at one place, with the same pixels.

    Raises:
        GalipError: two images at one place with one SOPInstanceUID and different pixels.
    """
    normal = normal_of(numbers(slices[0].header, "ImageOrientationPatient"))
    kept: dict[int, list[Slice]] = {}
    copies = []
    for one in slices:
        place = float(numbers(one.header, "ImagePositionPatient") @ normal) / SAME_POSITION
        near = [other for key in (-1, 0, 1) for other in kept.get(round(place) + key, [])]
        for other in near:
            if one.image.shape == other.image.shape and np.array_equal(one.image, other.image):
                copies.append(one.file.name)
                break
            uid = one.header.get("SOPInstanceUID")
            numbers_ = [s.header.get("ReferencedFrameNumber") for s in (one, other)]
            if uid and uid == other.header.get("SOPInstanceUID") and numbers_[0] == numbers_[1]:
                raise GalipError(
                    f"{one.file}: has the SOPInstanceUID of {other.file.name} ({uid}) but other pixels; "
                    f"remove the wrong one of the two from {name}"
                )
        else:
            kept.setdefault(round(place), []).append(one)
    if not copies:
        return slices, []
    listing = ", ".join(copies[:3]) + (", …" if len(copies) > 3 else "")
    note = f"{len(copies)} of {len(slices)} images are exact copies of others and were left out ({listing})"
    return [one for group in kept.values() for one in group], [note]


def _check_mosaics(slices: Sequence[Slice]) -> None:
    """Refuse a single image that calls itself a mosaic and does not say of how many tiles."""
    if len(slices) == 1 and slices[0].from_mosaic is None:
        raise GalipError(
            f"{slices[0].file}: ImageType says MOSAIC (a volume's slices as the tiles of one Siemens image), "
            "but neither (0019,100A) NumberOfImagesInMosaic nor the CSA header is there to say how many; "
            "export it with private elements kept, or as single slices"
        )


def _unit_notes(slices: Sequence[Slice]) -> list[str]:
    """What speaks against the values of a CT being HU."""
    if slices[0].header.get("Modality") != "CT":
        return []
    missing = sum(not one.is_rescaled for one in slices)
    types = {one.rescale_type for one in slices} - {"", "HU", "US"}  # US is unspecified: GDCM writes it
    if missing:
        return [
            f"CT without RescaleSlope and RescaleIntercept ({missing} of {len(slices)} images): the stored "
            f"values, from {min(float(one.image.min()) for one in slices):g} to "
            f"{max(float(one.image.max()) for one in slices):g}, are taken as HU, which they may not be"
        ]
    if types:
        return [f"CT whose RescaleType is {', '.join(sorted(types))}: the values may not be HU"]
    lowest = min(
        float(one.image[~one.padding if one.padding is not None else ...].min(initial=np.inf))
        for one in slices
    )
    if lowest >= 0:
        return [f"CT whose smallest value is {lowest:g}: air would have -1000, so the values may not be HU"]
    return []


def _mend_values(slices: Sequence[Slice]) -> tuple[list[str], float | None]:
    """Invert MONOCHROME1 images and make padding air, in place.

    Returns notes, and `FileLayout.inverted_at`.
    """
    modality = str(slices[0].header.get("Modality") or "")
    known = [one.image if one.padding is None else one.image[~one.padding] for one in slices]
    known = [values for values in known if values.size]
    if not known:
        return [], None  # padding alone: nothing to compare it with
    is_hu = modality == "CT" and all(one.is_rescaled for one in slices)
    notes, inverted_at = [], None
    if all(one.is_inverted for one in slices):
        inverted_at = _inversion(slices, known, modality)
        if inverted_at is None:
            notes.append(
                f"PhotometricInterpretation is MONOCHROME1, but the background of this {modality} has the "
                "lowest values: it was not inverted"
            )
        else:
            for one in slices:
                one.image = inverted_at - one.image
            known = [inverted_at - values for values in known]
            notes.append(
                f"PhotometricInterpretation is MONOCHROME1: translated as {inverted_at:g} minus the stored "
                "values; translations on the input's scale are inverted back when written"
            )
    air = _AIR_HU if is_hu else min(0.0, *(float(values.min()) for values in known))
    changed = total = 0
    for one in slices:
        total += one.image.size
        if one.padding is not None:
            changed += int((one.image[one.padding] != air).sum())
            one.image = np.where(one.padding, np.float32(air), one.image)
            one.padding = None
    if changed:
        notes.append(
            f"padding (PixelPaddingValue), {changed / total:.1%} of the voxels, was taken as air "
            f"({air:g}{' HU' if is_hu else ''})"
        )
    return notes, inverted_at


def _inversion(slices: Sequence[Slice], known: Sequence[np.ndarray], modality: str) -> float | None:
    """The number from which MONOCHROME1 values are subtracted; None where they are upright as stored.

    Air, the darkest on the screen, has the highest stored values: they become 0 (-1000 HU in CT). The 99.9th
    percentile stands for them, so that a burnt-in label does not shift the rest. Values that measure (HU,
    activity) are inverted only where the border of the images, which is air, does have the high ones.
    """
    values = np.concatenate([part.ravel() for part in known])
    highest = float(np.percentile(values, 99.9, method="higher"))
    if modality in _MEASURED:
        border = np.concatenate(
            [np.r_[s.image[0], s.image[-1], s.image[:, 0], s.image[:, -1]] for s in slices]
        )
        if float(np.median(border)) < (float(values.min()) + highest) / 2:
            return None
    return highest + (_AIR_HU if modality == "CT" else 0.0)


def _with_study(headers: list[Any]) -> list[Any]:
    """Headers without a study or frame of reference get one, new and the same for all slices of the scan.

    So derived series of two scans without UIDs never share a study.
    """
    from pydicom.uid import generate_uid

    for tag in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not headers[0].get(tag):
            uid = generate_uid()
            for header in headers:
                setattr(header, tag, uid)
    return headers


__all__ = ["UNEVEN", "read_series"]
