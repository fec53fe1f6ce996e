"""One subject of an evaluation: each direction, the translator and the baselines, under each protocol."""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..foreground import body_mask
from ..model.errors import GalipError
from .baselines import Histogram, LookupTable, RankedImage
from .displacement import displacement
from .lesions import lesion_scores
from .metrics import (
    PSNR_CEILING,
    FixedTarget,
    Scores,
    Window,
    fixed_target,
    mr_scores,
    paper_scores,
    sharpness_ratio,
    slice_consistency,
)
from .more_measures import Group, similarity_groups
from .report import MEASURES
from .segmentations import segmentation_scores
from .synthrad import synthrad_scores
from .tissue_classes import ct_tissue_errors

if TYPE_CHECKING:
    from ..clip.backbone import ClipBackbone
    from .panels import Panels

Predict = Callable[[str, str], np.ndarray]  # (source domain, target domain) -> (S, H, W), of one subject


@dataclass(eq=False)
class Task:
    """What stays the same from subject to subject.

    Attributes:
        directions: (source, target), those of one source after another.
        windows: CT domain to (HU at 0, HU at 1).
        histogram_references: of the target domains; without them histograms are matched to the target.
        mean_slices: (H, W) of the target domains.
        lookup_tables: of the directions that have registered training pairs.
        sources: False: only predictions and targets are known.
        baselines: score the baselines.
        measures: those wanted of `more_measures.MEASURES_ON_REQUEST`, and "synthrad2025".
        panels: gets each subject's worst slice; None: none are kept.
        backbone: for features; None: none are taken.
        torch_lock: networks run for one subject at a time: they have threads of their own.
    """

    directions: list[tuple[str, str]]
    windows: dict[str, Window]
    histogram_references: dict[str, Histogram] = field(default_factory=dict)
    mean_slices: dict[str, np.ndarray] = field(default_factory=dict)
    lookup_tables: dict[tuple[str, str], LookupTable] = field(default_factory=dict)
    sources: bool = True
    baselines: bool = True
    measures: frozenset[str] = frozenset()
    panels: "Panels | None" = None
    backbone: "ClipBackbone | None" = None
    torch_lock: Any = field(default_factory=threading.Lock)


@dataclass(frozen=True, eq=False)
class Given:
    """What a user gives for a subject beside its volumes.

    Attributes:
        body: (S, H, W) bool, the body; None: it is measured.
        lesions: (S, H, W) bool, or None.
        labels: segmentations of prediction and target, (S, H, W) each, or None.
        spacing: mm between slices, rows and columns; for distances between segmentations.
    """

    body: np.ndarray | None = None
    lesions: np.ndarray | None = None
    labels: tuple[np.ndarray, np.ndarray] | None = None
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass
class SubjectScores:
    """`entry`: the subject's part of the report. Features: of its slices, by target and by direction."""

    entry: dict[str, Any]
    exclusions: list[dict[str, Any]] = field(default_factory=list)
    real_features: dict[str, Any] = field(default_factory=dict)
    fake_features: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Target:
    """A target volume in model space, as it is and prepared for `FIXED` (for CT in HU)."""

    volume: np.ndarray
    fixed: FixedTarget
    window: Window | None


