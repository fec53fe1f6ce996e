"""The generator: size, initialisation, translation, gradients, prompts, saving and loading."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXT_EMBEDDING_WIDTH, filled_model, tiny_config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageToImage

from galip_hf import GalipConfig, GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.model.unet_blocks import GalipGroupNorm, GalipLayerNorm, GalipResidualBlock


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> GalipForImageTranslation:
    """Shared by the tests that do not change it."""
    return filled_model(tiny_config())


# Architecture


@pytest.mark.parametrize(("conditioning", "count"), [("tokens", 14_127_617), ("pooled", 13_242_881)])
def test_number_of_parameters(conditioning: Any, count: int) -> None:
    with torch.device("meta"):
        model = GalipForImageTranslation(GalipConfig(text_conditioning=conditioning))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("gain", [0.02, 1.0])
def test_initialisation(gain: float) -> None:
    torch.manual_seed(0)
    options = {} if gain == 0.02 else {"initializer_gain": gain}  # 0.02, the authors', is the default
    config = tiny_config(base_channels=32, norm_groups=8, **options)
    model = GalipForImageTranslation(config).requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            fan_out, fan_in = module.weight.shape
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound, name
            assert module.weight.std() == pytest.approx(bound / 3**0.5, rel=0.1), name
        elif isinstance(module, nn.Conv2d):
            fan_out, fan_in = (side * module.weight[0, 0].numel() for side in module.weight.shape[:2])
            # A standard deviation of n values scatters by 1 / sqrt(2 n) of itself.
            tolerance = 5 / (2 * module.weight.numel()) ** 0.5
            deviation = gain * (2 / (fan_in + fan_out)) ** 0.5
            assert module.weight.std() == pytest.approx(deviation, rel=tolerance), name
        elif isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
            assert (module.weight == 1).all(), name
        if getattr(module, "bias", None) is not None:
            assert (module.bias == 0).all(), name
    assert model.label_embedding.weight.std() == pytest.approx(1, abs=0.4)


def test_initialisation_follows_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(GalipForImageTranslation(tiny_config()).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv_in.weight"], states[2]["conv_in.weight"])


# Translation


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (1, 1), (1, 7), (23, 1), (17, 21)])
def test_any_size_is_padded_by_its_border(model: GalipForImageTranslation, size: tuple[int, int]) -> None:
    height, width = size
    pixel_values = images(2, 1, height, width)
    with torch.inference_mode():
        translation = model(pixel_values, "T2").translation
        padded = F.pad(pixel_values, (0, width % 2, 0, height % 2), mode="replicate")
        expected = model(padded, "T2").translation[..., :height, :width]
    assert translation.shape == pixel_values.shape
    assert torch.isfinite(translation).all()
    torch.testing.assert_close(translation, expected, rtol=0, atol=0)


def test_padding_of_a_deeper_network_reaches_a_multiple_of_its_rate() -> None:
    model = filled_model(tiny_config(channel_multipliers=[1, 1, 2], attention_rates=[4]))
    pixel_values = images(1, 1, 9, 3)
    with torch.inference_mode():
        expected = model(F.pad(pixel_values, (0, 1, 0, 3), mode="replicate"), "T1").translation[..., :9, :3]
        assert torch.equal(model(pixel_values, "T1").translation, expected)


def test_a_batch_of_mixed_targets_equals_its_samples(model: GalipForImageTranslation) -> None:
    model = copy.deepcopy(model).double()  # what is left of a difference is wiring, not rounding
    pixel_values, names = images(4, 1, 16, 16).double(), ["CT", "T1", "T2", "CT"]
    with torch.inference_mode():
        batch = model(pixel_values, names).translation
        for index, name in enumerate(names):
            single = model(pixel_values[index : index + 1], name).translation[0]
            torch.testing.assert_close(batch[index], single, rtol=0, atol=1e-12)
        others = [model(pixel_values[:1], name).translation for name in ("T1", "T2")]
    assert (others[0] - others[1]).abs().max() > 0.01


def test_targets_as_name_list_and_labels_agree(model: GalipForImageTranslation) -> None:
    pixel_values = images(2, 1, 16, 16)
    with torch.inference_mode():
        by_name = model(pixel_values, "CT").translation
        for target in (["CT", "CT"], ("CT", "CT"), torch.tensor([2, 2])):
            assert torch.equal(model(pixel_values, target).translation, by_name)


def test_label_and_text_each_matter(model: GalipForImageTranslation) -> None:
    pixel_values, labels = images(1, 1, 16, 16), torch.tensor([0])
    with torch.inference_mode():
        own = model(pixel_values, labels).translation
        other_text = model(pixel_values, labels, prompt_states=model.prompt_states[[1]]).translation
        other_label = model(pixel_values, labels + 1, prompt_states=model.prompt_states[[0]]).translation
        override = model(pixel_values, labels, prompt_states=model.prompt_states[[0]]).translation
    assert torch.equal(override, own)
    assert (other_text - own).abs().max() > 1e-3
    assert (other_label - own).abs().max() > 1e-3


def test_tuple_output(model: GalipForImageTranslation) -> None:
    output = model(images(1, 1, 8, 8), "T1")
    assert list(output) == ["translation"]
    assert output[0] is output.translation


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(1, 8, 8), r"found \(1, 8, 8\) of torch.float32; expected float images \(B, 1, H, W\)"),
        (torch.zeros(1, 3, 8, 8), r"found \(1, 3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "of torch.uint8"),
    ],
)
def test_faulty_images(model: GalipForImageTranslation, pixel_values: Tensor, message: str) -> None:
    with pytest.raises(GalipError, match=f"pixel_values: .*{message}"):
        model(pixel_values, "T1")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("PD", "'PD' is unknown to this model; it has T1, T2, CT"),
        (["T1", "PD"], "'PD' is unknown"),
        (["T1"], r"found shape \(1,\); expected one a sample, \(2,\)"),
        (torch.tensor([[0, 1]]), r"found shape \(1, 2\)"),
        (torch.tensor([0, 3]), r"labels are \[0, 3\]; expected 0\.\.2 \(T1, T2, CT\)"),
        (torch.tensor([-1, 0]), r"labels are \[-1, 0\]"),
        (torch.tensor([0.0, 1.0]), "found a tensor of torch.float32; expected torch.int64"),
        (torch.tensor([0, 1], dtype=torch.int32), "torch.int32"),
        (1, "found 1; expected a name, a list of names or a LongTensor"),
        ([0, 1], r"found \[0, 1\]"),
    ],
)
def test_faulty_targets(model: GalipForImageTranslation, target: Any, message: str) -> None:
    with pytest.raises(GalipError, match=message) as caught:
        model(images(2, 1, 8, 8), target)
    assert "\n" not in str(caught.value)


def test_faulty_prompt_states(model: GalipForImageTranslation) -> None:
    with pytest.raises(GalipError, match=r"found shape \(1, 12, 17\); expected \(1, 12, 16\)"):
        model(images(1, 1, 8, 8), "T1", prompt_states=torch.zeros(1, 12, 17))


def test_without_prompt_states_a_translation_is_refused() -> None:
    model = GalipForImageTranslation(tiny_config())
    with pytest.raises(GalipError, match="no prompt states; call model"):
        model(images(1, 1, 8, 8), "T1")
    model(images(1, 1, 8, 8), "T1", prompt_states=torch.ones(1, 12, 16))


# Gradients


def zero_gradients(model: GalipForImageTranslation) -> set[str]:
    """Names of the parameters that a batch with all targets gives no gradient (float64: 0 up to rounding)."""
    model.double()
    model(images(3, 1, 16, 16).double(), ["T1", "T2", "CT"]).translation.square().sum().backward()
    names = set()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if parameter.grad.abs().max() < 1e-10:
            names.add(name)
    return names


def test_every_parameter_receives_a_gradient() -> None:
    assert zero_gradients(filled_model(tiny_config())) == set()


def test_with_one_text_state_the_attention_weights_are_one_whatever_the_query() -> None:
    model = filled_model(tiny_config(text_conditioning="pooled"))
    assert model.prompt_states.shape == (3, 1, TEXT_EMBEDDING_WIDTH)
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.endswith(("cross_attention.query.weight", "cross_attention.key.weight"))
        or "norm_cross" in name
    }
    assert expected
    assert zero_gradients(model) == expected


def test_initial_gradients_reach_every_parameter() -> None:
    """The small convolutions at the start still pass gradients to everything."""
    torch.manual_seed(0)
    model = GalipForImageTranslation(tiny_config())
    model.prompt_states.copy_(torch.randn(model.prompt_states.shape))
    model(images(3, 1, 16, 16), ["T1", "T2", "CT"]).translation.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


# Prompts


@pytest.mark.parametrize("conditioning", ["tokens", "pooled"])
def test_set_prompts_keeps_the_encoded_prompts(tiny_backbone: ClipBackbone, conditioning: Any) -> None:
    model = GalipForImageTranslation(tiny_config(text_conditioning=conditioning))
    keys = set(model.state_dict())
    model.set_prompts(tiny_backbone)
    features = tiny_backbone.encode_prompts(model.config.prompts)
    expected = features.token_states if conditioning == "tokens" else features.embedding[:, None]
    assert torch.equal(model.prompt_states, expected)
    assert set(model.state_dict()) == keys
    assert not any(isinstance(module, ClipBackbone) for module in model.modules())
    model(images(1, 1, 8, 8), "T1")


def test_set_prompts_takes_new_prompts_into_the_configuration(tiny_backbone: ClipBackbone) -> None:
    model = GalipForImageTranslation(tiny_config())
    model.set_prompts(tiny_backbone)
    before = model.prompt_states.clone()
    model.set_prompts(tiny_backbone, {"T2": "this is a T2 scan"})
    assert model.config.prompts == ["this MRI is T1-weighted", "this is a T2 scan", "this is a CT scan"]
    changed = tiny_backbone.encode_prompts(["this is a T2 scan"]).token_states[0]
    torch.testing.assert_close(model.prompt_states[1], changed, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.prompt_states[[0, 2]], before[[0, 2]], rtol=0, atol=1e-6)
    assert (model.prompt_states[1] - before[1]).abs().max() > 1e-3


def test_set_prompts_refuses_and_changes_nothing(tiny_backbone: ClipBackbone) -> None:
    model = GalipForImageTranslation(tiny_config())
    with pytest.raises(GalipError, match="'PD' is unknown"):
        model.set_prompts(tiny_backbone, {"PD": "this MRI is PD-weighted"})
    with pytest.raises(GalipError, match="tokens"):
        model.set_prompts(tiny_backbone, {"T2": "this " * 30})
    wide = GalipForImageTranslation(tiny_config(text_width=20))
    with pytest.raises(GalipError, match=r"shape \(12, 16\); .* expects \(12, 20\)"):
        wide.set_prompts(tiny_backbone, {"T2": "this is a T2 scan"})
    for unchanged in (model, wide):
        assert unchanged.config.prompts == tiny_config().prompts
        assert (unchanged.prompt_states == 0).all()


# Saving and loading


@pytest.fixture
def saved(model: GalipForImageTranslation, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path)
    GalipImageProcessor.from_config(model.config).save_pretrained(tmp_path)
    return tmp_path


def test_round_trip_is_bit_exact(model: GalipForImageTranslation, saved: Path) -> None:
    loaded = GalipForImageTranslation.from_pretrained(saved)
    assert set(loaded.state_dict()) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert "prompt_states" in loaded.state_dict()
    assert not loaded.training
    pixel_values = images(2, 1, 16, 16)
    with torch.inference_mode():
        found, expected = loaded(pixel_values, "CT").translation, model(pixel_values, "CT").translation
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # file-mapped weights may round otherwise


def test_auto_classes(saved: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(saved), GalipConfig)
    assert isinstance(AutoModelForImageToImage.from_pretrained(saved), GalipForImageTranslation)
    for make in (lambda: AutoModel.from_pretrained(saved), lambda: AutoModel.from_config(GalipConfig())):
        with pytest.raises(GalipError, match="use AutoModelForImageToImage"):
            make()
    processor = AutoImageProcessor.from_pretrained(saved)
    assert isinstance(processor, GalipImageProcessor)
    assert processor.fixed_window("CT") == (-1000.0, 1000.0)


def test_loading_info_on_request(saved: Path) -> None:
    model, info = GalipForImageTranslation.from_pretrained(saved, output_loading_info=True)
    assert isinstance(model, GalipForImageTranslation)
    assert not info["missing_keys"]


def rewrite(directory: Path, change: Any) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("conv_in.bias"), r"1 missing \(e.g. conv_in.bias\)"),
        (lambda weights: weights.pop("prompt_states"), r"1 missing \(e.g. prompt_states\)"),
        (lambda weights: weights.update(extra=torch.zeros(1)), r"1 unexpected \(e.g. extra\)"),
        (
            lambda weights: weights.update({"conv_in.bias": torch.zeros(9)}),
            r"1 mismatched \(e.g. .*conv_in.bias",
        ),
        (lambda weights: weights.update(prompt_states=torch.zeros(2, 12, 16)), "mismatched .*prompt_states"),
    ],
)
@pytest.mark.parametrize("load", [GalipForImageTranslation, AutoModelForImageToImage])
def test_weights_that_do_not_fit(saved: Path, change: Any, message: str, load: Any) -> None:
    rewrite(saved, change)
    with pytest.raises(GalipError, match=message) as caught:
        load.from_pretrained(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_type(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "base_channels": "8"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"the weights \(\*.safetensors\) are damaged: "),
        (lambda directory: (directory / "model.safetensors").write_bytes(b""), "are damaged"),
        (lambda directory: (directory / "model.safetensors").unlink(), "model.safetensors"),
        (lambda directory: (directory / "config.json").unlink(), "no config.json in it"),
        (lambda directory: (directory / "config.json").write_text("{"), "config.*JSON"),
        (change_type, "'base_channels' expected int, got str"),
    ],
)
def test_damaged_directories(saved: Path, damage: Any, message: str) -> None:
    damage(saved)
    with pytest.raises(GalipError, match=message) as caught:
        GalipForImageTranslation.from_pretrained(saved)
    assert str(caught.value).startswith(str(saved))
    assert "\n" not in str(caught.value)


def test_a_file_is_no_model_directory(saved: Path) -> None:
    with pytest.raises(GalipError, match="not a model directory"):
        GalipForImageTranslation.from_pretrained(saved / "model.safetensors")


def test_copies_are_independent(model: GalipForImageTranslation) -> None:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.conv_in.weight.zero_()
    assert model.conv_in.weight.abs().max() > 0


def test_inference_imports_no_training_code_and_no_clip(saved: Path) -> None:
    code = f"""
