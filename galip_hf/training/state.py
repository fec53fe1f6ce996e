"""What training changes, and what a checkpoint therefore holds.

Nothing in a run draws from a global random generator: data, augmentation and initial weights are functions of
(seed, epoch, index). So no generator state is part of it.
"""

from dataclasses import dataclass

import torch

from ..model.modeling_galip import GalipForImageTranslation
from .discriminator import GalipDiscriminator
from .early_stopping import BestValidation
from .ema import ExponentialMovingAverage
from .nonfinite_guard import FiniteGuard
from .run_log import StepRecord


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


__all__ = ["TrainingState"]
