"""The tiny stand-in CLIP: reproducible files, training that learns, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from galip_hf.clip.backbone import ClipBackbone
from galip_hf.clip.tiny_clip import _draw_groups, build_tiny_clip, train_tiny_clip
from galip_hf.model.errors import GalipError

SIZES = {
    "image_size": 32,
    "width": 32,
    "heads": 2,
    "embedding_width": 16,
    "text_width": 32,
    "context_length": 12,
}


def bright_and_dark_squares(count: int) -> tuple[np.ndarray, list[str]]:
    """Squares on grey, bright or dark, left or right: four captions, images (count, 32, 32) in [0, 1]."""
    generator = np.random.default_rng(0)
    images = generator.uniform(0.45, 0.55, (count, 32, 32)).astype(np.float32)
    captions = []
    for image in images:
        bright, left = generator.integers(0, 2, 2)
        row, column = generator.integers(4, 18), generator.integers(0, 5) + (1 if left else 17)
        image[row : row + 10, column : column + 10] = 0.9 if bright else 0.1
        captions.append(f"a {'bright' if bright else 'dark'} square on the {'left' if left else 'right'}")
    return images, captions


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_clip(tmp_path_factory.mktemp("tiny") / "a", bright_and_dark_squares(64)[1], **SIZES)


def file_bytes(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_building_twice_writes_the_same_bytes(built: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again = build_tiny_clip(tmp_path / "b", bright_and_dark_squares(64)[1], **SIZES)
    assert file_bytes(again) == file_bytes(built)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are left alone
    assert [path.name for path in tmp_path.iterdir()] == ["b"]  # no temporary directory stays behind
    other = build_tiny_clip(tmp_path / "c", bright_and_dark_squares(64)[1], **SIZES, seed=1)
    different = {name for name, content in file_bytes(other).items() if content != file_bytes(built)[name]}
    assert different == {"open_clip_model.safetensors"}


def test_says_that_it_is_a_stand_in(built: Path) -> None:
    assert "**not BiomedCLIP**" in (built / "README.md").read_text(encoding="utf-8")


def test_words_of_the_captions_are_tokens_and_others_are_spelled(built: Path) -> None:
    tokenizer = ClipBackbone.from_pretrained(built).tokenizer.tokenizer
    assert tokenizer.tokenize("A bright square, on the LEFT") == [
        "a",
        "bright",
        "square",
        ",",
        "on",
        "the",
        "left",
    ]
    assert tokenizer.tokenize("pd-1") == ["p", "##d", "-", "1"]
    assert tokenizer.pad_token_id == 0


def test_default_size_is_about_a_megabyte(tmp_path: Path) -> None:
    directory = build_tiny_clip(tmp_path / "default", ["a disc"])
    assert (directory / "open_clip_model.safetensors").stat().st_size < 1.5e6
    backbone = ClipBackbone.from_pretrained(directory)
    assert (backbone.image_blocks, backbone.num_patches, backbone.context_length) == ((0, 1, 2, 3), 64, 32)


def test_training_learns_to_retrieve(built: Path, tmp_path: Path) -> None:
    images, captions = bright_and_dark_squares(400)
    directory = Path(shutil.copytree(built, tmp_path / "trained"))
    before = file_bytes(directory)
    result = train_tiny_clip(directory, images, captions, steps=100, batch_size=32, learning_rate=2e-3)
    assert set(result) == {"loss_first", "loss_last", "accuracy", "candidates", "seconds"}
    assert result["candidates"] == 4
    assert result["loss_first"] > 1.0  # four captions at random: ln 4 = 1.39
    assert result["loss_last"] < 0.3
    assert result["accuracy"] > 0.9
    after = file_bytes(directory)
    assert {name for name in after if after[name] != before[name]} == {"open_clip_model.safetensors"}
    assert after.keys() == before.keys()

    # the same through the class that the discriminator and the losses use, on images larger than the tower's
    backbone = ClipBackbone.from_pretrained(directory)
    names = sorted(set(captions))
    fresh = torch.from_numpy(images[:40].repeat(2, axis=1).repeat(2, axis=2))[:, None]
    similarity = backbone.encode_images(fresh).embedding @ backbone.encode_prompts(names).embedding.T
    own = torch.tensor([names.index(caption) for caption in captions[:40]])
    assert (similarity.argmax(1) == own).float().mean() > 0.9


def test_training_is_reproducible(built: Path, tmp_path: Path) -> None:
    images, captions = bright_and_dark_squares(64)
    weights, results = [], []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        directory = Path(shutil.copytree(built, tmp_path / name))
        results.append(train_tiny_clip(directory, images, captions, steps=3, batch_size=8, seed=seed))
        weights.append(file_bytes(directory)["open_clip_model.safetensors"])
    assert weights[0] == weights[1] != weights[2]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_no_caption_twice_in_a_group() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2])
    members = [torch.where(labels == label)[0] for label in range(3)]
    groups = _draw_groups(members, 16, torch.Generator().manual_seed(0))
    assert len(groups) == 5
    assert all(sorted(labels[group].tolist()) == [0, 1, 2] for group in groups)
    assert len(torch.cat(groups).unique()) > 5  # images differ from group to group


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((12, 1, 32, 32))}, r"expected \(N, H, W\)"),
        ({"images": np.full((12, 32, 32), 1.5)}, r"range over \[1\.5, 1\.5\]"),
        ({"images": np.full((12, 32, 32), np.nan)}, r"range over \[nan, nan\]"),
        ({"captions": ["a disc"] * 11}, r"11 captions for 12 images"),
        ({"captions": ["a disc"] * 12}, r"at least two different"),
        ({"steps": 0}, r"steps is 0"),
    ],
)
def test_training_refuses(built: Path, change: dict[str, object], message: str) -> None:
    arguments = {"images": np.zeros((12, 32, 32)), "captions": ["a", "b"] * 6, "steps": 1, **change}
    with pytest.raises(GalipError, match=message):
        train_tiny_clip(built, **arguments)


def test_building_refuses(tmp_path: Path, built: Path) -> None:
    with pytest.raises(GalipError, match="not an empty directory"):
        build_tiny_clip(built, ["a disc"])
    with pytest.raises(GalipError, match="multiples"):
        build_tiny_clip(tmp_path / "x", ["a disc"], image_size=60)
    with pytest.raises(GalipError, match="captions"):
        build_tiny_clip(tmp_path / "x", [])
    assert list(tmp_path.iterdir()) == []
