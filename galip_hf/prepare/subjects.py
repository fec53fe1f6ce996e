"""One subject: read its scans, bring them to one grid, normalise them, choose slices.

- Intensities: the window of the scan as read, by the domain's rule (`normalize_scan`), as in
  `galip-hf translate`, before resampling.
- Grid: that of the reference domain. `header` resamples the other scans onto it by the files' geometry;
  `rigid` registers them first. A scan that is already in place is not touched.
- Slices: those consecutive ones, of the number asked for, that hold most foreground in the reference.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.grid import Grid
from ..data.masks import read_mask
from ..data.normalization import normalize_scan
from ..data.table_writer import MINIMUM_FOREGROUND
from ..foreground import above_air, body_box, body_mask
from ..model.errors import GalipError
from ..model.intensity import IntensityNormalizer
from ..model.slice_geometry import PLANES
from .images import ScanImage, read_image
from .registration import check_pair, register_rigid, resample
from .sources import Scan

SPACINGS = ("fit", "native")
REGISTRATIONS = ("rigid", "header")
_SQUARE_TOLERANCE = 0.01  # sides of a pixel closer than this count as equal
_PERCENTILES = (1, 50, 99)


@dataclass(frozen=True)
class Settings:
    """How subjects are prepared. Everything here changes the result.

    Attributes:
        rules: domain name to intensity rule, in the order of the model's labels.
        image_size: side of the slices in the table.
        reference: domain whose grid is used; None: the subject's first.
        registration: `rigid` or `header`.
        aligned: domains not registered when they are on the reference's grid: they were acquired with it
            (IXI's PD) or deformed to it (Gold Atlas's CT).
        slices: number of slices; None: all.
        spacing: side of a pixel in mm; `fit`: the scan's own pixels, made square, or larger ones if its field
            of view would not fit; `native`: the scan's own, whatever they are.
        seed: of the registration's sampling.
    """

    rules: dict[str, dict[str, Any]]
    image_size: int = 256
    reference: str | None = None
    registration: str = "header"
    aligned: tuple[str, ...] = ()
    slices: int | None = None
    spacing: float | str = "fit"
    seed: int = 0


@dataclass
class PreparedSubject:
    """`volumes`: domain to (S, H, W) float32 in model space. `masks`: of the domains whose scan came with a
    body mask, (S, H, W) bool. `record`: what was measured, as JSON values.
    """

    volumes: dict[str, np.ndarray] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


def prepare_subject(scans: Sequence[Scan], settings: Settings) -> PreparedSubject:
    """Prepare all scans of one subject; a scan that cannot be used is listed in the record's `excluded`."""
    images, excluded = _read(scans, settings)
    record: dict[str, Any] = {"subject": scans[0].subject, "excluded": excluded, "scans": {}, "pairs": {}}
    prepared = PreparedSubject(record=record)
    if not images:
        return prepared
    first = next(name for name in settings.rules if name in images)
    reference = settings.reference if settings.reference in images else first
    grid = _target_grid(images[reference].grid, settings)
    for domain in sorted(images, key=lambda name: (name != reference, list(settings.rules).index(name))):
        try:
            normal, scan_record = _normalised(images[domain], domain, settings)
            transform = _transform(images, domain, reference, settings)
            volume = _on_grid(normal, grid, transform)
            mask = _mask_on_grid(scans, domain, images[domain].grid, grid, transform)
        except GalipError as error:
            excluded.append({"domain": domain, "slices": None, "reason": str(error)})
            if domain == reference:
                return prepared
            continue
        if domain == reference:
            start, stop = _choose_slices(volume, settings.slices)
            record["centre"] = _body_centre(volume[start:stop])
            record |= {
                "reference": reference,
                "first_slice": start,
                "spacing": list(grid.spacing),
                "plane": _plane(grid),
            }
        volume = volume[start:stop]
        prepared.volumes[domain] = volume
        if mask is not None and mask[start:stop].any():
            prepared.masks[domain] = mask[start:stop]
        parameters = None if transform is None else [round(p, 9) for p in transform.GetParameters()]
        record["scans"][domain] = {**scan_record, "transform": parameters, "normalised": _statistics(volume)}
        if domain != reference:
            check = check_pair(prepared.volumes[reference], volume, grid.spacing)
            record["pairs"][f"{reference}-{domain}"] = {
                "shift_mm": [round(value, 3) for value in check.shift],
                "distance_mm": round(check.distance, 3),
                "mutual_information": round(check.mutual_information, 5),
            }
    return prepared


def _read(scans: Sequence[Scan], settings: Settings) -> tuple[dict[str, ScanImage], list[dict[str, Any]]]:
    images, excluded = {}, []
    for scan in scans:
        try:
            images[scan.domain] = read_image(scan)
        except GalipError as error:
            excluded.append({"domain": scan.domain, "slices": None, "reason": str(error)})
    return images, excluded


