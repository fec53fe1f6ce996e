"""The heads: size, the convolution over tokens, spectral norm, independence of samples and domains."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from galip_hf.discriminator import GalipDiscriminator, SpectralNormWeight, TokenConvolution

DOMAINS, LAYERS, WIDTH, TEXT_WIDTH, TOKENS = 3, 4, 12, 10, 16


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def discriminator() -> GalipDiscriminator:
    torch.manual_seed(0)
    module = GalipDiscriminator(DOMAINS, LAYERS, WIDTH, TEXT_WIDTH)
    for name, parameter in module.named_parameters():
        if name.endswith(
            ("scale", "shift", "bias")
        ):  # 1 and 0 at first: away from there, each is seen to act
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return module


def inputs(batch_size: int) -> tuple[list[Tensor], Tensor]:
    tokens = [random(batch_size, TOKENS, WIDTH, seed=layer) for layer in range(LAYERS)]
    return tokens, F.normalize(random(batch_size, TEXT_WIDTH, seed=9), dim=-1)


def test_size_at_vit_b() -> None:
    """Each domain: 23.9 million weights at the width of ViT-B/16, as four heads."""
    with torch.device("meta"):
        module = GalipDiscriminator(DOMAINS, 4, 768, 512)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count % DOMAINS == 0
    pointwise, neighbourhood = 768 * 768 + 2 * 768, 9 * 768 * 768 + 2 * 768
    projections = 64 * 768 + 64 + 64 * 512 + 64
    assert count // DOMAINS == 4 * (pointwise + neighbourhood + projections)
    assert 23.85e6 < count / DOMAINS < 23.95e6


@pytest.mark.parametrize("kernel_size", [1, 9])
def test_token_convolution_is_a_circular_one_of_the_samples_domain(kernel_size: int) -> None:
    torch.manual_seed(1)
    module = TokenConvolution(DOMAINS, WIDTH, kernel_size)
    torch.nn.init.normal_(module.scale)
    torch.nn.init.normal_(module.shift)
    tokens, domain = random(4, TOKENS, WIDTH), torch.tensor([2, 0, 1, 2])
    found = module(tokens, domain)
    for index, label in enumerate(domain.tolist()):
        matrix = module.weight.weight[label] / torch.linalg.matrix_norm(module.weight.weight[label], ord=2)
        kernel = matrix.unflatten(1, (kernel_size, WIDTH)).transpose(1, 2)  # (out, in, position)
        sequence = F.pad(tokens[index].T[None], (kernel_size // 2,) * 2, mode="circular")
        hidden = F.instance_norm(F.conv1d(sequence, kernel), eps=1e-5)[0].T
        expected = F.leaky_relu(hidden * module.scale[label] + module.shift[label], 0.2)
        # The singular vectors are as near as 15 iterations bring them.
        torch.testing.assert_close(found[index], expected, rtol=0, atol=2e-2)


def test_spectral_norm_after_power_iteration() -> None:
    torch.manual_seed(2)
    module = SpectralNormWeight(DOMAINS, 20, 30)
    module.weight.data[1] *= 7
    module.power_iteration(steps=200)
    domain = torch.tensor([0, 1, 2, 1])
    norms = torch.linalg.matrix_norm(module(domain), ord=2)
    torch.testing.assert_close(norms, torch.ones(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(module(domain)[1], module(torch.tensor([1]))[0])


def test_initial_weights_are_nearly_normalised() -> None:
    torch.manual_seed(3)
    norms = torch.linalg.matrix_norm(SpectralNormWeight(DOMAINS, 64, 96)(torch.arange(DOMAINS)), ord=2)
    assert (norms > 0.999).all() and (norms < 1.1).all()


def test_power_iteration_follows_the_weights() -> None:
    torch.manual_seed(4)
    module = SpectralNormWeight(1, 8, 8)
    module.weight.data.copy_(random(1, 8, 8, seed=5))
    stale = torch.linalg.matrix_norm(module(torch.tensor([0])), ord=2)
    module.power_iteration(steps=100)
    assert stale > 1.05
    torch.testing.assert_close(
        torch.linalg.matrix_norm(module(torch.tensor([0])), ord=2), torch.ones(1), rtol=0, atol=1e-3
    )


def test_gradient_of_a_normalised_weight_is_orthogonal_to_it() -> None:
    """W / sigma(W) does not change with the scale of W, so its gradient has no part along W."""
    torch.manual_seed(5)
    module = SpectralNormWeight(1, 6, 7)
    (module(torch.tensor([0])) * random(1, 6, 7)).sum().backward()
    assert module.weight.grad is not None
    assert abs((module.weight.grad * module.weight).sum().item()) < 1e-5
    assert module.weight.grad.abs().max() > 0.1


def test_only_power_iteration_moves_buffers(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(3)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    for module in (discriminator.train(), discriminator.eval()):
        module(tokens, torch.arange(3), text)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    discriminator.power_iteration()
    parameters = dict(discriminator.named_parameters())
    for name, value in discriminator.state_dict().items():
        assert torch.equal(value, before[name]) == (name in parameters), name


def test_logits(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(2)
    logits = discriminator(tokens, torch.tensor([0, 1]), text)
    assert logits.shape == (2, LAYERS, TOKENS)
    head = discriminator.heads[1]
    label = torch.tensor([1])
    hidden = head.pointwise(tokens[1][1:], label)
    hidden = ((head.neighbourhood(hidden, label) + hidden) / 2**0.5)[0]
    image = hidden @ head.projection(label)[0].T + head.projection_bias[1]  # (N, 64)
    projected = head.text_weight[1] @ text[1] + head.text_bias[1, :, 0]
    torch.testing.assert_close(logits[1, 1], image @ projected / 8, rtol=0, atol=1e-5)


def test_a_score_does_not_depend_on_the_batch(discriminator: GalipDiscriminator) -> None:
    discriminator.double()
    tokens, text = inputs(4)
    tokens, text = [values.double() for values in tokens], text.double()
    domain = torch.tensor([1, 0, 2, 1])
    whole = discriminator(tokens, domain, text)
    for index in range(4):
        part = slice(index, index + 1)
        single = discriminator([values[part] for values in tokens], domain[part], text[part])
        torch.testing.assert_close(whole[part], single, rtol=0, atol=1e-12)


def test_domain_and_text_each_matter(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(1)
    label = torch.tensor([0])
    own = discriminator(tokens, label, text)
    assert (discriminator(tokens, label + 1, text) - own).abs().max() > 0.01
    assert (discriminator(tokens, label, -text) - own).abs().max() > 0.01


def test_gradients_reach_exactly_the_domains_of_the_batch(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(2)
    discriminator(tokens, torch.tensor([2, 0]), text).square().sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None, name  # not None: distributed training counts on it
        largest = parameter.grad.flatten(1).abs().amax(1)
        assert largest[1] == 0, name
        assert largest[0] > 0 and largest[2] > 0, name


def test_gradients_reach_the_tokens_of_every_layer(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(2)
    for values in tokens:
        values.requires_grad_()
    discriminator(tokens, torch.tensor([0, 1]), text).square().sum().backward()
    for values in tokens:
        assert values.grad is not None
        assert (values.grad.abs().amax((1, 2)) > 1e-4).all()


def test_number_of_layers_must_fit(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(1)
    with pytest.raises(ValueError, match="shorter"):
        discriminator(tokens[:-1], torch.tensor([0]), text)


def test_a_copy_gives_the_same_scores(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(2)
    twin = copy.deepcopy(discriminator)
    torch.manual_seed(99)
    other = GalipDiscriminator(DOMAINS, LAYERS, WIDTH, TEXT_WIDTH)
    other.load_state_dict(discriminator.state_dict())
    domain = torch.tensor([0, 2])
    expected = discriminator(tokens, domain, text)
    assert torch.equal(twin(tokens, domain, text), expected)
    assert torch.equal(other(tokens, domain, text), expected)
