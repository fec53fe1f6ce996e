"""Evaluation of a translator on paired test subjects: per subject first, then per direction, with baselines.

A PSNR alone says little: copying the source of a registered pair already scores respectably. Every table
therefore holds, under the same protocols, the copy of the source, the source histogram-matched to the target
domain's training slices, and the mean training slice of the target domain.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
from skimage.exposure import match_histograms
from tqdm import tqdm

from .errors import GalipError
from .metrics import (
    Scores,
    fixed_scores,
    foreground_mask,
    paper_scores,
    sharpness_ratio,
    slice_consistency,
)
from .report import MEASURES, build_report

if TYPE_CHECKING:
    from .clip_backbone import ClipBackbone
    from .data.paired import FolderSubjects

HISTOGRAM_SLICES = (
    64  # evenly spaced training slices: match_histograms sorts every reference pixel at every call
)

Translate = Callable[[np.ndarray, str, str], np.ndarray]
Predict = Callable[[str, str], np.ndarray]  # (source domain, target domain) -> (S, H, W), of one subject
Window = tuple[float, float]


@dataclass
class _Task:
    """What stays the same from subject to subject; features of slices are all that grows with them."""

    directions: list[tuple[str, str]]
    windows: dict[str, Window]
    histogram_references: dict[str, np.ndarray] = field(default_factory=dict)
    mean_slices: dict[str, np.ndarray] = field(default_factory=dict)
    sources: bool = True  # False: only predictions and targets are known
    baselines: bool = True
    backbone: "ClipBackbone | None" = None
    real_features: dict[str, list[Any]] = field(default_factory=dict)
    fake_features: dict[str, list[Any]] = field(default_factory=dict)
    exclusions: list[dict[str, Any]] = field(default_factory=list)


def evaluate(
    subjects: Iterable[Mapping[str, np.ndarray]],
    translate: Translate | None,
    training_slices: Mapping[str, Sequence[np.ndarray] | np.ndarray] | None,
    *,
    domains: Sequence[str],
    ct_windows: Mapping[str, Window] | None = None,
    names: Sequence[str] | None = None,
    backbone: "ClipBackbone | None" = None,
    baselines: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores every direction between the domains, for the translator and for three trivial baselines.

    One subject is held at a time: a lazy sequence (`galip_hf.data.paired`) keeps the memory flat.

    Args:
        subjects: one mapping per subject, domain -> (S, H, W) float32 volume in [0, 1], mutually registered.
            A subject that lacks a domain counts for the directions it has.
        translate: (volume (S, H, W), source domain, target domain) -> translation (S, H, W) in [0, 1]. None
            scores the baselines alone.
        training_slices: domain -> (N, H, W) training slices in [0, 1], an array or a lazy sequence, from
            which the baselines are made. None: there is no "mean", and "histogram" is matched to the target
            itself, which is better than anyone without the target could do.
        domains: the domains, two or more; `training_slices` must hold each.
        ct_windows: CT domain -> (HU at 0, HU at 1). These are scored in HU under `FIXED`; all others are MR.
        names: of the subjects, in their order; by default they are counted from 0.
        backbone: for FID and KID, from its embeddings of the slices; None leaves them out.
        baselines: score the baselines too; without them a second model on the same data takes less time.
        progress: show a progress bar (never when stderr is not a terminal).

    Returns:
        A JSON-serialisable report. `protocols[name]` holds version, description and, per region ("full",
        for `fixed` also "masked"), `directions["T1->T2"]` for the translator and
        `baselines[name]["T1->T2"]`. Every cell holds `psnr` (dB), `ssim` (1 is identical) and `mae` as
        means over subjects, each also with `_sd` (n - 1), `_median` and `_ci95` (bootstrap interval of
        the mean; None, like `_sd`, for one subject), and `n`, the subjects. A mean is None only where no
        slice could be scored. Besides: `summary` (means over directions, fixed/masked), `identity_collapse`
        (is the output closer to its source than to its target?), `perceptual` (sharpness ratio and
        slice-to-slice consistency), `distribution` (FID and KID, or why not), `units`, `subjects`, `slices`,
        `skipped_slices`, `exclusions` (each with its reason), `histogram_reference` and `per_subject`.

    Raises:
        GalipError: a domain is missing, shapes do not fit, a translation cannot be scored, or there is no
            pair at all; the message names the subject and the direction.
    """
    task = _Task(
        list(permutations(domains, 2)), dict(ct_windows or {}), baselines=baselines, backbone=backbone
    )
    _check_domains(domains, task.windows)
    if training_slices is not None:
        _check_training(training_slices, domains)
        task.histogram_references = {d: _histogram_reference(training_slices[d]) for d in domains}
        task.mean_slices = {d: _mean_slice(d, training_slices[d]) for d in domains}

    def scored() -> Iterator[dict[str, Any]]:
        for index, subject in enumerate(subjects):
            name = index if names is None else names[index]
            _check_subject(name, subject, domains, task.mean_slices)
            yield _score_subject(
                name, subject, task, None if translate is None else _apply(translate, subject)
            )

    total = len(subjects) if isinstance(subjects, Sequence) else None
    return _collect(scored(), task, total, progress)


