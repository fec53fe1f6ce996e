"""Wilcoxon, Holm and the effect size against SciPy and hand-computed values, and what is said in words."""

import itertools

import numpy as np
import pytest
from scipy import stats

from galip_hf.evaluation.significance import bootstrap_interval, compare, holm, smallest_p, spread
from galip_hf.model.errors import GalipError


def scores(values: list[float]) -> dict[str, float]:
    return {f"s{index}": value for index, value in enumerate(values)}


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]


def test_p_is_scipys_exact_one() -> None:
    rng = np.random.default_rng([4])
    first, second = rng.normal(25, 1, 9).tolist(), rng.normal(24.5, 1, 9).tolist()
    result = compare({"T1->T2": scores(first)}, {"T1->T2": scores(second)})["directions"]["T1->T2"]
    expected = stats.wilcoxon(first, second, method="exact")
    assert result["p"] == pytest.approx(expected.pvalue) == pytest.approx(result["p_holm"])
    assert result["mean_difference"] == pytest.approx(np.mean(first) - np.mean(second))
    # Rank-biserial: (W+ - W-) / (W+ + W-), and SciPy returns the smaller of the two.
    assert abs(result["effect_size"]) == pytest.approx(1 - 2 * expected.statistic / (9 * 10 / 2))


def test_tied_differences_go_through_all_signs() -> None:
    differences = np.array([1.0, 1.0, 2.0, -1.0, 3.0, 3.0])
    ranks = stats.rankdata(np.abs(differences))
    observed = ranks[differences > 0].sum()
    sums = np.array([ranks[np.array(signs) > 0].sum() for signs in itertools.product((-1, 1), repeat=6)])
    centre = ranks.sum() / 2
    expected = np.mean(np.abs(sums - centre) >= abs(observed - centre) - 1e-9)
    zero = dict.fromkeys(scores(differences.tolist()), 0.0)
    result = compare({"d": scores(differences.tolist())}, {"d": zero})["directions"]["d"]
    assert result["p"] == pytest.approx(expected)
    assert result["effect_size"] == pytest.approx((2 * observed - ranks.sum()) / ranks.sum())


def test_few_subjects_are_said_to_be_too_few() -> None:
    assert [smallest_p(n) for n in (1, 4, 5, 6)] == [1.0, 0.125, 0.0625, 0.03125]
    four = compare({"d": scores([2, 3, 4, 5.5])}, {"d": scores([1, 1, 1, 1])})["directions"]["d"]
    assert four["p"] == 0.125 and four["effect_size"] == 1.0
    assert four["words"] == "n = 4 is too few for any significance: p cannot go below 0.125"
    one = compare({"d": scores([2.0])}, {"d": scores([1.0])})["directions"]["d"]
    assert one["p"] == 1.0 and one["mean_difference_sd"] is None and "n = 1 is too few" in one["words"]
    better = {f"d{k}": scores([1.0 + 0.1 * i + 0.01 * k for i in range(6)]) for k in range(6)}
    zero = {f"d{k}": scores([0.0] * 6) for k in range(6)}
    cell = compare(better, zero)["directions"]["d0"]
    assert cell["p"] == 0.03125 and cell["p_holm"] == pytest.approx(0.1875)
    assert cell["words"].endswith("p cannot go below 0.188; 8 subjects could")


def test_enough_subjects_are_significant_or_not() -> None:
    sure = compare({"d": scores(list(range(1, 9)))}, {"d": scores([0] * 8)})["directions"]["d"]
    assert sure["words"] == "n = 8: A is higher, significant at 0.05 after Holm"
    unsure = [1, -2, 3, -4, 5, -6, 7, -8]
    assert (
        "B is higher, not significant"
        in (compare({"d": scores(unsure)}, {"d": scores([0] * 8)})["directions"]["d"]["words"])
    )


def test_only_shared_subjects_count_and_equal_scores_have_no_p() -> None:
    result = compare({"d": {"a": 1.0, "b": 2.0, "c": 9.0}}, {"d": {"b": 2.0, "a": 1.0, "x": 0.0}})
    cell = result["directions"]["d"]
    assert (cell["n"], cell["p"], cell["p_holm"], cell["effect_size"]) == (2, None, None, None)
    assert "the same in every subject" in cell["words"]
    with pytest.raises(GalipError, match="share no scored subject"):
        compare({"d": {"a": 1.0}}, {"d": {"b": 1.0}})
    with pytest.raises(GalipError, match="expected the same"):
        compare({"d": {"a": 1.0}}, {"e": {"a": 1.0}})


def test_spread_over_subjects() -> None:
    cell = spread([1.0, 2.0, 6.0], "psnr")
    assert (cell["psnr"], cell["psnr_median"]) == (3.0, 2.0)
    assert cell["psnr_sd"] == pytest.approx(np.sqrt(7.0))
    assert spread([], "x") == {"x": None, "x_sd": None, "x_median": None, "x_ci95": None}
    # For many subjects the bootstrap agrees with the normal interval of the mean, and it is repeatable.
    values = np.random.default_rng([1]).normal(10, 2, 400)
    low, high = bootstrap_interval(values)
    assert [low, high] == bootstrap_interval(values)
    assert (low, high) == pytest.approx((values.mean() - 0.196, values.mean() + 0.196), abs=0.03)
