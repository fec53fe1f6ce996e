"""The authors' checkpoint layout: a golden pair at a tiny width, the rename table, and refusals."""

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import filled_model, filled_weights, tiny_config
from torch import Tensor

from galip_hf import GalipConfig, GalipError, GalipForImageTranslation
from galip_hf.official_weights import (
    config_of_official_state_dict,
    convert_official_state_dict,
    load_official_state_dict,
    official_module_names,
    official_state_dict,
)

# Weights are filled by `filled_weights` over the authors' names. At full width, the code that wrote the file
# gives the outputs of a network in the authors' layout, filled by the same rule, to 4e-6.
GOLDEN = Path(__file__).parent / "golden" / "tiny_golden.npz"


def official_shapes(config: GalipConfig) -> dict[str, torch.Size]:
    """Names and shapes of a checkpoint in the authors' layout."""
    with torch.device("meta"):
        model = GalipForImageTranslation(config)
    official = {ours: theirs for theirs, ours in official_module_names(config).items()}
    shapes = {}
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        shapes[f"{official[module]}.{kind}"] = parameter.shape
    return shapes


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    """A filled checkpoint in the authors' layout: widths 8, label width 16, text width 12, two domains."""
    domain = {"prompt": "a", "modality": "MR", "intensity": {"rule": "none"}}
    config = GalipConfig(
        base_channels=8,
        norm_groups=8,
        attention_head_width=8,
        label_width=16,
        text_width=12,
        text_length=5,
        domains=[{"name": "A", **domain}, {"name": "B", **domain}],
    )
    return filled_weights(official_shapes(config))


def loaded_model(official: dict[str, Tensor]) -> GalipForImageTranslation:
    model = GalipForImageTranslation(config_of_official_state_dict(official, text_length=5))
    faults = model.load_state_dict(convert_official_state_dict(official), strict=False)
    assert faults.missing_keys == ["prompt_states"]
    assert not faults.unexpected_keys
    return model.eval()


def test_golden_outputs(official: dict[str, Tensor]) -> None:
    with np.load(GOLDEN) as golden:
        context, pixel_values, domains, expected = (
            torch.from_numpy(golden[name]) for name in ("context", "input", "domains", "output")
        )
    model = loaded_model(official)
    model.prompt_states.copy_(context)
    assert expected.std() > 0.1
    with torch.inference_mode():
        translation = model(pixel_values, domains).translation
        assert (model(pixel_values, domains.flip(0)).translation - expected).abs().max() > 0.01
    torch.testing.assert_close(translation, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("official_name", "name"),
    [
        ("label_emb", "label_embedding"),
        ("input_blocks.0.0", "conv_in"),
        ("input_blocks.3.0.in_layers.2", "encoder.0.downsample.conv_in"),
        (
            "input_blocks.10.1.transformer_blocks.0.attn2.to_v",
            "encoder.3.blocks.0.transformer.blocks.0.cross_attention.value",
        ),
        ("middle_block.1.proj_out", "middle.transformer.projection_out"),
        ("output_blocks.0.0.skip_connection", "decoder.0.blocks.0.residual.skip"),
        ("output_blocks.2.2.out_layers.3", "decoder.0.upsample.conv_out"),
        ("output_blocks.11.1.out_layers.0", "decoder.3.upsample.norm_out"),
        ("output_blocks.17.0.emb_layers.1", "decoder.5.blocks.2.residual.label_projection"),
        ("out.2", "conv_out"),
    ],
)
def test_names(official_name: str, name: str) -> None:
    assert official_module_names(GalipConfig())[official_name] == name


def test_default_size_is_the_authors() -> None:
    shapes = official_shapes(GalipConfig())
    assert len(shapes) == 883
    assert sum(shape.numel() for shape in shapes.values()) == 14_127_617


def test_the_table_is_a_bijection_onto_the_model(official: dict[str, Tensor]) -> None:
    converted = convert_official_state_dict(official)
    model = GalipForImageTranslation(config_of_official_state_dict(official))
    assert len(converted) == len(official)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: value.shape for name, value in converted.items()} == shapes
    # Every value is passed on as it is, to one place each.
    assert {id(value) for value in converted.values()} == {id(value) for value in official.values()}


