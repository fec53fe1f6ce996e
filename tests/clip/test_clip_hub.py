"""A CLIP model from the Hub, as BiomedCLIP is loaded: towers and tokenizer in repositories of their own."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from conftest import DOMAINS, TOKEN
from hub_server import HubServer
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from galip_hf.clip.backbone import ClipBackbone
from galip_hf.model.errors import GalipError

PROMPTS = [domain["prompt"] for domain in DOMAINS]
IMAGE = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
WEIGHTS = "open_clip_model.safetensors"


def put_clip(hub: HubServer, directory: Path, **files: bytes) -> None:
    """`org/tiny`, whose configuration names `org/bert` (text tower, tokenizer) and `org/vit`."""
    config = json.loads((directory / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": "org/bert", "hf_tokenizer_name": "org/bert"}
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "hf-hub:org/vit"
    content = files or {WEIGHTS: (directory / WEIGHTS).read_bytes()}
    hub.put("org/tiny", {"open_clip_config.json": json.dumps(config).encode(), **content}, private=True)
    text = [path for path in directory.iterdir() if path.is_file() and "open_clip" not in path.name]
    hub.put("org/bert", {path.name: path.read_bytes() for path in text})
    hub.put("org/vit", {"config.json": (directory / "vision" / "config.json").read_bytes()})


def test_features_equal_those_of_the_local_directory_also_offline(
    hub: HubServer, clip_directory: Path, tiny_backbone: ClipBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.tokens[TOKEN] = "org"
    put_clip(hub, clip_directory)

    def check() -> None:
        loaded = ClipBackbone.from_pretrained("hf-hub:org/tiny")
        prompts, expected = loaded.encode_prompts(PROMPTS), tiny_backbone.encode_prompts(PROMPTS)
        assert torch.equal(prompts.token_states, expected.token_states)
        assert torch.equal(prompts.embedding, expected.embedding)
        assert torch.equal(
            loaded.encode_images(IMAGE).embedding, tiny_backbone.encode_images(IMAGE).embedding
        )
        assert loaded.context_length == tiny_backbone.context_length

    check()
    for repo in ("org/tiny", "org/bert", "org/vit"):
        assert any(repo in request for request in hub.requests), repo
    hub.forget_requests()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    check()
    assert hub.requests == []


def test_no_repository_no_weights_no_pickle_that_runs(
    hub: HubServer, clip_directory: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple:
            return Path.touch, (mark,)

    hub.tokens[TOKEN] = "org"
    put_clip(hub, clip_directory, **{"open_clip_pytorch_model.bin": pickle.dumps(Bomb())})
    for source in ("hf-hub:org/tiny", "hf-hub:org/none"):
        with pytest.raises(GalipError, match="could not be loaded with its weights") as caught:
            ClipBackbone.from_pretrained(source)
        assert "\n" not in str(caught.value) and "SECRET" not in str(caught.value)
    assert not mark.exists()
