"""Signals that ask a run to stop: noted, to be acted on at the end of a step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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


__all__ = ["SIGNALS", "noted_signals"]
