"""The evaluation report: its structure, its baselines and the numbers in its cells."""

import gc
import json
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage.exposure import match_histograms

from galip_hf.clip.backbone import ClipBackbone
from galip_hf.evaluation.evaluate import evaluate
from galip_hf.evaluation.fid_kid import distribution_distances, slice_features
from galip_hf.evaluation.metrics import fixed_scores, paper_scores
from galip_hf.files import write_report
from galip_hf.foreground import body_mask
from galip_hf.model.errors import GalipError

DOMAINS = ("T1", "T2", "PD")
DIRECTIONS = ["T1->T2", "T1->PD", "T2->T1", "T2->PD", "PD->T1", "PD->T2"]
SHAPE = (2, 16, 18)


def make_subjects(count: int) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng([7])
    return [{d: generator.random(SHAPE, dtype=np.float32) for d in DOMAINS} for _ in range(count)]


def make_training() -> dict[str, np.ndarray]:
    generator = np.random.default_rng([8])
    return {d: generator.random((5, *SHAPE[1:]), dtype=np.float32) ** (k + 1) for k, d in enumerate(DOMAINS)}


def darken(volume: np.ndarray, source: str, target: str) -> np.ndarray:
    volume *= np.float32(0.8)  # in place on purpose: the evaluation must hand out a copy
    return volume


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return evaluate(make_subjects(3), darken, make_training(), domains=DOMAINS, progress=False)


def test_report_holds_every_direction_and_baseline(report: dict[str, Any]) -> None:
    assert report["subjects"] == 3 and report["slices"] == 6
    assert {name: set(p) for name, p in report["protocols"].items()} == {
        "paper": {"version", "description", "full"},
        "fixed": {"version", "description", "masked", "full"},
    }
    tables = [
        report["protocols"]["paper"]["full"],
        *(report["protocols"]["fixed"][r] for r in ("masked", "full")),
    ]
    for table in tables:
        assert list(table["directions"]) == DIRECTIONS
        assert list(table["baselines"]) == ["copy", "histogram", "mean"]
        for cells in (table["directions"], *table["baselines"].values()):
            assert list(cells) == DIRECTIONS
            assert {"psnr", "psnr_sd", "psnr_median", "psnr_ci95", "ssim", "mae", "mae_sd"} <= set(
                cells["T1->T2"]
            )
    assert report["skipped_slices"] == dict.fromkeys(DIRECTIONS, 0)
    json.dumps(report, allow_nan=False)


def test_cells_are_statistics_over_subjects(report: dict[str, Any]) -> None:
    subjects = make_subjects(3)
    psnr = [fixed_scores(s["T1"] * np.float32(0.8), s["PD"])["masked"].psnr for s in subjects]
    cell = report["protocols"]["fixed"]["masked"]["directions"]["T1->PD"]
    assert cell["psnr"] == pytest.approx(np.mean(psnr))
    assert cell["psnr_sd"] == pytest.approx(np.std(psnr, ddof=1))
    assert cell["psnr_median"] == pytest.approx(np.median(psnr))
    low, high = cell["psnr_ci95"]
    assert min(psnr) <= low < cell["psnr"] < high <= max(psnr)
    of_subject = report["per_subject"][1]["directions"]["T1->PD"]["model"]["fixed"]["masked"]["psnr"]
    assert of_subject == pytest.approx(psnr[1])
    paper = np.mean([paper_scores(s["T1"] * np.float32(0.8), s["PD"]).ssim for s in subjects])
    assert report["protocols"]["paper"]["full"]["directions"]["T1->PD"]["ssim"] == pytest.approx(paper)


def test_baselines_by_hand(report: dict[str, Any]) -> None:
    subjects, training = make_subjects(3), make_training()
    expected = {
        "copy": lambda s: s["T2"],
        "histogram": lambda s: match_histograms(s["T2"], training["PD"]),
        "mean": lambda s: np.stack([training["PD"].astype(np.float64).mean(axis=0)] * SHAPE[0]),
    }
    for name, baseline in expected.items():
        scores = [fixed_scores(baseline(s), s["PD"])["full"] for s in subjects]
        cell = report["protocols"]["fixed"]["full"]["baselines"][name]["T2->PD"]
        assert cell["psnr"] == pytest.approx(np.mean([score.psnr for score in scores]))
        assert cell["ssim"] == pytest.approx(np.mean([score.ssim for score in scores]))
        assert cell["mae"] == pytest.approx(np.mean([score.mae for score in scores]))


