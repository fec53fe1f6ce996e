"""Checkpoints in the authors' layout (`torch.save(generator.state_dict())`) and ours: one rename table."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .model.configuration_galip import GalipConfig
from .model.errors import GalipError
from .model.modeling_galip import GalipForImageTranslation

_RESIDUAL = {
    "in_layers.0": "norm_in",
    "in_layers.2": "conv_in",
    "emb_layers.1": "label_projection",
    "out_layers.0": "norm_out",
    "out_layers.3": "conv_out",
    "skip_connection": "skip",
}
_TRANSFORMER_BLOCK = {
    "attn1.to_q": "self_attention.query",
    "attn1.to_k": "self_attention.key",
    "attn1.to_v": "self_attention.value",
    "attn1.to_out.0": "self_attention.output",
    "ff.net.0.proj": "feed_forward_in",
    "ff.net.2": "feed_forward_out",
    "attn2.to_q": "cross_attention.query",
    "attn2.to_k": "cross_attention.key",
    "attn2.to_v": "cross_attention.value",
    "attn2.to_out.0": "cross_attention.output",
    "norm1": "norm_self",
    "norm2": "norm_cross",
    "norm3": "norm_feed_forward",
}


def official_module_names(config: GalipConfig) -> dict[str, str]:
    """The rename table: the authors' module names -> ours, in their order, for what `config` describes."""
    table = {"label_emb": "label_embedding", "input_blocks.0.0": "conv_in"}

    def residual(official: str, ours: str) -> None:
        table.update({f"{official}.{old}": f"{ours}.{new}" for old, new in _RESIDUAL.items()})

    def transformer(official: str, ours: str) -> None:
        table.update({f"{official}.norm": f"{ours}.norm", f"{official}.proj_in": f"{ours}.projection_in"})
        for depth in range(config.transformer_depth):
            old_block, new_block = f"{official}.transformer_blocks.{depth}", f"{ours}.blocks.{depth}"
            table.update(
                {f"{old_block}.{old}": f"{new_block}.{new}" for old, new in _TRANSFORMER_BLOCK.items()}
            )
        table[f"{official}.proj_out"] = f"{ours}.projection_out"

    def block(official: str, ours: str, level: int) -> int:
        """A residual block, and a transformer where the level has attention; returns the modules it takes."""
        residual(f"{official}.0", f"{ours}.residual")
        if 2**level not in config.attention_rates:
            return 1
        transformer(f"{official}.1", f"{ours}.transformer")
        return 2

    levels = len(config.channel_multipliers)
    number = 1
    for level in range(levels):
        for index in range(config.blocks_per_level):
            block(f"input_blocks.{number}", f"encoder.{level}.blocks.{index}", level)
            number += 1
        if level < levels - 1:
            residual(f"input_blocks.{number}.0", f"encoder.{level}.downsample")
            number += 1
    residual("middle_block.0", "middle.residual_in")
    transformer("middle_block.1", "middle.transformer")
    residual("middle_block.2", "middle.residual_out")
    number = 0
    for position, level in enumerate(reversed(range(levels))):
        for index in range(config.blocks_per_level + 1):
            modules = block(f"output_blocks.{number}", f"decoder.{position}.blocks.{index}", level)
            if level and index == config.blocks_per_level:
                residual(f"output_blocks.{number}.{modules}", f"decoder.{position}.upsample")
            number += 1
    return {**table, "out.0": "norm_out", "out.2": "conv_out"}


