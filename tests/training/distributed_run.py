"""What two real processes do, for test_distributed.py: each part writes what its process saw.

Started by `accelerate launch`; arguments: table folder, CLIP folder, output folder (which holds what
`test_distributed.prepare` put there), recipe.
"""

import hashlib
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_config
from safetensors.torch import save_file
from test_distributed import consumed, validated_run
from test_trainer import gradients_at_the_step

from galip_hf import GalipError, GalipForImageTranslation, GalipImageProcessor
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.data.streamed_dataset import StreamedSlices, open_stream
from galip_hf.data.table import load_table
from galip_hf.data.unpaired_dataset import UnpairedSlices
from galip_hf.training.checkpoint_files import optimizer_tensors
from galip_hf.training.distributed import ProcessGroup
from galip_hf.training.recipe import load_recipe
from galip_hf.training.run_recipe import run_recipe
from galip_hf.training.trainer import GalipTrainer
from galip_hf.training.training_args import GalipLossWeights, GalipTrainingArguments

TABLE, CLIP, OUTPUT = (Path(argument) for argument in sys.argv[1:4])


class Poisoned(UnpairedSlices):
    """One item of the first epoch is not finite."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        if index == 3:  # the second process's, of the second step
            item["image_a"] = torch.full_like(item["image_a"], float("nan"))
        return item


def make_trainer(
    name: str, validate: Any = None, kind: Any = UnpairedSlices, **arguments: Any
) -> GalipTrainer:
    settings = GalipTrainingArguments(**{"output_dir": str(OUTPUT / name), "batch_size": 1, **arguments})
    torch.manual_seed(0)
    model = GalipForImageTranslation(tiny_config())
    dataset = kind(load_table(TABLE)["train"], domains=model.config.domain_names, seed=settings.seed)
    processor = GalipImageProcessor.from_config(model.config)
    return GalipTrainer(model, processor, ClipBackbone.from_pretrained(CLIP), settings, dataset, validate)


def digest(trainer: GalipTrainer) -> str:
    """Hash of all that training changes."""
    total = hashlib.sha256()
    modules = [trainer.state.generator, trainer.state.discriminator, trainer.state.ema.module]
    if trainer.state.patch_discriminator is not None:
        modules.append(trainer.state.patch_discriminator)
    for module in modules:
        for name, value in module.state_dict().items():
            total.update(name.encode() + value.numpy().tobytes())
    for optimizer in trainer.state.optimizers.values():
        for name, value in sorted(optimizer_tensors(optimizer).items()):
            total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()


def first_gradients(process: int) -> list[list[int]]:
    """Gradients of one step, and which domains each process drew."""
    trainer = make_trainer("gradients", loss_weights=GalipLossWeights(patch=1.0))
    batches = next(trainer.loader.steps(0))
    _, domains = trainer._agree([], batches)
    found = gradients_at_the_step(trainer, batches, domains)
    save_file(
        {name: value for name, value in found.items() if value is not None},
        OUTPUT / f"gradients-{process}.safetensors",
    )
    return [list(batches[0].target_domains), domains]


def resumed(name: str, **options: Any) -> dict[str, str]:
    """Hashes of a run of six steps, and of one that was cut after its fifth and resumed from its fourth."""
    steps = {"max_steps": 6, "checkpoint_steps": 2, "logging_steps": 3, **options}
    whole = make_trainer(f"{name}whole", **steps)
    whole.train()

    def interrupt(_: Any) -> dict[str, float]:
        raise InterruptedError

    with suppress(InterruptedError):
        make_trainer(f"{name}cut", interrupt, **steps, validation_steps=5).train()
    again = make_trainer(f"{name}cut", **steps, resume=True)
    again.train()
    return {f"{name}whole": digest(whole), f"{name}resumed": digest(again)}


class Streamed(StreamedSlices):
    """The stream of a run, of this process, in place of the table that `make_trainer` would give."""

    def __init__(self, _: Any, *, domains: Any, seed: int) -> None:
        stream = open_stream(str(OUTPUT / "uneven"), "train")
        share = {"process_index": int(os.environ["RANK"]), "num_processes": 2}
        super().__init__(stream, domains=domains, seed=seed, length=10, buffer_size=12, **share)


def disagreeing(process: int) -> dict[str, Any]:
    """A run whose processes' figures differ, as those of two machines might."""
    figures = iter([[1.0, 2.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0]][process])
    best = {"metric_for_best": "psnr", "early_stopping_patience": 2, "validation_steps": 1}
    trainer = make_trainer("disagreeing", lambda _: {"psnr": next(figures)}, max_steps=9, **best)
    trainer.train()
    assert trainer.state.best is not None
    return {"disagreeing": [trainer.state.step, trainer.state.best.step, trainer.state.best.value]}


