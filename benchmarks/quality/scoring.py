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
from galip_hf.evaluation.baselines import lookup_tables
from galip_hf.evaluation.evaluate import evaluate
from galip_hf.foreground import body_mask

Translate = Callable[[np.ndarray, str, str], np.ndarray]
Scores = dict[str, dict[str, Any]]  # direction -> psnr, ssim, mae, psnr_ci95, n

MEASURES = ("psnr", "ssim", "mae")


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
        return floors | {"lookup": self.scores(lookup_translator(self.subjects, self.domains))}


def lookup_translator(subjects: Sequence[Mapping[str, np.ndarray]], domains: Sequence[str]) -> Translate:
    """For each direction the map from intensity to intensity with the least squared error on some subjects.

    It is fitted inside the body of the very subjects that it is scored on: the training contrasts may have
    no pairs, and no other map of single intensities has a smaller error on these subjects together.

    Args:
        subjects: registered volumes in model space, domain -> (S, H, W) in [0, 1].
        domains: names of the domains.
    """
    masks = [body_mask(list(subject.values())) for subject in subjects]
    inside = [
        {domain: volume[mask][None, None] for domain, volume in subject.items()}  # one slice of one row
        for subject, mask in zip(subjects, masks, strict=True)
    ]
    tables = lookup_tables(inside, list(permutations(domains, 2)))
    return lambda volume, source, target: tables[source, target](volume)


def _cells(directions: Mapping[str, Mapping[str, Any]]) -> Scores:
    return {
        direction: {key: cell[key] for key in (*MEASURES, "psnr_ci95", "n")}
        for direction, cell in directions.items()
        if cell["n"]
    }


def mean_of(scores: Scores, measure: str) -> float:
    """The mean of a measure over the directions."""
    return float(np.mean([cell[measure] for cell in scores.values()]))
