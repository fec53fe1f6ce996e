"""For which domain would a translation be taken? A classifier of slices, trained on the real scans.

Multinomial logistic regression on texture features (`texture_features`), by subjects: a slice is judged by a
classifier that has seen no slice of its subject. It cannot see whether the anatomy is right.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

FOLDS = 5
PENALTY = 1e-2  # on the squared weights: a few slices must not fit noise
_Subjects = Mapping[str, Sequence[tuple[Any, np.ndarray]]]


def classify(real: _Subjects, fake: _Subjects) -> dict[str, Any]:
    """How often real slices are told correctly, and translated ones are taken for their target or source.

    Args:
        real: domain -> (subject, (N, D) features) of each real scan.
        fake: "T1->T2" -> (subject of the source, (N, D) features) of each translation.

    Returns:
        `accuracy` (balanced over domains, real slices of subjects that were left out), `directions[d]` with
        `n`, `as_target` and `as_source` (shares of the translated slices); or `left_out`, why there is none.
    """
    domains = sorted(real)
    subjects = sorted({subject for scans in real.values() for subject, _ in scans}, key=str)
    fold_of = {subject: number % FOLDS for number, subject in enumerate(subjects)}
    few = [
        d for d in domains if len({fold_of[subject] for subject, features in real[d] if len(features)}) < 2
    ]

    if len(domains) < 2 or few:
        missing = f"of {', '.join(few)}" if few else "of a second domain"
        return {"left_out": f"it needs real scans of at least two subjects {missing}"}
    judges: dict[int, _Classifier] = {}

    def judge(subject: Any) -> "_Classifier":
        # A subject without real scans, such as one given by its translation alone, is known to no classifier.
        fold = fold_of.get(subject, 0)
        if fold not in judges:
            kept = {d: [f for s, f in real[d] if fold_of[s] != fold and len(f)] for d in domains}
            judges[fold] = _Classifier.trained([np.concatenate(kept[d]) for d in domains])
        return judges[fold]

    recalls = []
    for number, domain in enumerate(domains):
        told = np.concatenate([judge(s)(f) == number for s, f in real[domain] if len(f)])
        recalls.append(told.mean())
    directions = {}
    for direction, scans in fake.items():
        told = np.concatenate([judge(s)(f) for s, f in scans if len(f)] or [np.zeros(0, int)])
        source, _, target = direction.partition("->")
        shares = [
            float((told == domains.index(d)).mean()) if d in domains and len(told) else None
            for d in (target, source)
        ]
        directions[direction] = {"n": len(told), "as_target": shares[0], "as_source": shares[1]}
    return {"accuracy": float(np.mean(recalls)), "directions": directions}


class _Classifier:
    def __init__(self, mean: np.ndarray, scale: np.ndarray, weights: np.ndarray) -> None:
        self.mean, self.scale, self.weights = mean, scale, weights

    @classmethod
    def trained(cls, classes: Sequence[np.ndarray]) -> "_Classifier":
        """On (N, D) features of each class; every class weighs the same."""
        features = np.concatenate(classes)
        mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-9
        labels = torch.tensor(np.repeat(np.arange(len(classes)), [len(f) for f in classes]))
        weight = torch.tensor([len(features) / (len(classes) * len(f)) for f in classes])
        x = torch.tensor(_with_constant((features - mean) / scale))
        weights = torch.zeros(x.shape[1], len(classes), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(x @ weights, labels, weight.double())
            value = value + PENALTY * weights[:-1].square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)  # type: ignore[no-untyped-call]
        return cls(mean, scale, weights.detach().numpy())

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """The class of each row."""
        return (_with_constant((features - self.mean) / self.scale) @ self.weights).argmax(axis=1)


def _with_constant(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


__all__ = ["classify"]
