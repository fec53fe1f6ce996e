"""ClipBackbone on a tiny model in a local directory: values, gradients, frozenness and every refusal."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from galip_hf.clip.backbone import ClipBackbone
from galip_hf.clip.tiny_clip import build_tiny_clip
from galip_hf.model.errors import GalipError

CAPTIONS = ("a bright disc on the left", "a dark square on the right")


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clip") / "model"
    # every width differs, so that none can stand in for another; of six blocks the chosen four have gaps
    return build_tiny_clip(
        directory,
        CAPTIONS,
        image_size=32,
        width=24,
        depth=6,
        heads=2,
        embedding_width=20,
        text_width=16,
        text_depth=1,
        context_length=12,
    )


@pytest.fixture(scope="module")
def backbone(model_directory: Path) -> ClipBackbone:
    return ClipBackbone.from_pretrained(model_directory)


@pytest.fixture
def pixel_values() -> torch.Tensor:
    return torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def copy_without(model_directory: Path, target: Path, *names: str) -> Path:
    shutil.copytree(model_directory, target)
    for name in names:
        (target / name).unlink()
    return target


def test_attributes(backbone: ClipBackbone, model_directory: Path) -> None:
    assert backbone.source == str(model_directory)
    assert backbone.image_blocks == (0, 2, 3, 5)  # quarters of six blocks, ending at the last
    assert (backbone.image_width, backbone.text_width, backbone.embedding_width) == (24, 16, 20)
    assert (backbone.context_length, backbone.num_patches, backbone.image_size) == (12, 16, (32, 32))


def test_image_features_equal_the_towers_own(backbone: ClipBackbone, pixel_values: torch.Tensor) -> None:
    features = backbone.encode_images(pixel_values)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    rgb = (pixel_values.repeat(1, 3, 1, 1) - mean) / std
    torch.testing.assert_close(features.embedding, backbone.clip.encode_image(rgb, normalize=True))

    trunk = backbone.clip.visual.trunk
    hidden = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(rgb)))
    states = []
    for block in trunk.blocks:
        hidden = block(hidden)
        states.append(trunk.norm(hidden))
    assert len(features.patch_tokens) == 4
    for tokens, block in zip(features.patch_tokens, (0, 2, 3, 5), strict=True):
        assert tokens.shape == (3, 16, 24)
        torch.testing.assert_close(tokens, states[block][:, 1:])
    torch.testing.assert_close(
        features.class_tokens, torch.stack([state[:, 0] for state in states[2:]], dim=1)
    )


def test_images_of_another_size_are_resized(backbone: ClipBackbone) -> None:
    large = torch.rand(2, 1, 50, 40, generator=torch.Generator().manual_seed(1))
    small = F.interpolate(large, size=(32, 32), mode="bicubic", antialias=True)
    torch.testing.assert_close(
        backbone.encode_images(large).embedding, backbone.encode_images(small).embedding
    )


def test_samples_do_not_mix(backbone: ClipBackbone, pixel_values: torch.Tensor) -> None:
    alone = backbone.encode_images(pixel_values[1:2])
    together = backbone.encode_images(pixel_values)
    torch.testing.assert_close(together.patch_tokens[0][1:2], alone.patch_tokens[0])


def test_gradient_reaches_pixels_and_no_parameter(backbone: ClipBackbone, pixel_values: torch.Tensor) -> None:
    for part in ("patch_tokens", "class_tokens", "embedding"):
        pixels = pixel_values.clone().requires_grad_()
        value = getattr(backbone.encode_images(pixels), part)
        first = value[0] if part == "patch_tokens" else value
        first[..., 0].sum().backward()
        assert pixels.grad is not None and pixels.grad.flatten(1).abs().amax(1).min() > 0, part
    assert all(not p.requires_grad and p.grad is None for p in backbone.parameters())


def test_prompt_features(backbone: ClipBackbone) -> None:
    features = backbone.encode_prompts(CAPTIONS)
    assert features.token_states.shape == (2, 12, 16)  # the full context, padding included
    torch.testing.assert_close(features.embedding.norm(dim=-1), torch.ones(2))
    # the pooled token is the first: through the tower's projection it must give the embedding
    projected = backbone.clip.text.proj(features.token_states[:, 0])
    torch.testing.assert_close(F.normalize(projected, dim=-1), features.embedding)
    assert not features.embedding.requires_grad and not features.token_states.requires_grad
    again = backbone.encode_prompts(
        [CAPTIONS[1], "a disc"]
    )  # padding is masked, so a neighbour changes nothing
    torch.testing.assert_close(again.embedding[0], features.embedding[1])
    assert not torch.allclose(features.embedding[0], features.embedding[1], atol=1e-3)


def test_autocast_keeps_prompts_exact_and_returns_float32(
    backbone: ClipBackbone, pixel_values: torch.Tensor
) -> None:
    expected = backbone.encode_prompts(CAPTIONS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prompts, images = backbone.encode_prompts(CAPTIONS), backbone.encode_images(pixel_values)
    assert torch.equal(prompts.token_states, expected.token_states)
    assert {images.embedding.dtype, images.class_tokens.dtype, images.patch_tokens[0].dtype} == {
        torch.float32
    }


def test_stays_in_evaluation_mode(backbone: ClipBackbone) -> None:
    torch.nn.Sequential(backbone).train()
    assert not any(module.training for module in backbone.modules())


def test_prompt_longer_than_the_context(backbone: ClipBackbone) -> None:
    fits = "a bright disc on the left on the left a"  # ten words and two special tokens
    backbone.encode_prompts([fits])
    with pytest.raises(GalipError, match=r"13 tokens.*at most 12"):
        backbone.encode_prompts([CAPTIONS[0], f"{fits} disc"])


@pytest.mark.parametrize("prompts", ["a disc", []])
def test_prompts_must_be_a_sequence_of_sentences(backbone: ClipBackbone, prompts: list[str] | str) -> None:
    with pytest.raises(GalipError, match="non-empty sequence"):
        backbone.encode_prompts(prompts)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 32, 32)])
def test_images_must_have_one_channel(backbone: ClipBackbone, shape: tuple[int, ...]) -> None:
    with pytest.raises(GalipError, match="expected \\(batch, 1, height, width\\)"):
        backbone.encode_images(torch.zeros(shape))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["open_clip_model.safetensors"], r"missing: weights"),
        (["config.json"], r"missing: config\.json"),
        (["tokenizer.json", "vocab.txt"], r"missing: tokenizer\.json or vocab\.txt"),
        (["open_clip_config.json"], r"open_clip_config\.json is missing"),
        (["vision/config.json"], r"could not be loaded.*vision"),
    ],
)
def test_incomplete_directory(model_directory: Path, tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(GalipError, match=message):
        ClipBackbone.from_pretrained(copy_without(model_directory, tmp_path / "copy", *names))


def test_damaged_directory(model_directory: Path, tmp_path: Path) -> None:
    copy = copy_without(model_directory, tmp_path / "copy")
    weights = load_file(copy / "open_clip_model.safetensors")
    weights.pop("visual.trunk.cls_token")
    save_file(weights, copy / "open_clip_model.safetensors")
    with pytest.raises(GalipError, match=r"could not be loaded with its weights.*cls_token"):
        ClipBackbone.from_pretrained(copy)
    (copy / "open_clip_config.json").write_text(json.dumps({"embed_dim": 20}))
    with pytest.raises(GalipError, match="model_cfg"):
        ClipBackbone.from_pretrained(copy)


@pytest.mark.parametrize("source", ["no/such/directory", "local-dir:/no/such/directory", "ViT-B-32"])
def test_unknown_source(source: str) -> None:
    with pytest.raises(GalipError, match=r"is no directory.*hf-hub:"):
        ClipBackbone.from_pretrained(source)


def test_unknown_weights_of_a_known_model() -> None:
    with pytest.raises(GalipError, match=r"could not be loaded with its weights.*no_such_tag"):
        ClipBackbone.from_pretrained("ViT-B-32:no_such_tag")


def test_plain_clip_with_its_own_text_tower(tmp_path: Path, pixel_values: torch.Tensor) -> None:
    config = {
        "embed_dim": 20,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    clip = open_clip.model.CLIP(**config)
    save_file(clip.state_dict(), tmp_path / "open_clip_model.safetensors")
    backbone = ClipBackbone.from_pretrained(tmp_path)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(list(CAPTIONS))
    prompts = backbone.encode_prompts(CAPTIONS)
    torch.testing.assert_close(prompts.embedding, clip.eval().encode_text(tokens, normalize=True))
    assert prompts.token_states.shape == (2, 10, 16)
    rgb = (pixel_values - backbone.image_mean) / backbone.image_std
    torch.testing.assert_close(
        backbone.encode_images(pixel_values).embedding, clip.encode_image(rgb, normalize=True)
    )
    with pytest.raises(GalipError, match=r"12 tokens.*at most 10"):
        backbone.encode_prompts(["a bright disc on the left on the left a"])


def test_image_tower_that_is_no_vision_transformer(model_directory: Path, tmp_path: Path) -> None:
    copy = copy_without(model_directory, tmp_path / "copy", "open_clip_model.safetensors")
    config = json.loads((copy / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"]["vision_cfg"] = {
        "image_size": 32,
        "layers": [1, 1, 1, 1],
        "width": 8,
        "head_width": 8,
    }
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    text = {**config["model_cfg"]["text_cfg"], "hf_model_name": str(copy), "hf_model_pretrained": False}
    clip = open_clip.model.CustomTextCLIP(20, config["model_cfg"]["vision_cfg"], text)
    save_file(clip.state_dict(), copy / "open_clip_model.safetensors")
    with pytest.raises(GalipError, match=r"ModifiedResNet; expected a vision transformer"):
        ClipBackbone.from_pretrained(copy)


def test_loads_without_a_network_after_a_move(
    model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def refuse(*arguments: object, **_: object) -> None:
        attempts.append(arguments)  # libraries swallow the error and go on, so count as well
        raise OSError("no network here")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    expected = ClipBackbone.from_pretrained(model_directory).encode_prompts(CAPTIONS)
    copy_without(model_directory, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for source in ("moved", Path("moved"), f"local-dir:{tmp_path}/moved"):
        found = ClipBackbone.from_pretrained(source).encode_prompts(CAPTIONS)
        assert torch.equal(found.token_states, expected.token_states)
    assert attempts == []
