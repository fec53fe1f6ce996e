"""Choices of a training run; the architecture's are in `GalipConfig`."""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .errors import GalipError


@dataclass(frozen=True)
class GalipLossWeights:
    """Weights of the losses (the paper's λ). A loss of weight 0 is not computed."""

    cycle: float = 10.0
    adversarial: float = 1.0
    class_token: float = 1.0
    clip: float = 1.0
    identity: float = 1.0


@dataclass(frozen=True)
class GalipTrainingArguments:
    """What a run of `GalipTrainer` needs to know. The defaults are the paper's where it states them.

    Args:
        output_dir: receives `model/` (EMA weights, for use), `checkpoint/` (for resuming) and `log.jsonl`.
        max_steps: optimiser steps of the generator.
        batch_size: pairs of unpaired images a step and process; each is translated both ways.
        learning_rate, discriminator_learning_rate: of Adam.
        adam_betas: of Adam, both networks.
        constant_fraction: share of the steps at the full learning rate; it then falls linearly to zero.
        loss_weights: see `GalipLossWeights`.
        ema_decay: of the generator's moving average, warmed up.
        horizontal_flip: mirror each training slice with probability 1/2.
        seed: settles initialisation and sampling.
        mixed_precision: `no`, `bf16` or `fp16`.
        num_workers: processes that load data.
        logging_steps, validation_steps, checkpoint_steps: how often, in steps; 0 is never.
        resume: continue from `output_dir/checkpoint` if it exists.

    Raises:
        GalipError: a value out of range.
    """

    output_dir: str
    max_steps: int = 100_000
    batch_size: int = 4
    learning_rate: float = 2e-4
    discriminator_learning_rate: float = 2e-4
    adam_betas: tuple[float, float] = (0.5, 0.99)
    constant_fraction: float = 0.5
    loss_weights: GalipLossWeights = field(default_factory=GalipLossWeights)
    ema_decay: float = 0.99
    horizontal_flip: bool = False
    seed: int = 0
    mixed_precision: str = "no"
    num_workers: int = 0
    logging_steps: int = 50
    validation_steps: int = 0
    checkpoint_steps: int = 1000
    resume: bool = False

    def __post_init__(self) -> None:
        positive = (
            "max_steps",
            "batch_size",
            "learning_rate",
            "discriminator_learning_rate",
            "logging_steps",
        )
        not_negative = ("seed", "num_workers", "validation_steps", "checkpoint_steps")
        for name in positive:
            if not getattr(self, name) > 0:
                raise GalipError(f"training: {name} is {getattr(self, name)}; expected a number above 0")
        for name in not_negative:
            if getattr(self, name) < 0:
                raise GalipError(f"training: {name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.constant_fraction <= 1:
            raise GalipError(f"training: constant_fraction is {self.constant_fraction}; expected 0..1")
        if not 0 <= self.ema_decay < 1:
            raise GalipError(f"training: ema_decay is {self.ema_decay}; expected 0 <= ema_decay < 1")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise GalipError(f"training: adam_betas are {self.adam_betas}; expected two numbers in [0, 1)")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise GalipError(
                f"training: mixed_precision is {self.mixed_precision!r}; expected no, bf16 or fp16"
            )
        weights = self.loss_weights
        for weight in fields(weights):
            value = getattr(weights, weight.name)
            if not 0 <= value < math.inf:
                raise GalipError(f"training: loss weight {weight.name} is {value}; expected 0 or more")
        if not any(getattr(weights, weight.name) for weight in fields(weights)):
            raise GalipError("training: all loss weights are 0; give at least one of them a weight")

    @property
    def output_path(self) -> Path:
        """`output_dir` as a path."""
        return Path(self.output_dir)

    def learning_rate_factor(self, step: int) -> float:
        """Share of the learning rate that optimiser step `step` (from 0) uses."""
        constant = self.constant_fraction * self.max_steps
        if step <= constant:
            return 1.0
        return max(0.0, (self.max_steps - step) / (self.max_steps - constant))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for logs and checkpoints."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["loss_weights"] = dict(vars(self.loss_weights))
        values["adam_betas"] = list(self.adam_betas)
        return values


__all__ = ["GalipLossWeights", "GalipTrainingArguments"]
