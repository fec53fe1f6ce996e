"""Training of I2I-Galip on Accelerate: a generator step, a discriminator step, a moving average.

Source: Korkmaz & Patel, MIDL 2025, section 2. One step takes unpaired images x_A of domain A, x_B of B:

1. fakes G(x_A, B), G(x_B, A); identities G(x_A, A), G(x_B, B); reconstructions of the fakes; one pass of the
   frozen ViT over the fakes (with gradients) and one over the reals (without); one summed loss, one backward;
2. the heads on the reals' features and the detached fakes' features; one backward;
3. the moving average of the generator.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from . import losses
from .checkpoint import load_checkpoint, save_checkpoint
from .clip_backbone import ClipBackbone, ClipImageFeatures
from .discriminator import GalipDiscriminator
from .ema import ExponentialMovingAverage
from .errors import GalipError
from .image_processing_galip import GalipImageProcessor
from .modeling_galip import GalipForImageTranslation
from .training_args import GalipTrainingArguments

logger = logging.getLogger(__name__)

Validate = Callable[[GalipForImageTranslation], dict[str, float]]


@dataclass(frozen=True)
class UnpairedBatch:
    """Both directions of B pairs: sources (2 B, 1, H, W), their labels and their targets' labels (2 B,)."""

    sources: Tensor
    source_labels: Tensor
    target_labels: Tensor

    @classmethod
    def of(cls, items: Mapping[str, Tensor]) -> "UnpairedBatch":
        """From collated items of `UnpairedSlices`."""
        return cls(
            torch.cat([items["image_a"], items["image_b"]]),
            torch.cat([items["domain_a"], items["domain_b"]]),
            torch.cat([items["domain_b"], items["domain_a"]]),
        )


