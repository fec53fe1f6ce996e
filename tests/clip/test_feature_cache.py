"""Features of the training slices, kept: the same training with fewer passes of the image tower."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import MakeTrainer
from safetensors.torch import load_file

from galip_hf import GalipError
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.clip.feature_cache import ImageFeatureCache, _mapped
from galip_hf.data.augmentation import SliceAugmentation
from galip_hf.training.training_args import GalipTrainingArguments


def passes(backbone: ClipBackbone) -> list[int]:
    """Filled with the number of images of each pass of the image tower from now on."""
    found: list[int] = []
    patches = backbone.clip.visual.trunk.patch_embed
    patches.register_forward_pre_hook(lambda _, inputs: found.append(len(inputs[0])))
    return found


def test_kept_features_are_those_of_the_tower(tiny_backbone: ClipBackbone, tmp_path: Path) -> None:
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    cache = ImageFeatureCache(tmp_path, 9, tiny_backbone)
    seen = passes(tiny_backbone)
    first = cache(images, (4, 0, 8))
    assert seen == [1, 1, 1]
    again = cache(images[[2, 0]], (8, 4))
    assert seen == [1, 1, 1]
    expected = tiny_backbone.encode_images(images)
    for name in ("class_tokens", "embedding"):
        torch.testing.assert_close(getattr(first, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
        assert torch.equal(getattr(again, name), getattr(first, name)[[2, 0]])
    for found, kept, tokens in zip(
        first.patch_tokens, again.patch_tokens, expected.patch_tokens, strict=True
    ):
        torch.testing.assert_close(found, tokens, rtol=1e-5, atol=1e-5)
        assert torch.equal(kept, found[[2, 0]]) and not found.requires_grad
    assert list(tmp_path.iterdir()) == []


def test_a_step_with_kept_features_is_the_plain_one(make_trainer: MakeTrainer) -> None:
    plain, kept = make_trainer(), make_trainer(cache_image_features=True)
    batch = next(plain.loader.steps(0))[0]
    domains = sorted(set(batch.target_domains))
    seen = passes(kept.backbone)
    for step in range(3):
        seen.clear()
        expected, found = plain.training_step([batch], domains), None
        plain_passes = list(seen)
        seen.clear()
        found = kept.training_step([batch], domains)
        assert plain_passes == [4, 4]
        assert seen == ([4, 1, 1, 1, 1] if step == 0 else [4])
        for group in ("losses", "discriminator_outputs", "gradient_norms"):
            for name, value in expected[group].items():
                torch.testing.assert_close(found[group][name], value, rtol=1e-4, atol=1e-6)


def test_mirrored_slices_have_features_of_their_own(make_trainer: MakeTrainer) -> None:
    options = {"horizontal_flip": True, "batch_size": 1}
    plain, kept = make_trainer(**options), make_trainer(cache_image_features=True, **options)
    seen, views = passes(kept.backbone), set()
    steps = zip(plain.loader.steps(0), kept.loader.steps(0), strict=True)
    for (batch,), (same,) in islice(steps, 30):
        domains = sorted(set(batch.target_domains))
        expected = plain.training_step([batch], domains)
        seen.clear()
        found = kept.training_step([same], domains)
        new = set(same.target_views) - views
        assert seen == [2] + [1] * len(new)
        views |= new
        for name, value in expected["losses"].items():
            torch.testing.assert_close(found["losses"][name], value, rtol=1e-3, atol=1e-5)
    rows = kept.loader.dataset.rows
    assert {view // rows for view in views} == {0, 1}
    assert {view % rows for view in views if view < rows} & {view - rows for view in views if view >= rows}
    assert len(views) < 60  # some were known


def test_a_resumed_run_has_the_weights_of_an_unbroken_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    weights = {}
    for name, lengths in (("unbroken", [6]), ("resumed", [3, 6])):
        for length in lengths:
            trainer = make_trainer(
                output_dir=str(tmp_path / name),
                cache_image_features=True,
                checkpoint_steps=3,
                max_steps=length,
                constant_fraction=1.0,
                resume=True,
            )
            trainer.train()
        assert not list((tmp_path / name).glob("*.bin"))
        weights[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    assert all(torch.equal(weights["unbroken"][key], value) for key, value in weights["resumed"].items())


def test_without_room_one_line_says_how_much_is_needed(tmp_path: Path) -> None:
    with pytest.raises(GalipError, match=r"the features take 4000000\.0 GB; make room, or set cache"):
        _mapped(tmp_path / "features.bin", 10**15)
    assert list(tmp_path.iterdir()) == []


def test_slices_that_change_are_refused() -> None:
    change = SliceAugmentation(rotation=5.0)
    with pytest.raises(GalipError, match="cache_image_features needs slices that nothing but flips"):
        GalipTrainingArguments(output_dir="x", cache_image_features=True, augmentation=change)