def test_summary_is_the_mean_over_directions(report: dict[str, Any]) -> None:
    table, summary = report["protocols"]["fixed"]["masked"], report["summary"]
    assert (summary["protocol"], summary["region"]) == ("fixed", "masked")
    for measure in ("psnr", "ssim"):
        model = np.mean([cell[measure] for cell in table["directions"].values()])
        mean = np.mean([cell[measure] for cell in table["baselines"]["mean"].values()])
        assert summary["model"][measure] == pytest.approx(model)
        assert summary["baselines"]["mean"][measure] == pytest.approx(mean)


def test_identity_collapse_is_noticed(report: dict[str, Any]) -> None:
    subjects = make_subjects(3)
    collapse = report["identity_collapse"]["T1->T2"]
    assert collapse["collapsed"] is True and collapse["subjects_collapsed"] == 3
    by_hand = [np.abs(s["T1"] * np.float32(0.2))[body_mask(list(s.values()))].mean() for s in subjects]
    assert collapse["mae_to_source"] == pytest.approx(np.mean(by_hand), rel=1e-5)

    known = {s[d].tobytes(): s for s in subjects for d in DOMAINS}
    perfect = evaluate(subjects, lambda v, s, t: known[v.tobytes()][t], make_training(), domains=DOMAINS)
    assert perfect["identity_collapse"]["T1->T2"]["collapsed"] is False
    assert perfect["identity_collapse"]["T1->T2"]["mae_to_target"] == 0.0
    assert perfect["summary"]["model"] == {"psnr": 100.0, "ssim": pytest.approx(1.0)}


def test_one_subject_has_no_spread_and_blank_output_is_counted(tmp_path: Path) -> None:
    report = evaluate(make_subjects(1), lambda v, s, t: np.zeros_like(v), make_training(), domains=DOMAINS)
    cell = report["protocols"]["paper"]["full"]["directions"]["T1->T2"]
    assert cell["psnr"] is None and cell["ssim"] is None
    assert report["skipped_slices"]["T1->T2"] == 2
    fixed = report["protocols"]["fixed"]["masked"]["directions"]["T1->T2"]
    assert fixed["psnr"] < 10 and fixed["psnr_sd"] is None and fixed["psnr_ci95"] is None
    assert json.loads(write_report(report, tmp_path / "report.json").read_text(encoding="utf-8")) == report


def test_ct_direction_is_scored_in_hounsfield_units() -> None:
    generator = np.random.default_rng([3])
    subject = {d: generator.random(SHAPE, dtype=np.float32) * np.float32(0.8) for d in ("MR", "CT")}
    training = {d: generator.random((4, *SHAPE[1:]), dtype=np.float32) for d in ("MR", "CT")}
    report = evaluate(
        [subject],
        lambda v, s, t: subject[t] + np.float32(0.01),
        training,
        domains=("MR", "CT"),
        ct_windows={"CT": (-1024.0, 976.0)},
    )
    cells = report["protocols"]["fixed"]["full"]["directions"]
    assert cells["MR->CT"]["mae"] == pytest.approx(20.0, rel=1e-4)  # 0.01 of 2000 HU
    assert cells["MR->CT"]["psnr"] == pytest.approx(40.0, abs=1e-3)
    assert cells["CT->MR"]["mae"] == pytest.approx(0.01 / np.percentile(subject["MR"], 99.5), rel=1e-3)
    assert report["units"]["mae"]["fixed"]["MR->CT"] == "HU"
    assert report["units"]["mae"]["fixed"]["CT->MR"] != "HU"


def test_inputs_are_left_as_they_were() -> None:
    subjects, training = make_subjects(1), make_training()
    evaluate(subjects, darken, training, domains=DOMAINS)
    for d in DOMAINS:
        np.testing.assert_array_equal(subjects[0][d], make_subjects(1)[0][d])
        np.testing.assert_array_equal(training[d], make_training()[d])


def test_failures_name_the_subject_and_direction() -> None:
    subjects, training = make_subjects(2), make_training()
    with pytest.raises(GalipError, match=r"subject 0, T1->T2: prediction: got shape \(1, 16, 18\)"):
        evaluate(subjects, lambda v, s, t: v[:1], training, domains=DOMAINS)
    with pytest.raises(GalipError, match="subject 0, T1->T2: prediction: got 576 NaN"):
        evaluate(subjects, lambda v, s, t: v * np.float32(math.nan), training, domains=DOMAINS)
    with pytest.raises(GalipError, match="subject 0: got shapes"):
        evaluate([{**subjects[0], "T2": subjects[0]["T2"][:1]}], darken, training, domains=DOMAINS)
    with pytest.raises(GalipError, match="expected at least one paired test subject"):
        evaluate([], darken, training, domains=DOMAINS)
    with pytest.raises(GalipError, match="two or more different names"):
        evaluate(subjects, darken, training, domains=("T1", "T1"))
    with pytest.raises(GalipError, match="'PD' is missing"):
        evaluate(subjects, darken, {d: training[d] for d in ("T1", "T2")}, domains=DOMAINS)
    with pytest.raises(GalipError, match=r"as in its training slices, \(12, 18\)"):
        evaluate(subjects, darken, {**training, "PD": training["PD"][:, :12]}, domains=DOMAINS)
    with pytest.raises(GalipError, match="ct_windows"):
        evaluate(subjects, darken, training, domains=DOMAINS, ct_windows={"CT": (0, 1)})


