"""The best validation by a named figure, patience, and its state."""

import json

import pytest

from galip_hf.model.errors import GalipError
from galip_hf.training.early_stopping import BestValidation


def test_the_direction_is_known_from_the_name() -> None:
    higher, lower = BestValidation("psnr T1->T2"), BestValidation("fid")
    figures = [{"psnr T1->T2": value, "fid": value} for value in (3.0, 2.0, 4.0, 4.0)]
    assert [higher.update(f, step) for step, f in enumerate(figures)] == [True, False, True, False]
    assert [lower.update(f, step) for step, f in enumerate(figures)] == [True, True, False, False]
    assert (higher.value, higher.step, lower.value, lower.step) == (4.0, 2, 2.0, 1)


def test_not_a_number_is_never_the_best() -> None:
    best = BestValidation("kid")
    assert not best.update({"kid": float("nan")}, 1)
    assert best.update({"kid": 5.0}, 2)
    assert not best.update({"kid": float("-inf")}, 3)


def test_patience_counts_validations_and_survives_a_restart() -> None:
    best = BestValidation("ssim", patience=2)
    for value in (0.5, 0.4):
        best.update({"ssim": value}, 1)
    assert not best.is_over
    again = BestValidation("ssim", patience=2)
    again.load_state_dict(json.loads(json.dumps(best.state_dict())))
    assert not again.update({"ssim": 0.45}, 2)
    assert again.is_over
    again.update({"ssim": 0.6}, 3)
    assert not again.is_over
    other = BestValidation("psnr", patience=2)
    other.load_state_dict(best.state_dict())  # the state of another figure says nothing
    assert other.update({"psnr": -5.0}, 4)
    assert not any(BestValidation("psnr").is_over for _ in range(3))


def test_refusals() -> None:
    with pytest.raises(GalipError, match="metric_for_best is 'accuracy'; expected psnr, ssim"):
        BestValidation("accuracy")
    with pytest.raises(GalipError, match="'fid' is not what this validation gives; it gives psnr, ssim"):
        BestValidation("fid").update({"psnr": 1.0, "ssim": 1.0}, 1)
