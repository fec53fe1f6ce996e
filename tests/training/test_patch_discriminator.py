"""The trainable discriminator of pixels: what it sees, its gradients in a step, and resuming."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import MakeTrainer, tiny_run_recipe
from test_trainer import assert_equal_states, one_step, some_batch, weights

from galip_hf import GalipError
from galip_hf.training.discriminator import SpectralNormLinear
from galip_hf.training.dry_run import describe_run
from galip_hf.training.patch_discriminator import PatchDiscriminator
from galip_hf.training.recipe import load_recipe
from galip_hf.training.trainer import GalipTrainer
from galip_hf.training.training_args import GalipLossWeights

WEIGHTS = GalipLossWeights(patch=2.0)


def patch_of(trainer: GalipTrainer) -> PatchDiscriminator:
    assert trainer.state.patch_discriminator is not None
    return trainer.state.patch_discriminator


def patch_state(trainer: GalipTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in patch_of(trainer).state_dict().items()}


def plain_logits(network: PatchDiscriminator, images: torch.Tensor) -> torch.Tensor:
    """(B, domains, h, w): the convolutions with each kernel over its exact largest singular value."""
    for convolution in [*network.hidden, network.output]:
        matrix = convolution.linear.weight
        kernel = (matrix / torch.linalg.matrix_norm(matrix, ord=2)).unflatten(1, (-1, 4, 4))
        images = F.conv2d(images, kernel, convolution.bias, convolution.stride, padding=1)
        if convolution is not network.output:
            images = F.leaky_relu(images, 0.2)
    return images


def test_logits_are_those_of_the_plain_form() -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(3)
    for _ in range(200):
        network.power_iteration()
    images, labels = torch.rand(4, 1, 48, 40), torch.tensor([2, 0, 2, 1])
    expected = plain_logits(network, images)
    logits = network(images, labels)
    assert logits.shape == (4, 5 * 4)
    for index, label in enumerate(labels):
        assert torch.allclose(logits[index], expected[index, label].flatten(), atol=1e-5)


def test_a_score_sees_46_pixels() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 128, 128, requires_grad=True)
    logits = PatchDiscriminator(1)(image, torch.tensor([0])).view(15, 15)
    logits[7, 7].backward()
    assert image.grad is not None
    rows = torch.nonzero(image.grad[0, 0].abs().sum(dim=1))
    assert int(rows.max() - rows.min()) + 1 == 46


def test_a_score_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    network, images = PatchDiscriminator(2), torch.rand(3, 1, 32, 32)
    together = network(images, torch.tensor([0, 1, 1]))
    alone = network(images[1:2], torch.tensor([1]))
    assert torch.allclose(together[1:2], alone, atol=1e-6)


def test_small_images_are_refused() -> None:
    network, label = PatchDiscriminator(1), torch.tensor([0])
    assert network(torch.rand(1, 1, 16, 20), label).shape == (1, 1)
    with pytest.raises(GalipError, match="at least 16 x 16 pixels, found 15 x 20"):
        network(torch.rand(1, 1, 15, 20), label)


def test_gradients_of_a_step(make_trainer: MakeTrainer) -> None:
    """The generator's and the discriminator's, from the definition; both at each other's present weights."""
    trainer = make_trainer(loss_weights=weights(patch=2.0))
    batch, network, generator = some_batch(trainer), patch_of(trainer), trainer.state.generator
    fakes = generator(batch.sources, batch.target_labels).translation
    for_generator = (network(fakes, batch.target_labels) - 1).square().mean()
    expected = torch.autograd.grad(2 * 2.0 * for_generator, list(generator.parameters()), allow_unused=True)
    fake, real = (network(images.detach(), batch.target_labels) for images in (fakes, batch.targets))
    judged = (real - 1).square().mean() + fake.square().mean()
    expected_of_d = torch.autograd.grad(2 * judged, list(network.parameters()))

    values = trainer.gradients.backward(batch)
    assert float(values["losses"]["patch"]) == pytest.approx(float(for_generator.detach()), rel=1e-5)
    assert float(values["losses"]["patch_discriminator"]) == pytest.approx(float(judged.detach()), rel=1e-5)
    assert float(values["discriminator_outputs"]["patch_real"]) == pytest.approx(
        float(real.detach().mean()), rel=1e-5
    )
    for parameter, gradient in zip(generator.parameters(), expected, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(found, torch.zeros_like(found) if gradient is None else gradient, atol=1e-6)
    for parameter, gradient in zip(network.parameters(), expected_of_d, strict=True):
        assert parameter.grad is not None and torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert all(parameter.grad is None for parameter in trainer.state.discriminator.parameters())


def test_it_moves_with_a_rate_of_its_own(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(loss_weights=WEIGHTS, patch_learning_rate=0.01)
    network = patch_of(trainer)
    before = patch_state(trainer)
    values = one_step(trainer, some_batch(trainer))
    # Adam's first step is the learning rate, wherever there is a gradient.
    change = (network.hidden[1].linear.weight - before["hidden.1.linear.weight"]).abs()
    assert float(change.detach().max()) == pytest.approx(0.01, rel=1e-3)
    assert trainer.learning_rates(0)["patch_discriminator"] == 0.01
    assert set(values["gradient_norms"]) == {"generator", "discriminator", "patch_discriminator"}
    # The singular vectors follow the weights.
    linear = network.hidden[0].linear
    assert isinstance(linear, SpectralNormLinear)
    assert not torch.equal(linear.left, before["hidden.0.linear.left"])


def test_domains_that_a_batch_lacks_get_zeros(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(loss_weights=WEIGHTS, batch_size=1)
    batch = some_batch(trainer)
    trainer.gradients.backward(batch)
    gradient = patch_of(trainer).output.linear.weight.grad
    assert gradient is not None
    absent = set(range(3)) - set(batch.target_domains)
    assert absent
    for label in range(3):
        if label in absent:
            assert not patch_of(trainer).output.bias.grad[label]
        else:
            assert gradient[label].any()


def test_without_a_weight_there_is_none(make_trainer: MakeTrainer) -> None:
    """And the other networks start as they do with it."""
    without, with_it = make_trainer(), make_trainer(loss_weights=WEIGHTS)
    assert without.state.patch_discriminator is None
    assert_equal_states(without.state.discriminator.state_dict(), with_it.state.discriminator.state_dict())
    assert_equal_states(without.state.generator.state_dict(), with_it.state.generator.state_dict())
    assert "patch_discriminator" not in without.learning_rates(0)


def test_a_resumed_run_equals_an_unbroken_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"loss_weights": WEIGHTS, "checkpoint_steps": 2, "logging_steps": 1}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), max_steps=4, **options)
    whole.train()
    # Constant rates: with another max_steps they would fall at another time.
    cut = {"output_dir": str(tmp_path / "cut"), "constant_fraction": 1.0, **options}
    reference = make_trainer(**{**cut, "output_dir": str(tmp_path / "reference")}, max_steps=4)
    reference.train()
    make_trainer(**cut, max_steps=2).train()
    resumed = make_trainer(**cut, max_steps=4, resume=True)
    resumed.train()
    assert_equal_states(patch_state(reference), patch_state(resumed))
    assert_equal_states(reference.state.generator.state_dict(), resumed.state.generator.state_dict())
    moments = [t.state.patch_optimizer.state_dict()["state"] for t in (reference, resumed)]  # type: ignore[union-attr]
    assert moments[0].keys() == moments[1].keys()
    for index, values in moments[0].items():
        assert torch.equal(values["exp_avg_sq"], moments[1][index]["exp_avg_sq"])


