"""Training on a tiny table: what moves, what does not, determinism, resuming, and what is written."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_config
from torch import Tensor

from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor, losses
from galip_hf.clip_backbone import ClipBackbone
from galip_hf.data.sampling import UnpairedSlices
from galip_hf.data.table import load_table
from galip_hf.trainer import GalipTrainer, UnpairedBatch, other_direction
from galip_hf.training_args import GalipLossWeights, GalipTrainingArguments

MakeTrainer = Callable[..., GalipTrainer]


@pytest.fixture
def make_trainer(tiny_backbone: ClipBackbone, table_directory: Path, tmp_path: Path) -> MakeTrainer:
    """Make a trainer of a new tiny model; keyword arguments go to the training arguments."""

    def make(validate: Any = None, model_seed: int = 0, **arguments: Any) -> GalipTrainer:
        values = {"output_dir": str(tmp_path / "run"), "max_steps": 3, "batch_size": 2, **arguments}
        settings = GalipTrainingArguments(**values)
        torch.manual_seed(model_seed)
        model = GalipForImageTranslation(tiny_config())
        dataset = UnpairedSlices(
            load_table(table_directory)["train"], domains=model.config.domain_names, seed=settings.seed
        )
        processor = GalipImageProcessor.from_config(model.config)
        return GalipTrainer(model, processor, tiny_backbone, settings, dataset, validate)

    return make


def parameters_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def state_of(trainer: GalipTrainer) -> dict[str, Tensor]:
    """Everything that training changes."""
    modules = {"G": trainer.generator, "D": trainer.discriminator, "EMA": trainer.ema.module}
    return {
        f"{part}.{name}": value.clone()
        for part, module in modules.items()
        for name, value in module.state_dict().items()
    }


def assert_equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def some_batch(trainer: GalipTrainer) -> UnpairedBatch:
    return UnpairedBatch.of(next(iter(trainer.loader)))


def weights(**values: float) -> GalipLossWeights:
    """Weights that are 0 unless given."""
    zero = dict.fromkeys(("cycle", "adversarial", "class_token", "clip", "identity"), 0.0)
    return GalipLossWeights(**{**zero, **values})


# Batches


def test_a_batch_holds_both_directions() -> None:
    images = {name: torch.full((2, 1, 4, 4), value) for name, value in (("image_a", 1.0), ("image_b", 2.0))}
    labels = {"domain_a": torch.tensor([0, 2]), "domain_b": torch.tensor([1, 0])}
    batch = UnpairedBatch.of({**images, **labels})
    assert batch.sources[:, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert batch.source_labels.tolist() == [0, 2, 1, 0]
    assert batch.target_labels.tolist() == [1, 0, 0, 2]
    # The real image that stands for a fake's target domain is of that domain.
    assert torch.equal(other_direction(batch.source_labels), batch.target_labels)


# One step


def test_losses_are_those_of_the_method(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    batch = some_batch(trainer)
    values, _, _ = trainer.generator_losses(batch)
    generator, backbone = trainer.generator, trainer.backbone
    with torch.no_grad():
        fakes = generator(batch.sources, batch.target_labels).translation
        back = generator(fakes, batch.source_labels).translation
        same = generator(batch.sources, batch.source_labels).translation
        fake, real = backbone.encode_images(fakes), backbone.encode_images(batch.sources)
        prompts = backbone.encode_prompts(trainer.generator.config.prompts)
        text = prompts.embedding[batch.target_labels]
        logits = trainer.discriminator(fake.patch_tokens, batch.target_labels, text)
        half = len(fakes) // 2
        real_of_target = torch.cat([real.class_tokens[half:], real.class_tokens[:half]])
        cosine = torch.cosine_similarity(fake.class_tokens.flatten(1), real_of_target.flatten(1))
        expected = {
            "cycle": (back - batch.sources).abs().mean(),
            "identity": (same - batch.sources).abs().mean(),
            "adversarial": (logits - 1).square().mean(),
            "clip": -(fake.embedding * text).sum(1).mean(),
            "class_token": (1 - cosine).mean(),
        }
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name].item() == pytest.approx(value.item(), abs=1e-5), name


def test_the_discriminator_scores_reals_and_fakes_of_their_own_domains(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    batch = some_batch(trainer)
    _, real, fake = trainer.generator_losses(batch)
    assert real is not None and fake is not None
    loss = trainer.discriminator_loss(batch, real, fake)
    loss.backward()
    assert all(parameter.grad is None for parameter in trainer.generator.parameters())
    score, text = trainer.discriminator, trainer.text_embeddings
    real_logits = score(real.patch_tokens, batch.source_labels, text[batch.source_labels])
    fake_logits = score(fake.patch_tokens, batch.target_labels, text[batch.target_labels])
    expected = (real_logits - 1).square().mean() + fake_logits.square().mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_step_descends_the_weighted_sum_over_both_directions(make_trainer: MakeTrainer) -> None:
    chosen = GalipLossWeights(cycle=3.0, adversarial=0.5, class_token=0.25, clip=2.0, identity=0.75)
    trainer = make_trainer(loss_weights=chosen)
    batch = some_batch(trainer)
    values, _, _ = trainer.generator_losses(batch)
    total = sum(losses.DIRECTIONS * getattr(chosen, name) * value for name, value in values.items())
    expected = torch.autograd.grad(total, list(trainer.generator.parameters()))
    found: list[Tensor] = []
    trainer.generator_optimizer.optimizer.register_step_pre_hook(
        lambda *_: found.extend(parameter.grad.clone() for parameter in trainer.generator.parameters())
    )
    trainer.training_step(batch)
    for gradient, value in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-6)


def test_each_optimiser_sees_the_gradients_of_its_own_network_only(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    seen: list[str] = []

    def has_gradients(module: torch.nn.Module) -> bool:
        return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())

    def generator_step(*_: Any) -> None:
        assert all(parameter.grad is not None for parameter in trainer.generator.parameters())
        assert not has_gradients(trainer.discriminator)
        seen.append("generator")

    def discriminator_step(*_: Any) -> None:
        assert all(parameter.grad is not None for parameter in trainer.discriminator.parameters())
        assert not has_gradients(trainer.generator)
        seen.append("discriminator")

    trainer.generator_optimizer.optimizer.register_step_pre_hook(generator_step)
    trainer.discriminator_optimizer.optimizer.register_step_pre_hook(discriminator_step)
    trainer.training_step(some_batch(trainer))
    assert seen == ["generator", "discriminator"]
    assert all(parameter.requires_grad for parameter in trainer.discriminator.parameters())


def test_a_step_does_one_power_iteration(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    before, twin = copy.deepcopy(trainer.discriminator), copy.deepcopy(trainer.discriminator)
    trainer.training_step(some_batch(trainer))
    twin.power_iteration()
    buffers = dict(trainer.discriminator.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in twin.named_buffers())
    assert not any(torch.equal(buffers[name], value) for name, value in before.named_buffers())


def test_learning_rates_belong_to_their_networks(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=1, learning_rate=1e-3, discriminator_learning_rate=4e-3)
    before = parameters_of(trainer.generator), parameters_of(trainer.discriminator)
    trainer.train()
    for module, old, rate in zip(
        (trainer.generator, trainer.discriminator), before, (1e-3, 4e-3), strict=True
    ):
        largest = max((p.detach() - old[name]).abs().max().item() for name, p in module.named_parameters())
        assert largest == pytest.approx(rate, rel=1e-2)  # Adam's first step is the learning rate


@pytest.mark.parametrize(
    ("chosen", "generator_calls", "clip_calls"),
    [
        ({"cycle": 1.0}, 2, 0),
        ({"identity": 1.0}, 1, 0),
        ({"cycle": 1.0, "identity": 1.0}, 3, 0),
        ({"clip": 1.0}, 1, 1),
        ({"class_token": 1.0}, 1, 2),
        ({"adversarial": 1.0}, 1, 2),
        ({"adversarial": 1.0, "class_token": 1.0, "clip": 1.0, "cycle": 1.0, "identity": 1.0}, 3, 2),
    ],
)
def test_a_loss_of_weight_0_costs_nothing(
    make_trainer: MakeTrainer, chosen: dict[str, float], generator_calls: int, clip_calls: int
) -> None:
    trainer = make_trainer(loss_weights=weights(**chosen))
    batch = some_batch(trainer)
    calls: list[str] = []
    patches = trainer.backbone.clip.visual.trunk.patch_embed  # once in each pass of the image tower
    hooks = [
        trainer.generator.register_forward_hook(lambda *_: calls.append("generator")),
        patches.register_forward_hook(lambda *_: calls.append("clip")),
    ]
    heads = {name: value.clone() for name, value in trainer.discriminator.state_dict().items()}
    values = trainer.training_step(batch)
    for hook in hooks:
        hook.remove()
    is_adversarial = "adversarial" in chosen
    assert set(values) == set(chosen) | ({"discriminator"} if is_adversarial else set())
    assert calls.count("generator") == generator_calls
    assert calls.count("clip") == clip_calls
    moved = any(
        not torch.equal(value, heads[name]) for name, value in trainer.discriminator.state_dict().items()
    )
    assert moved == is_adversarial


# A run


def test_everything_trained_moves_and_the_backbone_stays(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=8)
    generator, discriminator = parameters_of(trainer.generator), parameters_of(trainer.discriminator)
    backbone = {name: value.clone() for name, value in trainer.backbone.state_dict().items()}
    prompt_states = trainer.generator.prompt_states.clone()
    trainer.train()
    for name, parameter in trainer.generator.named_parameters():
        assert not torch.equal(parameter, generator[name]), name
    for name, parameter in trainer.discriminator.named_parameters():
        # Eight steps draw every domain, so each domain's own slice of the weights has moved.
        for label in range(3):
            assert not torch.equal(parameter[label], discriminator[name][label]), (name, label)
    assert torch.equal(trainer.generator.prompt_states, prompt_states)
    assert torch.equal(trainer.ema.module.prompt_states, prompt_states)
    assert all(torch.equal(value, backbone[name]) for name, value in trainer.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.backbone.parameters())
    assert not trainer.backbone.training


def test_runs_are_determined_by_the_seed(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    states = []
    for number, seed in enumerate((0, 0, 1)):
        trainer = make_trainer(output_dir=str(tmp_path / str(number)), seed=seed)
        trainer.train()
        states.append(state_of(trainer))
    assert_equal_states(states[0], states[1])
    assert not torch.equal(states[0]["G.conv_in.weight"], states[2]["G.conv_in.weight"])


class Interrupted(Exception):
    """Stands for a run that is killed."""


def test_an_interrupted_run_resumes_bit_exact(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Epochs are three steps: cut in the second, a step after a checkpoint; resumed into the third."""
    steps = {"max_steps": 8, "checkpoint_steps": 4, "batch_size": 6, "ema_decay": 0.5}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **steps)
    whole.train()

    def interrupt(_: Any) -> dict[str, float]:
        raise Interrupted

    cut = {**steps, "output_dir": str(tmp_path / "cut")}
    with pytest.raises(Interrupted):
        make_trainer(interrupt, validation_steps=5, **cut).train()
    resumed = make_trainer(resume=True, model_seed=123, **cut)
    resumed.train()
    assert (resumed.step, resumed.ema.updates) == (8, 8)
    assert_equal_states(state_of(whole), state_of(resumed))


