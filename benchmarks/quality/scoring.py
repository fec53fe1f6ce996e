"""What a translator is scored by, and what it has to beat, on the test split of a benchmark table.

Scores are those of `galip_hf.evaluation`, protocol `fixed`, region `masked` (the body): a mean over subjects
for each direction, with a bootstrap interval. The floor is a lookup table: the best map from source intensity
to target intensity that knows nothing of anatomy.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import permutations
from typing import Any

import datasets
import numpy as np

from galip_hf.data.paired_subjects import DomainSlices, Subject, TableSubjects
from galip_hf.evaluation.evaluate import evaluate
from galip_hf.foreground import body_mask

Translate = Callable[[np.ndarray, str, str], np.ndarray]
Scores = dict[str, dict[str, Any]]  # direction -> psnr, ssim, mae, psnr_ci95, n

MEASURES = ("psnr", "ssim", "mae")
_LEVELS = 256  # of a lookup table


class CpuClock:
    """Processor seconds of this process, all threads, without those spent inside `paused`."""

    def __init__(self) -> None:
        self._start = time.process_time()

    def __call__(self) -> float:
        """Seconds since the clock was made."""
        return time.process_time() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted: scoring is not training."""
        before = time.process_time()
        try:
            yield
        finally:
            self._start += time.process_time() - before


class Scorer:
    """Scores translators on the test subjects.

    Args:
        table: with the splits `train`, for the baselines, and `test`.
        domains: names of the domains to translate between.
    """

    def __init__(self, table: datasets.DatasetDict, domains: Sequence[str]) -> None:
        self.domains = list(domains)
        subjects = TableSubjects(table["test"], self.domains)
        self.names = subjects.names
        self.subjects: list[Subject] = list(subjects)  # read once: they are few
        self._training = {domain: DomainSlices(table["train"], domain) for domain in self.domains}

    def scores(self, translate: Translate, domains: Sequence[str] | None = None) -> Scores:
        """Of every direction that a test subject has, among all or some of the domains."""
        report = evaluate(
            self.subjects,
            translate,
            None,
            domains=domains or self.domains,
            names=self.names,
            baselines=False,
            progress=False,
        )
        return _cells(report["protocols"]["fixed"]["masked"]["directions"])

    def floors(self) -> dict[str, Scores]:
        """Of the baselines `copy`, `histogram` and `mean`, and of `lookup`."""
        report = evaluate(
            self.subjects, None, self._training, domains=self.domains, names=self.names, progress=False
        )
        baselines = report["protocols"]["fixed"]["masked"]["baselines"]
        floors = {name: _cells(cells) for name, cells in baselines.items()}
        return floors | {"lookup": self.scores(LookupTables(self.subjects, self.domains))}


class LookupTables:
    """For each direction the map from intensity to intensity with the least squared error on some pairs.

    That is the mean target intensity at each of 256 levels of the source, inside the body. It is fitted on
    the subjects that it is scored on, so no other map of single intensities has a smaller error on them.

    Args:
        subjects: registered volumes in model space, domain -> (S, H, W) in [0, 1].
        domains: names of the domains.
    """

    def __init__(self, subjects: Sequence[Mapping[str, np.ndarray]], domains: Sequence[str]) -> None:
        self.tables: dict[tuple[str, str], np.ndarray] = {}
        masks = [body_mask(list(subject.values())) for subject in subjects]
        for source, target in permutations(domains, 2):
            pairs = [
                (_level(subject[source][mask]), subject[target][mask])
                for subject, mask in zip(subjects, masks, strict=True)
                if source in subject and target in subject
            ]
            if pairs:
                levels, values = (np.concatenate(side) for side in zip(*pairs, strict=True))
                self.tables[source, target] = _mean_at_each_level(levels, values)

    def __call__(self, volume: np.ndarray, source: str, target: str) -> np.ndarray:
        """(S, H, W) float32 of the same shape: each voxel looked up."""
        return self.tables[source, target][_level(volume)]


def _level(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * (_LEVELS - 1)).astype(np.int64)


def _mean_at_each_level(levels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(256,) float32; a level that does not occur takes the values of its neighbours, interpolated."""
    counts = np.bincount(levels, minlength=_LEVELS)
    sums = np.bincount(levels, weights=values, minlength=_LEVELS)
    present = np.flatnonzero(counts)
    return np.interp(np.arange(_LEVELS), present, sums[present] / counts[present]).astype(np.float32)


def _cells(directions: Mapping[str, Mapping[str, Any]]) -> Scores:
    return {
        direction: {key: cell[key] for key in (*MEASURES, "psnr_ci95", "n")}
        for direction, cell in directions.items()
        if cell["n"]
    }


def mean_of(scores: Scores, measure: str) -> float:
    """The mean of a measure over the directions."""
    return float(np.mean([cell[measure] for cell in scores.values()]))
