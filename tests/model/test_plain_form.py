"""The fast forms against the plain ones of the benchmarks, which compute as the method is published."""

from typing import Any

import pytest
import torch
from conftest import MakeTrainer, filled_model, tiny_config

from benchmarks.plain import PlainTraining, plain_generator

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "nothing shared": {},
    "a level shared": {"norm_groups": 8},
    "two levels shared": {"norm_groups": 8, "channel_multipliers": [1, 1, 2], "attention_rates": [4]},
}


@pytest.mark.parametrize("fields", CONFIGURATIONS.values(), ids=list(CONFIGURATIONS))
def test_the_generator_and_its_gradients_are_those_of_the_plain_form(fields: Any) -> None:
    model = filled_model(tiny_config(**fields)).double()
    plain = plain_generator(model)
    images = torch.rand(2, 1, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, results = torch.tensor([0, 2]), []
    for form in (plain, model):
        given = images.clone().requires_grad_()
        output = form(given, labels).translation
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        results.append((output, given.grad, {name: value.grad for name, value in form.named_parameters()}))
    (expected, expected_of_images, expected_gradients), (found, of_images, gradients) = results
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(of_images, expected_of_images, rtol=1e-8, atol=1e-8)
    for name, expected_gradient in expected_gradients.items():
        if gradients[name] is None:  # a label that the next norm takes off again
            assert "label_projection" in name and expected_gradient.abs().max() < 1e-8
        else:
            torch.testing.assert_close(gradients[name], expected_gradient, rtol=1e-7, atol=1e-7)


def test_the_trainer_takes_the_steps_of_the_plain_form(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(model_fields={"norm_groups": 8})
    plain = PlainTraining(
        trainer.state.generator, trainer.state.discriminator, trainer.backbone, trainer.arguments
    )
    for _ in range(3):
        (batch,) = next(trainer.loader.steps(0))
        expected = plain.training_step(batch)
        found = trainer.training_step([batch], sorted(set(batch.target_domains)))["losses"]
        assert set(found) == set(expected)
        for name, value in found.items():
            assert float(value) == pytest.approx(float(expected[name]), rel=1e-4, abs=1e-6), name
