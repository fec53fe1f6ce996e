"""What training changes, and what a checkpoint therefore holds.

The state of random generators is not part of it: data, augmentation and initial weights are functions of
(seed, epoch, index), and nothing in a run draws from a global generator.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..clip.backbone import ClipBackbone
from ..model.modeling_galip import GalipForImageTranslation
from .discriminator import GalipDiscriminator
from .early_stopping import BestValidation
from .ema import ExponentialMovingAverage
from .nonfinite_guard import FiniteGuard
from .run_log import StepRecord
from .training_args import GalipTrainingArguments


@dataclass
class TrainingState:
    """The networks, their optimisers and all counters of a run, on one process.

    Attributes:
        generator, discriminator: what is trained.
        ema: moving average of the generator.
        generator_optimizer, discriminator_optimizer: Adam.
        scaler: loss scale of float16 training; disabled otherwise.
        guard: counts the steps that were skipped.
        record: values of the steps since the last log entry.
        best: the best validation so far; None where no metric was chosen.
        step: optimiser steps done.
    """

    generator: GalipForImageTranslation
    discriminator: GalipDiscriminator
    ema: ExponentialMovingAverage
    generator_optimizer: torch.optim.Adam
    discriminator_optimizer: torch.optim.Adam
    scaler: torch.amp.GradScaler
    guard: FiniteGuard
    record: StepRecord
    best: BestValidation | None = None
    step: int = 0

    @property
    def averaged_model(self) -> GalipForImageTranslation:
        """The moving average's model: what is validated, saved and used."""
        return self.ema.module  # type: ignore[return-value]


def new_state(
    generator: GalipForImageTranslation,
    backbone: ClipBackbone,
    arguments: GalipTrainingArguments,
    images_per_step: int,
) -> TrainingState:
    """The state before the first step, on the generator's device.

    Args:
        generator: float32, with its initial weights.
        backbone: its widths are those of the discriminator.
        arguments: of the run.
        images_per_step: over all processes.
    """
    device = generator.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(arguments.seed)
        discriminator = GalipDiscriminator(
            len(generator.config.domains),
            len(backbone.image_blocks),
            backbone.image_width,
            backbone.embedding_width,
        ).to(device)
    best = arguments.metric_for_best

    def adam(network: nn.Module, rate: float) -> torch.optim.Adam:
        # Fused: one pass over the weights, and a step can be skipped without asking the device.
        return torch.optim.Adam(network.parameters(), lr=rate, betas=arguments.adam_betas, fused=True)

    return TrainingState(
        generator,
        discriminator,
        ExponentialMovingAverage(generator, arguments.ema_decay_of(images_per_step)),
        adam(generator, arguments.learning_rate),
        adam(discriminator, arguments.discriminator_learning_rate),
        torch.amp.GradScaler(device.type, enabled=arguments.mixed_precision == "fp16"),
        FiniteGuard(arguments.max_skipped_steps, device),
        StepRecord(),
        BestValidation(best, arguments.early_stopping_patience) if best else None,
    )


__all__ = ["TrainingState", "new_state"]
