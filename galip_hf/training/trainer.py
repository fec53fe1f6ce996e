"""Training of I2I-Galip: batches in, optimiser steps, a moving average, a log, checkpoints.

What a step computes is in `step`; how processes work together in `distributed`. Every choice of data and of
augmentation is a function of (seed, epoch, index), so a resumed run equals one that was never stopped, and
processes that each take a part of the batch equal one process that takes all of it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..clip.backbone import ClipBackbone
from ..clip.feature_cache import ImageFeatureCache
from ..data.unpaired_batch import UnpairedBatch
from ..data.unpaired_dataset import UnpairedSlices
from ..files import atomic_write, told_if_unwritable
from ..model.errors import GalipError
from ..model.image_processing_galip import GalipImageProcessor
from ..model.modeling_galip import GalipForImageTranslation
from .agreement import require_same_facts, require_same_settings, require_same_tensor
from .checkpoint_files import latest_checkpoint
from .distributed import ProcessGroup
from .final_push import check_final_push, push_final_model
from .precision import autocast, use_deterministic_algorithms, with_launcher_precision
from .resume import RunIdentity, resume_run, save_run
from .run_facts import told_settings, write_training_facts
from .run_log import RunLog
from .signals import SIGNALS, noted_signals
from .state import new_state
from .step import TrainingStep, can_compile
from .step_loader import StepLoader
from .training_args import GalipTrainingArguments

logger = logging.getLogger(__name__)

Validate = Callable[[GalipForImageTranslation], dict[str, float]]
SavePictures = Callable[[GalipForImageTranslation, Path], Path]

_CHECKPOINTS = "checkpoints"


class GalipTrainer:
    """Trains a generator.

    Args:
        model: the generator. It is moved to the device and to float32, whatever it was saved in, and its
            prompts are encoded by `backbone`.
        processor: saved beside the model.
        backbone: frozen CLIP model; never saved, never trained.
        arguments: choices of the run.
        train_dataset: items as those of `UnpairedSlices`, with `set_epoch` and `subject_and_slice`.
        validate: returns named numbers for the moving average's model; called every `validation_steps`.
        save_pictures: draws that model's translations into a PNG file, then too.
        facts: what `training.json`, beside the saved model, says of the data and the CLIP model.
        processes: of the run, where the caller has made the group already.

    After `train()`, `output_dir/model` holds the moving average, the processor and `training.json`, the facts
    for a model card; `log.jsonl` the log.
    `stopped_by` is the name of the signal that ended `train()` early, or None. `clock` gives the seconds that
    `max_hours` is compared with; only differences count. A benchmark may count processor time instead.

    Raises:
        GalipError: an epoch shorter than a batch; a precision that contradicts the launcher's; processes that
            were given other settings, another CLIP model or other data than the first one.
    """

    def __init__(
        self,
        model: GalipForImageTranslation,
        processor: GalipImageProcessor,
        backbone: ClipBackbone,
        arguments: GalipTrainingArguments,
        train_dataset: Dataset,
        validate: Validate | None = None,
        save_pictures: SavePictures | None = None,
        facts: Mapping[str, Any] | None = None,
        processes: ProcessGroup | None = None,
    ) -> None:
        self.arguments = arguments = with_launcher_precision(arguments)
        if arguments.deterministic:
            use_deterministic_algorithms()
        self.processor = processor
        self.facts = dict(facts or {})
        self.validate, self.save_pictures = validate, save_pictures
        self.processes = processes or ProcessGroup(arguments.process_timeout)
        require_same_settings(self.processes, arguments, model.config.own_values())
        device = self.processes.state.device
        self.backbone = backbone.to(device)
        # Weights saved in half precision are trained in float32: small updates would round to nothing.
        generator = model.float().to(device).train()
        generator.set_prompts(self.backbone)
        require_same_tensor(self.processes, generator.prompt_states, "CLIP model")
        if arguments.gradient_checkpointing:
            generator.activation_checkpointing_enable()
        self.processes.broadcast(generator)
        self.state = new_state(generator, backbone, arguments, self.images_per_step)
        self.processes.broadcast(self.state.discriminator)
        if self.state.patch_discriminator is not None:
            self.processes.broadcast(self.state.patch_discriminator)
        self.loader = StepLoader(train_dataset, arguments, self.processes.size, self._process, device)
        require_same_facts(self.processes, {"training items": self.loader.fingerprint})
        self.gradients = TrainingStep(
            generator,
            self.state.discriminator,
            self.backbone,
            backbone.encode_prompts(model.config.prompts).embedding.to(device),
            arguments.loss_weights,
            lambda: autocast(device, arguments.mixed_precision),
            self.state.scaler.scale,  # type: ignore[arg-type]
            compiled=arguments.torch_compile and can_compile(device),
            real_features=self._feature_cache(train_dataset) if arguments.cache_image_features else None,
            patch_discriminator=self.state.patch_discriminator,
        )
        self.stopped_by: str | None = None
        self.clock: Callable[[], float] = time.monotonic

    def _feature_cache(self, dataset: Any) -> ImageFeatureCache:
        if not isinstance(dataset, UnpairedSlices):
            raise GalipError(
                "training: cache_image_features needs a table; a stream's slices have no numbers"
            )
        self.processes.together(self.arguments.make_output_directory)
        return ImageFeatureCache(self.arguments.output_path, dataset.views, self.backbone)

    @property
    def _process(self) -> int:
        return self.processes.state.process_index

    @property
    def _is_main(self) -> bool:
        return self.processes.state.is_main_process

    @property
    def images_per_step(self) -> int:
        """Training images of an optimiser step, over all processes."""
        return self.arguments.images_per_step(self.processes.size)

    # A step

    def training_step(
        self, batches: Sequence[UnpairedBatch], domains: Sequence[int]
    ) -> dict[str, dict[str, Tensor]]:
        """One step of both optimisers on the mean gradients of some batches.

        Args:
            batches: of this process.
            domains: labels that the batches of all processes hold.

        Returns:
            Values by group, means over the batches, on the device.
        """
        self._set_learning_rate()
        self.gradients.adversarial_factor = self.arguments.adversarial_factor(self.state.step)
        all_values = [self.gradients.backward(batch, 1 / len(batches)) for batch in batches]
        norms = {}
        trained = self.state.trained_parameters(domains, self.arguments.loss_weights)
        for name, parameters in trained.items():
            self.processes.average_gradients(parameters)
            self.state.scaler.unscale_(self.state.optimizers[name])
            norms[name] = self._clip(parameters)
        skip = self.state.guard.check(
            torch.stack(list(norms.values())),
            torch.stack([loss for values in all_values for loss in values["losses"].values()]),
            batches,
            self.state.scaler.scale(torch.ones_like(norms["generator"])),  # type: ignore[arg-type]
        )
        for optimizer in [self.state.optimizers[name] for name in trained]:
            optimizer.grad_scale, optimizer.found_inf = None, skip  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad()
        self.state.scaler.update()
        self.state.discriminator.power_iteration(domains if "discriminator" in trained else ())
        if self.state.patch_discriminator is not None:
            self.state.patch_discriminator.power_iteration()
        self.state.ema.update(self.state.generator, skip)
        values = {
            group: {
                name: torch.stack([values[group][name] for values in all_values]).mean() for name in named
            }
            for group, named in all_values[0].items()
        }
        return {**values, "gradient_norms": norms}

    def _clip(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Clip gradients to `max_gradient_norm`; returns their norm before."""
        limit = self.arguments.max_gradient_norm or float("inf")
        return torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)

    def _set_learning_rate(self) -> None:
        rates = self.learning_rates(self.state.step, self.state.seconds)
        for name, optimizer in self.state.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name]

    def learning_rates(self, step: int, seconds: float = 0.0) -> dict[str, float]:
        """Of step `step`, counted from 0; `seconds` is the time that the steps before it took."""
        arguments = self.arguments
        full = {
            "generator": arguments.learning_rate,
            "discriminator": arguments.discriminator_learning_rate,
            "patch_discriminator": arguments.patch_learning_rate,
        }
        factor = arguments.learning_rate_factor(step, seconds)
        return {name: full[name] * factor for name in self.state.optimizers}

    # The loop

    def train(self) -> GalipForImageTranslation:
        """Run to `max_steps` or `max_hours`; returns the moving average's model, which is also saved.

        SIGTERM or SIGINT (Ctrl-C) on any process: all of them end the step, save a checkpoint and return.
        With `hub_repo_id` the saved model is pushed at the end.

        Raises:
            GalipError: the output directory holds another run, a checkpoint does not fit or cannot be
                written, losses stay non-finite, the Hub does not let us push (asked before the first step),
                or the push fails (the model is saved by then).
        """
        if self.arguments.hub_repo_id:
            self.processes.on_main(lambda: check_final_push(self.arguments))
        self.processes.together(self.arguments.make_output_directory)
        self._resume()
        self.log = (
            RunLog(
                self.arguments.output_path,
                self.arguments.report_to,
                project=self.arguments.project,
                settings=told_settings(self.arguments),
                step=self.state.step,
            )
            if self._is_main
            else None
        )
        try:
            with noted_signals() as received:
                self._run(received)
        finally:
            if self.log:
                self.log.close()
        if self.stopped_by:
            return self.state.averaged_model
        model = self.save_model(self.arguments.output_path / "model")
        if self.arguments.hub_repo_id:
            self.processes.on_main(lambda: push_final_model(self.arguments))
        return model

    def _run(self, received: list[str]) -> None:
        arguments = self.arguments
        bar = tqdm(
            total=arguments.max_steps,
            initial=self.state.step,
            unit="step",
            disable=None if self._is_main else True,
        )
        started = self.clock() - self.state.seconds
        with bar, closing(self.loader.steps(self.state.step)) as steps:
            while not (self._is_over or (self.state.best and self.state.best.is_over)):
                waiting = time.perf_counter()
                batches = next(steps)
                self.state.record.waited(time.perf_counter() - waiting)
                signals, domains = self._agree(received, batches)
                if signals:
                    self._stop(signals[0])
                    return
                self.state.record.add(self.training_step(batches, domains))
                self.state.step += 1
                self.state.seconds = self._seconds_since(started)
                bar.update()
                self._after_step(bar)

    @property
    def _is_over(self) -> bool:
        return self.arguments.is_over(self.state.step, self.state.seconds)

    def _seconds_since(self, started: float) -> float:
        """With `max_hours`, by the first process's clock: all processes must end after the same step."""
        if self.arguments.max_hours is None:
            return self.clock() - started
        return self.processes.on_main(lambda: self.clock() - started)

    def _agree(
        self, received: Sequence[str], batches: Sequence[UnpairedBatch]
    ) -> tuple[list[str], list[int]]:
        """Signals that any process got, and labels that any process's batches hold."""
        names, labels = SIGNALS, range(len(self.state.discriminator.domains))
        present = {label for batch in batches for label in batch.target_domains}
        own = [*(name in received for name in names), *(label in present for label in labels)]
        flags = self.processes.host_flags(own)
        signals = [name for name, is_set in zip(names, flags[: len(names)], strict=True) if is_set]
        domains = [label for label, is_set in zip(labels, flags[len(names) :], strict=True) if is_set]
        return signals, domains

    def _after_step(self, bar: tqdm) -> None:
        arguments = self.arguments
        is_logged = self._is_due(arguments.logging_steps)
        if is_logged or self.state.step % arguments.max_skipped_steps == 0:
            self._log_skipped()
        if is_logged:
            rates = {name: opt.param_groups[0]["lr"] for name, opt in self.state.optimizers.items()}
            entry = self.state.record.entry(self.state.step, self.images_per_step, rates, self.processes.mean)
            self._log({**entry, "skipped_steps": self.state.guard.skipped})
            bar.set_postfix({name: f"{value:.3f}" for name, value in entry["losses"].items()})
        if self.validate and self._is_due(arguments.validation_steps):
            self._validate(self.validate)
        if self._is_due(arguments.checkpoint_steps):
            self.save_checkpoint()

    def _is_due(self, every: int) -> bool:
        return bool(every) and (self.state.step % every == 0 or self._is_over)

    def _log(self, entry: Mapping[str, Any]) -> None:
        def write() -> None:
            if self.log:
                self.log.write(entry)

        self.processes.on_main(write)

    def _log_skipped(self) -> None:
        """Name the batches of skipped steps; stop when there were too many in a row."""
        dataset: Any = self.loader.dataset
        for step, is_own, rows in self.state.guard.collect(self.state.step):
            batches = self.processes.gathered([(is_own, [dataset.subject_and_slice(row) for row in rows])])
            # Those whose losses were not finite, or all of them: then the fault lies in the gradients.
            processes = [number for number, (is_bad, _) in enumerate(batches) if is_bad]
            processes = processes or list(range(len(batches)))
            slices = [text for number in processes for text in batches[number][1]]
            self._log({"step": step, "skipped": {"processes": processes, "slices": slices}})
            if self._is_main:
                logger.warning("step %d: a loss or gradient is not finite; skipped (slices %s)", step, slices)
        self.state.guard.stop_if_hopeless(self.arguments.learning_rate)

    def _validate(self, validate: Validate) -> None:
        model = self.state.averaged_model
        own = validate(model)
        # The first process's: another machine may round differently, and all must agree on the best model.
        figures = self.processes.on_main(lambda: own)
        self._log({"step": self.state.step, "validation": figures})
        self.processes.on_main(lambda: self._log_pictures(model))
        if self.state.best and self.state.best.update(figures, self.state.step):
            self.save_model(self.arguments.output_path / "best")

    def _log_pictures(self, model: GalipForImageTranslation) -> None:
        if self.save_pictures and self.log:
            path = self.arguments.output_path / "pictures" / f"step-{self.state.step:08d}.png"
            with told_if_unwritable(path, "make room, then set resume=true"):
                self.save_pictures(model, path)
            self.log.picture("translations", path, self.state.step)

    def _stop(self, name: str) -> None:
        self.stopped_by = name
        self.save_checkpoint()
        logger.warning(
            "%s: stopped after step %d; resume=true goes on from there", self.stopped_by, self.state.step
        )

    # Saving

    def save_model(self, directory: Path) -> GalipForImageTranslation:
        """Write the moving average, the processor and the facts of the run to a folder."""

        def write() -> None:
            remedy = "make room, then set resume=true"
            with told_if_unwritable(directory, remedy), atomic_write(directory) as temporary:
                self.state.averaged_model.save_pretrained(temporary)
                self.processor.save_pretrained(temporary)
                write_training_facts(temporary, self.state.step, self.arguments, self.processes, self.facts)

        self.processes.on_main(write)
        return self.state.averaged_model

    @property
    def _identity(self) -> RunIdentity:
        return RunIdentity(self.arguments, self.loader.fingerprint, self.backbone.source)

    def save_checkpoint(self) -> None:
        """Write `output_dir/checkpoints/step-…`, from which `resume` goes on."""
        save_run(self.state, self._identity, self.processes, self.arguments.output_path / _CHECKPOINTS)

    def _resume(self) -> None:
        """Go on from the latest checkpoint when the run is to resume; else refuse to touch an earlier run."""
        output = self.arguments.output_path
        checkpoints, log = output / _CHECKPOINTS, output / "log.jsonl"

        def refuse_earlier_run() -> None:
            if latest_checkpoint(checkpoints) or log.exists():
                raise GalipError(
                    f"{output}: an earlier run is there; choose another output_dir or set resume=true"
                )

        if self.arguments.resume:
            resume_run(self.state, self._identity, self.processes, checkpoints)
        else:
            self.processes.on_main(refuse_earlier_run)


__all__ = ["GalipTrainer"]
