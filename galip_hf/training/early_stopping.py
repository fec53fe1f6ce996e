"""Which validation was the best one so far, and whether it is time to stop."""

import math
from collections.abc import Mapping
from typing import Any

from ..model.errors import GalipError

_HIGHER_IS_BETTER = ("psnr", "ssim")
_LOWER_IS_BETTER = ("mae", "fid", "kid", "cycle")


class BestValidation:
    """Follows one figure of the validation; its state is part of a checkpoint.

    Args:
        metric: name of a figure, such as `psnr`, `fid` or `psnr T1->T2`; its first word says which way is
            better.
        patience: validations in a row without a better one after which `is_over` is True; 0 is never.

    Raises:
        GalipError: a name without a known direction.
    """

    def __init__(self, metric: str, patience: int = 0) -> None:
        kind = metric.split(" ")[0]
        if kind not in _HIGHER_IS_BETTER + _LOWER_IS_BETTER:
            raise GalipError(
                f"training: metric_for_best is {metric!r}; expected {', '.join(_HIGHER_IS_BETTER)} (higher "
                f"is better) or {', '.join(_LOWER_IS_BETTER)} (lower is better), of all directions or of "
                "one: 'psnr T1->T2'"
            )
        self.metric, self.patience = metric, patience
        self._sign = 1 if kind in _HIGHER_IS_BETTER else -1
        self.value: float | None = None
        self.step = 0
        self.without_better = 0

    def update(self, figures: Mapping[str, float], step: int) -> bool:
        """Take the figures of one validation; True when it is the best so far. NaN never is.

        Raises:
            GalipError: the figure is not among them.
        """
        if self.metric not in figures:
            raise GalipError(
                f"training: metric_for_best {self.metric!r} is not what this validation gives; it gives "
                f"{', '.join(figures)}"
            )
        value = figures[self.metric]
        is_best = math.isfinite(value) and (self.value is None or self._sign * (value - self.value) > 0)
        if is_best:
            self.value, self.step, self.without_better = value, step, 0
        else:
            self.without_better += 1
        return is_best

    @property
    def is_over(self) -> bool:
        """Has it been too long since the best?"""
        return 0 < self.patience <= self.without_better

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "metric": self.metric,
            "value": self.value,
            "step": self.step,
            "without_better": self.without_better,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; from the start where it followed another figure."""
        if state.get("metric") == self.metric:
            self.value, self.step = state["value"], state["step"]
            self.without_better = state["without_better"]


__all__ = ["BestValidation"]
