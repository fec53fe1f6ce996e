"""The heads: size, the convolution over tokens, spectral norm, independence of samples and domains."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from galip_hf.training.discriminator import GalipDiscriminator, SpectralNormLinear, TokenConvolution

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
def test_token_convolution_is_a_circular_one(kernel_size: int) -> None:
    torch.manual_seed(1)
    module = TokenConvolution(WIDTH, kernel_size)
    torch.nn.init.normal_(module.scale)
    torch.nn.init.normal_(module.shift)
    module.linear.power_iteration(steps=300)
    tokens = random(4, TOKENS, WIDTH)
    matrix = module.linear.weight / torch.linalg.matrix_norm(module.linear.weight, ord=2)
    kernel = matrix.unflatten(1, (kernel_size, WIDTH)).transpose(1, 2)  # (out, in, position)
    sequence = F.pad(tokens.mT, (kernel_size // 2,) * 2, mode="circular")
    hidden = F.instance_norm(F.conv1d(sequence, kernel), eps=1e-5).mT
    expected = F.leaky_relu(hidden * module.scale + module.shift, 0.2)
    torch.testing.assert_close(module(tokens), expected, rtol=0, atol=1e-4)


def normalised(module: SpectralNormLinear) -> Tensor:
    """The matrix that the module multiplies with."""
    return module(torch.eye(module.weight.shape[1])).T


def test_spectral_norm_after_power_iteration() -> None:
    torch.manual_seed(2)
    module = SpectralNormLinear(30, 20)
    module.weight.data *= 7
    module.power_iteration(steps=200)
    assert torch.linalg.matrix_norm(normalised(module), ord=2).item() == pytest.approx(1, abs=1e-3)


def test_initial_weights_are_nearly_normalised() -> None:
    torch.manual_seed(3)
    assert 0.999 < torch.linalg.matrix_norm(normalised(SpectralNormLinear(96, 64)), ord=2) < 1.1


def test_power_iteration_follows_the_weights() -> None:
    torch.manual_seed(4)
    module = SpectralNormLinear(8, 8)
    module.weight.data.copy_(random(8, 8, seed=5))
    stale = torch.linalg.matrix_norm(normalised(module), ord=2)
    module.power_iteration(steps=100)
    assert stale > 1.05
    assert torch.linalg.matrix_norm(normalised(module), ord=2).item() == pytest.approx(1, abs=1e-3)


def test_gradient_of_a_normalised_weight_is_orthogonal_to_it() -> None:
    """W / sigma(W) does not change with the scale of W, so its gradient has no part along W."""
    torch.manual_seed(5)
    module = SpectralNormLinear(7, 6)
    (normalised(module) * random(6, 7)).sum().backward()
    assert module.weight.grad is not None
    assert abs((module.weight.grad * module.weight).sum().item()) < 1e-5
    assert module.weight.grad.abs().max() > 0.1


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_norms_singular_values_and_logits_are_float32_under_autocast(
    discriminator: GalipDiscriminator, precision: torch.dtype
) -> None:
    tokens, text = inputs(2)
    head = discriminator.heads(0)[0]
    found: dict[str, torch.dtype] = {}
    for module in (head.pointwise, head.neighbourhood):
        module.register_forward_hook(lambda _, __, output: found.update(norm=output.dtype))
    head.projection.register_forward_hook(lambda _, __, output: found.update(projection=output.dtype))
    with torch.autocast("cpu", dtype=precision):
        logits = discriminator(tokens, [0, 1], text)
        sigma = head.neighbourhood.linear.singular_value()
    assert found["norm"] == logits.dtype == sigma.dtype == torch.float32
    torch.testing.assert_close(logits, discriminator(tokens, [0, 1], text), rtol=0, atol=0.1)


def divided_afterwards(module: SpectralNormLinear, tokens: Tensor) -> Tensor:
    """The product over the singular value: the same but for rounding, and for what overflows."""
    return F.linear(tokens, module.weight) / module.singular_value()


def test_a_large_weight_does_not_overflow_in_float16() -> None:
    torch.manual_seed(6)
    module = SpectralNormLinear(30, 20)
    module.weight.data *= 1e5
    tokens = random(4, TOKENS, 30, seed=7)
    with torch.autocast("cpu", dtype=torch.float16):
        assert not divided_afterwards(module, tokens).isfinite().all()
        product = module(tokens)
    assert product.dtype == torch.float16
    torch.testing.assert_close(product.float(), module(tokens), rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inputs_keep_their_dtype_when_divided(precision: torch.dtype) -> None:
    module = SpectralNormLinear(8, 8)
    assert module.divided(random(2, 8).to(precision)).dtype == precision


def test_dividing_before_or_after_the_product_is_the_same_to_rounding() -> None:
    torch.manual_seed(8)
    module = SpectralNormLinear(30, 20)
    found, expected = [], []
    for results, product in ((found, module), (expected, lambda x: divided_afterwards(module, x))):
        tokens = random(4, TOKENS, 30, seed=7).requires_grad_()
        output = product(tokens)
        module.weight.grad = None
        (output * random(*output.shape, seed=9)).sum().backward()
        results += [output, tokens.grad, module.weight.grad]
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-5)


def test_only_power_iteration_moves_buffers(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(3)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    for module in (discriminator.train(), discriminator.eval()):
        module(tokens, range(3), text)
    assert all(torch.equal(value, before[name]) for name, value in discriminator.state_dict().items())
    discriminator.power_iteration([0, 2])
    parameters = dict(discriminator.named_parameters())
    for name, value in discriminator.state_dict().items():
        stays = name in parameters or name.startswith("domains.1.")
        assert torch.equal(value, before[name]) == stays, name


def test_logits(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(2)
    logits = discriminator(tokens, [0, 1], text)
    assert logits.shape == (2, LAYERS, TOKENS)
    head = discriminator.heads(1)[1]
    hidden = head.pointwise(tokens[1][1:])
    hidden = ((head.neighbourhood(hidden) + hidden) / 2**0.5)[0]
    image = head.projection(hidden) + head.projection_bias  # (N, 64)
    projected = head.text_projection.weight @ text[1] + head.text_projection.bias
    torch.testing.assert_close(logits[1, 1], image @ projected / 8, rtol=0, atol=1e-5)


def test_a_score_does_not_depend_on_the_batch(discriminator: GalipDiscriminator) -> None:
    discriminator.double()
    tokens, text = inputs(4)
    tokens, text = [values.double() for values in tokens], text.double()
    domain = [1, 0, 2, 1]
    whole = discriminator(tokens, domain, text)
    for index in range(4):
        part = slice(index, index + 1)
        single = discriminator([values[part] for values in tokens], domain[part], text[part])
        torch.testing.assert_close(whole[part], single, rtol=0, atol=1e-12)


def test_domain_and_text_each_matter(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(1)
    own = discriminator(tokens, [0], text)
    assert (discriminator(tokens, [1], text) - own).abs().max() > 0.01
    assert (discriminator(tokens, [0], -text) - own).abs().max() > 0.01


def test_gradients_reach_exactly_the_domains_of_the_batch(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(2)
    discriminator(tokens, [2, 0], text).square().sum().backward()
    for name, parameter in discriminator.named_parameters():
        if name.startswith("domains.1."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().amax() > 0, name


def test_gradients_reach_the_tokens_of_every_layer(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(2)
    for values in tokens:
        values.requires_grad_()
    discriminator(tokens, [0, 1], text).square().sum().backward()
    for values in tokens:
        assert values.grad is not None
        assert (values.grad.abs().amax((1, 2)) > 1e-4).all()


def test_number_of_layers_must_fit(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(1)
    with pytest.raises(ValueError, match="shorter"):
        discriminator(tokens[:-1], [0], text)


def test_a_copy_gives_the_same_scores(discriminator: GalipDiscriminator) -> None:
    tokens, text = inputs(2)
    twin = copy.deepcopy(discriminator)
    torch.manual_seed(99)
    other = GalipDiscriminator(DOMAINS, LAYERS, WIDTH, TEXT_WIDTH)
    other.load_state_dict(discriminator.state_dict())
    domain = [0, 2]
    expected = discriminator(tokens, domain, text)
    assert torch.equal(twin(tokens, domain, text), expected)
    assert torch.equal(other(tokens, domain, text), expected)