def test_resuming_a_finished_run_trains_no_further(make_trainer: MakeTrainer) -> None:
    first = make_trainer(checkpoint_steps=3)
    first.train()
    again = make_trainer(checkpoint_steps=3, resume=True, model_seed=123)
    again.train()
    assert_equal_states(state_of(first), state_of(again))


def test_resuming_another_model_is_refused(make_trainer: MakeTrainer) -> None:
    make_trainer(checkpoint_steps=3).train()
    trainer = make_trainer(resume=True)
    trainer.generator.config.label_width = 8
    with pytest.raises(GalipError, match="another model configuration"):
        trainer.train()


def test_an_earlier_run_is_not_written_over(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(max_steps=1, checkpoint_steps=0, logging_steps=1).train()
    log = (tmp_path / "run" / "log.jsonl").read_text()
    with pytest.raises(GalipError, match="an earlier run is there; choose another output_dir"):
        make_trainer(max_steps=1).train()
    with pytest.raises(GalipError, match=r"without a checkpoint to resume from; .+ delete it"):
        make_trainer(max_steps=1, resume=True).train()
    assert (tmp_path / "run" / "log.jsonl").read_text() == log


def test_log(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(
        lambda model: {"score": float(sum(p.numel() for p in model.parameters()))},
        max_steps=4,
        logging_steps=3,
        validation_steps=4,
        learning_rate=1e-3,
    )
    trainer.train()
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [3, 4, 4]
    names = {"adversarial", "clip", "class_token", "cycle", "identity", "discriminator"}
    for entry in entries[:2]:
        assert set(entry["losses"]) == names
        assert all(0 <= entry["losses"][name] < 10 for name in names - {"clip"})
        assert 0 <= entry["data_wait_share"] <= 1
        assert entry["seconds_per_step"] * entry["images_per_second"] == pytest.approx(4)  # both directions
    assert [entry["learning_rate"] for entry in entries[:2]] == [1e-3, 5e-4]  # of steps 2 and 3, from 0
    assert entries[2]["validation"] == {"score": sum(p.numel() for p in trainer.generator.parameters())}


def test_the_model_directory_holds_the_moving_average(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(ema_decay=0.9)
    returned = trainer.train()
    assert returned is trainer.ema.module
    loaded = GalipForImageTranslation.from_pretrained(tmp_path / "run" / "model")
    for name, value in trainer.ema.module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not torch.equal(loaded.conv_in.weight, trainer.generator.conv_in.weight)
    assert loaded.config.prompts == trainer.generator.config.prompts
    processor = GalipImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert processor.fixed_window("CT") == (-1000.0, 1000.0)
    image = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = loaded(image, "CT").translation, returned(image, "CT").translation
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # file-mapped weights may round otherwise


def test_a_batch_larger_than_an_epoch_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(GalipError, match="an epoch has 18 pairs, fewer than batch_size 19"):
        make_trainer(batch_size=19)


def test_pixel_losses_alone_overfit(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(
        max_steps=30, learning_rate=5e-3, logging_steps=10, loss_weights=weights(cycle=1.0, identity=1.0)
    )
    trainer.train()
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for name in ("cycle", "identity"):
        assert entries[-1]["losses"][name] < 0.5 * entries[0]["losses"][name]