def evaluate_folders(
    subjects: "FolderSubjects",
    domains: tuple[str, str],
    *,
    system: int = 0,
    ct_windows: Mapping[str, Window] | None = None,
    backbone: "ClipBackbone | None" = None,
    baselines: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """As `evaluate`, for predictions that lie in a folder, from any system: one direction, `domains`.

    Baselines and the identity-collapse check need the sources; without them they are left out.

    Raises:
        GalipError: a prediction cannot be scored (shape, NaN), or no target can.
    """
    task = _Task(
        [domains],
        dict(ct_windows or {}),
        sources=subjects.has_sources,
        baselines=baselines,
        backbone=backbone,
    )

    def scored() -> Iterator[dict[str, Any]]:
        for index, name in enumerate(subjects.names):
            yield _score_subject(name, subjects[index], task, _read(subjects, index, system))

    return _collect(scored(), task, len(subjects), progress)


def _collect(
    scored: Iterator[dict[str, Any]], task: _Task, total: int | None, progress: bool
) -> dict[str, Any]:
    """Runs through the subjects and makes the report."""
    bar = tqdm(scored, total=total, unit="subject", disable=None if progress else True)
    per_subject = list(bar)
    if not per_subject:
        raise GalipError("subjects: got none, expected at least one paired test subject")
    if not any(entry["directions"] for entry in per_subject):
        reasons = sorted({exclusion["reason"] for exclusion in task.exclusions})
        raise GalipError(
            f"subjects: no pair could be scored ({'; '.join(reasons)}); expected two domains of one subject"
        )
    names = [f"{source}->{target}" for source, target in task.directions]
    report = build_report(per_subject, names, task.windows, task.exclusions)
    report["histogram_reference"] = "training slices" if task.histogram_references else "the target itself"
    report["distribution"] = _distribution(task)
    return report


# --- one subject ---


def _apply(translate: Translate, subject: Mapping[str, np.ndarray]) -> Predict:
    # A translator may work in place; what is scored must not change under it.
    return lambda source, target: translate(subject[source].copy(), source, target)


def _read(subjects: "FolderSubjects", index: int, system: int) -> Predict:
    return lambda source, target: subjects.prediction(index, system)


def _score_subject(
    name: str | int,
    subject: Mapping[str, np.ndarray],
    task: _Task,
    predict: Predict | None,
) -> dict[str, Any]:
    """Scores of every direction the subject has; the others are added to the exclusions."""
    entry: dict[str, Any] = {
        "subject": name,
        "slices": max((len(volume) for volume in subject.values()), default=0),
        "directions": {},
    }
    masks = {target: _mask(subject, target, task) for target in dict.fromkeys(t for _, t in task.directions)}
    means: dict[str, Any] = {}  # the baseline "mean" does not depend on the source
    for source, target in task.directions:
        direction, mask = f"{source}->{target}", masks[target]
        if isinstance(mask, str) or (task.sources and source not in subject):
            reason = mask if isinstance(mask, str) else f"{source} missing"
            task.exclusions.append({"subject": name, "direction": direction, "reason": reason})
            continue
        try:
            prediction = None if predict is None else np.asarray(predict(source, target))
            entry["directions"][direction] = _score_direction(
                subject.get(source), subject[target], prediction, mask, target, task, means
            )
        except GalipError as error:
            raise GalipError(f"subject {name}, {direction}: {error}") from error
        if prediction is not None:
            _keep_features(task.fake_features, direction, prediction, task.backbone)
    for target in {direction.split("->")[1] for direction in entry["directions"]}:
        _keep_features(task.real_features, target, subject[target], task.backbone)
    return entry


def _mask(subject: Mapping[str, np.ndarray], target: str, task: _Task) -> np.ndarray | str:
    """The target's foreground, or why the subject does not count for this target."""
    if target not in subject:
        return f"{target} missing"
    window = task.windows.get(target)
    try:
        volume = subject[target] if window is None else _hounsfield(subject[target], window)
        return foreground_mask(volume, modality="MR" if window is None else "CT")
    except GalipError as error:
        return str(error)


def _score_direction(
    source: np.ndarray | None,
    target: np.ndarray,
    prediction: np.ndarray | None,
    mask: np.ndarray,
    target_domain: str,
    task: _Task,
    means: dict[str, Any],
) -> dict[str, Any]:
    """Scores of the model and of each baseline for one subject and direction, and the model's distances."""
    window = task.windows.get(target_domain)
    scores: dict[str, Any] = {}
    if prediction is not None:
        scores["model"] = _score(prediction, target, mask, window)
    if source is not None and task.baselines:
        scores["copy"] = _score(source, target, mask, window)
        reference = task.histogram_references.get(target_domain, target)
        scores["histogram"] = _score(match_histograms(source, reference), target, mask, window)
    if target_domain in task.mean_slices and task.baselines:
        if target_domain not in means:
            mean = np.broadcast_to(task.mean_slices[target_domain], target.shape)
            means[target_domain] = _score(mean, target, mask, window)
        scores["mean"] = means[target_domain]
    if prediction is not None:
        scores["sharpness_ratio"] = sharpness_ratio(prediction, target, mask)
        scores["slice_consistency"] = slice_consistency(prediction, target, mask)
        scores["mae_to_target"] = float(np.abs(prediction - target)[mask].mean())
        if source is not None:
            scores["mae_to_source"] = float(np.abs(prediction - source)[mask].mean())
    return scores


def _score(
    prediction: np.ndarray, target: np.ndarray, mask: np.ndarray, window: Window | None
) -> dict[str, Any]:
    """Protocol -> region -> scores of one pair of volumes in model space."""
    paper = paper_scores(prediction, target)
    if window is None:
        fixed = fixed_scores(prediction, target, mask=mask)
    else:
        hounsfield = [_hounsfield(side, window) for side in (prediction, target)]
        fixed = fixed_scores(*hounsfield, modality="CT", window=window, mask=mask)
    return {
        "paper": {"full": {**_measures(paper), "skipped_slices": paper.skipped_slices}},
        "fixed": {region: _measures(scores) for region, scores in fixed.items()},
    }


def _hounsfield(volume: np.ndarray, window: Window) -> np.ndarray:
    low, high = window
    return low + np.asarray(volume, np.float64) * (high - low)


def _measures(scores: Scores) -> dict[str, float | None]:
    values = {measure: getattr(scores, measure) for measure in MEASURES}
    return {measure: None if math.isnan(value) else value for measure, value in values.items()}


def _histogram_reference(slices: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    chosen = np.linspace(0, len(slices) - 1, min(len(slices), HISTOGRAM_SLICES)).astype(int)
    return np.stack([np.asarray(slices[int(index)], dtype=np.float32) for index in chosen])


def _mean_slice(domain: str, slices: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    total = np.zeros(np.shape(slices[0]), dtype=np.float64)
    for index in range(len(slices)):
        total += slices[index]
    if not np.isfinite(total).all():
        raise GalipError(f"training_slices[{domain!r}]: got NaN or infinite values, expected finite ones")
    return total / len(slices)


# --- FID and KID ---


def _keep_features(
    kept: dict[str, list[Any]], key: str, slices: np.ndarray, backbone: "ClipBackbone | None"
) -> None:
    if backbone is not None:
        from .distribution import slice_features

        kept.setdefault(key, []).append(slice_features(backbone, slices))


def _distribution(task: _Task) -> dict[str, Any]:
    """FID and KID per direction; real slices are all those of the target domain that were scored."""
    if task.backbone is None:
        return {"left_out": "no CLIP model was given (--clip SOURCE)"}
    if not task.fake_features:
        return {"left_out": "no translator was given"}
    import torch

    from .distribution import distribution_distances

    distances = {
        direction: distribution_distances(
            torch.cat(task.real_features[direction.split("->")[1]]), torch.cat(fakes)
        )
        for direction, fakes in task.fake_features.items()
    }
    return {"features": f"image embeddings of {task.backbone.source}", "directions": distances}


# --- checks ---


def _check_domains(domains: Sequence[str], windows: Mapping[str, Window]) -> None:
    if len(domains) < 2 or len(set(domains)) != len(domains):
        raise GalipError(f"domains: got {list(domains)}, expected two or more different names")
    if unknown := sorted(set(windows) - set(domains)):
        raise GalipError(f"ct_windows: got {unknown}, expected only domains among {list(domains)}")


def _check_training(
    training_slices: Mapping[str, Sequence[np.ndarray] | np.ndarray], domains: Sequence[str]
) -> None:
    for domain in domains:
        if domain not in training_slices:
            raise GalipError(
                f"training_slices: {domain!r} is missing, the baselines need slices of every domain"
            )
        slices = training_slices[domain]
        shape = (len(slices), *(np.shape(slices[0]) if len(slices) else (0,)))
        if len(shape) != 3 or 0 in shape:
            raise GalipError(
                f"training_slices[{domain!r}]: got shape {shape}, expected (N, H, W) with N at least 1"
            )


def _check_subject(
    name: str | int,
    subject: Mapping[str, np.ndarray],
    domains: Sequence[str],
    mean_slices: Mapping[str, np.ndarray],
) -> None:
    shapes = {domain: np.shape(subject[domain]) for domain in domains if domain in subject}
    if len(set(shapes.values())) > 1:
        raise GalipError(f"subject {name}: got shapes {shapes}, expected one shape; register and resample")
    for domain, shape in shapes.items():
        expected = mean_slices[domain].shape if domain in mean_slices else shape[1:]
        if len(shape) != 3 or shape[1:] != expected:
            raise GalipError(
                f"subject {name}: got shape {shape} for {domain!r}, expected (slices, height, width), "
                f"the last two as in its training slices, {expected}"
            )