def test_configuration_is_read_off_the_shapes(official: dict[str, Tensor]) -> None:
    config = config_of_official_state_dict(official, text_length=7, image_size=128)
    assert (config.base_channels, config.label_width, config.text_width) == (8, 16, 12)
    assert (len(config.domains), config.norm_groups, config.attention_head_width) == (2, 8, 8)
    assert (config.text_length, config.image_size) == (7, 128)
    shapes = official_shapes(GalipConfig())
    full = config_of_official_state_dict({name: torch.empty(shape) for name, shape in shapes.items()})
    assert full.to_dict() == GalipConfig(domains=full.domains).to_dict()
    assert len(full.domains) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("label_emb.weight"), "key 'label_emb.weight' is missing"),
        (
            lambda state: state.pop("out.2.weight") is state.pop("out.2.bias"),
            "2 keys are missing, e.g. 'out.2.bias'",
        ),
        (lambda state: state.pop("out.2.bias"), "1 keys are missing, e.g. 'out.2.bias'"),
        (lambda state: state.update({"out.2.bias": torch.zeros(2)}), r"has shape \(2,\); expected \(1,\)"),
        (lambda state: state.update({"out.2.gain": torch.zeros(1)}), "'out.2.gain' is unknown"),
        (
            lambda state: state.update({"time_embed.0.weight": torch.zeros(1)}),
            "'time_embed.0.weight' is unknown",
        ),
        (lambda state: state.clear(), "is missing; expected the authors' generator"),
    ],
)
def test_other_state_dicts_are_refused(official: dict[str, Tensor], change: Any, message: str) -> None:
    state = dict(official)
    change(state)
    with pytest.raises(GalipError, match=message) as caught:
        convert_official_state_dict(state)
    assert "\n" not in str(caught.value)


# The way back


def test_the_way_back_is_exact(official: dict[str, Tensor]) -> None:
    back = official_state_dict(loaded_model(official))
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], official[name]) for name in official)
    again = convert_official_state_dict(back)
    assert all(
        torch.equal(again[name], value) for name, value in convert_official_state_dict(official).items()
    )


def test_the_way_back_has_the_authors_order(official: dict[str, Tensor]) -> None:
    names = list(official_state_dict(loaded_model(official)))
    assert names[:3] == ["label_emb.weight", "input_blocks.0.0.weight", "input_blocks.0.0.bias"]
    assert names[-4:] == ["out.0.weight", "out.0.bias", "out.2.weight", "out.2.bias"]
    stages = [name.split(".")[0] for name in names]
    order = ["label_emb", "input_blocks", "middle_block", "output_blocks", "out"]
    assert list(dict.fromkeys(stages)) == order and len(order) == 1 + sum(
        before != after for before, after in itertools.pairwise(stages)
    )
    block = "middle_block.1.transformer_blocks.0."
    parts = dict.fromkeys(name.removeprefix(block).split(".")[0] for name in names if name.startswith(block))
    assert list(parts) == ["attn1", "ff", "attn2", "norm1", "norm2", "norm3"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"text_conditioning": "pooled"}, "knows only 'tokens'"), ({}, "another architecture than this model")],
)
def test_models_the_authors_network_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(GalipError, match=message):
        official_state_dict(filled_model(tiny_config(**fields)))


# Files


@pytest.mark.parametrize("prefix", ["", "module."])
def test_reading_a_checkpoint(tmp_path: Path, official: dict[str, Tensor], prefix: str) -> None:
    path = tmp_path / "generator.pth"
    torch.save({prefix + key: value for key, value in official.items()}, path)
    state = load_official_state_dict(path)
    assert set(state) == set(official)
    assert all(torch.equal(state[key], official[key]) for key in official)


class Malicious:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "generator.pth"
    torch.save({"label_emb.weight": Malicious(trace)}, path)
    with pytest.raises(GalipError, match="could run code; save only generator") as caught:
        load_official_state_dict(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the trap works
    assert trace.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", None])
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "generator.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        GalipError, match="no such file" if content is None else r"not readable|refused"
    ) as caught:
        load_official_state_dict(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "found"), [([torch.zeros(1)], "list"), ({"step": 3}, "dict")])
def test_checkpoints_that_are_no_state_dict(tmp_path: Path, content: Any, found: str) -> None:
    path = tmp_path / "generator.pth"
    torch.save(content, path)
    with pytest.raises(GalipError, match=f"found {found}; expected a state dict"):
        load_official_state_dict(path)
