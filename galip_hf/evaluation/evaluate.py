"""Evaluation of a translator on paired test subjects: per subject first, then per direction, with baselines.

A PSNR alone says little: copying the source of a registered pair already scores respectably. Every table
therefore holds, under the same protocols, the baselines of `galip_hf.evaluation.baselines`: copy of the
source, matched histogram, mean training slice, and the best lookup table from source to target intensity.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..model.errors import GalipError
from .baselines import histogram_reference, lookup_tables, mean_slice
from .metrics import Window
from .panels import Panels
from .report import build_report
from .score_subject import Given, Predict, SubjectScores, Task, score_subject

if TYPE_CHECKING:
    from ..clip.backbone import ClipBackbone
    from ..data.folder_subjects import FolderSubjects

Translate = Callable[[np.ndarray, str, str], np.ndarray]
_IN_FLIGHT = 2  # subjects: while one is read or translated, the other is scored


def evaluate(
    subjects: Iterable[Mapping[str, np.ndarray]],
    translate: Translate | None,
    training_slices: Mapping[str, Sequence[np.ndarray] | np.ndarray] | None,
    *,
    domains: Sequence[str],
    ct_windows: Mapping[str, Window] | None = None,
    names: Sequence[str] | None = None,
    training_pairs: Sequence[Mapping[str, np.ndarray]] = (),
    mask_of: Callable[[int], np.ndarray | None] = lambda index: None,
    backbone: "ClipBackbone | None" = None,
    baselines: bool = True,
    measures: Collection[str] = (),
    panels: Panels | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores every direction between the domains, for the translator and for the baselines.

    Two subjects are in memory at a time, one read or translated while the other is scored: a lazy sequence
    (`data.paired_subjects`) keeps the memory flat. `translate` is never called twice at the same time, but
    from other threads than the caller's.

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
        training_pairs: registered training subjects, as `subjects`: the baseline "lookup" is fitted with
            them, in the directions that they have. They must not be test subjects.
        mask_of: number of a subject -> (S, H, W) bool, its body; None: it is measured
            (`galip_hf.foreground`).
        backbone: for FID and KID, from its embeddings of the slices; None leaves them out.
        baselines: score the baselines too; without them a second model on the same data takes less time.
        measures: more of them, of `more_measures.MEASURES_ON_REQUEST`; "synthrad2025" for CT.
        panels: gets pictures of each subject's worst slice.
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
    task = Task(
        list(permutations(domains, 2)),
        dict(ct_windows or {}),
        baselines=baselines,
        measures=frozenset(measures),
        panels=panels,
        backbone=backbone,
    )
    _check_domains(domains, task.windows)
    if training_slices is not None:
        _check_training(training_slices, domains)
        if baselines:
            task.histogram_references = {d: histogram_reference(training_slices[d]) for d in domains}
        task.mean_slices = {d: mean_slice(d, training_slices[d]) for d in domains}
    if baselines:
        task.lookup_tables = lookup_tables(training_pairs, task.directions)

    def work() -> Iterator[Callable[[], SubjectScores]]:
        for index, subject in enumerate(subjects):
            name = index if names is None else names[index]
            _check_subject(name, subject, domains, task.mean_slices)
            predict = None if translate is None else _apply(translate, subject)
            given = Given(mask_of(index))
            yield partial(score_subject, name, subject, task, predict, given)

    total = len(subjects) if isinstance(subjects, Sequence) else None
    return _collect(work(), task, total, progress)


def evaluate_folders(
    subjects: "FolderSubjects",
    domains: tuple[str, str],
    *,
    system: int = 0,
    ct_windows: Mapping[str, Window] | None = None,
    backbone: "ClipBackbone | None" = None,
    baselines: bool = True,
    measures: Collection[str] = (),
    panels: Panels | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """As `evaluate`, for predictions that lie in a folder, from any system: one direction, `domains`.

    Baselines and the identity-collapse check need the sources; without them they are left out.

    Raises:
        GalipError: a prediction cannot be scored (shape, NaN), or no target can.
    """
    task = Task(
        [domains],
        dict(ct_windows or {}),
        sources=subjects.has_sources,
        baselines=baselines,
        measures=frozenset(measures),
        panels=panels,
        backbone=backbone,
    )

    def work() -> Iterator[Callable[[], SubjectScores]]:
        for index, name in enumerate(subjects.names):
            subject = subjects[index]
            given = Given(
                subjects.mask(index),
                subjects.lesions(index),
                subjects.labels(index, system),
                subjects.spacing(index),
            )
            yield partial(score_subject, name, subject, task, _read(subjects, index, system), given)
            del subject, given

    return _collect(work(), task, len(subjects), progress)


def _collect(
    work: Iterator[Callable[[], SubjectScores]], task: Task, total: int | None, progress: bool
) -> dict[str, Any]:
    """Runs through the subjects and makes the report; features of slices are all that grows with them."""
    per_subject, exclusions = [], []
    real: dict[str, list[Any]] = {}
    fake: dict[str, list[Any]] = {}
    for scored in tqdm(_in_order(work), total=total, unit="subject", disable=None if progress else True):
        per_subject.append(scored.entry)
        exclusions += scored.exclusions
        for kept, features in ((real, scored.real_features), (fake, scored.fake_features)):
            for key, value in features.items():
                kept.setdefault(key, []).append(value)
    if not per_subject:
        raise GalipError("subjects: got none, expected at least one paired test subject")
    if not any(entry["directions"] for entry in per_subject):
        reasons = sorted({exclusion["reason"] for exclusion in exclusions})
        raise GalipError(
            f"subjects: no pair could be scored ({'; '.join(reasons)}); expected two domains of one subject"
        )
    names = [f"{source}->{target}" for source, target in task.directions]
    report = build_report(per_subject, names, task.windows, exclusions)
    report["histogram_reference"] = "training slices" if task.histogram_references else "the target itself"
    report["distribution"] = _distribution(task, real, fake)
    return report


def _in_order(work: Iterator[Callable[[], SubjectScores]]) -> Iterator[SubjectScores]:
    """The results of calls made in `_IN_FLIGHT` threads, in the order of the calls.

    NumPy, SciPy and torch release Python's lock, so that threads share the cores without copies of volumes.
    """
    waiting: deque[Future[SubjectScores]] = deque()
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        for call in work:
            waiting.append(pool.submit(call))
            del call  # it holds a subject
            if len(waiting) == _IN_FLIGHT:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _apply(translate: Translate, subject: Mapping[str, np.ndarray]) -> Predict:
    # A translator may work in place; what is scored must not change under it.
    return lambda source, target: translate(subject[source].copy(), source, target)


def _read(subjects: "FolderSubjects", index: int, system: int) -> Predict:
    return lambda source, target: subjects.prediction(index, system)


def _distribution(task: Task, real: dict[str, list[Any]], fake: dict[str, list[Any]]) -> dict[str, Any]:
    """FID and KID per direction; real slices are all those of the target domain that were scored."""
    if task.backbone is None:
        return {"left_out": "no CLIP model was given (--clip SOURCE)"}
    if not fake:
        return {"left_out": "no translator was given"}
    import torch

    from .fid_kid import distribution_distances

    distances = {
        direction: distribution_distances(torch.cat(real[direction.split("->")[1]]), torch.cat(fakes))
        for direction, fakes in fake.items()
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
