"""Validation during training: figures of the moving average's model, and the same slices as a picture.

For a direction with registered subjects (see `data.registered_pairs`): PSNR, SSIM and MAE under the protocol
`fixed`, inside the mask. For one without: FID and KID on the backbone's features and the cycle error. For
both the identity ratio, mean |G(x, B) - x| / mean |matched(x) - x|, where `matched` is x with the histogram
of domain B's slices: near 0 where the model hands back its source, near 1 where it changes as much.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate.utils import gather_object

from ..clip.backbone import ClipBackbone
from ..data.registered_pairs import registered_rows
from ..data.table import SliceReader, domain_rows
from ..evaluation.baselines import Histogram, RankedImage, histogram_reference
from ..evaluation.fid_kid import distribution_distances, slice_features
from ..evaluation.metrics import fixed_scores
from ..evaluation.score_subject import hounsfield
from ..extras import require
from ..figures import save_grid
from ..inference.slices import translate_slices
from ..model.errors import GalipError
from ..model.image_processing_galip import GalipImageProcessor
from ..model.modeling_galip import GalipForImageTranslation
from .distributed import process_state

logger = logging.getLogger(__name__)

# Slices of the training split that stand for a domain without validation slices.
_TRAINING_SLICES = 1000
_PICTURES_A_DOMAIN = 2


@dataclass(frozen=True)
class _Case:
    """One subject in one direction: rows of its source slices, and of its target slices if it has any."""

    direction: tuple[str, str]
    source_rows: np.ndarray
    target_rows: np.ndarray | None


class Validation:
    """Scores a model on the validation split; every process takes its share of the subjects.

    Args:
        tables: `validation`, and `train` for domains that have no validation slices.
        domains: of the model.
        processor: knows which domains are in fixed units (CT: MAE in HU).
        backbone: gives the features of FID and KID.

    Raises:
        GalipError: no validation split, or no slices in it of any of the domains; torchmetrics is needed and
            not installed.
    """

    def __init__(
        self,
        tables: datasets.DatasetDict,
        domains: Sequence[str],
        processor: GalipImageProcessor,
        backbone: ClipBackbone,
    ) -> None:
        if "validation" not in tables:
            raise GalipError(
                "validation_steps is above 0, but the data has no validation split; add volumes with split "
                "validation, or set validation_steps to 0"
            )
        self._tables, self._domains, self._backbone = tables, list(domains), backbone
        self._table = tables["validation"]
        self._reader = SliceReader(self._table)
        self._windows = {domain: processor.fixed_window(domain) for domain in domains}
        self._subjects = np.asarray(self._table["subject"][:])
        self._cases = [case for pair in permutations(domains, 2) for case in self._cases_of(*pair)]
        if not self._cases:
            raise GalipError(f"the validation split has no slices of {', '.join(domains)}; add some")
        if any(case.target_rows is None for case in self._cases):
            require("torchmetrics", "evaluate")  # fail now, not after the first validation_steps
        self._references: dict[str, Histogram] = {}
        self._real_features: dict[str, Any] = {}
        self._matched_change: dict[int, float] = {}

    def _cases_of(self, source: str, target: str) -> list[_Case]:
        """The registered subjects of a direction; without any, all subjects of its source."""
        pairs = registered_rows(self._table, source, target)
        rows = pairs[:, 0] if len(pairs) else domain_rows(self._table, source)
        cases = []
        for subject in np.unique(self._subjects[rows]):
            own = self._subjects[rows] == subject
            cases.append(_Case((source, target), rows[own], pairs[own, 1] if len(pairs) else None))
        return cases

    def __call__(self, model: GalipForImageTranslation) -> dict[str, float]:
        """Figures by name, such as `psnr T1->T2`, and their means over the directions, such as `psnr`.

        A figure that cannot be had (FID needs more samples than features) is left out. Call it on all
        processes: each returns all figures.
        """
        state = process_state()
        own = range(state.process_index, len(self._cases), state.num_processes)
        results: list[tuple[int, dict[str, Any]]] = [(index, self._score(index, model)) for index in own]
        results = sorted(gather_object(results), key=lambda result: result[0])
        figures: dict[str, dict[str, float]] = {}
        for pair in permutations(self._domains, 2):
            of_pair = [result for index, result in results if self._cases[index].direction == pair]
            for name, value in self._summary(pair, of_pair).items():
                figures.setdefault(name, {})[f"{pair[0]}->{pair[1]}"] = value
        units = {self._windows[target] for target in self._domains}
        means = {
            name: float(np.mean(list(values.values())))
            for name, values in figures.items()
            if name != "mae" or len(units) == 1  # HU and fractions have no mean
        }
        return means | {
            f"{name} {direction}": value
            for name, values in figures.items()
            for direction, value in values.items()
        }

    def _score(self, index: int, model: GalipForImageTranslation) -> dict[str, Any]:
        """Figures of one subject in one direction."""
        case = self._cases[index]
        (source_domain, target_domain), source = case.direction, self._slices(case.source_rows)
        translation = translate_slices(model, source, target_domain)
        result: dict[str, Any] = {}
        if case.target_rows is not None:
            scores = self._fixed_scores(translation, self._slices(case.target_rows), target_domain)
            result |= {name: getattr(scores, name) for name in ("psnr", "ssim", "mae")}
        else:
            back = translate_slices(model, translation, source_domain)
            result["cycle"] = float(np.abs(back - source).mean())
            result["features"] = slice_features(self._backbone, translation).numpy()
        if index not in self._matched_change:
            matched = RankedImage.of(source).matched_to(self._reference(target_domain))
            self._matched_change[index] = float(np.abs(matched - source).mean())
        if self._matched_change[index] > 0:
            result["identity_ratio"] = (
                float(np.abs(translation - source).mean()) / self._matched_change[index]
            )
        return result

    def _summary(self, pair: tuple[str, str], results: list[dict[str, Any]]) -> dict[str, float]:
        """Means over the subjects of a direction; FID and KID over all their slices."""
        names = [
            name
            for name in ("psnr", "ssim", "mae", "cycle", "identity_ratio")
            if any(name in r for r in results)
        ]
        summary = {name: float(np.mean([r[name] for r in results if name in r])) for name in names}
        fakes = [result["features"] for result in results if "features" in result]
        if fakes:
            target = pair[1]
            if target not in self._real_features:
                self._real_features[target] = slice_features(self._backbone, self._real_slices(target))
            distances = distribution_distances(self._real_features[target], np.concatenate(fakes))
            for name in ("fid", "kid"):
                if distances[name] is not None:
                    summary[name] = distances[name]
                else:
                    logger.info(
                        "validation %s->%s: no %s, %s", *pair, name.upper(), distances[f"{name}_reason"]
                    )
        return summary

    def _fixed_scores(self, translation: np.ndarray, target: np.ndarray, domain: str) -> Any:
        window = self._windows[domain]
        if window is None or window == (0.0, 1.0):  # MR, or in [0, 1] already
            return fixed_scores(translation, target)["masked"]
        sides = [hounsfield(side, window) for side in (translation, target)]
        return fixed_scores(*sides, modality="CT", window=window)["masked"]

    def _slices(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._reader[int(row)] for row in rows])

    def _real_slices(self, domain: str) -> np.ndarray:
        """The domain's validation slices, or the first ones it has for training."""
        rows = domain_rows(self._table, domain)
        if len(rows):
            return self._slices(rows)
        reader = SliceReader(self._tables["train"])
        return np.stack(
            [reader[int(row)] for row in domain_rows(self._tables["train"], domain)[:_TRAINING_SLICES]]
        )

    def _reference(self, domain: str) -> Histogram:
        if domain not in self._references:
            self._references[domain] = histogram_reference(self._real_slices(domain))
        return self._references[domain]

    # Pictures

    def save_pictures(self, model: GalipForImageTranslation, path: Path) -> Path:
        """A grid as PNG: a few sources of each domain, always the same, and beside each its translations.

        Under a source that has registered slices in other domains stand these.
        """
        rows: list[list[np.ndarray | None]] = []
        labels = []
        for source in self._domains:
            for row in self._pictured(source):
                image = self._slices(np.array([row]))[0]
                rows.append([image, *(translate_slices(model, image[None], to)[0] for to in self._domains)])
                labels.append(f"{source} · {self._subjects[row]}")
                real = [self._registered_with(row, source, to) for to in self._domains]
                if any(other is not None for other in real):
                    rows.append([None, *(None if r is None else self._reader[r] for r in real)])
                    labels.append("acquired")
        return save_grid(
            rows, path, row_labels=labels, column_labels=["source", *(f"→ {d}" for d in self._domains)]
        )

    def _pictured(self, domain: str) -> list[int]:
        """The middle slice of the first subjects, by name."""
        rows = domain_rows(self._table, domain)
        subjects = np.unique(self._subjects[rows])[:_PICTURES_A_DOMAIN]
        of_subject = [rows[self._subjects[rows] == subject] for subject in subjects]
        return [int(slices[len(slices) // 2]) for slices in of_subject]

    def _registered_with(self, row: int, source: str, target: str) -> int | None:
        if source == target:
            return None
        pairs = registered_rows(self._table, source, target)
        found = pairs[pairs[:, 0] == row, 1]
        return int(found[0]) if len(found) else None


__all__ = ["Validation"]
