"""The coloured line: what a report comes to, and the page's plots, panels and protocol values."""

from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from galip_hf.evaluation.box_plots import box_plot
from galip_hf.evaluation.evaluate import evaluate
from galip_hf.evaluation.metrics import fixed_scores, fixed_target, mr_scores, paper_scores
from galip_hf.evaluation.panels import Panels
from galip_hf.evaluation.report_page import html_report
from galip_hf.evaluation.verdict import paired_verdict

SHAPE = (3, 24, 26)


def subject(seed: int) -> dict[str, np.ndarray]:
    """B is a function of A and of a texture that A does not show."""
    rng = np.random.default_rng([seed])
    a, hidden = (rng.random(SHAPE, dtype=np.float32) for _ in range(2))
    return {"A": a, "B": np.float32(0.5) * (1 - a) + np.float32(0.5) * hidden}


def report(count: int, error: float, *, pairs: bool = True, collapsed: bool = False) -> dict[str, Any]:
    """Of a translator that knows the truth but for noise of a size."""
    subjects = [subject(k) for k in range(count)]
    truth = {s["A"].tobytes(): s["B"] for s in subjects} | {s["B"].tobytes(): s["A"] for s in subjects}
    rng = np.random.default_rng([99])

    def translate(volume: np.ndarray, source: str, target: str) -> np.ndarray:
        if collapsed:
            return volume
        return truth[volume.tobytes()] + np.float32(error) * rng.normal(size=SHAPE).astype(np.float32)

    training = {d: np.concatenate([subject(k)[d] for k in (100, 101)]) for d in ("A", "B")}
    options: dict[str, Any] = {"training_pairs": [subject(100), subject(101)] if pairs else []}
    return evaluate(subjects, translate, training, domains=("A", "B"), **options)


def test_the_verdict_on_pairs() -> None:
    good = paired_verdict(report(7, 0.02))
    assert good["level"] == "good" and "in all 2 directions" in good["says"]
    assert "protocol fixed version 3" in good["rests_on"] and "lookup table" in good["rests_on"]
    few = paired_verdict(report(3, 0.02))
    assert few["level"] == "unsure" and "3 subjects cannot show significance" in few["says"]
    unknown = paired_verdict(report(7, 0.02, pairs=False))
    assert unknown["level"] == "unsure" and "no training pairs" in unknown["says"]
    noisy = paired_verdict(report(7, 0.6))
    assert noisy["level"] == "bad" and "not above" in noisy["says"]
    back = paired_verdict(report(7, 0, collapsed=True))
    assert back["level"] == "bad" and "closer to its source" in back["says"]
    alone = paired_verdict(evaluate([subject(0)], None, None, domains=("A", "B")))
    assert alone["level"] == "unsure" and "no translator" in alone["says"]


def test_the_page_lists_each_subject_with_its_worst_slice() -> None:
    panels = Panels()
    subjects = [subject(k) for k in range(7)]

    def spoil(volume: np.ndarray, source: str, target: str) -> np.ndarray:
        number = next(k for k, s in enumerate(subjects) if s[source].tobytes() == volume.tobytes())
        made = subjects[number][target].copy()
        made[number % 3] *= np.float32(0.5)
        return made

    names = [f"case <{k}>" for k in range(7)]
    found = evaluate(subjects, spoil, None, domains=("A", "B"), names=names, panels=panels)
    for number, entry in enumerate(found["per_subject"]):
        worst = entry["directions"]["A->B"]["worst_slice"]
        target = subjects[number]["B"]
        top, mask = np.percentile(target, 99.5), np.ones(SHAPE[1:], bool)
        index = number % 3
        error = np.mean((target[index] / 2 / top)[mask] ** 2)
        assert worst == {"index": index, "psnr": pytest.approx(-10 * np.log10(error), abs=1e-4)}
    page = html_report(found | {"verdict": paired_verdict(found)}, title="x", panels=panels)
    assert page.count("data:image/webp;base64,") == 14 and "case &lt;3&gt;, slice 0" in page
    assert page.index('class="verdict') < page.index("<h1>")
    assert "case <3>" not in page


def test_fewer_than_six_subjects_are_dots_without_boxes() -> None:
    limits = {"psnr": (0.0, 30.0), "ssim": (0.0, 1.0)}

    def paths(count: int) -> int:
        scores = {"model": [10.0 + k for k in range(count)]}
        values = {"psnr": scores, "ssim": {"model": [0.1 * k for k in range(count)]}}
        return box_plot("A->B", values, limits).count("<path")

    assert paths(6) - paths(5) >= 10  # box, median, whiskers and caps, twice
    assert paths(5) == paths(2)


@pytest.mark.parametrize("scale", [1.0, 37.5])
def test_both_protocols_at_once_are_scikit_image(scale: float) -> None:
    rng = np.random.default_rng([8])
    target = rng.random((3, 30, 28)) * scale
    prediction = target + 0.1 * scale * rng.normal(size=target.shape)
    mask = rng.random(target.shape) > 0.4
    paper, fixed = mr_scores(prediction, target, fixed_target(target, mask=mask))
    options: dict[str, Any] = {
        "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "full": True,
    }  # fmt: skip
    normal = [(p / p.max(), t / t.max()) for p, t in zip(prediction, target, strict=True)]
    assert paper.ssim == pytest.approx(
        np.mean([structural_similarity(t, p, **options)[0] for p, t in normal])
    )
    psnr = [peak_signal_noise_ratio(t, p, data_range=1) for p, t in normal]
    assert paper.psnr == pytest.approx(np.mean(psnr))
    top = np.percentile(target, 99.5)
    whole = [
        structural_similarity(t / top, p / top, **options) for p, t in zip(prediction, target, strict=True)
    ]
    assert fixed["full"].ssim == pytest.approx(np.mean([mean for mean, _ in whole]), abs=1e-12)
    inside = np.stack([ssim_map for _, ssim_map in whole])[mask]
    assert fixed["masked"].ssim == pytest.approx(inside.mean(), abs=1e-10)
    alone = fixed_scores(prediction, target, mask=mask)
    for region in ("masked", "full"):
        for measure in ("psnr", "ssim", "mae"):
            value = getattr(fixed[region], measure)
            assert value == pytest.approx(getattr(alone[region], measure), abs=1e-10)
    assert paper.mae == pytest.approx(paper_scores(prediction, target).mae)
