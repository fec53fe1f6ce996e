"""Each loss against a value worked out by hand."""

import math

import pytest
import torch

from galip_hf.training import losses


def test_adversarial_generator_loss() -> None:
    logits = torch.tensor([[[1.0, 0.0]], [[3.0, -1.0]]])  # (0 + 1 + 4 + 4) / 4
    assert losses.adversarial_generator_loss(logits).item() == 2.25


def test_adversarial_discriminator_loss() -> None:
    real, fake = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    # mean of 0 and 4, plus mean of 0, 1, 1 and 4
    assert losses.adversarial_discriminator_loss(real, fake).item() == 3.5
    assert losses.adversarial_discriminator_loss(torch.ones(2, 4), torch.zeros(2, 4)).item() == 0


@pytest.mark.parametrize("loss", [losses.cycle_loss, losses.identity_loss])
def test_pixel_losses_are_mean_absolute_differences(loss: object) -> None:
    first, second = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert callable(loss)
    assert loss(first, second).item() == 1.5


def test_clip_loss_is_the_mean_negative_cosine() -> None:
    image = torch.tensor([[2.0, 0.0], [3.0, 3.0]])
    text = torch.tensor([[5.0, 0.0], [0.0, 1.0]])
    assert losses.clip_loss(image, text).item() == pytest.approx(-(1 + 1 / math.sqrt(2)) / 2)


def test_class_token_loss_concatenates_the_blocks() -> None:
    fake = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]])  # (2 samples, 2 blocks, 2)
    real = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 2.0], [3.0, 4.0]]])
    # cosine of (1, 0, 0, 0) and (1, 0, 0, 1) is 1 / sqrt(2); block by block it would be 1 and 0
    assert losses.class_token_loss(fake, real).item() == pytest.approx((1 - 1 / math.sqrt(2)) / 2)
    assert losses.class_token_loss(-real, real).item() == pytest.approx(2)


def test_the_papers_sum_over_both_directions_is_twice_the_mean() -> None:
    a_to_b, b_to_a = torch.tensor([[0.5]]), torch.tensor([[3.0]])
    both = losses.DIRECTIONS * losses.adversarial_generator_loss(torch.cat([a_to_b, b_to_a]))
    separate = losses.adversarial_generator_loss(a_to_b) + losses.adversarial_generator_loss(b_to_a)
    assert both.item() == separate.item() == 4.25


def test_structure_loss_ignores_a_change_of_contrast_and_sees_an_edge_that_moves() -> None:
    source = torch.full((1, 1, 32, 32), 0.2)
    source[..., 8:24, 8:24] = 0.8
    inverted, moved = 1 - source, source.roll(4, dims=-1)
    assert losses.structure_loss(source, source).item() < 0.05  # not 0: the allowance for noise
    assert losses.structure_loss(inverted, source).item() == pytest.approx(
        losses.structure_loss(source, source).item(), abs=1e-4
    )
    assert losses.structure_loss(moved, source).item() > 0.3
    assert losses.structure_loss(torch.full_like(source, 0.5), source).item() == pytest.approx(1, abs=1e-4)


def test_structure_loss_asks_nothing_of_empty_sources_and_reaches_the_translation_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.rand(1, 1, 16, 16, generator=generator, requires_grad=True)
    translation = torch.rand(1, 1, 16, 16, generator=generator, requires_grad=True)
    losses.structure_loss(translation, source).backward()
    assert source.grad is None
    assert translation.grad is not None and translation.grad.abs().max() > 0
    assert losses.structure_loss(translation, torch.zeros_like(source)).item() == 0
