"""Configuration: strict keys and types, every cross-check, round trips."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import DOMAINS, tiny_config
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from galip_hf import GalipConfig, GalipError, GalipForImageTranslation
from galip_hf.model.domains import validate_domains, validate_intensity_rule


def assert_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)


def edited(directory: Path, **fields: Any) -> Path:
    """Save a tiny configuration, with `fields` written into its config.json."""
    tiny_config().save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}))
    return directory


def test_defaults_are_the_papers() -> None:
    config = GalipConfig()
    assert config.level_channels == [32, 32, 64, 64, 128, 128]
    assert config.domain_names == ["T1", "T2", "PD"]
    assert config.prompts == [f"this MRI is {name}-weighted" for name in ("T1", "T2", "PD")]
    assert config.prompt_states_shape == (256, 768)
    assert GalipConfig(text_conditioning="pooled").prompt_states_shape == (1, 512)


def test_unknown_key_from_python_names_it_and_the_known_ones() -> None:
    with pytest.raises(
        GalipError, match=r"unknown key 'base_chanels'; known keys: base_channels, "
    ) as caught:
        GalipConfig(base_chanels=8)
    assert_one_line(caught.value)


@pytest.mark.parametrize("load", [GalipConfig.from_pretrained, AutoConfig.from_pretrained])
def test_unknown_key_in_json(tmp_path: Path, load: Any) -> None:
    edited(tmp_path, base_chanels=8)
    with pytest.raises(GalipError, match="unknown key 'base_chanels'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_channels", "8"),
        ("base_channels", 8.0),
        ("channel_multipliers", 2),
        ("channel_multipliers", ["1", "2"]),
        ("text_conditioning", "words"),
        ("domains", "T1"),
    ],
)
def test_wrong_type(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        tiny_config(**{field: value})
    edited(tmp_path, **{field: value})
    for load in (GalipConfig.from_pretrained, AutoConfig.from_pretrained):
        with pytest.raises(GalipError, match=field) as caught:
            load(tmp_path)
        assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_channels": 0}, r"base_channels is 0; expected 1\.\.1024"),
        ({"base_channels": 10**9}, r"base_channels is 1000000000; expected 1\.\.1024"),
        ({"blocks_per_level": 17}, r"blocks_per_level is 17"),
        ({"transformer_depth": -1}, r"transformer_depth is -1"),
        ({"attention_head_width": 0}, r"attention_head_width is 0"),
        ({"feed_forward_multiplier": 17}, r"feed_forward_multiplier is 17"),
        ({"norm_groups": 0}, r"norm_groups is 0"),
        ({"label_width": 4097}, r"label_width is 4097"),
        ({"initializer_gain": 0.0}, r"initializer_gain is 0.0; expected 0.001..10"),
        ({"text_width": 0}, r"text_width is 0"),
        ({"text_length": 4097}, r"text_length is 4097"),
        ({"text_embedding_width": 0}, r"text_embedding_width is 0"),
        ({"image_size": 4097}, r"image_size is 4097"),
        ({"channel_multipliers": []}, r"channel_multipliers are \[\]"),
        ({"channel_multipliers": [1] * 9}, r"expected 1 to 8 numbers"),
        ({"channel_multipliers": [1, 65]}, r"channel_multipliers are \[1, 65\]"),
        ({"channel_multipliers": [1, 0]}, r"channel_multipliers are \[1, 0\]"),
        ({"attention_rates": [4]}, r"attention_rates are \[4\]; the levels' rates are \[1, 2\]"),
        ({"norm_groups": 3}, r"norm_groups 3 does not divide the width 8"),
        ({"attention_head_width": 3}, r"attention_head_width 3 does not divide the width 16"),
        ({"domains": []}, r"domains: found \[\]"),
    ],
)
def test_values_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(GalipError, match=message) as caught:
        tiny_config(**fields)
    assert_one_line(caught.value)


def test_the_middle_has_attention_whatever_the_rates() -> None:
    with pytest.raises(GalipError, match="attention_head_width 3 does not divide the width 16"):
        tiny_config(attention_rates=[], attention_head_width=3)


def test_head_width_concerns_the_levels_with_attention_only() -> None:
    assert tiny_config(attention_head_width=16).attention_head_width == 16  # does not divide 8 of level 0


def test_a_configuration_warns_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import configuration_utils

    noted: list[str] = []
    for kind in ("warning", "warning_once"):
        monkeypatch.setattr(configuration_utils.logger, kind, lambda message, *_: noted.append(message))
    GalipConfig(dtype="float16")
    assert noted == []


def test_round_trip(tmp_path: Path) -> None:
    config = tiny_config(text_conditioning="pooled", domains=tuple(DOMAINS), channel_multipliers=(1, 2))
    config.save_pretrained(tmp_path)
    for loaded in (GalipConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, GalipConfig)
        ours = {**loaded.to_dict(), "_name_or_path": ""}  # where it was loaded from
        assert ours == config.to_dict()
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["domains"] == DOMAINS


def test_overrides_are_validated(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert GalipConfig.from_pretrained(tmp_path, norm_groups=8).norm_groups == 8
    for overrides in ({"norm_groups": 3}, {"norm_groups": "4"}, {"norm_grups": 4}):
        with pytest.raises(GalipError, match="norm_gr") as caught:
            GalipConfig.from_pretrained(tmp_path, **overrides)
        assert_one_line(caught.value)


def test_unused_keyword_arguments_are_returned_on_request(tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    config, unused = GalipConfig.from_pretrained(tmp_path, return_unused_kwargs=True, extra=1)
    assert isinstance(config, GalipConfig)
    assert unused == {"extra": 1}


def test_the_callers_dicts_are_not_shared() -> None:
    domains = copy.deepcopy(DOMAINS)
    config = tiny_config(domains=domains)
    domains[0]["intensity"]["upper"] = 50.0
    domains[0]["prompt"] = "changed"
    assert config.domains == DOMAINS
    config.domains[1]["prompt"] = "changed"
    assert tiny_config().prompts[1] == "this MRI is T2-weighted"
    first = GalipConfig()
    first.domains[0]["prompt"] = "changed"
    assert GalipConfig().prompts[0] == "this MRI is T1-weighted"


def test_domain_index() -> None:
    config = tiny_config()
    assert [config.domain_index(name) for name in ("T1", "T2", "CT")] == [0, 1, 2]
    with pytest.raises(GalipError, match="'t1' is unknown to this model; it has T1, T2, CT"):
        config.domain_index("t1")


def changed(**fields: Any) -> list[dict[str, Any]]:
    return [DOMAINS[0], {**DOMAINS[1], **fields}]


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        ({}, "expected a list of at least one domain"),
        (["T1"], r"domains\[0\]: found 'T1'"),
        ([{"name": "T1"}], r"domains\[0\]: found \['name'\]; expected a dict with exactly the keys"),
        (changed(extra=1), r"domains\[1\]: found .*'extra'"),
        (changed(name=" "), r"domains\[1\]: name is ' '"),
        (changed(prompt=3), r"domains\[1\]: prompt is 3"),
        (changed(modality="mr scan"), r"domains\[1\]: modality is 'mr scan'; expected MR, CT, CBCT, PET, or"),
        (
            changed(intensity={"rule": "zscore"}),
            r"domains\[1\]: intensity is .*one of percentile, window, none",
        ),
        (changed(name="T1"), r"names \['T1', 'T1'\] are not distinct"),
    ],
)
def test_faulty_domains(domains: Any, message: str) -> None:
    with pytest.raises(GalipError, match=message) as caught:
        validate_domains(domains)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (None, "intensity is None"),
        ({"rule": ["window"]}, r"intensity is \{'rule': \['window'\]\}"),
        ({"rule": "percentile", "lower": 0}, r"has keys \['lower', 'rule'\]"),
        ({"rule": "none", "lower": 0, "upper": 1}, r"expected \['rule'\]"),
        ({"rule": "window", "lower": 1, "upper": 1}, "window is 1..1"),
        ({"rule": "window", "lower": "0", "upper": 1}, "expected two finite numbers"),
        ({"rule": "window", "lower": False, "upper": True}, "expected two finite numbers"),
        ({"rule": "window", "lower": float("nan"), "upper": 1}, "lower < upper"),
        ({"rule": "window", "lower": -1, "upper": float("inf")}, "-1..inf; expected two finite numbers"),
        ({"rule": "percentile", "lower": -1, "upper": 99}, "percentiles are -1..99"),
        ({"rule": "percentile", "lower": 1, "upper": 101}, "percentiles are 1..101"),
    ],
)
def test_faulty_intensity_rules(rule: Any, message: str) -> None:
    with pytest.raises(GalipError, match=f"somewhere: .*{message}"):
        validate_intensity_rule(rule, "somewhere")


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "none"},
        {"rule": "percentile", "lower": 0, "upper": 100},
        {"rule": "window", "lower": -1024, "upper": 3071.5},
    ],
)
def test_good_intensity_rules(rule: dict[str, Any]) -> None:
    validate_intensity_rule(rule, "somewhere")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"channel_multipliers": [1, 2, 4], "blocks_per_level": 2, "attention_rates": [1, 4]},
        {"text_conditioning": "pooled", "transformer_depth": 2},
    ],
)
def test_parameters_are_counted_as_the_model_has_them(fields: dict[str, Any]) -> None:
    config = tiny_config(**fields)
    model = GalipForImageTranslation(config)
    assert config.num_parameters == sum(value.numel() for value in model.parameters())


def test_a_model_too_large_is_refused_before_it_is_built() -> None:
    with pytest.raises(GalipError, match="parameters and prompt states; expected at most") as caught:
        tiny_config(base_channels=1024, channel_multipliers=[1, 8, 8], norm_groups=4)
    assert_one_line(caught.value)


def newer_file(folder: Path, version: str, **keys: Any) -> Path:
    tiny_config().save_pretrained(folder)
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), "transformers_version": version, **keys}
    path.write_text(json.dumps(values))
    return folder


def test_keys_of_a_newer_transformers_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = newer_file(tmp_path, "99.0.0", kernel_backend="fast", tensor_layout={"a": 1})
    with caplog.at_level("WARNING"):
        config = GalipConfig.from_pretrained(folder)
    assert config.own_values() == tiny_config().own_values()
    assert "transformers 99.0.0, newer than" in caplog.text and "kernel_backend, tensor_layout" in caplog.text
    assert not hasattr(config, "kernel_backend")


@pytest.mark.parametrize(
    ("version", "key"),
    [("99.0.0", "base_chanels"), ("99.0.0", "channel_multiplier"), ("5.0.0", "kernel_backend"), ("x", "new")],
)
def test_misspelt_keys_and_those_of_known_versions_are_refused(
    tmp_path: Path, version: str, key: str
) -> None:
    with pytest.raises(GalipError, match=f"unknown key '{key}'"):
        GalipConfig.from_pretrained(newer_file(tmp_path, version, **{key: 3}))
