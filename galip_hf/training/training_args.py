"""Choices of a training run; the architecture's are in `GalipConfig`."""

import math
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..data.augmentation import SliceAugmentation
from ..files import told_if_unwritable
from ..model.errors import GalipError

TRACKERS = ("tensorboard", "wandb", "trackio")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class GalipLossWeights:
    """Weights of the losses (the paper's λ). A loss of weight 0 is not computed.

    Three are not the paper's: `paired`, an L1 distance of the translation to the target, on registered
    pairs; `structure`, which keeps the edges of the source where they are (`losses.structure_loss`); and
    `patch`, the least-squares adversarial loss of `PatchDiscriminator`, a trainable discriminator of pixels
    beside the heads on CLIP features.
    """

    cycle: float = 10.0
    adversarial: float = 1.0
    class_token: float = 1.0
    clip: float = 1.0
    identity: float = 1.0
    paired: float = 0.0
    structure: float = 0.0
    patch: float = 0.0


@dataclass(frozen=True)
class GalipTrainingArguments:
    """Settings of a run of `GalipTrainer`. The defaults are the paper's where it states them.

    Args:
        output_dir: receives `model/` (EMA weights, for use), `checkpoints/` (for resuming) and `log.jsonl`.
        max_steps: optimiser steps of the generator.
        max_hours: hours of training, validation and checkpoints included, summed over resumed runs. The run
            ends at `max_steps` or `max_hours`, whichever comes first, and the learning rate falls according
            to the one that is closer to its end. The result then depends on the machine's speed. None: no
            limit.
        batch_size: pairs of unpaired images a step and process; each is translated both ways.
        learning_rate, discriminator_learning_rate: of Adam.
        patch_learning_rate: of Adam for the patch discriminator, where `loss_weights.patch` is above 0.
        gradient_accumulation_steps: batches whose gradients make up one step, exactly as one larger batch.
        adam_betas: of Adam, both networks.
        warmup_steps: steps over which the learning rate rises linearly to its full value.
        constant_fraction: share of the steps at the full learning rate; it then falls to zero.
        learning_rate_decay: how it falls: `linear` (the paper) or `cosine`.
        loss_weights: see `GalipLossWeights`.
        adversarial_ramp_steps: steps over which the weights of the generator's adversarial losses go linearly
            from `adversarial_ramp_start` times their value to their value; 0 is no ramp. The discriminators
            are trained as usual meanwhile.
        adversarial_ramp_start: see there; 0 or more.
        paired_share: where `loss_weights.paired` is above 0, the fraction of the items that are registered
            pairs (one subject and slice in two domains); the others stay unpaired.
        max_gradient_norm: gradients of either network are scaled down to this norm; 0 is no limit.
        max_skipped_steps: steps in a row with non-finite losses or gradients after which training stops;
            one of them is skipped.
        ema_decay: of the generator's moving average, an update; warmed up.
        ema_half_life_images: in place of `ema_decay`: after so many training images, of all processes
            together, a weight's share in the average has halved. So it does not depend on the batch.
        horizontal_flip: mirror each training slice with probability 1/2.
        augmentation: see `SliceAugmentation`.
        seed: of the initial weights, the sampling and the augmentation.
        mixed_precision: `no` (float32), `bf16` or `fp16`; None is what `accelerate launch --mixed_precision`
            says, or `no`.
        deterministic: prefer deterministic algorithms; on CUDA some operations have none, see
            docs/training.md. Slower there. It holds for the whole process, also after the run.
        num_workers: processes that load data.
        process_timeout_minutes: how long a process waits for the others, for example while the first one
            prepares the data; then the run ends with an error.
        logging_steps, validation_steps, checkpoint_steps: how often, in steps; 0 is never.
        total_limit: checkpoints kept.
        report_to: trackers besides `log.jsonl`: `tensorboard`, `wandb`, `trackio`.
        project: what W&B and Trackio file the run under.
        metric_for_best: name of a validation figure; the model that does best by it is kept in
            `output_dir/best`.
        early_stopping_patience: stop after so many validations in a row without a better one; 0 is never.
        torch_compile: compile the generator, where there is a compiler.
        gradient_checkpointing: recompute the generator's blocks in the backward pass, to save memory.
        cache_image_features: keep the CLIP features of the training slices in a file of `output_dir` while
            training, in place of computing them in every step; 2.4 MB a slice for ViT-B/16, twice that
            with `horizontal_flip`. Not with `augmentation`, nor from a stream.
        initial_model: model directory or Hub repository to train on from, in place of new weights; the
            architecture and the domains are its own.
        initial_heads: checkpoint (`…/checkpoints/step-…`) of the run that made it, whose discriminator heads
            are kept for the domains of the same name; without it all heads are new.
        resume: continue from the latest of `output_dir/checkpoints`, if there is one.
        hub_repo_id: `user/name` of the Hub, to which the model is pushed at the end: `output_dir/best` with
            `metric_for_best`, else `output_dir/model`. The right to do so is checked before training.
        hub_private: make a new repository private.

    Raises:
        GalipError: a value out of range.
    """

    output_dir: str
    max_steps: int = 100_000
    max_hours: float | None = None
    batch_size: int = 4
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-4
    discriminator_learning_rate: float = 2e-4
    patch_learning_rate: float = 2e-4
    adam_betas: tuple[float, float] = (0.5, 0.99)
    warmup_steps: int = 0
    constant_fraction: float = 0.5
    learning_rate_decay: str = "linear"
    loss_weights: GalipLossWeights = field(default_factory=GalipLossWeights)
    adversarial_ramp_steps: int = 0
    adversarial_ramp_start: float = 0.0
    paired_share: float = 0.25
    max_gradient_norm: float = 0.0
    max_skipped_steps: int = 10
    ema_decay: float = 0.99
    ema_half_life_images: float | None = None
    horizontal_flip: bool = False
    augmentation: SliceAugmentation = field(default_factory=SliceAugmentation)
    seed: int = 0
    mixed_precision: str | None = None
    deterministic: bool = False
    num_workers: int = 0
    process_timeout_minutes: float = 120.0
    logging_steps: int = 50
    validation_steps: int = 0
    checkpoint_steps: int = 1000
    total_limit: int = 2
    report_to: tuple[str, ...] = ()
    project: str = "galip-hf"
    metric_for_best: str | None = None
    early_stopping_patience: int = 0
    torch_compile: bool = False
    gradient_checkpointing: bool = False
    cache_image_features: bool = False
    initial_model: str | None = None
    initial_heads: str | None = None
    resume: bool = False
    hub_repo_id: str | None = None
    hub_private: bool = False

    def __post_init__(self) -> None:
        positive = (
            "max_steps",
            "batch_size",
            "learning_rate",
            "discriminator_learning_rate",
            "patch_learning_rate",
            "logging_steps",
            "gradient_accumulation_steps",
            "max_skipped_steps",
            "total_limit",
            "process_timeout_minutes",
        )
        not_negative = (
            "seed",
            "num_workers",
            "validation_steps",
            "checkpoint_steps",
            "warmup_steps",
            "adversarial_ramp_steps",
            "adversarial_ramp_start",
            "early_stopping_patience",
            "max_gradient_norm",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise GalipError(f"training: {name} is {getattr(self, name)}; expected a number above 0")
        for name in not_negative:
            if getattr(self, name) < 0:
                raise GalipError(f"training: {name} is {getattr(self, name)}; expected 0 or more")
        if self.max_hours is not None and not 0 < self.max_hours < math.inf:
            raise GalipError(f"training: max_hours is {self.max_hours}; expected a number above 0")
        if not 0 <= self.constant_fraction <= 1:
            raise GalipError(f"training: constant_fraction is {self.constant_fraction}; expected 0..1")
        if not 0 <= self.ema_decay < 1:
            raise GalipError(f"training: ema_decay is {self.ema_decay}; expected 0 <= ema_decay < 1")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise GalipError(f"training: adam_betas are {self.adam_betas}; expected two numbers in [0, 1)")
        if self.mixed_precision not in (None, *PRECISIONS):
            raise GalipError(
                f"training: mixed_precision is {self.mixed_precision!r}; expected no, bf16 or fp16"
            )
        self._check_watching()
        weights = self.loss_weights
        for weight in fields(weights):
            value = getattr(weights, weight.name)
            if not 0 <= value < math.inf:
                raise GalipError(f"training: loss weight {weight.name} is {value}; expected 0 or more")
        if not any(getattr(weights, weight.name) for weight in fields(weights)):
            raise GalipError("training: all loss weights are 0; give at least one of them a weight")

    def _check_watching(self) -> None:
        for name in self.report_to:
            if name not in TRACKERS:
                raise GalipError(f"training: report_to has {name!r}; expected some of {', '.join(TRACKERS)}")
        if self.learning_rate_decay not in ("linear", "cosine"):
            raise GalipError(
                f"training: learning_rate_decay is {self.learning_rate_decay!r}; expected linear or cosine"
            )
        if self.warmup_steps >= self.max_steps:
            raise GalipError(
                f"training: warmup_steps is {self.warmup_steps}; expected fewer than max_steps "
                f"{self.max_steps}"
            )
        if not 0 < self.paired_share <= 1:
            raise GalipError(f"training: paired_share is {self.paired_share}; expected above 0, at most 1")
        if self.ema_half_life_images is not None and not 0 < self.ema_half_life_images < math.inf:
            raise GalipError(
                f"training: ema_half_life_images is {self.ema_half_life_images}; expected a number above 0"
            )
        if self.early_stopping_patience and self.metric_for_best is None:
            raise GalipError("training: early_stopping_patience needs metric_for_best, such as psnr")
        if not self.process_timeout_minutes <= 1_000_000:
            raise GalipError(
                f"training: process_timeout_minutes is {self.process_timeout_minutes}; expected at most "
                "1000000 (about two years)"
            )
        if self.initial_heads and not self.initial_model:
            raise GalipError("training: initial_heads needs initial_model, whose heads they are")
        if self.cache_image_features and self.augmentation != SliceAugmentation():
            raise GalipError("training: cache_image_features needs slices that nothing but flips augments")
        if self.hub_private and not self.hub_repo_id:
            raise GalipError("training: hub_private needs hub_repo_id, the repository to make")
        if self.metric_for_best is not None and not self.validation_steps:
            raise GalipError("training: metric_for_best needs validation_steps above 0")

    @property
    def output_path(self) -> Path:
        """`output_dir` as a path."""
        return Path(self.output_dir)

    def make_output_directory(self) -> None:
        """Make `output_dir`; GalipError where that cannot be."""
        with told_if_unwritable(self.output_path, "choose another output_dir"):
            self.output_path.mkdir(parents=True, exist_ok=True)

    @property
    def process_timeout(self) -> timedelta:
        """`process_timeout_minutes` as a duration."""
        return timedelta(minutes=self.process_timeout_minutes)

    def images_per_step(self, processes: int) -> int:
        """Training images of an optimiser step, over all processes."""
        return 2 * self.batch_size * self.gradient_accumulation_steps * processes

    def is_over(self, step: int, seconds: float) -> bool:
        """Whether a run of so many steps, which took so many seconds, is at its end."""
        return step >= self.max_steps or self._share_of_time(seconds) >= 1

    def _share_of_time(self, seconds: float) -> float:
        return 0.0 if self.max_hours is None else seconds / (3600 * self.max_hours)

    def adversarial_factor(self, step: int) -> float:
        """Factor of the weights of the generator's adversarial losses in step `step` (from 0)."""
        if step >= self.adversarial_ramp_steps:
            return 1.0
        start = self.adversarial_ramp_start
        return start + (1 - start) * step / self.adversarial_ramp_steps

    def learning_rate_factor(self, step: int, seconds: float = 0.0) -> float:
        """Share of the learning rate that step `step` (from 0) uses: rise, plateau, fall to zero.

        `seconds` is the time that the steps before it took; it counts with `max_hours` alone.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        start = max(self.constant_fraction * self.max_steps, self.warmup_steps)
        position = max(step, self.max_steps * self._share_of_time(seconds))
        if position <= start:
            return 1.0
        left = max(0.0, (self.max_steps - position) / (self.max_steps - start))
        return (1 - math.cos(math.pi * left)) / 2 if self.learning_rate_decay == "cosine" else left

    def ema_decay_of(self, images_per_step: int) -> float:
        """Decay of the moving average an update, of `images_per_step` images over all processes."""
        if self.ema_half_life_images is None:
            return self.ema_decay
        return 0.5 ** (images_per_step / self.ema_half_life_images)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for logs and checkpoints."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["loss_weights"] = dict(vars(self.loss_weights))
        values["augmentation"] = dict(vars(self.augmentation))
        values["report_to"] = list(self.report_to)
        values["adam_betas"] = list(self.adam_betas)
        return values


__all__ = ["GalipLossWeights", "GalipTrainingArguments"]
