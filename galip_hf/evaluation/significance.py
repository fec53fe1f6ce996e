"""Statistics over subjects: the spread of one model's scores, and two models compared on the same subjects.

The subject is the unit: slices of one subject are not independent. Two models are compared by the Wilcoxon
signed-rank test (two-sided, exact), corrected over the directions after Holm (1979).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ..model.errors import GalipError

BOOTSTRAP_SAMPLES = 2000
LEVEL = 0.05
EXACT_TIES = 13  # subjects up to which all 2^n signs are tried when differences are tied
RESAMPLES = 2**EXACT_TIES
EFFECT_SIZE = "matched-pairs rank-biserial correlation (1: A is above B in every subject, -1: below)"


def spread(values: Sequence[float], name: str) -> dict[str, Any]:
    """`name` (mean), `name_sd` (n - 1), `name_median` and `name_ci95` over subjects; None where undefined."""
    array = np.asarray(values, dtype=np.float64)
    several = len(array) > 1
    return {
        name: float(array.mean()) if len(array) else None,
        f"{name}_sd": float(array.std(ddof=1)) if several else None,
        f"{name}_median": float(np.median(array)) if len(array) else None,
        f"{name}_ci95": bootstrap_interval(array) if several else None,
    }


def bootstrap_interval(values: np.ndarray) -> list[float]:
    """95 % percentile bootstrap of the mean over subjects: the same resamples for all samples of one size."""
    resamples = np.random.default_rng([0, len(values)]).integers(
        len(values), size=(BOOTSTRAP_SAMPLES, len(values))
    )
    return np.percentile(values[resamples].mean(axis=1), [2.5, 97.5]).tolist()


def jackknife_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float | None], first: int, second: int, groups: int = 20
) -> list[float] | None:
    """95 % interval of a statistic of two samples of subjects, by the delete-a-group jackknife of each
    sample.

    The bootstrap draws subjects twice; distances between distributions take such copies for structure and
    rise. Leaving subjects out makes no copies. See Shao and Tu, The Jackknife and Bootstrap, 1995, chapter 2.

    Args:
        statistic: (subjects kept of the first sample, of the second), ascending numbers -> value; None where
            it cannot be computed.
        first, second: numbers of subjects.
        groups: at most so many groups of subjects are left out, one after the other.

    Returns:
        [low, high], Student's t with as many degrees of freedom as the smaller sample has groups less one;
        None with fewer than two subjects on a side, or where a value is missing.
    """
    sizes = first, second
    if min(sizes) < 2:
        return None
    everyone = [np.arange(size) for size in sizes]
    value = statistic(*everyone)
    variance = 0.0
    for side, size in enumerate(sizes):
        count = min(groups, size)
        left = []
        for group in range(count):
            kept = list(everyone)
            kept[side] = everyone[side][everyone[side] % count != group]
            left.append(statistic(*kept))
        if value is None or any(part is None for part in left):
            return None
        parts = np.array(left, dtype=np.float64)
        variance += (count - 1) / count * float(np.square(parts - parts.mean()).sum())
    assert value is not None
    margin = float(stats.t.ppf(0.975, min(groups, *sizes) - 1)) * math.sqrt(variance)
    return [value - margin, value + margin]


def compare(
    first: Mapping[str, Mapping[str, float]], second: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Paired comparison of two models, A (`first`) and B (`second`), in each direction.

    Args:
        first: direction -> subject -> score of model A.
        second: the same of model B; only subjects that both hold are compared.

    Returns:
        `directions[d]`: `n`, `mean_difference` (A - B) with `mean_difference_sd`, `_median` and `_ci95`,
        `effect_size`, `p` (None when all differences are 0), `p_holm`, and `words`. `effect_size_name`,
        `test`, `correction`.

    Raises:
        GalipError: the directions differ, or the models share no subject.
    """
    if set(first) != set(second):
        raise GalipError(
            f"comparison: found directions {sorted(first)} and {sorted(second)}; expected the same"
        )
    cells = {direction: _paired(first[direction], second[direction]) for direction in first}
    if not any(cell["n"] for cell in cells.values()):
        raise GalipError("comparison: the two share no scored subject; evaluate both on the same data")
    tested = {direction: cell["p"] for direction, cell in cells.items() if cell["p"] is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    for direction, cell in cells.items():
        cell["p_holm"] = adjusted.get(direction)
        cell["words"] = _words(cell, len(tested))
    return {
        "directions": cells,
        "test": "Wilcoxon signed-rank over subjects, two-sided, exact",
        "correction": f"Holm, over {len(tested)} directions",
        "effect_size_name": EFFECT_SIZE,
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def smallest_p(subjects: int) -> float:
    """The lowest p that the exact two-sided signed-rank test can give: all differences of one sign."""
    return min(1.0, 2.0 ** (1 - subjects))


def _paired(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, Any]:
    shared = [subject for subject in first if subject in second]
    differences = np.array([first[subject] - second[subject] for subject in shared], dtype=np.float64)
    cell: dict[str, Any] = {"n": len(shared), **spread(differences.tolist(), "mean_difference")}
    moved = differences[differences != 0]
    cell |= {"p": _wilcoxon(moved) if len(moved) else None, "effect_size": None}
    if len(moved):
        ranks = stats.rankdata(np.abs(moved))
        cell["effect_size"] = float((ranks * np.sign(moved)).sum() / ranks.sum())
    return cell


def _wilcoxon(differences: np.ndarray) -> float:
    """Two-sided p of non-zero differences. SciPy's exact table knows no ties: those go by permutation."""
    tied = len(np.unique(np.abs(differences))) < len(differences)
    method: Any = "exact"
    if tied:
        method = stats.PermutationMethod(n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    return float(stats.wilcoxon(differences, method=method).pvalue)


def _words(cell: Mapping[str, Any], tests: int) -> str:
    n = cell["n"]
    if n == 0:
        return "no subject in common"
    if cell["p"] is None:
        return f"n = {n}: the two score the same in every subject"
    floor = smallest_p(n)
    if floor > LEVEL:
        return f"n = {n} is too few for any significance: p cannot go below {floor:.3g}"
    if min(1.0, floor * tests) > LEVEL:
        needed = math.ceil(1 + math.log2(tests / LEVEL))
        return (
            f"n = {n} is too few for any significance: after Holm over {tests} directions p cannot go below "
            f"{min(1.0, floor * tests):.3g}; {needed} subjects could"
        )
    better = "A is higher" if cell["mean_difference"] > 0 else "B is higher"
    verdict = "significant" if cell["p_holm"] < LEVEL else "not significant"
    return f"n = {n}: {better}, {verdict} at {LEVEL:g} after Holm"


__all__ = ["bootstrap_interval", "compare", "holm", "jackknife_interval", "smallest_p", "spread"]
