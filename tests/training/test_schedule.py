"""What changes in the course of a run: the adversarial ramp, and the end of a run by time."""

import json
from pathlib import Path

import pytest
import torch
from conftest import MakeTrainer
from test_trainer import some_batch, weights

from galip_hf import GalipError
from galip_hf.training.checkpoint_files import load_state
from galip_hf.training.trainer import GalipTrainer
from galip_hf.training.training_args import GalipTrainingArguments

HOUR = 3600.0


def test_the_ramp_is_linear_and_then_over() -> None:
    arguments = GalipTrainingArguments("run", adversarial_ramp_steps=4, adversarial_ramp_start=0.2)
    assert [arguments.adversarial_factor(step) for step in (0, 1, 2, 4, 9)] == pytest.approx(
        [0.2, 0.4, 0.6, 1, 1]
    )
    assert GalipTrainingArguments("run").adversarial_factor(0) == 1


@pytest.mark.parametrize("loss", ["adversarial", "patch"])
def test_the_ramp_weighs_what_the_generator_learns_alone(make_trainer: MakeTrainer, loss: str) -> None:
    """At half of the weight half of the generator's gradient, and the discriminator's own."""

    def gradients(factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        trainer = make_trainer(loss_weights=weights(**{loss: 1.0}))
        trainer.gradients.adversarial_factor = factor
        trainer.gradients.backward(some_batch(trainer))
        network = trainer.state.patch_discriminator or trainer.state.discriminator
        found = [
            torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
            for module in (trainer.state.generator, network)
        ]
        return found[0], found[1]

    whole, half = gradients(1.0), gradients(0.5)
    assert whole[0].abs().max() > 0
    assert torch.allclose(half[0], whole[0] / 2, rtol=1e-4, atol=1e-9)
    assert torch.equal(half[1], whole[1])


def test_the_trainer_follows_the_ramp(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=4, adversarial_ramp_steps=3, adversarial_ramp_start=0.4)
    seen = []
    backward = trainer.gradients.backward

    def note(*arguments: object) -> dict:
        seen.append(trainer.gradients.adversarial_factor)
        return backward(*arguments)  # type: ignore[arg-type]

    trainer.gradients.backward = note  # type: ignore[method-assign,assignment]
    trainer.train()
    assert seen == pytest.approx([0.4, 0.6, 0.8, 1.0])


# Time


def ticking(trainer: GalipTrainer, seconds: float) -> None:
    """A clock by which each step takes `seconds`."""
    reads = iter(range(1_000_000))
    trainer.clock = lambda: 100 + seconds * next(reads)


def test_time_ends_a_run_and_its_learning_rate(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(max_steps=1000, max_hours=1.0, logging_steps=1, checkpoint_steps=1000)
    ticking(trainer, HOUR / 5)
    trainer.train()
    assert trainer.state.step == 5 and trainer.stopped_by is None
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rates = [entry["learning_rates"]["generator"] / trainer.arguments.learning_rate for entry in log]
    assert rates == pytest.approx([1, 1, 1, 0.8, 0.4])  # constant for half of the time
    # The end is logged, saved and validated as that of a run by steps.
    assert load_state(tmp_path / "run" / "checkpoints" / "step-00000005")["seconds"] == HOUR


def test_steps_end_a_run_that_has_time_left(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=3, max_hours=1.0)
    ticking(trainer, 1.0)
    trainer.train()
    assert trainer.state.step == 3


def test_time_is_summed_over_resumed_runs(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    first = make_trainer(max_steps=2, checkpoint_steps=1, max_hours=1.0)
    ticking(first, HOUR / 4)
    first.train()
    second = make_trainer(max_steps=100, checkpoint_steps=1, max_hours=1.0, resume=True)
    ticking(second, HOUR / 4)
    second.train()
    assert second.state.step == 4


def test_learning_rates_by_time_and_by_steps() -> None:
    by_steps = GalipTrainingArguments("run", max_steps=100)
    both = GalipTrainingArguments("run", max_steps=100, max_hours=2.0)
    assert by_steps.learning_rate_factor(80, seconds=2 * HOUR) == by_steps.learning_rate_factor(80) == 0.4
    assert both.learning_rate_factor(10, seconds=1.5 * HOUR) == pytest.approx(0.5)
    assert both.learning_rate_factor(80, seconds=0.1 * HOUR) == pytest.approx(0.4)
    assert both.learning_rate_factor(10, seconds=3 * HOUR) == 0


@pytest.mark.parametrize("hours", [0.0, -1.0, float("inf"), float("nan")])
def test_hours_out_of_range(hours: float) -> None:
    with pytest.raises(GalipError, match="max_hours"):
        GalipTrainingArguments("run", max_hours=hours)