def test_a_checkpoint_without_it_is_refused(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    options: dict[str, Any] = {"output_dir": str(tmp_path / "run"), "checkpoint_steps": 1}
    make_trainer(max_steps=1, **options).train()
    with pytest.raises(GalipError, match=r"has no patch discriminator; set loss_weights\.patch to 0"):
        make_trainer(max_steps=2, resume=True, loss_weights=WEIGHTS, **options).train()


def test_half_precision(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(loss_weights=WEIGHTS, mixed_precision="bf16")
    values = one_step(trainer, some_batch(trainer))
    assert all(torch.isfinite(value) for value in values["losses"].values())
    assert patch_of(trainer).output.linear.weight.dtype == torch.float32


def test_a_dry_run_counts_it_and_the_hours(
    table_directory: Path, clip_directory: Path, tmp_path: Path
) -> None:
    path = tiny_run_recipe(tmp_path / "recipe.yaml", table_directory, clip_directory)
    texts = [
        "\n".join(describe_run(load_recipe(path, overrides)))
        for overrides in ([], ["training.loss_weights.patch=1.0", "training.max_hours=1.5"])
    ]
    counts = [int(re.findall(r"discriminator: ([\d,]+)", text)[0].replace(",", "")) for text in texts]
    assert counts[1] - counts[0] == sum(p.numel() for p in PatchDiscriminator(3).parameters())
    assert "at most 1.5 hours" in texts[1] and "hours" not in texts[0]
