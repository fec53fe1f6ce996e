"""The log of a run: `log.jsonl` always, TensorBoard, Weights & Biases and Trackio on request.

A tracker is never fatal: one that cannot be imported, started or written to gives one warning and is left out
from then on. Accelerate's tracker classes do the talking.
"""

import json
import logging
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from torch import Tensor

from ..files import atomic_write, told_if_unwritable

logger = logging.getLogger(__name__)

# One step's values by group ("losses", "gradient_norms", ...) and name, on the device.
StepValues = Mapping[str, Mapping[str, Tensor]]


class RunLog:
    """Writes entries `{"step": …, group: {name: number}}`; on the main process alone.

    Args:
        directory: of the run; receives `log.jsonl` and the trackers' own files.
        report_to: some of `training_args.TRACKERS`.
        project: name under which W&B and Trackio gather runs; the run is named after `directory`.
        settings: the run's choices, kept by the trackers.
        step: the step the run starts at. Entries beyond it, which a killed run wrote after its last
            checkpoint, are taken out of `log.jsonl`: they will come again.
    """

    def __init__(
        self,
        directory: Path,
        report_to: Sequence[str] = (),
        *,
        project: str = "galip-hf",
        settings: Mapping[str, Any] | None = None,
        step: int = 0,
    ) -> None:
        self._path = directory / "log.jsonl"
        if self._path.exists():
            _keep_entries_until(self._path, step)
        self._trackers: dict[str, GeneralTracker] = {}
        flat = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in _flatten(settings or {}).items()
        }
        for name in report_to:
            self._guard(name, lambda name=name: self._start(name, directory, project, flat, step))  # type: ignore[misc]

    def _start(self, name: str, directory: Path, project: str, settings: dict[str, Any], step: int) -> None:
        folder = str(directory)
        tracker: GeneralTracker
        if name == "tensorboard":
            tracker = TensorBoardTracker("tensorboard", folder, purge_step=step + 1 if step else None)
        elif name == "wandb":
            run = {"id": _run_id(directory), "resume": "allow", "dir": folder}
            tracker = WandBTracker(project, name=directory.resolve().name, **run)
        else:
            tracker = TrackioTracker(
                project, name=directory.resolve().name, resume="allow" if step else "never", embed=False
            )
        tracker.start()
        tracker.store_init_configuration(settings)
        self._trackers[name] = tracker

    def _guard(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # each package raises kinds of its own, of the network too
            self._trackers.pop(name, None)
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            hint = "; pip install 'galip-hf[track]'" if isinstance(error, ImportError) else ""
            logger.warning("%s: not reported to any more (%s)%s; training goes on", name, reason, hint)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one entry, and send its numbers to the trackers as `group/name`."""
        with (
            told_if_unwritable(self._path, "make room, then set resume=true"),
            open(self._path, "a", encoding="utf-8") as file,
        ):
            file.write(json.dumps(entry) + "\n")
        values = {
            _tag(name): value
            for name, value in _flatten(entry).items()
            if name != "step" and isinstance(value, (int, float))
        }
        for name, tracker in list(self._trackers.items()):
            self._guard(name, lambda tracker=tracker: tracker.log(values, step=entry["step"]))  # type: ignore[misc]

    def picture(self, name: str, path: Path, step: int) -> None:
        """Send a PNG file to the trackers."""
        for tracker in list(self._trackers):
            self._guard(tracker, lambda tracker=tracker: self._send_picture(tracker, name, path, step))  # type: ignore[misc]

    def _send_picture(self, tracker: str, name: str, path: Path, step: int) -> None:
        from PIL import Image

        receiver = self._trackers[tracker]
        if tracker == "trackio":
            import trackio

            receiver.log({name: trackio.Image(str(path))}, step=step)
            return
        pixels = np.asarray(Image.open(path).convert("RGB"))[None]  # (1, H, W, 3)
        formats = {"dataformats": "NHWC"} if tracker == "tensorboard" else {}
        receiver.log_images({name: pixels}, step=step, **formats)

    def close(self) -> None:
        """Let the trackers finish; harmless when called twice."""
        for name, tracker in list(self._trackers.items()):
            self._guard(name, tracker.finish)
        self._trackers.clear()


class StepRecord:
    """Means over the steps since the last entry.

    Values stay on the device until an entry is due: no step waits for the host.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._values: list[StepValues] = []
        self._waiting = 0.0
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The steps since the last entry, plain values: a resumed run logs what an unbroken one would."""
        return {
            "values": [
                {
                    group: {name: float(value) for name, value in named.items()}
                    for group, named in values.items()
                }
                for values in self._values
            ]
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from `state_dict()`; times start anew."""
        self._reset()
        self._values = [
            {
                group: {name: torch.tensor(value, device=device) for name, value in named.items()}
                for group, named in values.items()
            }
            for values in state["values"]
        ]

    def waited(self, seconds: float) -> None:
        """Count time spent waiting for data."""
        self._waiting += seconds

    def add(self, values: StepValues) -> None:
        """Take one step's values."""
        self._values.append(values)

    def entry(
        self,
        step: int,
        images_per_step: int,
        learning_rates: Mapping[str, float],
        reduce: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> dict[str, Any]:
        """The entry for `log.jsonl`; the record starts anew.

        Args:
            step: number of steps done.
            images_per_step: over all processes.
            learning_rates: of the last step.
            reduce: mean over the processes of a vector (K,).
        """
        names = [(group, name) for group, values in self._values[0].items() for name in values]
        stacked = torch.stack(
            [torch.stack([values[group][name] for values in self._values]).float() for group, name in names]
        )
        # Of the steps whose value is finite: the others were skipped.
        stacked = torch.where(stacked.isfinite(), stacked, torch.nan).nanmean(dim=1)
        # The one place that waits for the device. JSON has no NaN.
        means = [value if math.isfinite(value) else None for value in reduce(stacked).tolist()]
        seconds = time.perf_counter() - self._since
        entry: dict[str, Any] = {"step": step}
        for (group, name), mean in zip(names, means, strict=True):
            entry.setdefault(group, {})[name] = mean
        entry |= {
            "learning_rates": dict(learning_rates),
            "images_per_second": len(self._values) * images_per_step / seconds,
            "seconds_per_step": seconds / len(self._values),
            "data_wait_share": self._waiting / seconds,
            "peak_memory_bytes": peak_memory_bytes(stacked.device),
        }
        self._reset()
        return entry


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory the process has held so far: on CUDA allocated on the device, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _keep_entries_until(path: Path, step: int) -> None:
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed run may be cut off
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= (
            _flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return flat


def _tag(name: str) -> str:
    """A name every tracker takes: TensorBoard would put underscores for blanks and arrows."""
    return name.replace("->", "_to_").replace(" ", "/")


def _run_id(directory: Path) -> str:
    """An identifier kept with the run, so that W&B goes on with the same one after a resume."""
    path = directory / "wandb_run_id"
    if not path.exists():
        path.write_text(os.urandom(4).hex(), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


__all__ = ["RunLog", "StepRecord", "StepValues", "peak_memory_bytes"]
