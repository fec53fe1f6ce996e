"""Captions of a table's own slices, and a stand-in trained on them by a recipe."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import tiny_config, tiny_run_recipe

from galip_hf import GalipError
from galip_hf.clip.phantom_clip import TinyClipRecipe, make_tiny_clip, phantom_slices
from galip_hf.clip.table_clip import captioned_slices
from galip_hf.data.table import load_table
from galip_hf.data.table_writer import SubjectVolume, write_table
from galip_hf.training.recipe import load_recipe
from galip_hf.training.run_facts import recipe_facts
from galip_hf.training.run_recipe import load_backbone

PROMPTS = {"T1": "this is T1", "T2": "this is T2"}


def discs(widths: list[int], level: float) -> np.ndarray:
    """(S, 32, 32): a bright disc of each diameter on black."""
    y, x = np.mgrid[0:32, 0:32] - 15.5
    return np.stack([level * (np.hypot(x, y) < width / 2) for width in widths]).astype(np.float32)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    volumes = [
        SubjectVolume(discs([8, 16, 28, 16, 8], 0.9), "T1", "a", "train"),
        SubjectVolume(discs([10, 18, 30, 20, 12], 0.5), "T2", "b", "train", first_slice=7),
    ]
    return write_table(volumes, tmp_path / "table", domains=list(PROMPTS), image_size=None)


def test_captions_say_how_high_and_how_wide(table: Path) -> None:
    images, captions, prompts = captioned_slices(load_table(table)["train"], PROMPTS, 32)
    assert images.shape == (10, 32, 32) and images.dtype == np.float32
    assert np.array_equal(images[:5], discs([8, 16, 28, 16, 8], 0.9))
    assert prompts == ["this is T1"] * 5 + ["this is T2"] * 5
    assert captions[0] == "this is T1, a lowest slice, a narrow body"
    assert captions[2] == "this is T1, a middle slice, a wide body"
    assert captions[5:] == [
        f"this is T2, a {level} slice, a {width} body"
        for level, width in zip(
            ("lowest", "low", "middle", "high", "highest"),
            ("narrow", "medium", "wide", "wide", "narrow"),
            strict=True,
        )
    ]


def test_slices_are_resized_to_the_tower(table: Path) -> None:
    images, _, _ = captioned_slices(load_table(table)["train"], PROMPTS, 16)
    assert images.shape == (10, 16, 16)
    assert images.min() >= 0 and images.max() <= 1
    assert images.mean() == pytest.approx(
        np.concatenate([discs([8, 16, 28, 16, 8], 0.9), discs([10, 18, 30, 20, 12], 0.5)]).mean(), rel=0.05
    )


def test_too_few_slices(table: Path) -> None:
    with pytest.raises(GalipError, match="5 training slices; expected at least 10"):
        captioned_slices(load_table(table)["train"], {"T1": "this is T1"}, 32)


def test_a_quarter_of_the_captions_are_bare_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "galip_hf.clip.phantom_clip.train_tiny_clip",
        lambda _, __, captions, **___: seen.extend(captions) or {},
    )
    images = np.zeros((400, 32, 32), np.float32)
    slices = images, ["with a caption"] * 400, ["bare"] * 400
    recipe = TinyClipRecipe(image_size=32, width=16, context_length=12)
    make_tiny_clip(recipe, tmp_path / "clip", 0, slices)
    assert seen.count("bare") + seen.count("with a caption") == 400
    assert 70 < seen.count("bare") < 130


def test_a_recipe_trains_the_stand_in_on_its_table(table_directory: Path, tmp_path: Path) -> None:
    path = tiny_run_recipe(tmp_path / "recipe.yaml", table_directory, tmp_path)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    tiny = {"image_size": 32, "width": 16, "context_length": 24, "steps": 2, "batch_size": 6}
    values["clip"] = {"tiny": {**tiny, "images": "table"}}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    recipe = load_recipe(path)
    recipe.training.make_output_directory()
    load_backbone(recipe)
    vocabulary = (tmp_path / "run" / "clip" / "vocab.txt").read_text(encoding="utf-8").split()
    assert {"ct", "lowest", "narrow"} <= set(vocabulary)  # of this table, which the phantom does not have
    assert "ventricles" not in vocabulary
    assert "captioned training slices" in recipe_facts(recipe, None)["clip"]


def test_a_stream_has_no_table_to_train_on(tmp_path: Path) -> None:
    values = {
        "model": {"domains": tiny_config().domains},
        "clip": {"tiny": {"images": "table"}},
        "data": {"streaming": {"source": "someone/slices", "items": 10}},
        "training": {"output_dir": str(tmp_path / "run")},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(GalipError, match="images is table, but the data is a stream"):
        load_backbone(load_recipe(path))


def test_other_images_are_refused() -> None:
    with pytest.raises(GalipError, match="images is 'tables'; expected phantom or table"):
        TinyClipRecipe(images="tables")


def test_the_phantom_has_a_caption_and_a_prompt_for_each_slice() -> None:
    images, captions, prompts = phantom_slices(TinyClipRecipe(image_size=32, subjects=1), 0)
    assert images.shape == (36, 32, 32) and images.min() >= 0 and images.max() <= 1
    assert all(
        caption.startswith(prompt + ", with") for caption, prompt in zip(captions, prompts, strict=True)
    )
    assert len(set(prompts)) == 3