def test_write_report_refuses_non_finite_values_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_report({"psnr": 1.5}, tmp_path / "reports" / "report.json")
    assert path.read_text(encoding="utf-8") == '{\n  "psnr": 1.5\n}\n'
    for bad in (math.nan, math.inf, np.float32(1.0)):
        with pytest.raises(GalipError, match="report: "):
            write_report({"psnr": bad}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"psnr": 1.5}
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_a_missing_domain_costs_only_its_directions() -> None:
    subjects = make_subjects(3)
    whole = evaluate(subjects, darken, make_training(), domains=DOMAINS)
    del subjects[1]["PD"]
    report = evaluate(subjects, darken, make_training(), domains=DOMAINS, names=["anna", "ben", "cleo"])
    for protocol, region in (("paper", "full"), ("fixed", "masked")):
        cells, before = (r["protocols"][protocol][region]["directions"] for r in (report, whole))
        assert [cells[d]["n"] for d in DIRECTIONS] == [3, 2, 3, 2, 2, 2]
        assert cells["T1->T2"] == before["T1->T2"]
    kept = [whole["per_subject"][i]["directions"]["T1->PD"]["model"]["fixed"]["full"]["mae"] for i in (0, 2)]
    assert report["protocols"]["fixed"]["full"]["directions"]["T1->PD"]["mae"] == pytest.approx(np.mean(kept))
    assert report["exclusions"] == [
        {"subject": "ben", "direction": d, "reason": "PD missing"} for d in DIRECTIONS if "PD" in d
    ]
    assert [entry["subject"] for entry in report["per_subject"]] == ["anna", "ben", "cleo"]


def test_a_blank_target_is_excluded_with_its_reason() -> None:
    subjects = make_subjects(2)
    subjects[0]["T2"][:] = 0
    report = evaluate(subjects, darken, make_training(), domains=DOMAINS)
    assert {(e["subject"], e["direction"]) for e in report["exclusions"]} == {(0, "T1->T2"), (0, "PD->T2")}
    assert all("is the volume blank?" in e["reason"] for e in report["exclusions"])
    assert report["protocols"]["fixed"]["masked"]["directions"]["T2->T1"]["n"] == 2
    with pytest.raises(GalipError, match="no pair could be scored"):
        evaluate([{"T1": subjects[0]["T1"]}], darken, make_training(), domains=DOMAINS)


def test_a_blank_slice_is_skipped_by_paper_and_counted() -> None:
    subjects = make_subjects(1)
    subjects[0]["T2"][1] = 0
    report = evaluate(subjects, darken, make_training(), domains=DOMAINS)
    assert report["skipped_slices"] == {d: int("T2" in d) for d in DIRECTIONS}
    alone = paper_scores(subjects[0]["T1"][:1] * np.float32(0.8), subjects[0]["T2"][:1])
    assert report["protocols"]["paper"]["full"]["directions"]["T1->T2"]["psnr"] == pytest.approx(alone.psnr)


def test_a_gain_error_leaves_paper_alone_and_moves_fixed() -> None:
    subjects, training = make_subjects(2), make_training()
    plain, louder = (
        evaluate(subjects, lambda v, s, t, gain=gain: v * np.float32(gain), training, domains=DOMAINS)
        for gain in (1.0, 0.5)
    )
    for d in DIRECTIONS:
        paper, fixed = (
            [r["protocols"][name][region]["directions"][d]["psnr"] for r in (plain, louder)]
            for name, region in (("paper", "full"), ("fixed", "masked"))
        )
        assert paper[0] == pytest.approx(paper[1], abs=1e-6)
        assert abs(fixed[0] - fixed[1]) > 0.1
    assert louder["perceptual"]["T1->T2"]["sharpness_ratio"] == pytest.approx(
        plain["perceptual"]["T1->T2"]["sharpness_ratio"] / 2, rel=1e-5
    )


