"""Configuration of the I2I-Galip generator: everything that inference needs besides the weights.

Source: Korkmaz & Patel, "I2I-Galip: Unsupervised Medical Image Translation Using Generative Adversarial
CLIP", MIDL 2025, PMLR 301:748-762.
"""

import copy
import difflib
import itertools
import logging
import os
from typing import Any, Literal

import transformers
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from packaging.version import InvalidVersion, Version
from transformers import PreTrainedConfig

from .domains import IXI_DOMAINS, readable_json, validate_domains
from .errors import GalipError

logger = logging.getLogger(__name__)

# A configuration is data from anywhere: more than this is refused before anything of that size is allocated.
MAX_PARAMETERS = 1_000_000_000

# Keys that transformers itself writes into, or passes with, a configuration.
_KEYS_OF_TRANSFORMERS = {
    "model_type",
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
    "auto_map",
    "torch_dtype",
    "attn_implementation",
    "experts_implementation",
    "output_attentions",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
}

# What the fields of transformers may be in ours: the default labels of a classifier, which a generator has no
# use for, and nothing that would allocate by a number or load by a name.
_PRECISIONS = ("float32", "float64", "float16", "bfloat16")
_LABELS = {0: "LABEL_0", 1: "LABEL_1"}
_VALUES_OF_TRANSFORMERS: dict[str, tuple[Any, ...]] = {
    "model_type": ("galip",),
    "attn_implementation": (None, "eager", "sdpa"),
    "experts_implementation": (None, "eager"),
    "output_attentions": (None, False, True),
    "id2label": (None, _LABELS, {str(number): label for number, label in _LABELS.items()}),
    "label2id": (None, {label: number for number, label in _LABELS.items()}),
    "problem_type": (None,),
    "dtype": (None, *_PRECISIONS),
    "torch_dtype": (None, *_PRECISIONS),
}
_TYPES_OF_TRANSFORMERS = {
    "architectures": list,
    "auto_map": dict,
    "chunk_size_feed_forward": int,
    "is_encoder_decoder": bool,
    "output_hidden_states": bool,
    "return_dict": bool,
    "transformers_version": str,
}


def _is_newer(version: object) -> bool:
    """Whether a version of transformers is newer than the installed one; False for what is no version."""
    try:
        return Version(str(version)) > Version(transformers.__version__)
    except InvalidVersion:
        return False


