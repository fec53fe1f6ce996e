"""`GalipForImageTranslation`: the generator as a model of transformers, made, loaded, saved, pushed."""

import importlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_galip import GalipConfig
from .errors import GalipError
from .unet import GalipGenerator
from .weight_files import (
    LOADING_ERRORS,
    cached_file,
    check_directory,
    check_fit,
    check_shards,
    damage_report,
    file_names,
    loading_fault,
    remove_damaged,
)


class GalipPreTrainedModel(PreTrainedModel):
    """Initialisation and strict loading."""

    config_class = GalipConfig
    base_model_prefix = "galip"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 (as transformers declares it)
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # Also the convolutions that latent diffusion sets to zero.
            init.xavier_normal_(module.weight, gain=self.config.initializer_gain)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, GalipForImageTranslation):
            init.zeros_(module.prompt_states)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> Any:
        """As in `PreTrainedModel`, but weights that do not fit config.json are an error, not a log line.

        Only safetensors are loaded: a pickle could run code. Files of the Hub are compared with the checksums
        that it sent when they were downloaded; one that differs is taken out of the cache.

        Raises:
            GalipError: missing, unexpected or misshapen weights, or a pickle in their place; a faulty
                config.json; a damaged file; a directory or repository that holds no model or cannot be
                reached.
        """
        directory = os.fspath(pretrained_model_name_or_path)
        subfolder = kwargs.get("subfolder") or ""
        check_directory(directory, subfolder)
        for option in ("use_safetensors", "weights_only"):
            if kwargs.get(option) is False:
                raise GalipError(f"{option}=False: only safetensors are loaded; a pickle could run code")
        weights, index = file_names(kwargs.get("variant"))
        check_shards(os.path.join(directory, subfolder, index))
        wants_info = kwargs.pop("output_loading_info", False)
        loading = {
            **kwargs,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
            "use_safetensors": True,
            "weights_only": True,  # for what a list of weight files may name
        }
        try:
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **loading)
            if not os.path.isdir(directory):  # of the Hub: the list was not to be had before
                check_shards(cached_file(directory, index, kwargs))
        except LOADING_ERRORS as error:
            _check_cached(directory, weights, index, kwargs)  # a damaged file explains what else went wrong
            raise GalipError(f"{directory}: {loading_fault(error, weights, kwargs.get('token'))}") from None
        _check_cached(directory, weights, index, kwargs)
        model, info = loaded
        check_fit(
            directory,
            missing=info["missing_keys"],
            unexpected=info["unexpected_keys"],
            mismatched=info["mismatched_keys"],
        )
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """As in `PreTrainedModel`, except that `push_to_hub=True` is refused: it would push no processor."""
        if kwargs.pop("push_to_hub", False):
            raise GalipError("save_pretrained(push_to_hub=True): call model.push_to_hub(repo) instead")
        super().save_pretrained(save_directory, *args, **kwargs)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:  # type: ignore[override]
        """Push model, processor and card to the Hub in one commit; returns its `CommitInfo`.

        Args:
            repo_id: `user/name`; made if it is not there.
            **options: of `galip_hf.hub.push.push_model_directory`: `private`, `revision`, `create_pr`, `tag`,
                `subfolder`, `variant`, `with_code`, `commit_message`, `commit_description`, `token`; `tags`
                are the card's; `processor` is the model's (made of its domains by default, without
                statistics of training slices).

        Raises:
            GalipError: see `push_model_directory`; also in a process that has this file alone.
        """
        try:  # not by an import statement: transformers would carry the module along with this file
            hub = importlib.import_module("galip_hf.hub.push")
        except ImportError:
            raise GalipError("push_to_hub needs the package galip-hf; install it") from None
        return hub.push_model(self, repo_id, **options)


class GalipForImageTranslation(GalipGenerator, GalipPreTrainedModel):
    """Translates images to a target domain of `config.domains`.

    ```python
    model = GalipForImageTranslation.from_pretrained(directory)
    translation = model(pixel_values, target_domain="T2").translation
    ```

    The prompts' text states are the persistent buffer `prompt_states` (domains, tokens, width): inference
    needs no text encoder. `set_prompts` fills it.
    """

    def __init__(self, config: GalipConfig) -> None:
        GalipPreTrainedModel.__init__(self, config)
        self._build(config)
        self.post_init()

    def set_prompts(self, backbone: Any, prompts: Mapping[str, str] | None = None) -> None:
        """Encode the domains' prompts once, and keep their states in the checkpoint.

        Args:
            backbone: a `ClipBackbone` whose text tower has the configuration's widths.
            prompts: new prompts by domain name, taken into the configuration first.

        Raises:
            GalipError: an unknown domain, a prompt longer than the context, or a backbone of other widths.
        """
        indices = {self.config.domain_index(name): prompt for name, prompt in (prompts or {}).items()}
        texts = [indices.get(index, prompt) for index, prompt in enumerate(self.config.prompts)]
        features = backbone.encode_prompts(texts)
        pooled = self.config.text_conditioning == "pooled"
        states = features.embedding[:, None] if pooled else features.token_states
        if states.shape != self.prompt_states.shape:
            raise GalipError(
                f"set_prompts: {backbone.source} gives prompt states of shape {tuple(states.shape[1:])}; the "
                f"configuration (text_conditioning={self.config.text_conditioning!r}) expects "
                f"{self.config.prompt_states_shape}"
            )
        for index, prompt in indices.items():
            self.config.domains[index]["prompt"] = prompt
        self.prompt_states.copy_(states.to(self.prompt_states))
        self._has_prompts = True


def _check_cached(repo: str, weights: str, index: str, options: Mapping[str, Any]) -> None:
    """GalipError where a cached file of a model differs from the Hub's checksum; `options` of the loading."""
    if os.path.isdir(repo):
        return
    shards = []
    with suppress(GalipError):  # a list that is refused is not why the files are compared
        shards = check_shards(cached_file(repo, index, options))
    files = [cached_file(repo, name, options) for name in ("config.json", weights, index, *shards)]
    if damaged := remove_damaged(Path(file) for file in files if isinstance(file, str)):
        raise GalipError(damage_report(repo, damaged))


__all__ = ["GalipForImageTranslation", "GalipPreTrainedModel"]
