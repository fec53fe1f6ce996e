"""Training arguments: the learning-rate schedule and every check."""

import json
from typing import Any

import pytest

from galip_hf import GalipError
from galip_hf.training.training_args import GalipLossWeights, GalipTrainingArguments


def test_learning_rate_is_constant_then_falls_to_zero() -> None:
    arguments = GalipTrainingArguments("run", max_steps=100, constant_fraction=0.5)
    factors = {step: arguments.learning_rate_factor(step) for step in (0, 50, 51, 75, 99, 100, 101)}
    assert factors == {0: 1.0, 50: 1.0, 51: 0.98, 75: 0.5, 99: 0.02, 100: 0.0, 101: 0.0}


def test_learning_rate_without_a_fall_and_without_a_plateau() -> None:
    constant = GalipTrainingArguments("run", max_steps=4, constant_fraction=1.0)
    assert [constant.learning_rate_factor(step) for step in range(4)] == [1.0] * 4
    falling = GalipTrainingArguments("run", max_steps=4, constant_fraction=0.0)
    assert [falling.learning_rate_factor(step) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_learning_rate_rises_first() -> None:
    warm = GalipTrainingArguments("run", max_steps=100, warmup_steps=4, constant_fraction=0.5)
    assert [warm.learning_rate_factor(step) for step in (0, 1, 3, 4, 50, 75)] == [0.2, 0.4, 0.8, 1, 1, 0.5]
    # A rise longer than the plateau: the fall starts where the rise ends.
    late = GalipTrainingArguments("run", max_steps=10, warmup_steps=6, constant_fraction=0.0)
    assert [late.learning_rate_factor(step) for step in (5, 6, 8, 10)] == [6 / 7, 1.0, 0.5, 0.0]


def test_learning_rate_falls_along_a_cosine() -> None:
    arguments = GalipTrainingArguments(
        "run", max_steps=100, constant_fraction=0.2, learning_rate_decay="cosine"
    )
    factors = [arguments.learning_rate_factor(step) for step in (0, 20, 40, 60, 80, 100)]
    assert factors == pytest.approx([1, 1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0])


def test_the_half_life_counts_images_not_steps() -> None:
    arguments = GalipTrainingArguments("run", ema_half_life_images=800)
    for images_per_step in (8, 16, 64):  # batch 4; two processes; eight processes
        assert arguments.ema_decay_of(images_per_step) ** (800 / images_per_step) == pytest.approx(0.5)
    assert GalipTrainingArguments("run", ema_decay=0.9).ema_decay_of(64) == 0.9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"max_steps": 5, "warmup_steps": 5}, "warmup_steps is 5; expected fewer than max_steps 5"),
        ({"learning_rate_decay": "step"}, "learning_rate_decay is 'step'; expected linear or cosine"),
        ({"paired_share": 0.0}, "paired_share is 0.0; expected above 0, at most 1"),
        ({"ema_half_life_images": 0.0}, "ema_half_life_images is 0.0; expected a number above 0"),
        ({"report_to": ("wandb", "mlflow")}, "report_to has 'mlflow'; expected some of tensorboard, wandb"),
        ({"metric_for_best": "psnr"}, "metric_for_best needs validation_steps"),
        ({"early_stopping_patience": 2}, "early_stopping_patience needs metric_for_best"),
        ({"max_steps": 0}, "max_steps is 0; expected a number above 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"discriminator_learning_rate": 0.0}, "discriminator_learning_rate is 0.0"),
        ({"logging_steps": 0}, "logging_steps is 0"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"validation_steps": -1}, "validation_steps is -1"),
        ({"checkpoint_steps": -1}, "checkpoint_steps is -1"),
        ({"constant_fraction": 1.1}, r"constant_fraction is 1.1; expected 0\.\.1"),
        ({"constant_fraction": -0.1}, "constant_fraction is -0.1"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; expected 0 <= ema_decay < 1"),
        ({"ema_decay": -0.1}, "ema_decay is -0.1"),
        ({"adam_betas": (0.5,)}, r"adam_betas are \(0.5,\); expected two numbers"),
        ({"adam_betas": (0.5, 1.0)}, r"adam_betas are \(0.5, 1.0\)"),
        ({"process_timeout_minutes": 0.0}, "process_timeout_minutes is 0.0; expected a number above 0"),
        ({"process_timeout_minutes": float("inf")}, "process_timeout_minutes is inf; expected at most"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; expected no, bf16 or fp16"),
        ({"loss_weights": GalipLossWeights(clip=-1.0)}, "loss weight clip is -1.0; expected 0 or more"),
        ({"loss_weights": GalipLossWeights(cycle=float("nan"))}, "loss weight cycle is nan"),
        ({"loss_weights": GalipLossWeights(cycle=float("inf"))}, "loss weight cycle is inf"),
        ({"loss_weights": GalipLossWeights(0, 0, 0, 0, 0)}, "all loss weights are 0"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(GalipError, match=message) as caught:
        GalipTrainingArguments("run", **values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", ["cycle", "adversarial", "class_token", "clip", "identity"])
def test_one_loss_is_enough(weight: str) -> None:
    zero = dict.fromkeys(("cycle", "adversarial", "class_token", "clip", "identity"), 0.0)
    arguments = GalipTrainingArguments("run", loss_weights=GalipLossWeights(**{**zero, weight: 1.0}))
    assert getattr(arguments.loss_weights, weight) == 1.0


def test_to_dict_is_plain() -> None:
    values = GalipTrainingArguments("run", adam_betas=(0.5, 0.9)).to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["adam_betas"] == [0.5, 0.9]
    assert values["loss_weights"] == {
        "cycle": 10.0,
        "adversarial": 1.0,
        "class_token": 1.0,
        "clip": 1.0,
        "identity": 1.0,
        "paired": 0.0,
        "structure": 0.0,
        "patch": 0.0,
    }
