"""Training on a tiny table: what moves, what does not, determinism, resuming, and what is written."""

import copy
import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeTrainer
from torch import Tensor

from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.data.unpaired_batch import UnpairedBatch
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.training import losses
from galip_hf.training.checkpoint_files import optimizer_tensors
from galip_hf.training.trainer import GalipTrainer
from galip_hf.training.training_args import GalipLossWeights


def parameters_of(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def state_of(trainer: GalipTrainer) -> dict[str, Tensor]:
    """Everything that training changes."""
    modules = {
        "G": trainer.state.generator,
        "D": trainer.state.discriminator,
        "EMA": trainer.state.ema.module,
    }
    return {
        f"{part}.{name}": value.clone()
        for part, module in modules.items()
        for name, value in module.state_dict().items()
    }


def assert_equal_states(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def some_batch(trainer: GalipTrainer) -> UnpairedBatch:
    return next(trainer.loader.steps(0))[0]


def one_step(trainer: GalipTrainer, batch: UnpairedBatch) -> dict[str, dict[str, Tensor]]:
    return trainer.training_step([batch], sorted(set(batch.target_domains)))


def weights(**values: float) -> GalipLossWeights:
    """Weights that are 0 unless given."""
    zero = dict.fromkeys(("cycle", "adversarial", "class_token", "clip", "identity"), 0.0)
    return GalipLossWeights(**{**zero, **values})


# Batches


def test_a_batch_holds_both_directions() -> None:
    images = {name: torch.full((2, 1, 4, 4), value) for name, value in (("image_a", 1.0), ("image_b", 2.0))}
    labels = {"domain_a": torch.tensor([0, 2]), "domain_b": torch.tensor([1, 0])}
    others = {name: torch.tensor([5, 6]) for name in ("row_a", "row_b")}
    batch = UnpairedBatch.of({**images, **labels, **others, "registered": torch.tensor([True, False])})
    assert batch.sources[:, 0, 0, 0].tolist() == [1, 1, 2, 2]
    assert batch.source_labels.tolist() == [0, 2, 1, 0]
    assert batch.target_labels.tolist() == list(batch.target_domains) == [1, 0, 0, 2]
    assert batch.registered.tolist() == [1, 0, 1, 0]
    # The real image that stands for a fake's target domain is the pair's other one, of that domain.
    assert batch.targets[:, 0, 0, 0].tolist() == [2, 2, 1, 1]


# One step


def losses_from_the_definition(
    trainer: GalipTrainer, batch: UnpairedBatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The generator's losses and what the discriminator is judged by, with graphs, from the method's text."""
    generator, backbone, score = trainer.state.generator, trainer.backbone, trainer.state.discriminator
    fakes = generator(batch.sources, batch.target_labels).translation
    back = generator(fakes, batch.source_labels).translation
    same = generator(batch.sources, batch.source_labels).translation
    fake, real = backbone.encode_images(fakes), backbone.encode_images(batch.sources)
    prompts = backbone.encode_prompts(generator.config.prompts).embedding
    text, own_text = prompts[batch.target_labels], prompts[batch.source_labels]
    logits = score(fake.patch_tokens, batch.target_domains, text)
    real_logits = score(real.patch_tokens, batch.source_labels.tolist(), own_text)
    half = len(fakes) // 2
    real_of_target = torch.cat([real.class_tokens[half:], real.class_tokens[:half]])
    cosine = torch.cosine_similarity(fake.class_tokens.flatten(1), real_of_target.flatten(1))
    target = torch.cat([batch.sources[half:], batch.sources[:half]])
    values = {
        "cycle": (back - batch.sources).abs().mean(),
        "identity": (same - batch.sources).abs().mean(),
        "adversarial": (logits - 1).square().mean(),
        "clip": -(fake.embedding * text).sum(1).mean(),
        "class_token": (1 - cosine).mean(),
        "paired": ((fakes - target).abs().mean((1, 2, 3)) * batch.registered).mean(),
        "structure": losses.structure_loss(fakes, batch.sources),
    }
    cut = score([tokens.detach() for tokens in fake.patch_tokens], batch.target_domains, text)
    judged = {"loss": (real_logits - 1).square().mean() + cut.square().mean(), "real": real_logits.mean()}
    return values, {**judged, "fake": cut.mean()}


def gradients_at_the_step(
    trainer: GalipTrainer, batches: list[UnpairedBatch], domains: list[int] | None = None
) -> dict[str, Tensor | None]:
    """Run a step; the gradients that the optimisers saw. `domains`: by default those of the batches."""
    found: dict[str, Tensor | None] = {}
    networks: dict[str, torch.nn.Module] = {"G": trainer.state.generator, "D": trainer.state.discriminator}
    if trainer.state.patch_discriminator is not None:
        networks["P"] = trainer.state.patch_discriminator

    def keep(name: str) -> None:
        for parameter_name, p in networks[name].named_parameters():
            found[f"{name}.{parameter_name}"] = None if p.grad is None else p.grad.clone()

    hooks = [
        optimizer.register_step_pre_hook(lambda *_, name=name: keep(name))  # type: ignore[misc]
        for name, optimizer in zip(networks, trainer.state.optimizers.values(), strict=True)
    ]
    trainer.training_step(
        batches, domains or sorted({label for batch in batches for label in batch.target_domains})
    )
    for hook in hooks:
        hook.remove()
    return found


def test_losses_are_those_of_the_method(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(loss_weights=GalipLossWeights(paired=1.0, structure=1.0))
    batch = dataclasses.replace(some_batch(trainer), registered=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    expected, judged = losses_from_the_definition(trainer, batch)
    values = one_step(trainer, batch)
    assert set(values["losses"]) == {*expected, "discriminator"}
    for name, value in expected.items():
        assert values["losses"][name].item() == pytest.approx(value.item(), abs=1e-5), name
    assert values["losses"]["discriminator"].item() == pytest.approx(judged["loss"].item(), abs=1e-5)
    for name in ("real", "fake"):
        found = values["discriminator_outputs"][name].item()
        assert found == pytest.approx(judged[name].item(), abs=1e-5)


def test_gradients_are_those_of_the_weighted_sums_over_both_directions(make_trainer: MakeTrainer) -> None:
    """One shared pass of the heads gives what a pass for the generator and one for the heads would."""
    chosen = GalipLossWeights(
        cycle=3.0, adversarial=0.5, class_token=0.25, clip=2.0, identity=0.75, paired=1.5, structure=0.8
    )
    trainer = make_trainer(loss_weights=chosen)
    batch = dataclasses.replace(some_batch(trainer), registered=torch.tensor([0.0, 1.0, 0.0, 1.0]))
    values, judged = losses_from_the_definition(trainer, batch)
    total = sum(losses.DIRECTIONS * getattr(chosen, name) * value for name, value in values.items())
    expected = {}
    for network, module, loss in (
        ("G", trainer.state.generator, total),
        ("D", trainer.state.discriminator, losses.DIRECTIONS * judged["loss"]),
    ):
        names, parameters = zip(*module.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        expected |= {f"{network}.{name}": g for name, g in zip(names, gradients, strict=True)}
    found = gradients_at_the_step(trainer, [batch])
    for name, gradient in expected.items():
        if gradient is None:  # the heads of a domain that the batch does not hold
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def largest_difference(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> float:
    """Over G and D: the largest difference of gradients over the largest gradient."""
    relative = []
    for network in ("G.", "D."):
        names = [name for name in expected if name.startswith(network)]
        assert [n for n in names if found[n] is None] == [n for n in names if expected[n] is None]
        pairs = [(found[name], expected[name]) for name in names if expected[name] is not None]
        difference = max(float((a - b).abs().max()) for a, b in pairs)
        relative.append(difference / max(float(b.abs().max()) for _, b in pairs))
    return max(relative)


def test_accumulated_batches_equal_one_large_batch(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    whole = make_trainer(batch_size=6, output_dir=str(tmp_path / "whole"))
    parts = make_trainer(batch_size=2, gradient_accumulation_steps=3, output_dir=str(tmp_path / "parts"))
    expected = gradients_at_the_step(whole, next(whole.loader.steps(0)))
    found = gradients_at_the_step(parts, next(parts.loader.steps(0)))
    assert largest_difference(found, expected) <= 1e-5


def test_checkpointed_blocks_give_the_same_gradients(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    found = []
    for is_on in (False, True):
        trainer = make_trainer(gradient_checkpointing=is_on, output_dir=str(tmp_path / str(is_on)))
        found.append(gradients_at_the_step(trainer, next(trainer.loader.steps(0))))
    assert largest_difference(found[1], found[0]) <= 1e-6


def test_clipping_acts(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_gradient_norm=1e-3)
    batch = some_batch(trainer)
    found = gradients_at_the_step(trainer, [batch])
    for network in ("G", "D"):
        parts = [g for name, g in found.items() if name.startswith(network) and g is not None]
        norm = torch.stack([g.norm() for g in parts]).norm()
        assert norm.item() == pytest.approx(1e-3, rel=1e-3)
    assert all(norm > 1e-3 for norm in one_step(trainer, batch)["gradient_norms"].values())


def test_a_step_does_one_power_iteration(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    before = copy.deepcopy(trainer.state.discriminator)
    batch = some_batch(trainer)
    one_step(trainer, batch)
    twin = copy.deepcopy(trainer.state.discriminator)
    twin.load_state_dict({**twin.state_dict(), **dict(before.named_buffers())})  # the moved weights
    twin.power_iteration(set(batch.target_domains))
    buffers = dict(trainer.state.discriminator.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in twin.named_buffers())
    for name, value in before.named_buffers():
        assert torch.equal(buffers[name], value) == (int(name.split(".")[1]) not in batch.target_domains)


def test_learning_rates_belong_to_their_networks(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=1, learning_rate=1e-3, discriminator_learning_rate=4e-3)
    before = parameters_of(trainer.state.generator), parameters_of(trainer.state.discriminator)
    trainer.train()
    for module, old, rate in zip(
        (trainer.state.generator, trainer.state.discriminator), before, (1e-3, 4e-3), strict=True
    ):
        largest = max((p.detach() - old[name]).abs().max().item() for name, p in module.named_parameters())
        assert largest == pytest.approx(rate, rel=1e-2)  # Adam's first step is the learning rate


@pytest.mark.parametrize(
    ("chosen", "encoder_calls", "decoder_calls", "clip_calls"),
    [
        ({"cycle": 1.0}, 2, 2, 0),
        ({"identity": 1.0}, 1, 1, 0),
        ({"cycle": 1.0, "identity": 1.0}, 2, 3, 0),
        ({"clip": 1.0}, 1, 1, 1),
        ({"class_token": 1.0}, 1, 1, 2),
        ({"adversarial": 1.0}, 1, 1, 2),
        ({"adversarial": 1.0, "class_token": 1.0, "clip": 1.0, "cycle": 1.0, "identity": 1.0}, 2, 3, 2),
    ],
)
def test_a_loss_of_weight_0_costs_nothing(
    make_trainer: MakeTrainer,
    chosen: dict[str, float],
    encoder_calls: int,
    decoder_calls: int,
    clip_calls: int,
) -> None:
    trainer = make_trainer(loss_weights=weights(**chosen))
    batch = some_batch(trainer)
    calls: list[str] = []
    patches = trainer.backbone.clip.visual.trunk.patch_embed  # once in each pass of the image tower
    hooks = [
        trainer.state.generator.conv_in.register_forward_hook(lambda *_: calls.append("encoder")),
        trainer.state.generator.middle.register_forward_hook(lambda *_: calls.append("decoder")),
        patches.register_forward_hook(lambda *_: calls.append("clip")),
    ]
    heads = {name: value.clone() for name, value in trainer.state.discriminator.state_dict().items()}
    values = one_step(trainer, batch)["losses"]
    for hook in hooks:
        hook.remove()
    is_adversarial = "adversarial" in chosen
    assert set(values) == set(chosen) | ({"discriminator"} if is_adversarial else set())
    assert calls.count("encoder") == encoder_calls
    assert calls.count("decoder") == decoder_calls
    assert calls.count("clip") == clip_calls
    moved = any(
        not torch.equal(value, heads[name])
        for name, value in trainer.state.discriminator.state_dict().items()
    )
    assert moved == is_adversarial


# A run


def test_everything_trained_moves_and_the_backbone_stays(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(max_steps=8)
    generator, discriminator = (
        parameters_of(trainer.state.generator),
        parameters_of(trainer.state.discriminator),
    )
    backbone = {name: value.clone() for name, value in trainer.backbone.state_dict().items()}
    prompt_states = trainer.state.generator.prompt_states.clone()
    trainer.train()
    for name, parameter in trainer.state.generator.named_parameters():
        assert not torch.equal(parameter, generator[name]), name
    for name, parameter in trainer.state.discriminator.named_parameters():  # eight steps draw every domain
        assert not torch.equal(parameter, discriminator[name]), name
    assert torch.equal(trainer.state.generator.prompt_states, prompt_states)
    assert torch.equal(trainer.state.ema.module.prompt_states, prompt_states)
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


def logged(directory: Path) -> list[tuple[Any, ...]]:
    """What `log.jsonl` holds, but for times and memory."""
    names = ("step", "losses", "discriminator_outputs", "gradient_norms", "learning_rates")
    entries = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [tuple(entry[name] for name in names) for entry in entries]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_interrupted_run_resumes_bit_exact(
    make_trainer: MakeTrainer, tmp_path: Path, num_workers: int
) -> None:
    """Epochs are three steps: cut in the second, a step after a checkpoint; resumed into the third.

    The checkpoint lies between two log entries.
    """
    steps = {"max_steps": 8, "checkpoint_steps": 4, "logging_steps": 3, "batch_size": 6, "ema_decay": 0.5}
    steps |= {"num_workers": num_workers, "constant_fraction": 0.25}
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **steps)
    whole.train()

    def interrupt(_: Any) -> dict[str, float]:
        raise Interrupted

    cut = {**steps, "output_dir": str(tmp_path / "cut")}
    with pytest.raises(Interrupted):
        make_trainer(interrupt, validation_steps=5, **cut).train()
    resumed = make_trainer(resume=True, model_seed=123, **cut)
    resumed.train()
    assert (resumed.state.step, resumed.state.ema.updates) == (8, 8)
    assert_equal_states(state_of(whole), state_of(resumed))
    for name in ("generator_optimizer", "discriminator_optimizer"):
        assert_equal_states(
            *(optimizer_tensors(getattr(trainer.state, name)) for trainer in (whole, resumed))
        )
    assert len(logged(tmp_path / "whole")) == 3
    assert logged(tmp_path / "whole") == logged(tmp_path / "cut")


def test_training_draws_from_no_global_generator(make_trainer: MakeTrainer) -> None:
    """So a checkpoint need not keep their states."""
    trainer = make_trainer(num_workers=1, horizontal_flip=True)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    trainer.train()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@pytest.fixture(scope="module")
def finished(make_trainer_in: MakeTrainer, tmp_path_factory: pytest.TempPathFactory) -> GalipTrainer:
    """A run of three steps, with a checkpoint of the last one."""
    trainer = make_trainer_in(output_dir=str(tmp_path_factory.mktemp("finished") / "run"), checkpoint_steps=3)
    trainer.train()
    return trainer


@pytest.fixture
def resume(finished: GalipTrainer, make_trainer: MakeTrainer, tmp_path: Path) -> MakeTrainer:
    """Make a trainer that goes on from a copy of the finished run."""
    shutil.copytree(finished.arguments.output_path, tmp_path / "run")
    return lambda **arguments: make_trainer(resume=True, **arguments)


def test_resuming_a_finished_run_trains_no_further(finished: GalipTrainer, resume: MakeTrainer) -> None:
    again = resume(checkpoint_steps=3, model_seed=123)
    again.train()
    assert_equal_states(state_of(finished), state_of(again))


def test_resuming_another_model_is_refused(resume: MakeTrainer) -> None:
    trainer = resume()
    trainer.state.generator.config.label_width = 8
    with pytest.raises(GalipError, match=r"step-00000003: was made with model label_width=16, .* has 8"):
        trainer.train()


@pytest.mark.parametrize("changed", [{"seed": 1}, {"batch_size": 3}, {"gradient_accumulation_steps": 2}])
def test_resuming_with_another_order_of_data_is_refused(resume: MakeTrainer, changed: dict[str, Any]) -> None:
    with pytest.raises(GalipError, match=rf"was made with training {next(iter(changed))}="):
        resume(**changed).train()


def test_resuming_with_other_slices_is_refused(resume: MakeTrainer) -> None:
    trainer = resume()
    assert isinstance(trainer.loader.dataset, UnpairedSlices)
    one_fewer = trainer.loader.dataset._rows_of_domain[1][:-1]
    trainer.loader.dataset._rows_of_domain[1] = one_fewer
    trainer.loader.fingerprint = trainer.loader.dataset.fingerprint
    with pytest.raises(
        GalipError, match=r"made with training data='18 items of .+, this run has '18 items of"
    ):
        trainer.train()


def test_resuming_with_another_clip_model_is_refused(resume: MakeTrainer) -> None:
    trainer = resume()
    trainer.state.generator.prompt_states.neg_()  # as another text tower would encode them
    with pytest.raises(GalipError, match=r"was made with the CLIP model .+ set it back"):
        trainer.train()


def test_precision_and_other_choices_may_change_on_the_way(resume: MakeTrainer) -> None:
    trainer = resume(max_steps=5, mixed_precision="fp16", learning_rate=1e-4, logging_steps=1)
    trainer.train()
    assert trainer.state.step == 5


def test_an_earlier_run_is_not_written_over(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    make_trainer(max_steps=1, checkpoint_steps=0, logging_steps=1).train()
    log = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    with pytest.raises(GalipError, match="an earlier run is there; choose another output_dir"):
        make_trainer(max_steps=1).train()
    assert (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8") == log
    # Killed before its first checkpoint: it starts anew, and so does its log.
    make_trainer(max_steps=1, logging_steps=1, resume=True).train()
    assert len((tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_log(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(
        lambda model: {"score": float(sum(p.numel() for p in model.parameters()))},
        max_steps=4,
        logging_steps=3,
        validation_steps=4,
        learning_rate=1e-3,
    )
    trainer.train()
    entries = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [entry["step"] for entry in entries] == [3, 4, 4]
    names = {"adversarial", "clip", "class_token", "cycle", "identity", "discriminator"}
    for entry in entries[:2]:
        assert set(entry["losses"]) == names
        assert all(0 <= entry["losses"][name] < 10 for name in names - {"clip"})
        assert 0 <= entry["data_wait_share"] <= 1
        assert entry["seconds_per_step"] * entry["images_per_second"] == pytest.approx(4)  # both directions
    rates = [entry["learning_rates"]["generator"] for entry in entries[:2]]
    assert rates == [1e-3, 5e-4]  # of steps 2 and 3, from 0
    assert all(norm > 0 for entry in entries[:2] for norm in entry["gradient_norms"].values())
    assert [entry["skipped_steps"] for entry in entries[:2]] == [0, 0]
    assert entries[2]["validation"] == {"score": sum(p.numel() for p in trainer.state.generator.parameters())}


def test_the_model_directory_holds_the_moving_average(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(ema_decay=0.9)
    returned = trainer.train()
    assert returned is trainer.state.ema.module
    loaded = GalipForImageTranslation.from_pretrained(tmp_path / "run" / "model")
    for name, value in trainer.state.ema.module.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not torch.equal(loaded.conv_in.weight, trainer.state.generator.conv_in.weight)
    assert loaded.config.prompts == trainer.state.generator.config.prompts
    processor = GalipImageProcessor.from_pretrained(tmp_path / "run" / "model")
    assert processor.fixed_window("CT") == (-1000.0, 1000.0)
    image = torch.rand(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = loaded(image, "CT").translation, returned(image, "CT").translation
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # file-mapped weights may round otherwise


def test_a_batch_larger_than_an_epoch_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(GalipError, match="an epoch has 18 pairs, fewer than the 19 of a step"):
        make_trainer(batch_size=19)


def test_pixel_losses_alone_overfit(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer = make_trainer(
        max_steps=30, learning_rate=5e-3, logging_steps=10, loss_weights=weights(cycle=1.0, identity=1.0)
    )
    trainer.train()
    entries = [
        json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for name in ("cycle", "identity"):
        assert entries[-1]["losses"][name] < 0.5 * entries[0]["losses"][name]
