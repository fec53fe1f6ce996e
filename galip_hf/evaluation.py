"""Evaluation of a translator on paired test subjects: per subject first, then per direction, with baselines.

A PSNR alone says little: copying the source of a registered pair already scores respectably. Every table
therefore holds, under the same protocols, the copy of the source, the source histogram-matched to the target
domain's training slices, and the mean training slice of the target domain.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from skimage.exposure import match_histograms
from tqdm import tqdm

from .errors import GalipError
from .files import atomic_write
from .metrics import FIXED, PAPER, Scores, fixed_scores, foreground_mask, paper_scores

BASELINES = ("copy", "histogram", "mean")
MEASURES = ("psnr", "ssim", "mae")
REGIONS = {"paper": ("full",), "fixed": ("masked", "full")}
HISTOGRAM_SLICES = (
    64  # evenly spaced training slices: match_histograms sorts every reference pixel at every call
)
BOOTSTRAP_SAMPLES = 2000

Translate = Callable[[np.ndarray, str, str], np.ndarray]
Window = tuple[float, float]
Table = dict[str, dict[str, Any]]


def evaluate(
    subjects: Sequence[Mapping[str, np.ndarray]],
    translate: Translate,
    training_slices: Mapping[str, np.ndarray],
    *,
    domains: Sequence[str],
    ct_windows: Mapping[str, Window] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores every direction between the domains, for the translator and for three trivial baselines.

    Args:
        subjects: one mapping per subject, domain -> (S, H, W) float32 volume in [0, 1], mutually registered.
        translate: (volume (S, H, W), source domain, target domain) -> translation (S, H, W) in [0, 1].
        training_slices: domain -> (N, H, W) training slices in [0, 1], from which the baselines are made.
        domains: the domains, two or more; every subject and `training_slices` must hold each.
        ct_windows: CT domain -> (HU at 0, HU at 1). These are scored in HU under `FIXED`; all others are MR.
        progress: show a progress bar (never when stderr is not a terminal).

    Returns:
        A JSON-serialisable report. `protocols[name]` holds version, description and, per region ("full",
        for `fixed` also "masked"), `directions["T1->T2"]` for the translator and
        `baselines[name]["T1->T2"]`. Every cell holds `psnr` (dB), `ssim` (1 is identical) and `mae` as
        means over subjects, each also with `_sd` (n - 1), `_median` and `_ci95` (bootstrap interval of
        the mean; None, like `_sd`, for one subject). A mean is None only where no slice could be scored,
        under `paper`. Besides: `summary` (means over directions, fixed/masked), `identity_collapse` (is
        the output closer to its source than to its target?), `units`, `subjects`, `slices`,
        `skipped_slices` and `per_subject`.

    Raises:
        GalipError: a domain is missing, shapes do not fit, or a volume cannot be scored; the message names
            the subject (counted from 0) and the direction.
    """
    windows = dict(ct_windows or {})
    _check_arguments(subjects, training_slices, domains, windows)
    references = {domain: _histogram_reference(training_slices[domain]) for domain in domains}
    means = {domain: _mean_slice(domain, training_slices[domain]) for domain in domains}
    directions = list(permutations(domains, 2))
    per_subject = []
    with tqdm(
        total=len(subjects) * len(directions), unit="direction", disable=None if progress else True
    ) as bar:
        for index, subject in enumerate(subjects):
            _check_subject(index, subject, {domain: means[domain].shape for domain in domains})
            entry: dict[str, Any] = {"subject": index, "slices": len(subject[domains[0]]), "directions": {}}
            for source, target in directions:
                try:
                    entry["directions"][f"{source}->{target}"] = _score_direction(
                        subject,
                        source,
                        target,
                        translate,
                        references[target],
                        means[target],
                        windows.get(target),
                    )
                except GalipError as error:
                    raise GalipError(f"subject {index}, {source}->{target}: {error}") from error
                bar.update()
            per_subject.append(entry)
    return _report(per_subject, [f"{source}->{target}" for source, target in directions], windows)


