"""Procedural brain-like MR phantom: co-registered T1-, T2- and PD-weighted volumes made from a seed alone.

Anatomy is a set of distance functions (head, skull, folded cortex, ventricles, nuclei) in a smoothly deformed
frame, turned into tissue volume fractions, so edges carry partial volume as in a scan. A contrast is the
spin-echo signal

    S = PD * (1 - exp(-TR / T1)) * exp(-TE / T2)

of each tissue, mixed by the fractions, times a smooth bias field and a gain, with Rician noise. It is meant
for tests, examples and benchmarks of translation code; it is no model of any patient.

Frame: x to the right of the image, y anterior (up), z superior, all about -1..1 over the field of view,
which is `FIELD_OF_VIEW` mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..model.errors import GalipError

CONTRASTS: tuple[str, ...] = ("T1", "T2", "PD")
PROMPTS: dict[str, str] = {contrast: f"this MRI is {contrast}-weighted" for contrast in CONTRASTS}

# (TR, TE) in ms of each spin-echo sequence. PD has the long TR of a dual-echo fast spin echo: CSF is then
# brighter than brain, so fluid can be told from white matter in every contrast.
SEQUENCES: dict[str, tuple[float, float]] = {"T1": (500.0, 15.0), "T2": (4000.0, 80.0), "PD": (6000.0, 15.0)}

# Proton density (water = 1), T1 and T2 in ms at 1.5 T. CSF, grey and white matter and the scalp's fat: the
# values of the BrainWeb phantom (Kwan, Evans & Pike, IEEE TMI 18(11), 1999), fat's density a tenth lower for
# the skin mixed in. The rest are round figures: deep grey matter, where iron shortens T1 and T2 a little; a
# lesion with about twice the T1 and T2 of white matter, as in a chronic plaque; bone with next to no signal.
TISSUE_PARAMETERS: dict[str, tuple[float, float, float]] = {
    "air": (0.0, 1.0, 1.0),
    "scalp": (0.9, 350.0, 70.0),
    "bone": (0.05, 400.0, 20.0),
    "csf": (1.0, 2569.0, 329.0),
    "grey": (0.86, 833.0, 83.0),
    "white": (0.77, 500.0, 70.0),
    "deep_grey": (0.84, 800.0, 75.0),
    "ventricle": (1.0, 2569.0, 329.0),
    "lesion": (0.88, 1000.0, 150.0),
}
TISSUES: tuple[str, ...] = tuple(TISSUE_PARAMETERS)

FIELD_OF_VIEW = 256.0  # mm, along rows and columns: the head is then as large as an adult's

# Second entry of the seed: keeps the random streams of one subject apart (contrasts take 0, 1, 2).
_ANATOMY_STREAM, _TISSUE_STREAM = 100, 101
_LOWEST_SLICE, _HIGHEST_SLICE = -0.16, 0.66


@dataclass(frozen=True, eq=False)
class PhantomSubject:
    """One subject's anatomy, axial slices from low to high, anterior at the top row.

    `fractions`: (tissues, S, H, W) float32 volume fractions in the order of `TISSUES`, summing to 1.
    `lesions`: (S, H, W) bool, pixels that are mostly lesion.
    """

    seed: int
    fractions: np.ndarray
    lesions: np.ndarray


def make_subject(seed: int, *, size: int = 64, slices: int = 12) -> PhantomSubject:
    """Build the anatomy of subject `seed` on `slices` axial slices of `size` x `size` pixels.

    The same seed gives the same bytes; another `size` samples the same anatomy more finely.
    Raises `GalipError` for a negative seed, a size below 32 or fewer than one slice.
    """
    _check_seed(seed)
    if size < 32:
        raise GalipError(f"size is {size}; a phantom needs at least 32 pixels a side, use 64 to 256")
    if slices < 1:
        raise GalipError(f"slices is {slices}; ask for at least 1")
    rng = np.random.default_rng([seed, _ANATOMY_STREAM])
    grid = _Grid.of(size, slices, offset=rng.uniform(-0.03, 0.03))
    x, y, z = _deformed_frame(rng, grid)

    half_axes = rng.uniform((0.63, 0.82, 0.92), (0.78, 0.92, 1.0))
    outline = _ellipsoid(x, y, z, (0, 0, 0), half_axes)
    skull = outline + 0.053 * np.exp(0.25 * _waves(rng, grid, 0.8)[0])
    inner_skull = skull + 0.05 * np.exp(0.18 * _waves(rng, grid, 0.8)[0])
    depth = -(inner_skull + rng.uniform(0.012, 0.035))
    plaques = _plaques(rng, grid, (x, y, z))
    ribbon = rng.uniform(0.055, 0.07) * (1 + 0.12 * _waves(rng, grid, 0.4)[0])
    pial = _pial_distance(rng, grid, (x, y, z), depth)
    # A plaque lies in white matter: the cortex keeps clear of it.
    pial = np.maximum(pial, np.minimum(depth, ribbon + 0.03 - plaques))
    ventricle_scale = rng.uniform(0.6, 1.7)
    surfaces = {
        "scalp": outline,
        "bone": skull,
        "csf": inner_skull,
        "grey": -pial,
        "white": ribbon - pial,
        "deep_grey": _deep_nuclei(rng, (x, y, z), ventricle_scale),
        "ventricle": np.maximum(_ventricles((x, y, z), ventricle_scale), 0.02 - depth),
    }
    fractions = _paint(grid, surfaces)
    # Plaques replace white matter only.
    lesion = grid.coverage(plaques) * fractions[TISSUES.index("white")]
    fractions[TISSUES.index("white")] -= lesion
    fractions[TISSUES.index("lesion")] += lesion
    return PhantomSubject(seed, fractions, lesion > 0.5)


def tissue_signals(contrast: str, parameters: np.ndarray | None = None) -> np.ndarray:
    """Noise-free spin-echo signal of each tissue (tissues,), fully relaxed water at TE 0 being 1.

    `parameters`: (tissues, 3) of PD, T1 (ms), T2 (ms); default `TISSUE_PARAMETERS`. Raises `GalipError` for a
    contrast not in `CONTRASTS`.
    """
    _check_contrast(contrast)
    if parameters is None:
        parameters = np.array(list(TISSUE_PARAMETERS.values()))
    repetition_time, echo_time = SEQUENCES[contrast]
    density, t1, t2 = parameters.T
    return density * (1 - np.exp(-repetition_time / t1)) * np.exp(-echo_time / t2)


def render(subject: PhantomSubject, contrast: str, *, seed: int | None = None) -> np.ndarray:
    """One acquisition of `subject`: (S, H, W) float32 >= 0, arbitrary units (99.5th percentile 600..1500).

    Contrasts of a subject share its anatomy and its tissue values (within 3 % of the table); gain, bias field
    (up to 4 %) and Rician noise (1.5 % of the 99.5th percentile) belong to the acquisition `seed` (None: 0).
    Raises `GalipError` for a contrast not in `CONTRASTS` or a negative seed.
    """
    _check_contrast(contrast)
    acquisition = 0 if seed is None else seed
    _check_seed(acquisition)
    table = np.array(list(TISSUE_PARAMETERS.values()))
    variation = np.random.default_rng([subject.seed, _TISSUE_STREAM]).uniform(0.97, 1.03, table.shape)
    variation[TISSUES.index("ventricle")] = variation[TISSUES.index("csf")]
    signals = tissue_signals(contrast, table * variation)

    rng = np.random.default_rng([subject.seed, CONTRASTS.index(contrast), acquisition])
    image = np.tensordot(signals, subject.fractions, axes=1)
    grid = _Grid.of(image.shape[-1], image.shape[0])
    field = _waves(rng, grid, 2.5, count=6)[0]
    image *= 1 + 0.04 * field / np.abs(field).max()
    image *= rng.uniform(600, 1500) / np.percentile(image, 99.5)
    sigma = 0.015 * np.percentile(image, 99.5)
    noise = sigma * rng.standard_normal((2, *image.shape))
    return np.hypot(image + noise[0], noise[1]).astype(np.float32)


def caption(subject: PhantomSubject, slice_index: int, contrast: str) -> str:
    """The contrast's prompt plus what the slice shows: ventricle size, lesion, head width, slice level.

    Left and right are those of the image; the head's width is its extent in this slice. Example: "this MRI
    is T2-weighted, with large ventricles, a lesion on the left, a wide head, a middle slice".
    Raises `GalipError` for a contrast not in `CONTRASTS` or a slice the subject does not have.
    """
    _check_contrast(contrast)
    count, _, width = subject.lesions.shape
    if not 0 <= slice_index < count:
        raise GalipError(f"slice_index is {slice_index}; the subject has slices 0 to {count - 1}")
    fractions = subject.fractions[:, slice_index]
    head = 1 - fractions[TISSUES.index("air")]
    share = float(fractions[TISSUES.index("ventricle")].sum() / head.sum())
    ventricles = _grade(share, (0.002, 0.035, 0.058), ("no", "small", "medium", "large"))
    extent = float((head > 0.5).any(axis=0).sum() / width)
    head_size = _grade(extent, (0.62, 0.69), ("narrow", "medium", "wide"))
    level = _grade((slice_index + 0.5) / count, (1 / 3, 2 / 3), ("low", "middle", "high"))
    lesion = "no lesion"
    columns = np.nonzero(subject.lesions[slice_index])[1]
    if columns.size:
        lesion = f"a lesion on the {'left' if columns.mean() < (width - 1) / 2 else 'right'}"
    return f"{PROMPTS[contrast]}, with {ventricles} ventricles, {lesion}, a {head_size} head, a {level} slice"


def _grade(value: float, limits: Sequence[float], words: Sequence[str]) -> str:
    return words[int(np.searchsorted(limits, value, side="right"))]


def _check_contrast(contrast: str) -> None:
    if contrast not in CONTRASTS:
        raise GalipError(f"contrast is {contrast!r}; the phantom has {', '.join(CONTRASTS)}")


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise GalipError(f"seed is {seed}; use an integer of 0 or more")


Frame = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Grid:
    """Pixel centres along each axis: z (S,), y (H,) falling (anterior first), x (W,)."""

    z: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @classmethod
    def of(cls, size: int, slices: int, offset: float = 0.0) -> _Grid:
        line = (np.arange(size) + 0.5) * 2 / size - 1
        fractions = (np.arange(slices) + 0.5) / slices
        z = _LOWEST_SLICE + (_HIGHEST_SLICE - _LOWEST_SLICE) * fractions + offset
        return cls(z=z, y=-line, x=line)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.z.size, self.y.size, self.x.size

    def coverage(self, distance: np.ndarray) -> np.ndarray:
        """Part of each pixel inside a surface, from the signed distance (negative inside) of its centre."""
        pixel = 2 / self.x.size
        return np.clip(0.5 - distance / pixel, 0, 1).astype(np.float32)


def _waves(
    rng: np.random.Generator, grid: _Grid, wavelength: float, count: int = 24
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random field (S, H, W) of unit variance, and the length of its gradient.

    A sum of plane waves of about one wavelength: they separate into a product over the axes, so a field costs
    one matrix product a slice.
    """
    direction = rng.standard_normal((count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    k = 2 * np.pi / (wavelength * rng.uniform(0.85, 1.15, (count, 1))) * direction
    phase = rng.uniform(0, 2 * np.pi, count)
    along_z = np.sqrt(2 / count) * np.exp(1j * (np.outer(grid.z, k[:, 0]) + phase))
    along_y = np.exp(1j * np.outer(grid.y, k[:, 1]))
    along_x = np.exp(1j * np.outer(k[:, 2], grid.x))

    def field(weight: np.ndarray | float) -> np.ndarray:
        rows = (along_z * weight)[:, None, :] * along_y
        return (rows @ along_x).real

    slope = np.sqrt(sum(field(1j * k[:, axis]) ** 2 for axis in range(3)))
    return field(1.0), slope


def _paint(grid: _Grid, surfaces: dict[str, np.ndarray]) -> np.ndarray:
    """Volume fractions (tissues, S, H, W) of signed distances, outermost tissue first.

    Each layer covers what lies beneath in proportion to the part of the pixel it fills, so the sum stays 1.
    """
    fractions = np.zeros((len(TISSUES), *grid.shape), dtype=np.float32)
    fractions[TISSUES.index("air")] = 1
    for tissue, distance in surfaces.items():
        coverage = grid.coverage(distance)
        fractions *= 1 - coverage
        fractions[TISSUES.index(tissue)] += coverage
    return fractions


def _deformed_frame(rng: np.random.Generator, grid: _Grid) -> Frame:
    """Coordinates (S, H, W) of the subject: a small rotation, shift and smooth random displacement."""
    angle = np.deg2rad(rng.uniform(-5, 5))
    shift_y, shift_x = rng.uniform(-0.02, 0.02, 2)
    z, y, x = np.meshgrid(grid.z, grid.y - shift_y, grid.x - shift_x, indexing="ij")
    x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    x, y, z = (axis + 0.02 * _waves(rng, grid, 1.5)[0] for axis in (x, y, z))
    return x, y, z


def _ellipsoid(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    centre: Sequence[float],
    axes: Sequence[float] | np.ndarray,
    tilt: float = 0.0,
) -> np.ndarray:
    """Signed distance to an ellipsoid, to first order; `tilt` turns it in the axial plane (radians)."""
    u, v, w = x - centre[0], y - centre[1], z - centre[2]
    u, v = np.cos(tilt) * u + np.sin(tilt) * v, -np.sin(tilt) * u + np.cos(tilt) * v
    scaled = np.stack([u / axes[0], v / axes[1], w / axes[2]])
    radius = np.linalg.norm(scaled, axis=0)
    slope = np.linalg.norm(scaled / np.reshape(axes, (3, 1, 1, 1)), axis=0) / np.maximum(radius, 1e-6)
    return (radius - 1) / np.maximum(slope, 1e-6)


def _pial_distance(rng: np.random.Generator, grid: _Grid, frame: Frame, depth: np.ndarray) -> np.ndarray:
    """Distance from the brain's folded surface, positive inside, given the `depth` below its smooth hull.

    Sulci are sheets where a random field crosses zero, down to a varying depth; grey matter follows them, as
    the ribbon is measured from the nearest of hull, sulcus and fissure.
    """
    x, y, z = frame
    # Half the wave number along z: sulci run steeply, so a slice cuts them as lines.
    field, slope = _waves(rng, _Grid(grid.z / 2, grid.y, grid.x), 0.29, count=48)
    sheet = np.abs(field) / np.maximum(slope, 2.0)
    floor = rng.uniform(0.16, 0.22) * (1 + 0.35 * _waves(rng, grid, 0.5)[0])
    half_width = rng.uniform(0.012, 0.02)
    sulci = np.hypot(sheet, np.maximum(depth - floor, 0)) - half_width
    # The fissure between the hemispheres stops at the corpus callosum, wherever it comes from.
    callosum = _ellipsoid(x, y, z, (0, -0.03, 0), (0.5, 0.44, 0.42))
    midline = x + 0.012 * _waves(rng, grid, 0.5)[0]
    fissure = np.hypot(midline, np.maximum(-callosum, 0)) - 0.016
    # Sylvian fissure and insula: from the side inwards at the level of the nuclei.
    inward = np.maximum(0.45 - np.abs(x), 0)
    sylvian = np.hypot(np.hypot(y - 0.06 + 0.35 * (np.abs(x) - 0.5), inward), np.maximum(z - 0.08, 0)) - 0.018
    return np.minimum.reduce([depth, sulci, fissure, sylvian])


def _ventricles(frame: Frame, scale: float) -> np.ndarray:
    """Signed distance to the lateral ventricles (a curved horn a side) and the slit of the third."""
    x, y, z = frame
    bend = 0.055 + 0.035 * scale + 0.75 * np.square(y + 0.02)
    horns = _ellipsoid(np.abs(x) - bend, y, z, (0, -0.01, 0.10), (0.05 * scale, 0.36, 0.25 * scale**0.3))
    third = _ellipsoid(x, y, z, (0, -0.06, -0.14), (0.016 * (1 + scale), 0.13, 0.12))
    return np.minimum(horns, third)


def _deep_nuclei(rng: np.random.Generator, frame: Frame, scale: float) -> np.ndarray:
    """Signed distance to caudate, putamen and thalamus of both sides, pushed outwards by large ventricles."""
    x, y, z = np.abs(frame[0]) - 0.05 * (scale - 1), frame[1], frame[2]
    size = rng.uniform(0.9, 1.12, 3)
    caudate = _ellipsoid(x, y, z, (0.20, 0.20, 0.02), (0.06 * size[0], 0.12 * size[0], 0.22), tilt=-0.35)
    putamen = _ellipsoid(x, y, z, (0.33, 0.06, -0.06), (0.055 * size[1], 0.17 * size[1], 0.18), tilt=-0.2)
    thalamus = _ellipsoid(x, y, z, (0.13, -0.12, -0.06), (0.085 * size[2], 0.14 * size[2], 0.17), tilt=0.3)
    return np.minimum.reduce([caudate, putamen, thalamus])


def _plaques(rng: np.random.Generator, grid: _Grid, frame: Frame) -> np.ndarray:
    """Signed distance to the lesions: one to three on one side in 35 % of subjects, else far away."""
    plaques = np.full(grid.shape, 9.0)
    present, side = rng.random() < 0.35, rng.choice([-1.0, 1.0])
    wobble = 0.01 * _waves(rng, grid, 0.25)[0]
    for _ in range(int(rng.integers(1, 4)) if present else 0):
        centre = (side * rng.uniform(0.28, 0.36), rng.uniform(-0.38, 0.32), rng.uniform(0.1, 0.42))
        axes = rng.uniform((0.07, 0.07, 0.10), (0.11, 0.13, 0.16))
        plaques = np.minimum(plaques, _ellipsoid(*frame, centre, axes))
    return plaques + wobble