import sys, torch
from galip_hf import GalipForImageTranslation
model = GalipForImageTranslation.from_pretrained({str(saved)!r})
translation = model(torch.zeros(1, 1, 8, 8), "T1").translation
unwanted = {{"open_clip", "timm", "datasets", "galip_hf.training.trainer", "galip_hf.clip.backbone"}}
print(tuple(translation.shape), sorted(unwanted & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 1, 8, 8) []"


def test_activation_checkpointing_gives_the_same_gradients_for_less_memory() -> None:
    model = filled_model(tiny_config()).train()
    image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def gradients() -> tuple[list[torch.Tensor], int]:
        sizes: dict[int, int] = {}  # of the storages that the graph keeps for its backward pass

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(image, torch.tensor([0, 2])).translation.square().mean()
        total = sum(sizes.values())
        return list(torch.autograd.grad(loss, [image, *model.parameters()])), total

    plain, plain_bytes = gradients()
    model.activation_checkpointing_enable()
    saving, saving_bytes = gradients()
    for expected, found in zip(plain, saving, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert saving_bytes < 0.6 * plain_bytes


# Several targets at once

SHARING = {  # levels whose GroupNorm has one channel a group, up to the first attention: derived by hand
    "none": (0, {}),
    "first level": (1, {"norm_groups": 8}),
    "two levels": (2, {"norm_groups": 8, "channel_multipliers": [1, 1, 2], "attention_rates": [4]}),
    "attention ends it": (1, {"norm_groups": 8, "channel_multipliers": [1, 1, 2], "attention_rates": [2]}),
    "a wide level between": (1, {"norm_groups": 8, "channel_multipliers": [1, 2, 1], "attention_rates": [4]}),
    "all levels": (2, {"norm_groups": 8, "channel_multipliers": [1, 1], "attention_rates": []}),
    "attention at once": (0, {"norm_groups": 8, "attention_rates": [1, 2]}),
}


@pytest.mark.parametrize("conditioning", ["tokens", "pooled"])
@pytest.mark.parametrize(("levels", "fields"), SHARING.values(), ids=list(SHARING))
def test_several_targets_at_once_equal_plain_forwards(levels: int, fields: Any, conditioning: Any) -> None:
    config = tiny_config(**fields, text_conditioning=conditioning)
    assert config.shared_levels == levels
    model, pixel_values, names = filled_model(config), images(3, 1, 13, 18), ["CT", "T1", "T2"]
    with torch.inference_mode():
        found = model.translate(pixel_values, [model.prepare_target(name) for name in names])
        for name, translation in zip(names, found, strict=True):
            expected = model(pixel_values, name).translation
            largest = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(translation, expected, rtol=0, atol=1e-5 * largest)
    assert (found[0] - found[1]).abs().max() > 0.01


@pytest.mark.parametrize(("levels", "fields"), SHARING.values(), ids=list(SHARING))
def test_shared_levels_are_all_that_can_be_shared(levels: int, fields: Any) -> None:
    """The features after the shared levels agree for two targets; those one level on do not."""
    model = filled_model(tiny_config(**fields)).double()
    for module in model.modules():
        if isinstance(module, GalipResidualBlock):
            module.takes_label = True  # also where it is known to make no difference
    targets = [model.prepare_target(name) for name in ("T1", "CT")]

    def features(count: int) -> list[Tensor]:
        outputs = []
        for target in targets:
            hidden_states = model.conv_in(images(1, 1, 16, 16).double())
            for level in model.encoder[:count]:
                hidden_states = level(hidden_states, target.label_embedding, target.prompt)[-1]
            outputs.append(hidden_states)
        return outputs

    first, second = features(levels)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-10)
    if levels < len(model.encoder):
        first, second = features(levels + 1)
        assert (first - second).abs().max() > 1e-3


def test_what_the_targets_share_is_computed_once() -> None:
    model, names = filled_model(tiny_config(norm_groups=8)), ["T1", "T2", "CT"]
    targets = [model.prepare_target(name) for name in names]
    calls = {"shared": 0, "keys": 0}
    model.encoder[0].register_forward_hook(lambda *_: calls.update(shared=calls["shared"] + 1))
    key = model.middle.transformer.blocks[0].cross_attention.key
    key.register_forward_hook(lambda *_: calls.update(keys=calls["keys"] + 1))
    with torch.inference_mode():
        for _ in range(4):
            model.translate(images(2, 1, 16, 16), targets)
    assert calls == {"shared": 4, "keys": 0}


def test_several_targets_share_the_levels_that_do_not_know_them() -> None:
    model = filled_model(tiny_config(norm_groups=8))
    targets = [model.prepare_target(name) for name in ("T1", "T2", "CT")]
    calls: list[int] = []
    for number, level in enumerate(model.encoder):
        level.register_forward_hook(lambda *_, number=number: calls.append(number))
    with torch.inference_mode():
        model.translate(images(2, 1, 16, 16), targets)
    assert model.config.shared_levels == 1 and calls == [0, 1, 1, 1]


def test_the_default_model_shares_its_two_finest_levels() -> None:
    assert GalipConfig().shared_levels == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_pixels_of_another_type_than_the_weights(dtype: torch.dtype) -> None:
    """They are converted to the type of the weights, and the translation to that of the pixels."""
    model, pixel_values = filled_model(tiny_config()), images(2, 1, 16, 16)
    states = model.prompt_states[[1, 1]].clone()
    expected = model(pixel_values, "T2").translation
    model.to(dtype)
    tolerance = {"rtol": 0, "atol": 0.15 if dtype != torch.float64 else 1e-5}
    with torch.inference_mode():
        for given in (pixel_values, pixel_values.to(dtype), pixel_values.bfloat16()):
            found = model(given, "T2").translation
            assert found.dtype == given.dtype
            close = tolerance if given.dtype != torch.bfloat16 else {"rtol": 0, "atol": 0.15}
            torch.testing.assert_close(found.float(), expected, **close)
        (translated,) = model.translate(pixel_values, [model.prepare_target("T2")])
        torch.testing.assert_close(translated, model(pixel_values, "T2").translation, rtol=0, atol=0.05)
        assert model(pixel_values, "T2", prompt_states=states).translation.dtype == torch.float32


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_norms_are_computed_in_float32_under_autocast(precision: torch.dtype) -> None:
    """Values whose squares leave float16, and whose differences leave bfloat16."""
    x = 1000 + torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(0)).to(precision).float()
    norm = GalipGroupNorm(4, 8)
    layer_norm = GalipLayerNorm(16)
    with torch.autocast("cpu", dtype=precision):
        found, found_layer = norm(x.to(precision)), layer_norm(x.to(precision))
    assert found.dtype == found_layer.dtype == precision
    rounded = x.to(precision).double()
    expected = torch.nn.functional.group_norm(rounded, 4, eps=1e-5)
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)
    expected_layer = torch.nn.functional.layer_norm(rounded, (16,), eps=1e-5)
    torch.testing.assert_close(found_layer.double(), expected_layer, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_translation_under_autocast_is_near_the_one_in_float32(precision: torch.dtype) -> None:
    model = filled_model(tiny_config())
    x = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x, "T2").translation
        with torch.autocast("cpu", dtype=precision):
            found = model(x, "T2").translation
    assert (found.float() - expected).square().mean().sqrt() < 0.05 * expected.std()