def write_report(report: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Writes a report as JSON (indent 2), complete or not at all.

    Raises:
        GalipError: the report holds a NaN or infinite value, or something JSON has no form for.
    """
    path = Path(path)
    try:
        text = json.dumps(report, indent=2, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise GalipError(
            f"report: {error}; expected finite numbers, text, lists and mappings only"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return path


# --- one direction ---


def _score_direction(
    subject: Mapping[str, np.ndarray],
    source: str,
    target: str,
    translate: Translate,
    histogram_reference: np.ndarray,
    mean_slice: np.ndarray,
    window: Window | None,
) -> dict[str, Any]:
    """Scores of the model and of each baseline for one subject and direction, and the model's distances."""
    source_volume, target_volume = subject[source], subject[target]
    mask = foreground_mask(
        target_volume
    )  # model space: air is 0 for MR and for a CT window that starts at air
    # A translator may work in place; what is scored must not change under it.
    translation = np.asarray(translate(source_volume.copy(), source, target))
    candidates = {
        "model": translation,
        "copy": source_volume,
        "histogram": match_histograms(source_volume, histogram_reference),
        "mean": np.broadcast_to(mean_slice, target_volume.shape),
    }
    scores: dict[str, Any] = {
        name: _score(candidate, target_volume, mask, window) for name, candidate in candidates.items()
    }
    scores["mae_to_source"] = float(np.abs(translation - source_volume)[mask].mean())
    scores["mae_to_target"] = float(np.abs(translation - target_volume)[mask].mean())
    return scores


def _score(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray, window: Window | None) -> Table:
    """Protocol -> region -> scores of one pair of volumes in model space."""
    paper = paper_scores(prediction, target)
    if window is None:
        fixed = fixed_scores(prediction, target, mask=mask)
    else:
        low, high = window
        hounsfield = [low + np.asarray(side, np.float64) * (high - low) for side in (prediction, target)]
        fixed = fixed_scores(*hounsfield, modality="CT", window=window, mask=mask)
    return {
        "paper": {"full": {**_measures(paper), "skipped_slices": paper.skipped_slices}},
        "fixed": {region: _measures(scores) for region, scores in fixed.items()},
    }


def _measures(scores: Scores) -> dict[str, float | None]:
    values = {measure: getattr(scores, measure) for measure in MEASURES}
    return {measure: None if math.isnan(value) else value for measure, value in values.items()}


def _histogram_reference(slices: np.ndarray) -> np.ndarray:
    chosen = np.linspace(0, len(slices) - 1, min(len(slices), HISTOGRAM_SLICES)).astype(int)
    return np.asarray(slices[chosen], dtype=np.float32)


def _mean_slice(domain: str, slices: np.ndarray) -> np.ndarray:
    mean = np.asarray(np.mean(slices, axis=0, dtype=np.float64))
    if not np.isfinite(mean).all():
        raise GalipError(f"training_slices[{domain!r}]: got NaN or infinite values, expected finite ones")
    return mean


# --- the report ---


def _report(
    per_subject: list[dict[str, Any]], directions: list[str], windows: Mapping[str, Window]
) -> dict[str, Any]:
    protocols: Table = {}
    for protocol in (PAPER, FIXED):
        protocols[protocol.name] = {"version": protocol.version, "description": protocol.description}
        for region in REGIONS[protocol.name]:
            tables = {
                candidate: {
                    d: _cell([s["directions"][d][candidate][protocol.name][region] for s in per_subject])
                    for d in directions
                }
                for candidate in ("model", *BASELINES)
            }
            protocols[protocol.name][region] = {
                "directions": tables["model"],
                "baselines": {name: tables[name] for name in BASELINES},
            }
    skipped = {
        d: sum(s["directions"][d]["model"]["paper"]["full"]["skipped_slices"] for s in per_subject)
        for d in directions
    }
    return {
        "protocols": protocols,
        "units": _units(directions, windows),
        "summary": _summary(protocols["fixed"]["masked"]),
        "identity_collapse": {d: _collapse([s["directions"][d] for s in per_subject]) for d in directions},
        "subjects": len(per_subject),
        "slices": sum(s["slices"] for s in per_subject),
        "skipped_slices": skipped,
        "per_subject": per_subject,
    }


def _cell(scores: list[dict[str, float | None]]) -> dict[str, Any]:
    """Mean, SD, median and 95 % interval over subjects of each measure."""
    cell: dict[str, Any] = {}
    for measure in MEASURES:
        values = np.array(
            [score[measure] for score in scores if score[measure] is not None], dtype=np.float64
        )
        several = len(values) > 1
        cell[measure] = float(values.mean()) if len(values) else None
        cell[f"{measure}_sd"] = float(values.std(ddof=1)) if several else None
        cell[f"{measure}_median"] = float(np.median(values)) if len(values) else None
        cell[f"{measure}_ci95"] = _bootstrap_interval(values) if several else None
    return cell


def _bootstrap_interval(values: np.ndarray) -> list[float]:
    """Percentile bootstrap of the mean over subjects, with the same resamples for all cells of as many."""
    resamples = np.random.default_rng([0, len(values)]).integers(
        len(values), size=(BOOTSTRAP_SAMPLES, len(values))
    )
    return np.percentile(values[resamples].mean(axis=1), [2.5, 97.5]).tolist()


def _summary(table: Mapping[str, Any]) -> dict[str, Any]:
    def mean_over_directions(cells: Mapping[str, Any]) -> dict[str, float]:
        return {
            measure: float(np.mean([cell[measure] for cell in cells.values()]))
            for measure in ("psnr", "ssim")
        }

    return {
        "protocol": FIXED.name,
        "version": FIXED.version,
        "region": "masked",
        "model": mean_over_directions(table["directions"]),
        "baselines": {name: mean_over_directions(cells) for name, cells in table["baselines"].items()},
    }


def _collapse(scores: list[dict[str, Any]]) -> dict[str, Any]:
    """Is the output closer to its source than to its target? MAE in model space, target's foreground."""
    to_source = [score["mae_to_source"] for score in scores]
    to_target = [score["mae_to_target"] for score in scores]
    return {
        "mae_to_source": float(np.mean(to_source)),
        "mae_to_target": float(np.mean(to_target)),
        "collapsed": bool(np.mean(to_source) < np.mean(to_target)),
        "subjects_collapsed": sum(a < b for a, b in zip(to_source, to_target, strict=True)),
    }


def _units(directions: list[str], windows: Mapping[str, Window]) -> dict[str, Any]:
    fixed = {
        d: "HU" if d.split("->")[1] in windows else "fraction of the target's 99.5th percentile"
        for d in directions
    }
    return {
        "psnr": "dB",
        "ssim": "0..1, 1 is identical (not percent)",
        "mae": {"paper": "fraction of the slice's maximum", "fixed": fixed},
    }


# --- checks ---


def _check_arguments(
    subjects: Sequence[Mapping[str, np.ndarray]],
    training_slices: Mapping[str, np.ndarray],
    domains: Sequence[str],
    windows: Mapping[str, Window],
) -> None:
    if len(domains) < 2 or len(set(domains)) != len(domains):
        raise GalipError(f"domains: got {list(domains)}, expected two or more different names")
    if len(subjects) == 0:
        raise GalipError("subjects: got none, expected at least one paired test subject")
    if unknown := sorted(set(windows) - set(domains)):
        raise GalipError(f"ct_windows: got {unknown}, expected only domains among {list(domains)}")
    for domain in domains:
        if domain not in training_slices:
            raise GalipError(
                f"training_slices: {domain!r} is missing, the baselines need slices of every domain"
            )
        shape = np.shape(training_slices[domain])
        if len(shape) != 3 or 0 in shape:
            raise GalipError(
                f"training_slices[{domain!r}]: got shape {shape}, expected (N, H, W) with N at least 1"
            )


def _check_subject(
    index: int, subject: Mapping[str, np.ndarray], slice_shapes: Mapping[str, tuple[int, ...]]
) -> None:
    if missing := [domain for domain in slice_shapes if domain not in subject]:
        raise GalipError(f"subject {index}: {missing} missing, expected every domain; exclude the subject")
    shapes = {domain: np.shape(subject[domain]) for domain in slice_shapes}
    if len(set(shapes.values())) != 1:
        raise GalipError(f"subject {index}: got shapes {shapes}, expected one shape; register and resample")
    for domain, shape in shapes.items():
        if len(shape) != 3 or shape[1:] != slice_shapes[domain]:
            raise GalipError(
                f"subject {index}: got shape {shape} for {domain!r}, expected (slices, height, width), "
                f"the last two as in its training slices, {slice_shapes[domain]}"
            )