def _normalised(image: ScanImage, domain: str, settings: Settings) -> tuple[ScanImage, dict[str, Any]]:
    normal = normalize_scan(IntensityNormalizer(intensity_rules=settings.rules), image.array, domain)
    record = {
        "window": [normal.lower, normal.upper],
        "outside_fraction": normal.outside_fraction,
        "raw": _statistics(image.array),
        "slice_digests": _digests(image.array),
    }
    return ScanImage(normal.pixel_values[:, 0].numpy(), image.grid), record


def _transform(images: dict[str, ScanImage], domain: str, reference: str, settings: Settings) -> Any:
    """The rigid map onto the reference's scan (`register_rigid`); None: the files' own geometry holds."""
    own, theirs = images[domain].grid, images[reference].grid
    same = own.same_as(theirs)
    if settings.registration == "rigid" and domain != reference:
        if not (same and domain in settings.aligned):
            return register_rigid(images[reference], images[domain], settings.seed)
    elif not (same or (own.known and theirs.known)):
        raise GalipError(
            f"{domain} is {own.shape} and {reference} {theirs.shape}, and the files have no geometry to "
            "relate them; register them, or give unpaired scans different subjects"
        )
    return None


def _on_grid(image: ScanImage, grid: Grid, transform: Any) -> np.ndarray:
    """(S, H, W) float32: the values on the target grid."""
    if transform is None and image.grid.same_as(grid):
        return image.array
    return resample(image, grid, transform)


def _mask_on_grid(
    scans: Sequence[Scan], domain: str, own: Grid, grid: Grid, transform: Any
) -> np.ndarray | None:
    """The body mask that came with a domain's scan, brought to the target grid as the scan is."""
    scan = next(scan for scan in scans if scan.domain == domain)
    if scan.mask is None:
        return None
    if scan.slices is not None:
        raise GalipError(f"{scan.mask}: a mask beside part of a file; give masks to whole scans only")
    mask = read_mask(Path(scan.mask), own, Path(scan.path))
    return _on_grid(ScanImage(mask.astype(np.float32), own), grid, transform) > 0.5


def _target_grid(grid: Grid, settings: Settings) -> Grid:
    if settings.spacing == "native":
        return grid
    _, rows, columns = grid.spacing
    if settings.spacing == "fit":
        pixel = min(rows, columns)
        extent = max(grid.shape[1] * rows, grid.shape[2] * columns)
        pixel = max(pixel, extent / settings.image_size)
    else:
        pixel = float(settings.spacing)
    if max(abs(rows / pixel - 1), abs(columns / pixel - 1)) < _SQUARE_TOLERANCE:
        return grid
    return grid.with_pixels(pixel)


def _choose_slices(volume: np.ndarray, count: int | None) -> tuple[int, int]:
    """The `count` consecutive slices with most foreground, the lowest of equals; all if there are fewer."""
    if count is None or count >= len(volume):
        return 0, len(volume)
    foreground = above_air(volume).sum(axis=(1, 2))
    totals = np.convolve(foreground, np.ones(count, dtype=np.int64), mode="valid")
    start = int(totals.argmax())
    return start, start + count


def _body_centre(volume: np.ndarray) -> list[float]:
    """(row, column) of the middle of the body's box: it comes to the middle of the canvas."""
    _, rows, columns = body_box(body_mask([volume]))
    (top, bottom, _), (left, right, _) = rows.indices(volume.shape[1]), columns.indices(volume.shape[2])
    return [(top + bottom) / 2, (left + right) / 2]


def _plane(grid: Grid) -> str | None:
    """The anatomical plane of the slices: they follow one another along the closest world axis."""
    if not grid.known:
        return None
    return PLANES[::-1][int(np.abs(grid.steps[0]).argmax())]


def _statistics(array: np.ndarray) -> dict[str, float]:
    low, median, high = (float(value) for value in np.percentile(array, _PERCENTILES))
    return {
        "min": float(array.min()),
        "max": float(array.max()),
        "mean": float(array.mean(dtype=np.float64)),
        "sd": float(array.std(dtype=np.float64)),
        "p1": low,
        "p50": median,
        "p99": high,
    }


def _digests(array: np.ndarray) -> list[str]:
    """A hash of each slice as read; empty for those with too little on them to tell two scans apart."""
    digests = []
    for image in array:
        told_apart = (image != image.min()).mean() >= MINIMUM_FOREGROUND and image.min() < image.max()
        digests.append(hashlib.blake2b(image.tobytes(), digest_size=12).hexdigest() if told_apart else "")
    return digests


__all__ = ["REGISTRATIONS", "SPACINGS", "PreparedSubject", "Settings", "prepare_subject"]