@strict
class GalipConfig(PreTrainedConfig):
    """Architecture, domains and prompts of a `GalipForImageTranslation`.

    An unknown or misspelt key is an error, from Python and from `config.json`; only keys that a newer
    transformers wrote into a file are left out, with a warning.

    Args:
        base_channels: width of the first level; level i has `base_channels * channel_multipliers[i]`
            channels.
        channel_multipliers: one multiplier a level; each level after the first halves height and width.
        blocks_per_level: residual blocks of an encoder level (a decoder level has one more).
        attention_rates: down-sampling rates at which each residual block is followed by a spatial
            transformer.
        transformer_depth: attention blocks in a spatial transformer.
        attention_head_width: channels of one attention head; heads = channels / attention_head_width.
        feed_forward_multiplier: hidden width of the GEGLU feed-forward over its input width.
        norm_groups: groups of every GroupNorm; must divide every width.
        label_width: width of the target-domain embedding that is added in each residual block.
        initializer_gain: gain of the Xavier-normal initial weights of the convolutions, 0.001 to 10. The
            authors' 0.02 nearly closes every residual branch at the start; with 1 a training of few steps
            learns faster (docs/training.md). It does not matter to a trained model.
        text_conditioning: `tokens` (cross-attention on all token states of the prompt, the authors' released
            code) or `pooled` (on the one text embedding, the paper's notation and parameter count).
        text_width: width of the text tower's token states.
        text_length: number of token states of a prompt, padding included.
        text_embedding_width: width of the pooled text embedding.
        image_size: edge length, in pixels, of the slices the model was trained on. Any size can be
            translated.
        domains: the image domains, in the order of their labels. Each is a dict with `name`, `prompt`
            (verbatim), `modality` (`MR`, `CT`, `CBCT`, `PET`, …) and `intensity` (see
            `validate_intensity_rule`).

    Raises:
        GalipError: an unknown key, or a value out of range; from a file or a dict also a wrong type. In
            Python a wrong type raises huggingface_hub's StrictDataclassFieldValidationError, which names the
            field.
    """

    model_type = "galip"

    base_channels: int = 32
    channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    blocks_per_level: int = 2
    attention_rates: list[int] | tuple[int, ...] = (8, 16, 32)
    transformer_depth: int = 1
    attention_head_width: int = 32
    feed_forward_multiplier: int = 4
    norm_groups: int = 32
    label_width: int = 128
    initializer_gain: float = 0.02
    text_conditioning: Literal["tokens", "pooled"] = "tokens"
    text_width: int = 768
    text_length: int = 256
    text_embedding_width: int = 512
    image_size: int = 256
    domains: list[dict[str, Any]] | tuple[dict[str, Any], ...] = IXI_DOMAINS

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = sorted(set(kwargs) - _KEYS_OF_TRANSFORMERS)
        if unknown:
            raise GalipError(
                f"GalipConfig: unknown key {', '.join(map(repr, unknown))}; "
                f"known keys: {', '.join(self._own_keys())}"
            )
        self._validate_keys_of_transformers(kwargs)
        # Lists, and copies of their own: so that a reloaded configuration equals the saved one.
        self.channel_multipliers = list(self.channel_multipliers)
        self.attention_rates = list(self.attention_rates)
        self.domains = copy.deepcopy(list(self.domains))
        super().__post_init__(**kwargs)
        # `strict` would call it too, but wraps what it raises into two lines.
        self.validate_architecture()

    def _validate_keys_of_transformers(self, kwargs: dict[str, Any]) -> None:
        """Before transformers acts on them."""
        for name, allowed in _VALUES_OF_TRANSFORMERS.items():
            # Where `torch_dtype` is an attribute, it is `dtype` by its old name, and warns of that.
            own = None if name == "torch_dtype" else getattr(self, name, None)
            value = kwargs.get(name, own)
            if name.endswith("dtype") and value is not None:
                value = str(value).removeprefix("torch.")
            if value not in list(allowed):  # a list: it may be unhashable
                raise GalipError(f"GalipConfig: {name} is {str(value)[:60]!r}; expected one of {allowed}")
        for name, kind in _TYPES_OF_TRANSFORMERS.items():
            value = kwargs[name] if name in kwargs else getattr(self, name, None)
            if value is not None and not isinstance(value, kind):
                raise GalipError(f"GalipConfig: {name} is {str(value)[:60]!r}; expected a {kind.__name__}")

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> Any:
        """As in `PreTrainedConfig`; GalipError for a file that holds no JSON object."""
        with readable_json(f"{os.fspath(args[0]) if args else 'model'}: config.json"):
            values, unused = super().get_config_dict(*args, **kwargs)
            return dict(**values), unused

    @classmethod
    def _own_keys(cls) -> list[str]:
        return [name for name in cls.__annotations__ if name != "model_type"]

    def own_values(self) -> dict[str, Any]:
        """The fields of this class, without those of transformers; a deep copy."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self._own_keys()}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in `PreTrainedConfig`, but overrides are validated and unused keyword arguments are an error."""
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        known_values = cls._without_keys_of_newer_transformers(config_dict)
        try:
            config, unused = super().from_dict(known_values, return_unused_kwargs=True, **kwargs)
            config.validate()
        except TypeError as error:  # a key that is a parameter's name, such as self
            raise GalipError(f"GalipConfig: {' '.join(str(error).split())}") from None
        except StrictDataclassError as error:
            reason = error.__cause__ or error
            if isinstance(reason, GalipError):
                raise reason from None
            raise GalipError(f"GalipConfig: {' '.join(str(reason).split())}") from None
        if wants_unused:
            return config, unused
        if unused:
            raise GalipError(
                f"GalipConfig: unknown key {', '.join(map(repr, sorted(unused)))}; "
                f"known keys: {', '.join(cls._own_keys())}"
            )
        return config

    @classmethod
    def _without_keys_of_newer_transformers(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Leave out, with a warning, keys that a transformers newer than the installed one wrote.

        A key that resembles one of ours is not left out: it is misspelt, and refused like any unknown key.
        """
        known = {*cls._own_keys(), *_KEYS_OF_TRANSFORMERS, *cls.__dataclass_fields__}
        unknown = [key for key in values if key not in known]
        if not unknown or not _is_newer(values.get("transformers_version")):
            return values
        dropped = [key for key in unknown if not difflib.get_close_matches(str(key), cls._own_keys())]
        if dropped:
            logger.warning(
                "config.json: written by transformers %s, newer than the installed %s; left out: %s",
                values["transformers_version"], transformers.__version__, ", ".join(map(str, dropped)),
            )  # fmt: skip
        return {key: value for key, value in values.items() if key not in dropped}

    def validate_architecture(self) -> None:
        """Cross-check the fields; called by `strict` at construction, load and save."""
        super().validate_architecture()
        limits = {
            "base_channels": 1024,
            "blocks_per_level": 16,
            "transformer_depth": 16,
            "attention_head_width": 1024,
            "feed_forward_multiplier": 16,
            "norm_groups": 1024,
            "label_width": 4096,
            "text_width": 8192,
            "text_length": 4096,
            "text_embedding_width": 8192,
            "image_size": 4096,
        }
        for name, limit in limits.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise GalipError(f"GalipConfig: {name} is {value}; expected 1..{limit}")
        if not 0.001 <= self.initializer_gain <= 10:
            raise GalipError(f"GalipConfig: initializer_gain is {self.initializer_gain}; expected 0.001..10")
        self._validate_levels()
        validate_domains(self.domains)
        # Each limit above leaves room; together they would allow terabytes.
        tokens, width = self.prompt_states_shape
        size = self.num_parameters + len(self.domains) * tokens * width
        if size > MAX_PARAMETERS:
            raise GalipError(
                f"GalipConfig: the model would have {size:,} parameters and prompt states; expected at most "
                f"{MAX_PARAMETERS:,}, so make base_channels, channel_multipliers or the text widths smaller"
            )

    def _validate_levels(self) -> None:
        multipliers = self.channel_multipliers
        if not 1 <= len(multipliers) <= 8 or any(not 1 <= value <= 64 for value in multipliers):
            raise GalipError(
                f"GalipConfig: channel_multipliers are {multipliers}; expected 1 to 8 numbers of 1..64"
            )
        rates = [2**level for level in range(len(multipliers))]
        if not set(self.attention_rates) <= set(rates):
            raise GalipError(
                f"GalipConfig: attention_rates are {self.attention_rates}; the levels' rates are {rates}"
            )
        for rate, width in zip(rates, self.level_channels, strict=True):
            if width % self.norm_groups:
                raise GalipError(
                    f"GalipConfig: norm_groups {self.norm_groups} does not divide the width {width}"
                )
            # The middle, of the last level's width, always has attention.
            has_attention = rate in self.attention_rates or rate == rates[-1]
            if has_attention and width % self.attention_head_width:
                raise GalipError(
                    f"GalipConfig: attention_head_width {self.attention_head_width} does not divide the "
                    f"width {width}"
                )

    @property
    def level_channels(self) -> list[int]:
        """Channels of each level, finest first."""
        return [self.base_channels * multiplier for multiplier in self.channel_multipliers]

    def cancels_label(self, width: int) -> bool:
        """Whether the target's label makes no difference to a residual block with `width` output channels.

        It enters as one number a channel, just before a GroupNorm; with one channel a group that takes it off
        again.
        """
        return width == self.norm_groups

    @property
    def shared_levels(self) -> int:
        """Number of leading encoder levels whose output does not depend on the target.

        Up to the first that does not cancel the label, or whose attention on the prompt brings the target in.
        """
        rates = (2**level for level in range(len(self.channel_multipliers)))
        keeps = (
            not self.cancels_label(width) or rate in self.attention_rates
            for rate, width in zip(rates, self.level_channels, strict=True)
        )
        return sum(1 for _ in itertools.takewhile(lambda kept: not kept, keeps))

    @property
    def domain_names(self) -> list[str]:
        """Names of the domains, in the order of their labels."""
        return [domain["name"] for domain in self.domains]

    @property
    def prompts(self) -> list[str]:
        """Prompts of the domains, in the order of their labels."""
        return [domain["prompt"] for domain in self.domains]

    @property
    def prompt_states_shape(self) -> tuple[int, int]:
        """(tokens, width) of one prompt's states, as the cross-attention sees them."""
        if self.text_conditioning == "pooled":
            return 1, self.text_embedding_width
        return self.text_length, self.text_width

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, counted without building it; the prompts' states are not among them."""
        widths = self.level_channels
        count = len(self.domains) * self.label_width + 10 * widths[0] + 11 * widths[0] + 1
        skips, width = [widths[0]], widths[0]
        for level, level_width in enumerate(widths):
            for _ in range(self.blocks_per_level):
                count += self._count_block(width, level_width, 2**level in self.attention_rates)
                width = level_width
                skips.append(width)
            if level < len(widths) - 1:
                count += self._count_block(width, width, False)
                skips.append(width)
        count += self._count_block(width, width, True) + self._count_block(width, width, False)
        for level in reversed(range(len(widths))):
            for _ in range(self.blocks_per_level + 1):
                has_attention = 2**level in self.attention_rates
                count += self._count_block(width + skips.pop(), widths[level], has_attention)
                width = widths[level]
            if level:
                count += self._count_block(width, width, False)
        return count

    def _count_block(self, width_in: int, width: int, has_attention: bool) -> int:
        """Parameters of a residual block and, where there is one, its spatial transformer."""
        count = (
            2 * width_in + 9 * width_in * width + (self.label_width + 1) * width + 9 * width**2 + 4 * width
        )
        if width_in != width:
            count += (width_in + 1) * width
        if not has_attention:
            return count
        attention = 4 * width**2 + width  # of the image on itself; on the prompt, two widths differ
        cross_attention = 2 * width**2 + 2 * self.prompt_states_shape[1] * width + width
        hidden = self.feed_forward_multiplier * width
        feed_forward = (width + 1) * 2 * hidden + hidden * width + width
        block = 6 * width + attention + cross_attention + feed_forward
        return count + 2 * width + 2 * (width + 1) * width + self.transformer_depth * block

    def domain_index(self, name: str) -> int:
        """Label of the domain called `name`; raises GalipError listing the known names."""
        if name not in self.domain_names:
            raise GalipError(
                f"domain {name!r} is unknown to this model; it has {', '.join(self.domain_names)}"
            )
        return self.domain_names.index(name)


__all__ = ["GalipConfig"]
