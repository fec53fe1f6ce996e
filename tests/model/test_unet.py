"""The network on its own: loaded, against the model class of transformers; its parts, against plain ones."""

from pathlib import Path

import pytest
import torch

from galip_hf import GalipForImageTranslation, GalipImageProcessor
from galip_hf.model.intensity import IntensityNormalizer
from galip_hf.model.unet import GalipGenerator, load_generator


def assert_same(loaded: GalipGenerator, expected: GalipForImageTranslation) -> None:
    state = expected.state_dict()
    assert list(loaded.state_dict()) == list(state)
    for name, value in loaded.state_dict().items():
        assert value.dtype == state[name].dtype and torch.equal(value, state[name]), name


def test_as_the_model_class_loads_it(directory: Path) -> None:
    model, generator = GalipForImageTranslation.from_pretrained(directory), load_generator(directory)
    assert type(generator) is GalipGenerator and not isinstance(generator, GalipForImageTranslation)
    assert isinstance(model, GalipGenerator)
    assert_same(generator, model)
    assert not generator.training
    assert generator.config.own_values() == model.config.own_values()
    assert generator.config.name_or_path == model.config.name_or_path == str(directory)
    assert all(parameter.requires_grad for parameter in generator.parameters())
    pixel_values = torch.rand(2, 1, 24, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = (
            one.translate(pixel_values, [one.prepare_target(name) for name in one.config.domain_names])
            for one in (generator, model)
        )
        # The weights' layout decides which kernel runs, and with it the rounding.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(generator(pixel_values, "T2").translation, model(pixel_values, "T2")[0])


def test_the_hosts_random_numbers_are_left_alone(directory: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_generator(directory)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_type_are_read_as_float32(
    directory: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    GalipForImageTranslation.from_pretrained(directory, dtype=dtype).save_pretrained(tmp_path)
    generator = load_generator(tmp_path)
    assert {value.dtype for value in generator.state_dict().values()} == {torch.float32}
    assert_same(generator, GalipForImageTranslation.from_pretrained(tmp_path).float())


def test_several_files_and_a_variant(directory: Path, tmp_path: Path) -> None:
    model = GalipForImageTranslation.from_pretrained(directory)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    assert_same(load_generator(tmp_path / "shards"), model)
    model.save_pretrained(tmp_path / "variant", variant="ema")
    assert_same(load_generator(tmp_path / "variant", "ema"), model)


def test_the_file_may_be_written_anew_afterwards(directory: Path, tmp_path: Path) -> None:
    model = GalipForImageTranslation.from_pretrained(directory)
    model.save_pretrained(tmp_path)
    generator = load_generator(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert_same(generator, model)


def test_the_processors_rules_and_statistics_are_the_same(directory: Path) -> None:
    alone, processor = IntensityNormalizer.load(directory), GalipImageProcessor.from_pretrained(directory)
    assert alone.intensity_rules == processor.intensity_rules
    assert alone.domain_statistics == processor.domain_statistics
    volume = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)).numpy() * 900
    found, expected = (one.normalize_volume(volume, "T1") for one in (alone, processor))
    assert torch.equal(found.pixel_values, expected.pixel_values)
    assert (found.lower, found.upper) == (expected.lower, expected.upper)