def config_of_official_state_dict(state_dict: Mapping[str, Tensor], **fields: Any) -> GalipConfig:
    """A configuration with the widths and number of domains read off the shapes; `fields` override it.

    Raises:
        GalipError: the keys that tell the widths are missing.
    """
    try:
        domains, label_width = state_dict["label_emb.weight"].shape
        base_channels = state_dict["input_blocks.0.0.weight"].shape[0]
        context_width = state_dict["middle_block.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
    except KeyError as error:
        raise GalipError(
            f"official state dict: key {error} is missing; expected the authors' generator"
        ) from None
    prompt = {"modality": "MR", "intensity": {"rule": "none"}}
    defaults: dict[str, Any] = {
        "base_channels": base_channels,
        "label_width": label_width,
        "text_width": context_width,
        # The authors' groups and heads are 32 wide; a narrower network can only have narrower ones.
        "norm_groups": min(32, base_channels),
        "attention_head_width": min(32, base_channels),
        "domains": [{"name": f"domain{i}", "prompt": f"domain {i}", **prompt} for i in range(domains)],
    }
    return GalipConfig(**{**defaults, **fields})


def convert_official_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the authors' generator weights to those of `GalipForImageTranslation`.

    Every key is used exactly once; width and number of domains are read off the shapes. The prompts' text
    states are not part of the authors' checkpoints: set `prompt_states` besides.

    Raises:
        GalipError: a key is unknown, missing or of another shape.
    """
    config = config_of_official_state_dict(state_dict)
    table = official_module_names(config)
    with torch.device("meta"):
        model = GalipForImageTranslation(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    converted: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        module, _, parameter = key.rpartition(".")
        name = f"{table.get(module)}.{parameter}"
        if name not in shapes:
            raise GalipError(f"official state dict: key {key!r} is unknown; expected the authors' generator")
        if value.shape != shapes[name]:
            found, expected = tuple(value.shape), tuple(shapes[name])
            raise GalipError(f"official state dict: {key!r} has shape {found}; expected {expected}")
        converted[name] = value
    missing = sorted(set(shapes) - set(converted))
    if missing:
        module, _, parameter = missing[0].rpartition(".")
        official = {ours: theirs for theirs, ours in table.items()}[module]
        raise GalipError(
            f"official state dict: {len(missing)} keys are missing, e.g. '{official}.{parameter}'; "
            "expected the authors' generator"
        )
    return converted


def official_state_dict(model: GalipForImageTranslation) -> dict[str, Tensor]:
    """The way back from `convert_official_state_dict`: names and order of the authors, the same values.

    The prompts' text states (`model.prompt_states`) are not part of their checkpoints.

    Raises:
        GalipError: the authors' network has no such architecture.
    """
    config: GalipConfig = model.config  # type: ignore[assignment]
    if config.text_conditioning != "tokens":
        raise GalipError(
            f"text_conditioning is {config.text_conditioning!r}; the authors' code knows only 'tokens'"
        )
    parameters = dict(model.named_parameters())
    official = {
        f"{theirs}.{kind}": parameters[f"{ours}.{kind}"].detach()
        for theirs, ours in official_module_names(config).items()
        for kind in ("weight", "bias")
        if f"{ours}.{kind}" in parameters
    }
    try:
        convert_official_state_dict(official)
    except GalipError as error:
        raise GalipError(f"the authors' network has another architecture than this model ({error})") from None
    return official


def load_official_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read `torch.save(generator.state_dict())` without running code from the file.

    Raises:
        GalipError: a missing or unreadable file, a pickle with code in it, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise GalipError(f"{path}: no such file; expected a checkpoint of the authors' generator (.pt, .pth)")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise GalipError(
            f"{path}: refused, the pickle holds more than tensors and could run code; save only "
            "generator.state_dict()"
        ) from None
    except Exception as error:  # torch.load raises a different type for each kind of damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GalipError(f"{path}: not readable as a PyTorch checkpoint ({reason})") from None
    if not isinstance(state_dict, dict) or not all(
        isinstance(value, Tensor) for value in state_dict.values()
    ):
        raise GalipError(
            f"{path}: found {type(state_dict).__name__}; expected a state dict, names -> tensors"
        )
    # DistributedDataParallel puts this before every name.
    return {key.removeprefix("module."): value for key, value in state_dict.items()}


__all__ = [
    "config_of_official_state_dict",
    "convert_official_state_dict",
    "load_official_state_dict",
    "official_module_names",
    "official_state_dict",
]