def test_baselines_alone_and_without_training_slices() -> None:
    subjects = make_subjects(2)
    report = evaluate(subjects, None, None, domains=DOMAINS)
    table = report["protocols"]["fixed"]["full"]
    assert table["directions"] == {} and list(table["baselines"]) == ["copy", "histogram"]
    assert report["histogram_reference"] == "the target itself"
    expected = [
        fixed_scores(match_histograms(s["T1"], s["PD"]), s["PD"])["full"].mae for s in make_subjects(2)
    ]
    assert table["baselines"]["histogram"]["T1->PD"]["mae"] == pytest.approx(np.mean(expected))
    assert report["identity_collapse"] == {} and report["perceptual"] == {}
    assert report["distribution"] == {"left_out": "no CLIP model was given (--clip SOURCE)"}
    model_only = evaluate(subjects, darken, make_training(), domains=DOMAINS, baselines=False)
    assert model_only["protocols"]["fixed"]["full"]["baselines"] == {}
    whole = evaluate(subjects, darken, make_training(), domains=DOMAINS)
    for name in ("paper", "fixed"):
        assert (
            model_only["protocols"][name]["full"]["directions"]
            == whole["protocols"][name]["full"]["directions"]
        )


def test_a_given_mask_and_training_pairs() -> None:
    subjects, training = make_subjects(3), make_training()
    mask = np.zeros(SHAPE, bool)
    mask[:, 2:9, 3:11] = True
    pairs = [{d: s[d] for d in ("T1", "T2")} for s in make_subjects(5)[3:]]
    report = evaluate(
        subjects, darken, training, domains=DOMAINS, training_pairs=pairs,
        mask_of=lambda index: mask if index == 1 else None,
    )  # fmt: skip
    assert [entry["mask"] for entry in report["per_subject"]] == ["measured", "given", "measured"]
    scores = report["per_subject"][1]["directions"]["T1->T2"]["model"]["fixed"]["masked"]
    expected = fixed_scores(subjects[1]["T1"] * np.float32(0.8), subjects[1]["T2"], mask=mask)["masked"]
    assert scores["psnr"] == pytest.approx(expected.psnr) and scores["mae"] == pytest.approx(expected.mae)
    lookup = report["protocols"]["fixed"]["masked"]["baselines"]["lookup"]
    assert lookup["T1->T2"]["n"] == 3 and lookup["T1->PD"] == {**lookup["T1->PD"], "n": 0, "psnr": None}
    copy = report["protocols"]["fixed"]["full"]["baselines"]["copy"]["T1->T2"]["mae"]
    assert report["protocols"]["fixed"]["full"]["baselines"]["lookup"]["T1->T2"]["mae"] < copy
    with pytest.raises(GalipError, match="subject 0: its mask is"):
        evaluate(subjects, darken, training, domains=DOMAINS, mask_of=lambda index: mask[:1])


def test_few_subjects_are_in_memory_at_a_time() -> None:
    alive: list[weakref.ref] = []
    most = 0

    class Lazy(Sequence):
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            nonlocal most
            if index >= len(self):
                raise IndexError(index)
            subject = make_subjects(9)[index]
            alive.append(weakref.ref(subject["T1"]))
            gc.collect()
            most = max(most, sum(reference() is not None for reference in alive))
            return subject

    lazily = evaluate(Lazy(), darken, make_training(), domains=DOMAINS)
    assert most <= 3  # one that is scored, one that has just been, and the one that is being read
    assert lazily == evaluate(make_subjects(9), darken, make_training(), domains=DOMAINS)


def test_distribution_distances_state_their_samples(tiny_backbone: ClipBackbone) -> None:
    rng = np.random.default_rng([9])
    subjects = [{d: rng.random((7, 16, 18), dtype=np.float32) for d in ("T1", "T2")} for _ in range(2)]
    del subjects[1]["T1"]
    report = evaluate(subjects, darken, None, domains=("T1", "T2"), backbone=tiny_backbone)
    assert set(report["distribution"]["directions"]) == {"T1->T2", "T2->T1"}
    cell = report["distribution"]["directions"]["T1->T2"]
    assert (cell["n_real"], cell["n_fake"], cell["kid"]) == (7, 7, None)
    assert "n = 7" in cell["fid_reason"] and "n = 7" in cell["kid_reason"]
    many = [{d: rng.random((14, 16, 18), dtype=np.float32) for d in ("T1", "T2")} for _ in range(2)]
    report = evaluate(many, darken, None, domains=("T1", "T2"), backbone=tiny_backbone)
    cell = report["distribution"]["directions"]["T1->T2"]
    fakes = np.concatenate([s["T1"] * np.float32(0.8) for s in many])
    expected = distribution_distances(
        slice_features(tiny_backbone, np.concatenate([s["T2"] for s in many])),
        slice_features(tiny_backbone, fakes),
    )
    assert cell["fid"] == pytest.approx(expected["fid"], rel=1e-3) and cell["fid"] > 0
    assert cell["kid"] == pytest.approx(expected["kid"], rel=1e-3, abs=1e-6)
