"""Model files that mean harm: one line of a documented type, no code run, nothing allocated by a number."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import AutoConfig, AutoModelForImageToImage, pipeline

from galip_hf import GalipConfig, GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.inference.pipeline import load_model
from galip_hf.model.unet import load_generator

# The model class of transformers, and the network alone.
LOADERS = (GalipForImageTranslation.from_pretrained, load_generator)
NAN, HUGE = float("nan"), 10**9
NOT_JSON_OBJECTS = [
    b"", b"[1]", b"null", b'"a"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe\x00",
    b'{"a": ' + b"9" * 5000 + b"}",
]  # fmt: skip


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "copy"))


def refused(call: Callable[[], object], said: str = "") -> None:
    with pytest.raises(GalipError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


CONFIGURATIONS: list[dict[str, Any]] = [
    *(
        {name: value}
        for name in ("base_channels", "label_width", "image_size")
        for value in (HUGE, -1, NAN, "8")
    ),
    {"channel_multipliers": [HUGE]},
    {"channel_multipliers": [1] * 10_000},
    {"attention_rates": [float("inf")]},
    {"domains": {}},
    {"domains": None},
    {"unknown_key": 1},
    {"self": 1},
    {"__class__": "x"},
    {"to_dict": 1},
    # of transformers: allocations by a number, code or attributes by a name
    {"num_labels": HUGE},
    {"id2label": {"a": "b"}},
    {"id2label": [1]},
    {"label2id": {"a": HUGE}},
    {"problem_type": "single_label_classification"},
    {"dtype": "load"},
    {"torch_dtype": "hub"},
    {"dtype": 5},
    {"attn_implementation": "mallory/kernel:run"},
    {"_attn_implementation": "mallory/kernel:run"},
    {"attn_implementation": {"": "mallory/kernel"}},
    {"experts_implementation": "mallory/kernel"},
    {"quantization_config": {"quant_method": "bitsandbytes"}},
    {"transformers_weights": "../../x.safetensors"},
    {"per_layer_config": {"0": {"base_channels": HUGE}}},
    {"architectures": 5},
    {"model_type": "bert"},
    {"auto_map": ["AutoConfig"]},
    {"use_kernels": True},
]


@pytest.mark.parametrize("change", CONFIGURATIONS, ids=lambda change: json.dumps(change)[:50])
def test_configurations(copy: Path, change: dict[str, Any]) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for load in (GalipConfig.from_pretrained, *LOADERS):
        refused(lambda load=load: load(copy))


@pytest.mark.parametrize("name", ["../../x", "a/b", "a\\b", "a,b", "a\nb", " ", 5])
def test_names_of_domains_are_no_paths(copy: Path, name: Any) -> None:
    values = json.loads((copy / "config.json").read_text())
    values["domains"][0]["name"] = name
    (copy / "config.json").write_text(json.dumps(values))
    refused(lambda: GalipForImageTranslation.from_pretrained(copy), r"domains\[0\]: name is")


@pytest.mark.parametrize("content", NOT_JSON_OBJECTS, ids=lambda content: repr(content[:12]))
def test_files_that_are_no_json_objects(copy: Path, content: bytes) -> None:
    for name in ("preprocessor_config.json", "config.json"):
        (copy / name).write_bytes(content)
        refused(lambda: load_model(str(copy)), str(copy))
    refused(lambda: GalipForImageTranslation.from_pretrained(copy), str(copy))


PROCESSORS: list[dict[str, Any]] = [
    {"intensity_rules": [1]},
    {"intensity_rules": None},
    {"intensity_rules": {"T1": {"rule": "window", "lower": NAN, "upper": 1}}},
    {"intensity_rules": {"T1": {"rule": ["window"]}}},
    {"domain_statistics": [1]},
    {
        "domain_statistics": {
            "T1": {"version": 1, "counts": ["9" * 5000], "score_mean": 1, "score_deviation": 1}
        }
    },
    {"domains": [1]},
    {"size": {"height": HUGE}},
    {"preprocess": "x"},
]


@pytest.mark.parametrize("change", PROCESSORS, ids=lambda change: json.dumps(change)[:50])
def test_processors(copy: Path, change: dict[str, Any]) -> None:
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(lambda: GalipImageProcessor.from_pretrained(copy))
    refused(lambda: load_model(str(copy)))


def with_header(content: bytes, change: Callable[[dict[str, Any], list[str]], Any]) -> bytes:
    """A safetensors file whose header is what `change` makes of it and of the tensors' names."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    changed = change(header, [name for name in header if name != "__metadata__"])
    encoded = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]


def set_first(key: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda content: with_header(content, lambda header, names: header[names[0]].update({key: value}))


def overlapping(header: dict[str, Any], names: list[str]) -> None:
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]


def duplicated(header: dict[str, Any], names: list[str]) -> bytes:
    return json.dumps(header)[:-1].encode() + f', "{names[0]}": {json.dumps(header[names[1]])}}}'.encode()


WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "header of 2^63 bytes": lambda content: struct.pack("<Q", 2**63) + content[8:],
    "header of 2^64 - 1 bytes": lambda content: struct.pack("<Q", 2**64 - 1) + content[8:],
    "header of 99 MB": lambda content: struct.pack("<Q", 99_000_000) + content[8:],
    "header of nothing": lambda content: struct.pack("<Q", 0) + content[8:],
    "deep header": lambda content: with_header(content, lambda header, names: b'{"a":' * 100_000),
    "overlapping offsets": lambda content: with_header(content, overlapping),
    "duplicated name": lambda content: with_header(content, duplicated),
    "negative offsets": set_first("data_offsets", [-4, 0]),
    "huge offsets": set_first("data_offsets", [0, 2**60]),
    "huge tensor": set_first("shape", [2**40]),
    "overflowing tensor": set_first("shape", [2**32, 2**32, 2**32]),
    "unknown type": set_first("dtype", "PICKLE"),
    "empty": lambda content: b"",
    "cut header": lambda content: content[:100],
    "cut": lambda content: content[: len(content) // 2],
    "a byte too few": lambda content: content[:-1],
    "a byte too many": lambda content: content + b"x",
}


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_weights(copy: Path, change: Callable[[bytes], bytes]) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    for load in LOADERS:
        refused(lambda load=load: load(copy), "damaged")


def test_weights_of_another_shape_or_number(copy: Path) -> None:
    path = copy / "model.safetensors"
    state = load_file(path)
    first = min(state)
    for changed, said in (
        ({**state, first: state[first].flatten()[None]}, "1 mismatched"),
        ({**state, "another": torch.ones(3)}, "1 unexpected"),
        ({name: value for name, value in state.items() if name != first}, "1 missing"),
    ):
        path.write_bytes(save(changed, {"format": "pt"}))
        for load in LOADERS:
            refused(lambda load=load: load(copy), said)


class Bomb:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def test_no_pickle_is_loaded(copy: Path, tmp_path: Path) -> None:
    """Beside the configuration, under the name of safetensors, in a list of files."""
    mark, weights = tmp_path / "executed", copy / "model.safetensors"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    assert mark.exists()  # a good bomb
    mark.unlink()
    for option in ("use_safetensors", "weights_only"):
        refused(
            lambda option=option: GalipForImageTranslation.from_pretrained(copy, **{option: False}), option
        )
    weights.write_bytes(bomb)
    for load in LOADERS:
        refused(lambda load=load: load(copy), "damaged")
    weights.unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.bin"):
        (copy / name).write_bytes(bomb)
    for load in (*LOADERS, AutoModelForImageToImage.from_pretrained):
        refused(lambda load=load: load(copy), r"no model\.safetensors in it; .*pickle can run code")
    for load in LOADERS:
        refused(lambda load=load: load(copy, variant="ema"), r"no model\.ema\.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": "pytorch_model.bin"}}))
    for load in LOADERS:
        refused(lambda load=load: load(copy), r"names 'pytorch_model\.bin'")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "x.bin", 5, None]
)
@pytest.mark.parametrize("variant", [None, "ema"])
@pytest.mark.parametrize("load", LOADERS)
def test_lists_of_weight_files_stay_in_their_folder(
    copy: Path, name: Any, variant: str | None, load: Callable[..., Any]
) -> None:
    (copy / "model.safetensors").rename(copy.parent / "x.safetensors")
    index = copy / f"model.safetensors.index{'.ema' if variant else ''}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}}))
    refused(lambda: load(copy, variant=variant), "expected .*safetensors files in the same folder")
    for content in (*NOT_JSON_OBJECTS, b"{}", b'{"weight_map": [1]}', b'{"weight_map": {"a": [1]}}'):
        index.write_bytes(content)
        refused(lambda: load(copy, variant=variant), "expected JSON with a 'weight_map'")


def test_several_weight_files_of_ours_are_loaded(directory: Path, tmp_path: Path) -> None:
    model = GalipForImageTranslation.from_pretrained(directory)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    loaded = GalipForImageTranslation.from_pretrained(tmp_path / "shards")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_saving_and_pushing_at_once_is_refused(directory: Path, tmp_path: Path) -> None:
    """It would push no processor."""
    model = GalipForImageTranslation.from_pretrained(directory)
    refused(
        lambda: model.save_pretrained(tmp_path / "saved", push_to_hub=True), r"model\.push_to_hub\(repo\)"
    )
    assert not (tmp_path / "saved").exists()


def test_transformers_has_no_pipeline_of_the_task(directory: Path) -> None:
    """Why `GalipPipeline` is the one way: docs/hub.md."""
    with pytest.raises(KeyError, match="image-to-image"):
        pipeline("image-to-image", model=str(directory))


def test_the_defaults_of_transformers_are_accepted(directory: Path) -> None:
    config = GalipConfig.from_pretrained(directory)
    assert GalipConfig(**config.to_dict()).own_values() == config.own_values()
    for options in ({"attn_implementation": "eager"}, {"dtype": torch.bfloat16}, {"dtype": "float16"}):
        GalipForImageTranslation.from_pretrained(directory, **options)
    assert AutoConfig.from_pretrained(directory, output_attentions=True).domain_names == config.domain_names