def timed(process: int) -> dict[str, Any]:
    """A run whose end is set by time, while the clocks of its processes run at different speeds."""
    trainer = make_trainer("timed", max_steps=9, max_hours=1.0, checkpoint_steps=0)
    reads = iter(range(100))
    trainer.clock = lambda: (process + 1) * 900.0 * next(reads)
    trainer.train()
    return {"timed": trainer.state.step}


def turns(process: int) -> dict[str, Any]:
    """What each process finds when its turn comes; what it is told when the first one fails."""
    processes = ProcessGroup(timedelta(minutes=7))
    seen = OUTPUT / "turns"
    seen.mkdir(exist_ok=True)

    def take_turn() -> list[str]:
        (seen / str(process)).touch()
        return sorted(path.name for path in seen.iterdir())

    def fail() -> None:
        if process:
            (seen / "too_soon").touch()
        raise GalipError("no data")

    found = processes.in_turns(take_turn)
    try:
        processes.in_turns(fail)
    except GalipError as error:
        message = str(error)
    assert not (seen / "too_soon").exists()
    groups = (torch.distributed.group.WORLD, processes._host)
    backends = [group._get_backend(torch.device("cpu")) for group in groups]
    return {
        "turns": [found, message],
        "timeouts": [backend.options._timeout.total_seconds() for backend in backends],
    }


def main() -> None:
    torch.set_num_threads(1)
    process = int(os.environ["RANK"])
    result: dict[str, Any] = turns(process)
    result["domains"] = first_gradients(process)

    trainer = make_trainer("hashes", max_steps=20, checkpoint_steps=0)
    trainer.train()
    result |= {"processes": trainer.processes.size, "twenty_steps": digest(trainer)}

    result |= resumed("", num_workers=1, loss_weights=GalipLossWeights(patch=1.0))
    # An epoch has ten steps: cut, and resumed, in the middle of one.
    result |= resumed("stream_", kind=Streamed, num_workers=2)

    poisoned = make_trainer("poisoned", kind=Poisoned, max_steps=4, logging_steps=4)
    poisoned.train()
    result |= {"poisoned": digest(poisoned), "skipped": poisoned.state.guard.skipped}

    if process == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))  # as on a full disk
    try:
        make_trainer("full", max_steps=1, checkpoint_steps=0, logging_steps=1).train()
    except GalipError as error:
        result["full"] = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)

    (OUTPUT / "blocked").mkdir(exist_ok=True)
    (OUTPUT / "blocked" / "checkpoints").touch()  # a file where the first process would make a folder
    try:
        make_trainer("blocked", max_steps=1, checkpoint_steps=1).train()
    except GalipError as error:
        result["blocked"] = str(error)

    def terminate(_: Any) -> dict[str, float]:
        if process == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    # The way that users go: a recipe.
    recipe = load_recipe(sys.argv[4], [f"training.output_dir={OUTPUT / 'recipe'}"])
    result["recipe"] = digest(run_recipe(recipe))

    result["validated"] = validated_run(OUTPUT / "validated", OUTPUT / "table", CLIP, batch_size=1)
    result |= disagreeing(process)
    result |= timed(process)
    result["consumed"] = {
        kind: consumed(kind, TABLE, OUTPUT, 2, process) for kind in ("table", "even", "uneven")
    }

    stopped = make_trainer("stopped", terminate, max_steps=9, validation_steps=2, checkpoint_steps=0)
    stopped.train()
    result |= {"stopped_by": stopped.stopped_by, "stopped_at": stopped.state.step}
    if process == 0:
        try:
            with stopped.processes.told_if_lost():
                stopped.processes.host_flags([True])  # the other one never comes: it has ended
        except GalipError as error:
            result["lost"] = str(error)
    (OUTPUT / f"result-{process}.json").write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)


if __name__ == "__main__":
    main()