def score_subject(
    name: str | int,
    subject: Mapping[str, np.ndarray],
    task: Task,
    predict: Predict | None,
    given: Given,
) -> SubjectScores:
    """Scores of every direction the subject has; the others are exclusions.

    Args:
        name: of the subject.
        subject: domain -> (S, H, W) in model space.
        task: what to score.
        predict: the translation of a direction; None scores the baselines alone.
        given: the body mask, where the user has one.

    Raises:
        GalipError: the body mask does not fit, or a translation cannot be scored; the message names the
            subject and the direction.
    """
    slices = max((len(volume) for volume in subject.values()), default=0)
    result = SubjectScores({"subject": name, "slices": slices, "directions": {}})
    result.entry["mask"] = "measured" if given.body is None else "given"
    body = body_of(subject, task.windows) if given.body is None else _checked_body(name, subject, given.body)
    targets = {
        target: _target(subject, target, body, task)
        for target in dict.fromkeys(t for _, t in task.directions)
    }
    means: dict[str, Any] = {}  # the baseline "mean" does not depend on the source
    ranked: dict[str, RankedImage] = {}
    for source, target in task.directions:
        direction, prepared = f"{source}->{target}", targets[target]
        if isinstance(prepared, str) or (task.sources and source not in subject):
            reason = prepared if isinstance(prepared, str) else f"{source} missing"
            result.exclusions.append({"subject": name, "direction": direction, "reason": reason})
            continue
        if source not in ranked:
            ranked = {}  # one source at a time
        try:
            prediction = _prediction(predict, source, target, task)
            scores: dict[str, Any] = {}
            if prediction is not None:
                scores = _model_scores(prediction, subject.get(source), prepared)
                scores["measures"] = _groups(prediction, subject.get(source), prepared, given, task)
                scores["worst_slice"] = _worst_slice(prediction, prepared)
                _keep_panel(name, direction, prediction, subject.get(source), prepared, scores, task)
            if task.baselines:
                scores |= _baseline_scores(subject.get(source), source, target, prepared, ranked, task)
                if target in task.mean_slices:
                    if target not in means:
                        mean = np.broadcast_to(task.mean_slices[target], prepared.volume.shape)
                        means[target] = _score(mean, prepared)
                    scores["mean"] = means[target]
        except GalipError as error:
            raise GalipError(f"subject {name}, {direction}: {error}") from error
        result.entry["directions"][direction] = scores
        if prediction is not None and task.backbone is not None:
            result.fake_features[direction] = _features(prediction, task)
    if task.backbone is not None:
        for target in {direction.split("->")[1] for direction in result.entry["directions"]}:
            result.real_features[target] = _features(subject[target], task)
    return result


def _checked_body(name: str | int, subject: Mapping[str, np.ndarray], body: np.ndarray) -> np.ndarray:
    if wrong := {domain: volume.shape for domain, volume in subject.items() if volume.shape != body.shape}:
        raise GalipError(f"subject {name}: its mask is {body.shape}, its volumes {wrong}; expected one shape")
    return body


def body_of(subject: Mapping[str, np.ndarray], windows: Mapping[str, Window]) -> np.ndarray:
    """One mask for all directions: from all volumes of a subject, in model space, that are of one shape."""
    shape = next((volume.shape for volume in subject.values()), ())
    volumes = {name: volume for name, volume in subject.items() if volume.shape == shape}
    return body_mask(
        [volume for name, volume in volumes.items() if name not in windows],
        [hounsfield(volume, windows[name]) for name, volume in volumes.items() if name in windows],
    )


def _target(subject: Mapping[str, np.ndarray], target: str, body: np.ndarray, task: Task) -> _Target | str:
    """The target, or why the subject does not count for this domain."""
    if target not in subject:
        return f"{target} missing"
    window = task.windows.get(target)
    try:
        if window is None:
            return _Target(subject[target], fixed_target(subject[target], mask=body), None)
        fixed = fixed_target(hounsfield(subject[target], window), modality="CT", window=window, mask=body)
        return _Target(subject[target], fixed, window)
    except GalipError as error:
        return str(error)


def _prediction(predict: Predict | None, source: str, target: str, task: Task) -> np.ndarray | None:
    if predict is None:
        return None
    with task.torch_lock:
        return np.asarray(predict(source, target))


def _model_scores(prediction: np.ndarray, source: np.ndarray | None, target: _Target) -> dict[str, Any]:
    """The model's scores, and its distances to target and source (MAE in model space, foreground)."""
    mask, volume = target.fixed.mask, target.volume
    scores = {
        "model": _score(prediction, target),
        "sharpness_ratio": sharpness_ratio(prediction, volume, mask),
        "slice_consistency": slice_consistency(prediction, volume, mask),
        "mae_to_target": float(np.abs(prediction - volume)[mask].mean()),
    }
    if source is not None:
        scores["mae_to_source"] = float(np.abs(prediction - source)[mask].mean())
    return scores


