"""What training changes, and what a checkpoint therefore holds.

The state of random generators is not part of it: data, augmentation and initial weights are functions of
(seed, epoch, index), and nothing in a run draws from a global generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..clip.backbone import ClipBackbone
from ..model.modeling_galip import GalipForImageTranslation
from .discriminator import GalipDiscriminator
from .early_stopping import BestValidation
from .ema import ExponentialMovingAverage
from .nonfinite_guard import FiniteGuard
from .patch_discriminator import PatchDiscriminator
from .run_log import StepRecord
from .training_args import GalipLossWeights, GalipTrainingArguments


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
        seconds: training time of these steps.
        patch_discriminator, patch_optimizer: None where the loss `patch` has no weight.
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
    seconds: float = 0.0
    patch_discriminator: PatchDiscriminator | None = None
    patch_optimizer: torch.optim.Adam | None = None

    @property
    def averaged_model(self) -> GalipForImageTranslation:
        """The moving average's model: what is validated, saved and used."""
        return self.ema.module  # type: ignore[return-value]

    @property
    def optimizers(self) -> dict[str, torch.optim.Adam]:
        """The optimiser of each network, by the name under which its learning rate is logged."""
        optimizers = {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}
        return optimizers | (
            {"patch_discriminator": self.patch_optimizer} if self.patch_optimizer is not None else {}
        )

    def trained_parameters(
        self, domains: Sequence[int], weights: GalipLossWeights
    ) -> dict[str, list[nn.Parameter]]:
        """The parameters that a step on some domains moves, by network."""
        parameters = {"generator": list(self.generator.parameters())}
        if weights.adversarial:
            heads = (self.discriminator.heads(label).parameters() for label in domains)
            parameters["discriminator"] = [parameter for head in heads for parameter in head]
        if self.patch_discriminator is not None:
            parameters["patch_discriminator"] = list(self.patch_discriminator.parameters())
        return parameters


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
        patch = (
            PatchDiscriminator(len(generator.config.domains)).to(device)
            if arguments.loss_weights.patch
            else None
        )
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
        patch_discriminator=patch,
        patch_optimizer=adam(patch, arguments.patch_learning_rate) if patch is not None else None,
    )


__all__ = ["TrainingState", "new_state"]
