"""Evaluation without pairs: are translations like real scans of the target domain, and do they keep their
source?

No measure here compares a translation with the truth, so none can say that the anatomy is right. Each is
stated with its meaning and its blind spot in `MEANINGS`. Beside every distance stand two marks to read it
by: that of the untranslated source (no translator should be farther) and that of one half of the real scans
from the other (nothing can be expected to be closer).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..data.input_statistics import find_spots, scan_score, slice_scores
from ..model.domain_statistics import DomainStatistics
from ..model.errors import GalipError
from .baselines import Histogram, RankedImage, histogram_reference
from .contrast_classifier import classify
from .metrics import Window, mean_gradient, mean_step
from .set_distances import feature_distances, histogram_distance, intensity_counts
from .significance import spread
from .texture_features import scaled, scaling, texture_features
from .tissue_classes import compare_classes
from .verdict import COLLAPSE_RATIO

if TYPE_CHECKING:
    from ..clip.backbone import ClipBackbone

VERSION = 1
# measure -> (what it says, what it cannot see)
MEANINGS: dict[str, tuple[str, str]] = {
    "texture": (
        "FID and KID between translated and real slices of the target domain, on texture features defined by "
        "formulas (no network, no training set): brightness, contrast, sharpness and grain.",
        "Where in the body something lies; a translation without a scan's noise is far away, however right "
        "its "
        "contrast is.",
    ),
    "clip": (
        "FID and KID on the frozen CLIP model's image embeddings: what a slice looks like as a whole.",
        "Small structures; a model trained with this backbone has learnt to please it.",
    ),
    "histogram": (
        "Wasserstein distance of intensities in the body: how far intensity must move on average to make the "
        "translations' histogram the target domain's; below it, share and mean of each class of intensity.",
        "Where the intensities are: shuffled voxels score the same.",
    ),
    "sharpness_ratio": (
        "Mean gradient magnitude in the body, translations over real scans of the target domain; 1 is as "
        "sharp.",
        "Noise counts as sharpness, and other subjects have other anatomy.",
    ),
    "slice_consistency": (
        "Mean |difference| of neighbouring slices in the body, translations over real scans of the target "
        "domain; above 1 the volume flickers.",
        "A volume that is blurred along the slices scores below 1; slices must be equally far apart.",
    ),
    "cycle_error": (
        "Mean |x - G(G(x, target), source)| in the body, in model space: what is lost on the way there and "
        "back.",
        "A translator that hides its source in the image, or changes nothing, scores well.",
    ),
    "identity_ratio": (
        "Mean |translation - source| over mean |histogram-matched source - source|: near 0 the source "
        "is handed back, near 1 it changes as much as its histogram must.",
        "Any change counts, also a wrong one.",
    ),
    "input_score": (
        "The input check's score in standard deviations of the training scans: of sources for their "
        "domain, of translations and of real scans for the target domain; above 3 a scan does not look "
        "like its domain.",
        "Only brightness and its local spread are compared.",
    ),
    "classifier": (
        "Share of translated slices that a classifier trained on the real scans (by subjects) takes "
        "for their target, and for their source.",
        "Whether the anatomy is right; worthless where its accuracy on real scans is low.",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Acquired:
    """A real scan: (S, H, W) in model space and its body, (S, H, W) bool."""

    subject: str
    domain: str
    volume: np.ndarray
    body: np.ndarray


@dataclass(frozen=True, eq=False)
class Translated:
    """A translation, its source and its translation back where known, (S, H, W) in model space."""

    subject: str
    source: str
    target: str
    volume: np.ndarray
    body: np.ndarray
    original: np.ndarray | None = None
    returned: np.ndarray | None = None


@dataclass(eq=False)
class _Scan:
    """What is kept of a scan: numbers, no voxels."""

    subject: str
    texture: np.ndarray
    clip: np.ndarray
    counts: np.ndarray
    gradient: float
    step: float | None
    score: float | None
    own: dict[str, float | None] = field(default_factory=dict)  # of a translation


# (real scans, others, whether to compute an interval) -> a distance and what belongs to it
Distance = Callable[[list[_Scan], list[_Scan], bool], dict[str, Any]]


def evaluate_unpaired(
    scans: Iterable[Acquired | Translated],
    directions: Sequence[tuple[str, str]],
    *,
    ct_windows: Mapping[str, Window] | None = None,
    training_slices: Mapping[str, Sequence[np.ndarray] | np.ndarray] | None = None,
    statistics: Mapping[str, DomainStatistics] | None = None,
    backbone: "ClipBackbone | None" = None,
    progress: bool = True,
    total: int | None = None,
) -> dict[str, Any]:
    """A report on translations for which there is no truth; scans are read one at a time.

    Args:
        scans: real scans of source and target domains, and translations, in any order.
        directions: (source, target); those without translations or real scans of the target are excluded.
        ct_windows: CT domain -> (HU at 0, HU at 1).
        training_slices: domain -> (N, H, W), to which histograms are matched for the identity ratio; without
            them it is left out.
        statistics: of the domains' training slices, for the input check's score; a domain without has none.
        backbone: for FID and KID on CLIP's embeddings; None leaves them out.
        progress: show a progress bar (never when stderr is not a terminal).
        total: number of scans, for the progress bar.

    Returns:
        JSON-serialisable: `kind` ("unpaired"), `version`, `subjects`, `slices`, `directions[d]` with the
        measures of `MEANINGS`, `meanings`, `exclusions` and `per_subject`.

    Raises:
        GalipError: a scan is not finite or has no body, or no direction has both translations
            and real scans.
    """
    windows, known = dict(ct_windows or {}), dict(statistics or {})
    references = {
        domain: histogram_reference(slices)
        for domain, slices in (training_slices or {}).items()
        if len(slices)
    }
    real: dict[str, list[_Scan]] = {}
    fake: dict[str, list[_Scan]] = {}
    subjects: dict[str, int] = {}
    for scan in tqdm(scans, total=total, unit="scan", disable=None if progress else True):
        measured = _measure(scan, known, backbone)
        subjects[scan.subject] = max(subjects.get(scan.subject, 0), len(scan.volume))
        if isinstance(scan, Acquired):
            real.setdefault(scan.domain, []).append(measured)
        else:
            measured.own = _changes(scan, references.get(scan.target))
            fake.setdefault(f"{scan.source}->{scan.target}", []).append(measured)
    if real:
        scale = scaling(np.concatenate([s.texture for its in real.values() for s in its]))
        for kept in (*real.values(), *fake.values()):
            for measured in kept:
                measured.texture = scaled(measured.texture, scale)
    report = {
        "kind": "unpaired",
        "version": VERSION,
        "subjects": len(subjects),
        "slices": sum(subjects.values()),
        "meanings": {name: {"says": s, "blind_to": b} for name, (s, b) in MEANINGS.items()},
        **_report(real, fake, directions, windows),
    }
    report["clip"] = (
        {"left_out": "no CLIP model was given (--clip SOURCE)"}
        if backbone is None
        else {"features": f"image embeddings of {backbone.source}"}
    )
    return report


def _report(
    real: Mapping[str, list[_Scan]],
    fake: Mapping[str, list[_Scan]],
    directions: Sequence[tuple[str, str]],
    windows: Mapping[str, Window],
) -> dict[str, Any]:
    """From real scans by domain and translations by direction: what depends on all of them."""
    cells: dict[str, Any] = {}
    exclusions = []
    for source, target in directions:
        name = f"{source}->{target}"
        if not fake.get(name) or not real.get(target):
            reason = "no translations" if not fake.get(name) else f"no real scans of {target}"
            exclusions.append({"subject": "all", "direction": name, "reason": reason})
            continue
        cells[name] = _direction(fake[name], real[target], real.get(source, []), windows.get(target))
    if not cells:
        reasons = "; ".join(f"{e['direction']}: {e['reason']}" for e in exclusions)
        raise GalipError(
            f"nothing to compare ({reasons}); expected translations and real scans of their target"
        )
    classifier = classify(
        {d: [(s.subject, s.texture) for s in its] for d, its in real.items()},
        {d: [(s.subject, s.texture) for s in fake[d]] for d in cells},
    )
    per_subject = [
        {"subject": s.subject, "direction": d, "score": s.score, **s.own} for d in cells for s in fake[d]
    ]
    return {
        "directions": cells,
        "exclusions": exclusions,
        "classifier": classifier,
        "per_subject": per_subject,
    }


def _measure(
    scan: Acquired | Translated,
    statistics: Mapping[str, DomainStatistics],
    backbone: "ClipBackbone | None",
) -> _Scan:
    domain = scan.domain if isinstance(scan, Acquired) else scan.target
    volume, body = np.asarray(scan.volume, np.float32), scan.body
    if volume.ndim != 3 or volume.shape != body.shape or not np.isfinite(volume).all() or not body.any():
        raise GalipError(
            f"subject {scan.subject}, {domain}: found a volume {volume.shape} and a body {body.shape} of "
            f"{int(body.sum())} voxels; expected finite (S, H, W) of one shape with a body"
        )
    clip = np.zeros((0, 1))
    if backbone is not None:
        from .fid_kid import slice_features

        clip = slice_features(backbone, np.clip(volume[body.any(axis=(1, 2))], 0, 1)).double().numpy()
    score = None
    if domain in statistics:
        its = statistics[domain]
        raw = scan_score(slice_scores(find_spots(volume, body), its.counts))
        if raw is not None:
            score = (raw - its.score_mean) / max(its.score_deviation, 1e-6)
    return _Scan(
        scan.subject,
        texture_features(volume, body),
        clip,
        intensity_counts(volume, body),
        mean_gradient(volume, body),
        mean_step(volume, body),
        score,
    )


def _changes(scan: Translated, reference: Histogram | None) -> dict[str, float | None]:
    """Cycle error and identity ratio of one translation."""
    changes: dict[str, float | None] = {"cycle_error": None, "identity_ratio": None}
    if scan.original is None:
        return changes

    def mean_change(other: np.ndarray, original: np.ndarray) -> float:
        return float(np.abs(other - original)[scan.body].mean())

    if scan.returned is not None:
        changes["cycle_error"] = mean_change(scan.returned, scan.original)
    if reference is not None:
        matched = RankedImage.of(scan.original).matched_to(reference)
        needed = mean_change(matched, scan.original)
        if needed > 0:
            changes["identity_ratio"] = mean_change(scan.volume, scan.original) / needed
    return changes


def _direction(
    fake: list[_Scan], real: list[_Scan], source: list[_Scan], window: Window | None
) -> dict[str, Any]:
    """All measures of one direction."""
    cell: dict[str, Any] = {"subjects_fake": len(fake), "subjects_real": len(real)}

    def features(name: str) -> Distance:
        return lambda r, f, intervals: feature_distances(
            [getattr(s, name) for s in r], [getattr(s, name) for s in f], intervals=intervals
        )

    def histograms(r: list[_Scan], f: list[_Scan], intervals: bool) -> dict[str, Any]:
        return histogram_distance([s.counts for s in r], [s.counts for s in f], intervals=intervals)

    cell["texture"] = _marked(fake, real, source, features("texture"))
    if fake[0].clip.size:
        cell["clip"] = _marked(fake, real, source, features("clip"))
    cell["histogram"] = _marked(fake, real, source, histograms)
    cell["histogram"]["unit"] = "part of the window" if window is None else "part of the HU window"
    cell["histogram"]["classes"] = compare_classes([s.counts for s in real], [s.counts for s in fake], window)
    sharp = float(np.mean([s.gradient for s in real]))
    cell |= spread([s.gradient / sharp for s in fake] if sharp else [], "sharpness_ratio")
    steps = [s.step for s in real if s.step is not None]
    step = float(np.mean(steps)) if steps else 0.0
    cell |= spread([s.step / step for s in fake if s.step is not None] if step else [], "slice_consistency")
    for name in ("cycle_error", "identity_ratio"):
        cell |= spread([value for s in fake if (value := s.own[name]) is not None], name)
    ratio = cell["identity_ratio"]
    cell["collapsed"] = None if ratio is None else ratio < COLLAPSE_RATIO
    scored = (("input_score_source", source), ("input_score", fake), ("input_score_real", real))
    for name, its in scored:
        cell |= spread([s.score for s in its if s.score is not None], name)
    return cell


def _marked(fake: list[_Scan], real: list[_Scan], source: list[_Scan], distance: Distance) -> dict[str, Any]:
    """A distance with its interval, and the two marks to read it by."""
    cell = distance(real, fake, True)
    cell["copy"] = distance(real, source, False) if source else None
    cell["real_halves"] = distance(real[::2], real[1::2], False) if len(real) > 1 else None
    return cell


__all__ = ["MEANINGS", "Acquired", "Translated", "evaluate_unpaired"]