def _groups(
    prediction: np.ndarray, source: np.ndarray | None, target: _Target, given: Given, task: Task
) -> dict[str, Group]:
    """Measures beside the protocols: group -> name -> value."""
    body = target.fixed.mask
    in_units = prediction if target.window is None else hounsfield(prediction, target.window)
    groups: dict[str, Group] = {}
    if target.window is not None:
        truth = hounsfield(target.volume, target.window)
        groups["ct tissues"] = {
            f"{measure}, {tissue}": values[measure]
            for tissue, values in ct_tissue_errors(in_units, truth, body).items()
            for measure in ("mae", "bias")
        }
        if "synthrad2025" in task.measures:
            groups["synthrad2025"] = synthrad_scores(in_units, truth, body)
    if task.measures & {"ms-ssim", "nmse", "nmi"}:
        scaled = target.fixed.scaled(in_units)
        with task.torch_lock:
            groups |= similarity_groups(scaled, target.fixed.values, body, task.measures)
    if "displacement" in task.measures and source is not None:
        groups["displacement"] = displacement(source, prediction, body)
    if given.lesions is not None:
        groups["lesions"] = lesion_scores(prediction, target.volume, given.lesions, body)
    if given.labels is not None:
        groups["segmentations"] = segmentation_scores(*given.labels, given.spacing)
    return groups


def _worst_slice(prediction: np.ndarray, target: _Target) -> dict[str, Any]:
    """The slice with the largest mean squared error in the body (`fixed`), and its PSNR there.

    Slices with less than a tenth of the fullest slice's body are passed over: their mean is of few voxels.
    """
    mask = target.fixed.mask
    in_units = prediction if target.window is None else hounsfield(prediction, target.window)
    area = mask.sum(axis=(1, 2))
    errors = np.square(target.fixed.scaled(in_units) - target.fixed.values)
    means = np.where(
        area >= max(1, 0.1 * area.max()), (errors * mask).sum(axis=(1, 2)) / np.maximum(area, 1), -1
    )
    index = int(means.argmax())
    psnr = PSNR_CEILING if means[index] <= 0 else min(PSNR_CEILING, -10 * math.log10(means[index]))
    return {"index": index, "psnr": float(psnr)}


def _keep_panel(
    name: str | int,
    direction: str,
    prediction: np.ndarray,
    source: np.ndarray | None,
    target: _Target,
    scores: Mapping[str, Any],
    task: Task,
) -> None:
    if task.panels is not None:
        index = scores["worst_slice"]["index"]
        task.panels.add(
            direction,
            str(name),
            None if source is None else source[index],
            prediction[index],
            target.volume[index],
        )


def _baseline_scores(
    volume: np.ndarray | None,
    source: str,
    target_domain: str,
    target: _Target,
    ranked: dict[str, RankedImage],
    task: Task,
) -> dict[str, Any]:
    """Of the source (`volume`) copied, histogram-matched, and mapped by the lookup table."""
    if volume is None:
        return {}
    scores = {"copy": _score(volume, target)}
    if source not in ranked:
        ranked[source] = RankedImage.of(volume)
    reference = task.histogram_references.get(target_domain)
    matched = ranked[source].matched_to(reference or Histogram.of(target.volume))
    scores["histogram"] = _score(matched, target)
    if table := task.lookup_tables.get((source, target_domain)):
        scores["lookup"] = _score(table(volume), target)
    return scores


def _score(prediction: np.ndarray, target: _Target) -> dict[str, Any]:
    """Protocol -> region -> scores of one volume in model space."""
    if target.window is None:
        paper, fixed = mr_scores(prediction, target.volume, target.fixed)
    else:
        paper = paper_scores(prediction, target.volume)
        fixed = target.fixed.scores(hounsfield(prediction, target.window))
    return {
        "paper": {"full": {**_measures(paper), "skipped_slices": paper.skipped_slices}},
        "fixed": {region: _measures(scores) for region, scores in fixed.items()},
    }


def hounsfield(volume: np.ndarray, window: Window) -> np.ndarray:
    """A volume in model space, of any shape, in HU, float64."""
    low, high = window
    return low + np.asarray(volume, np.float64) * (high - low)


def _measures(scores: Scores) -> dict[str, float | None]:
    values = {measure: getattr(scores, measure) for measure in MEASURES}
    return {measure: None if math.isnan(value) else value for measure, value in values.items()}


def _features(slices: np.ndarray, task: Task) -> Any:
    from .fid_kid import slice_features

    assert task.backbone is not None
    with task.torch_lock:
        return slice_features(task.backbone, slices)


__all__ = ["Given", "Predict", "SubjectScores", "Task", "body_of", "hounsfield", "score_subject"]
