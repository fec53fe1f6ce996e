"""A narrower generator learns a trained one's translations: the teacher's outputs are pairs for free.

The student sees slices of any domain and regresses (L1) to what the teacher makes of them, for every target.
There is no discriminator and no CLIP model: the prompts' text states are the teacher's. What the teacher gets
wrong, the student gets wrong too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..data.table import SliceReader
from ..model.configuration_galip import GalipConfig
from ..model.errors import GalipError
from ..model.modeling_galip import GalipForImageTranslation
from ..model.unet import GalipGenerator
from .ema import ExponentialMovingAverage

_EMA_DECAY = 0.999


@dataclass(frozen=True)
class DistillationSettings:
    """How to distill.

    Attributes:
        steps: optimiser steps.
        batch_size: slices a step, each with a target of its own.
        learning_rate: of Adam; falls to 0 along half a cosine.
        seed: of the student's first weights, and of the slices and targets drawn.
    """

    steps: int = 10_000
    batch_size: int = 4
    learning_rate: float = 4e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise GalipError(f"{name} is {value}; expected more than 0")


def student_config(teacher: GalipConfig, base_channels: int) -> GalipConfig:
    """The teacher's configuration with another width.

    The groups of the norms shrink in proportion, so that a group keeps its number of channels; so do the
    attention heads, where their width does not divide the narrower levels.

    Raises:
        GalipError: not narrower than the teacher, or a width that leaves the norms no whole number of groups.
    """
    wide = teacher.base_channels
    if not 1 <= base_channels < wide or teacher.norm_groups * base_channels % wide:
        raise GalipError(
            f"base_channels is {base_channels}; expected less than the teacher's {wide}, and "
            f"{teacher.norm_groups} groups * base_channels / {wide} a whole number"
        )
    values = teacher.own_values()
    values["base_channels"] = base_channels
    values["norm_groups"] = teacher.norm_groups * base_channels // wide
    levels = zip(
        teacher.level_channels, (2**level for level in range(len(teacher.level_channels))), strict=True
    )
    attending = [
        width * base_channels // wide
        for width, rate in levels
        if rate in teacher.attention_rates or width == teacher.level_channels[-1]
    ]
    values["attention_head_width"] = math.gcd(teacher.attention_head_width, *attending)
    return GalipConfig(**values)


def new_student(teacher: GalipGenerator, base_channels: int, seed: int = 0) -> GalipForImageTranslation:
    """An untrained student with the teacher's prompts; see `student_config`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = GalipForImageTranslation(student_config(teacher.config, base_channels))
    student.prompt_states.copy_(teacher.prompt_states)
    return student


class Draws:
    """The slices and targets of each step, a function of (seed, step).

    Args:
        table: one split of a table of slices (`data.table`).
        domains: names of the teacher's domains, in label order.
        settings: batch size and seed.

    Raises:
        GalipError: a domain in the table that the teacher does not know, or an empty table.
    """

    def __init__(self, table: Any, domains: Sequence[str], settings: DistillationSettings) -> None:
        names = table.features["domain"].names
        if unknown := sorted(set(names) - set(domains)):
            raise GalipError(
                f"the table has the domain {unknown[0]!r}, which the teacher does not know; it has "
                f"{', '.join(domains)}"
            )
        if not len(table):
            raise GalipError("the table has no slices; expected some to translate")
        self._slices, self._settings = SliceReader(table), settings
        self._labels = np.array([list(domains).index(name) for name in names])[table["domain"]]
        self._domains = len(domains)

    def of_step(self, step: int) -> tuple[Tensor, Tensor]:
        """Slices (B, 1, H, W) in model space, and targets (B,) that are not their own domains."""
        rng = np.random.default_rng([self._settings.seed, step])
        rows = rng.integers(len(self._labels), size=self._settings.batch_size)
        others = rng.integers(1, max(2, self._domains), size=len(rows))
        targets = (self._labels[rows] + others) % self._domains
        slices = np.stack([self._slices[row] for row in rows.tolist()])
        return torch.from_numpy(slices)[:, None], torch.from_numpy(targets)


def distill(
    teacher: GalipGenerator,
    student: GalipForImageTranslation,
    draws: Draws,
    settings: DistillationSettings,
    advance: Callable[[float], object] = lambda loss: None,
) -> GalipForImageTranslation:
    """Train the student; both on the teacher's device.

    Args:
        teacher: in evaluation mode.
        student: from `new_student`; modified.
        draws: the slices to learn from.
        advance: called after each step with its loss.

    Returns:
        The moving average of the student, in evaluation mode.

    Raises:
        GalipError: the loss is not finite.
    """
    student = student.to(teacher.device).train()  # type: ignore[arg-type]
    average = ExponentialMovingAverage(student, _EMA_DECAY)
    optimizer = torch.optim.Adam(student.parameters(), settings.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    for step in range(settings.steps):
        slices, targets = (values.to(teacher.device) for values in draws.of_step(step))
        with torch.no_grad():
            expected = teacher(slices, targets).translation
        loss = F.l1_loss(student(slices, targets).translation, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update(student)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise GalipError(f"the loss of step {step} is {value}; choose a lower learning rate")
        advance(value)
    return average.module  # type: ignore[return-value]


@torch.inference_mode()
def agreement(
    teacher: GalipGenerator, student: GalipGenerator, draws: Draws, batches: int
) -> dict[str, float]:
    """How near the student comes to the teacher, on slices that it did not learn from.

    Returns:
        `mean_difference` (absolute, of the window) and `psnr` in dB (of a window of 1) over all pixels.
    """
    absolute, squared = [], []
    for number in range(batches):
        slices, targets = (values.to(teacher.device) for values in draws.of_step(number))
        difference = student(slices, targets).translation - teacher(slices, targets).translation
        absolute.append(difference.abs().mean())
        squared.append(difference.square().mean())
    mean_square = float(torch.stack(squared).mean())
    psnr = 10 * math.log10(1 / mean_square) if mean_square else math.inf
    return {"mean_difference": float(torch.stack(absolute).mean()), "psnr": psnr}


@torch.inference_mode()
def operations(generator: GalipGenerator) -> int:
    """Floating-point operations of one slice of the size of the training, by torch's counter."""
    size = generator.config.image_size
    with FlopCounterMode(display=False) as counter:
        target = generator.prepare_target(generator.config.domain_names[0])
        generator.translate(torch.zeros(1, 1, size, size, device=generator.device), [target])
    return counter.get_total_flops()


__all__ = [
    "DistillationSettings",
    "Draws",
    "agreement",
    "distill",
    "new_student",
    "operations",
    "student_config",
]