def other_direction(values: Tensor) -> Tensor:
    """Exchange the halves of a batch: for each source's position, the real image of its target domain."""
    return values.roll(len(values) // 2, dims=0)


class GalipTrainer:
    """Trains a generator.

    Args:
        model: the generator; its prompts are encoded by `backbone` at once.
        processor: saved beside the model.
        backbone: frozen CLIP model; never saved, never trained.
        arguments: choices of the run.
        train_dataset: map-style, items as those of `UnpairedSlices`, with `set_epoch`.
        validate: returns named numbers for the moving average's model; called every `validation_steps`.

    After `train()`, `output_dir/model` holds the moving average and the processor, `log.jsonl` the log.
    """

    def __init__(
        self,
        model: GalipForImageTranslation,
        processor: GalipImageProcessor,
        backbone: ClipBackbone,
        arguments: GalipTrainingArguments,
        train_dataset: Dataset,
        validate: Validate | None = None,
    ) -> None:
        self.arguments, self.processor, self.validate = arguments, processor, validate
        self.accelerator = Accelerator(mixed_precision=arguments.mixed_precision)
        device = self.accelerator.device
        self.backbone = backbone.to(device)
        model.to(device).train()
        model.set_prompts(self.backbone)
        self.text_embeddings = backbone.encode_prompts(model.config.prompts).embedding.to(device)
        self.ema = ExponentialMovingAverage(model, arguments.ema_decay)
        set_seed(arguments.seed)
        discriminator = GalipDiscriminator(
            len(model.config.domains),
            len(backbone.image_blocks),
            backbone.image_width,
            backbone.embedding_width,
        )
        optimizers = [
            torch.optim.Adam(network.parameters(), lr=rate, betas=arguments.adam_betas)
            for network, rate in (
                (model, arguments.learning_rate),
                (discriminator, arguments.discriminator_learning_rate),
            )
        ]
        if len(train_dataset) < arguments.batch_size:  # type: ignore[arg-type]
            raise GalipError(
                f"training: an epoch has {len(train_dataset)} pairs, fewer than batch_size "  # type: ignore[arg-type]
                f"{arguments.batch_size}; prepare more slices or lower batch_size"
            )
        loader = DataLoader(
            train_dataset,
            batch_size=arguments.batch_size,
            num_workers=arguments.num_workers,
            persistent_workers=arguments.num_workers > 0,
            drop_last=True,
            # Unused for the order, which is the dataset's: it keeps the loader off the global generator.
            generator=torch.Generator().manual_seed(arguments.seed),
        )
        prepared = self.accelerator.prepare(model, discriminator, *optimizers, loader)
        (
            self.generator,
            self.discriminator,
            self.generator_optimizer,
            self.discriminator_optimizer,
            self.loader,
        ) = prepared
        self.step = 0

    # Steps

    def generator_losses(
        self, batch: UnpairedBatch
    ) -> tuple[dict[str, Tensor], ClipImageFeatures | None, ClipImageFeatures | None]:
        """The generator's losses by name, unweighted, and the ViT's features of reals and fakes (if used).

        A loss of weight 0 is neither computed nor returned.
        """
        weights = self.arguments.loss_weights
        values: dict[str, Tensor] = {}
        real_features = fake_features = None
        uses_clip = bool(weights.adversarial or weights.class_token or weights.clip)
        if uses_clip or weights.cycle:
            fakes = self.generator(batch.sources, batch.target_labels).translation
        if uses_clip:
            text_embedding = self.text_embeddings[batch.target_labels]
            fake_features = self.backbone.encode_images(fakes)
            if weights.adversarial or weights.class_token:
                with torch.no_grad():
                    real_features = self.backbone.encode_images(batch.sources)
            if weights.adversarial:
                logits = self.accelerator.unwrap_model(self.discriminator)(
                    fake_features.patch_tokens, batch.target_labels, text_embedding
                )
                values["adversarial"] = losses.adversarial_generator_loss(logits)
            if weights.clip:
                values["clip"] = losses.clip_loss(fake_features.embedding, text_embedding)
            if weights.class_token:
                values["class_token"] = losses.class_token_loss(
                    fake_features.class_tokens,
                    other_direction(real_features.class_tokens),  # type: ignore[union-attr]
                )
        if weights.cycle:
            reconstruction = self.generator(fakes, batch.source_labels).translation
            values["cycle"] = losses.cycle_loss(reconstruction, batch.sources)
        if weights.identity:
            identity = self.generator(batch.sources, batch.source_labels).translation
            values["identity"] = losses.identity_loss(identity, batch.sources)
        return values, real_features, fake_features

    def discriminator_loss(
        self, batch: UnpairedBatch, real: ClipImageFeatures, fake: ClipImageFeatures
    ) -> Tensor:
        """The heads' loss on features that carry no gradient; reals and fakes in one call."""
        tokens = [
            torch.cat([real_tokens, fake_tokens.detach()])
            for real_tokens, fake_tokens in zip(real.patch_tokens, fake.patch_tokens, strict=True)
        ]
        labels = torch.cat([batch.source_labels, batch.target_labels])
        real_logits, fake_logits = self.discriminator(tokens, labels, self.text_embeddings[labels]).chunk(2)
        return losses.adversarial_discriminator_loss(real_logits, fake_logits)

    def training_step(self, batch: UnpairedBatch) -> dict[str, Tensor]:
        """One step of the generator, then one of the discriminator; returns the losses, on the device."""
        weights = self.arguments.loss_weights
        heads = self.accelerator.unwrap_model(self.discriminator)
        heads.requires_grad_(False)
        with self.accelerator.autocast():
            values, real_features, fake_features = self.generator_losses(batch)
            total = torch.stack(
                [losses.DIRECTIONS * getattr(weights, name) * value for name, value in values.items()]
            )
        self.accelerator.backward(total.sum())
        self.generator_optimizer.step()
        self.generator_optimizer.zero_grad()
        heads.requires_grad_(True)
        values = {name: value.detach() for name, value in values.items()}
        if real_features is not None and fake_features is not None and weights.adversarial:
            heads.power_iteration()
            with self.accelerator.autocast():
                loss = losses.DIRECTIONS * self.discriminator_loss(batch, real_features, fake_features)
            self.accelerator.backward(loss)
            self.discriminator_optimizer.step()
            self.discriminator_optimizer.zero_grad()
            values["discriminator"] = loss.detach() / losses.DIRECTIONS
        self.ema.update(self.accelerator.unwrap_model(self.generator))
        return values

    # Loop

    def _batches(self) -> Iterator[UnpairedBatch]:
        """Batches from the present step on, for ever; epochs follow from the step."""
        steps_per_epoch = len(self.loader)
        while True:
            epoch, done = divmod(self.step, steps_per_epoch)
            # Not the dataset's: the loader would set that back to an epoch of its own counting.
            self.loader.set_epoch(epoch)
            for items in skip_first_batches(self.loader, done) if done else self.loader:
                yield UnpairedBatch.of(items)

    def _set_learning_rate(self) -> None:
        factor = self.arguments.learning_rate_factor(self.step)
        for optimizer, rate in (
            (self.generator_optimizer, self.arguments.learning_rate),
            (self.discriminator_optimizer, self.arguments.discriminator_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor

    def train(self) -> GalipForImageTranslation:
        """Run to `max_steps`; returns the moving average's model, which is also saved."""
        arguments = self.arguments
        arguments.output_path.mkdir(parents=True, exist_ok=True)
        self._start()
        batches = self._batches()
        record = _LogRecord(arguments)
        is_main = self.accelerator.is_main_process
        with tqdm(
            total=arguments.max_steps, initial=self.step, unit="step", disable=None if is_main else True
        ) as bar:
            while self.step < arguments.max_steps:
                waiting = time.perf_counter()
                batch = next(batches)
                record.waited(time.perf_counter() - waiting)
                self._set_learning_rate()
                record.add(self.training_step(batch))
                self.step += 1
                bar.update()
                if self._is_due(arguments.logging_steps):
                    entry = record.entry(self.step, len(batch.sources) * self.accelerator.num_processes)
                    self._log(entry)
                    bar.set_postfix({name: f"{value:.3f}" for name, value in entry["losses"].items()})
                if self.validate and self._is_due(arguments.validation_steps):
                    self._log({"step": self.step, "validation": self.validate(self.ema.module)})  # type: ignore[arg-type]
                if self._is_due(arguments.checkpoint_steps):
                    self.save_checkpoint()
        return self.save_model()

    def _is_due(self, every: int) -> bool:
        return bool(every) and (self.step % every == 0 or self.step == self.arguments.max_steps)

    def _log(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with open(self.arguments.output_path / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    # Saving

    def save_model(self) -> GalipForImageTranslation:
        """Write the moving average and the processor to `output_dir/model`."""
        directory = self.arguments.output_path / "model"
        if self.accelerator.is_main_process:
            self.ema.module.save_pretrained(directory)  # type: ignore[operator]
            self.processor.save_pretrained(directory)
        self.accelerator.wait_for_everyone()
        return self.ema.module  # type: ignore[return-value]

    def save_checkpoint(self) -> None:
        """Write `output_dir/checkpoint`, from which `resume` goes on."""
        if self.accelerator.is_main_process:
            save_checkpoint(self.arguments.output_path / "checkpoint", self._state())
        self.accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        unwrap = self.accelerator.unwrap_model
        return {
            "step": self.step,
            "ema_updates": self.ema.updates,
            "config": unwrap(self.generator).config.to_json_string(),
            "arguments": json.dumps(self.arguments.to_dict()),
            "generator": unwrap(self.generator).state_dict(),
            "discriminator": unwrap(self.discriminator).state_dict(),
            "ema": self.ema.module.state_dict(),
            "generator_optimizer": self.generator_optimizer.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.optimizer.state_dict(),
        }

    def _start(self) -> None:
        """Go on from the checkpoint when the run is to resume; else refuse to write to an earlier log."""
        log = self.arguments.output_path / "log.jsonl"
        state = load_checkpoint(self.arguments.output_path / "checkpoint") if self.arguments.resume else None
        if state is None:
            if log.exists():
                lacking = ", without a checkpoint to resume from" if self.arguments.resume else ""
                remedy = "delete it" if self.arguments.resume else "set resume=true"
                raise GalipError(
                    f"{log}: an earlier run is there{lacking}; choose another output_dir or {remedy}"
                )
            return
        unwrap = self.accelerator.unwrap_model
        if state["config"] != unwrap(self.generator).config.to_json_string():
            raise GalipError(f"{log.parent}: the checkpoint was trained with another model configuration")
        unwrap(self.generator).load_state_dict(state["generator"])
        unwrap(self.discriminator).load_state_dict(state["discriminator"])
        self.ema.module.load_state_dict(state["ema"])
        self.generator_optimizer.optimizer.load_state_dict(state["generator_optimizer"])
        self.discriminator_optimizer.optimizer.load_state_dict(state["discriminator_optimizer"])
        self.step, self.ema.updates = state["step"], state["ema_updates"]
        logger.info("resuming at step %d", self.step)


class _LogRecord:
    """Means over the steps since the last entry. Losses stay on the device until an entry is due."""

    def __init__(self, arguments: GalipTrainingArguments) -> None:
        self._arguments = arguments
        self._reset()

    def _reset(self) -> None:
        self._losses: list[dict[str, Tensor]] = []
        self._waiting = 0.0
        self._since = time.perf_counter()

    def waited(self, seconds: float) -> None:
        self._waiting += seconds

    def add(self, values: dict[str, Tensor]) -> None:
        self._losses.append(values)

    def entry(self, step: int, images_per_step: int) -> dict[str, Any]:
        seconds = time.perf_counter() - self._since
        names = self._losses[0]
        entry = {
            "step": step,
            "losses": {
                name: float(torch.stack([values[name] for values in self._losses]).mean()) for name in names
            },
            "learning_rate": self._arguments.learning_rate * self._arguments.learning_rate_factor(step - 1),
            "images_per_second": len(self._losses) * images_per_step / seconds,
            "seconds_per_step": seconds / len(self._losses),
            "data_wait_share": self._waiting / seconds,
        }
        self._reset()
        return entry


__all__ = ["GalipTrainer", "UnpairedBatch", "other_direction"]
