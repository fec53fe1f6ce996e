"""Signals that ask a run to stop: noted, to be acted on at the end of a step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.util import Finalize
from types import FrameType

import torch

SIGNALS = ("SIGTERM", "SIGINT")


@contextmanager
def noted_signals() -> Iterator[list[str]]:
    """The names of the signals received in the block so far; a second Ctrl-C interrupts at once.

    Outside the main thread Python takes no handlers: there nothing is noted, and signals act as ever.
    """
    received: list[str] = []

    def note(number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if name == "SIGINT" and name in received:
            raise KeyboardInterrupt
        received.append(name)

    earlier = {}
    try:
        for name in SIGNALS:
            earlier[name] = signal.signal(signal.Signals[name], note)
    except ValueError:
        pass
    try:
        yield received
    finally:
        for name, handler in earlier.items():
            signal.signal(signal.Signals[name], handler)


class SignalsOfWorkers:
    """`worker_init_fn` of a DataLoader: worker processes leave signals to their parent.

    Ctrl-C and the SIGTERM of a job's end go to all processes of the job; a worker that died of it would end
    the parent with an error, in the middle of the step that it wants to save.
    """

    def __init__(self) -> None:
        # At exit the parent terminates its workers with SIGTERM and waits; this flag is set just before.
        self._parent_ends = torch.zeros((), dtype=torch.bool).share_memory_()
        Finalize(None, self._parent_ends.fill_, (True,), exitpriority=0)

    def __call__(self, _: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, *_: object) -> None:
        if self._parent_ends:
            os._exit(0)


__all__ = ["SIGNALS", "SignalsOfWorkers", "noted_signals"]
