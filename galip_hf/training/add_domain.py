"""A trained generator grows by a domain, without a change of what it does for the old ones."""

from typing import Any

import torch

from ..clip.backbone import ClipBackbone
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from ..model.modeling_galip import GalipForImageTranslation


@torch.no_grad()
def add_domain(
    model: GalipForImageTranslation,
    domain: dict[str, Any],
    backbone: ClipBackbone,
    *,
    like: str | None = None,
) -> GalipForImageTranslation:
    """A copy of `model` that knows one more domain; its label is the last one.

    All weights are kept. Only the label's embedding and the prompt's states have rows for each domain: the
    new rows are appended, so outputs for the old domains are bit-identical. Nothing has been learnt about the
    new domain yet: train on (`training.initial_model`).

    Args:
        model: the trained generator; left as it is.
        domain: `name`, `prompt`, `modality` and `intensity`, as in a `GalipConfig`.
        backbone: the CLIP model whose prompts `model` was trained with.
        like: the old domain whose label embedding the new one starts from; None: the mean of all.

    Raises:
        GalipError: a domain the configuration refuses (a name it has already, for one), an unknown `like`,
            or a backbone whose prompt states have other widths than the model's.
    """
    old = model.config
    values = old.own_values()
    config = GalipConfig(**{**values, "domains": [*values["domains"], domain]})
    features = backbone.encode_prompts([domain["prompt"]])
    pooled = old.text_conditioning == "pooled"
    states = features.embedding[:, None] if pooled else features.token_states
    if states.shape[1:] != model.prompt_states.shape[1:]:
        raise GalipError(
            f"{backbone.source}: prompt states are {tuple(states.shape[1:])}, the model's "
            f"{tuple(model.prompt_states.shape[1:])}; give the CLIP model that it was trained with"
        )
    weights = model.state_dict()
    labels = weights["label_embedding.weight"]
    new_label = labels.mean(dim=0) if like is None else labels[old.domain_index(like)]
    weights["label_embedding.weight"] = torch.cat([labels, new_label[None]])
    weights["prompt_states"] = torch.cat([weights["prompt_states"], states.to(weights["prompt_states"])])
    grown = GalipForImageTranslation(config)
    grown.load_state_dict(weights)
    grown.to(labels)  # type: ignore[call-overload]
    return grown.train(model.training)


__all__ = ["add_domain"]
