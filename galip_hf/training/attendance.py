"""Which processes of a run the others wait for, said after a stated time.

A process that is stopped, or stuck on a dead disk, breaks no connection: the others wait for it in silence
until their timeout, half an hour by default. So a thread of each process publishes two numbers in the store
through which the processes found each other: a beat, which stands still where the whole process does, and how
many of the run's exchanges the process has come to, which falls behind where only its training does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds of waiting before it is said for whom
_BEAT = 2.0  # seconds between the beats


class Attendance:
    """Of one process among `size`; it watches the others until the process ends.

    Args:
        index, size: of the process group, which must exist.
        timeout: when waiting ends with an error, for the message; None for torch's own.
    """

    def __init__(self, index: int, size: int, timeout: timedelta | None) -> None:
        self._index, self._others = index, [other for other in range(size) if other != index]
        self._timeout = timeout
        self._exchanges = 0
        self._since: float | None = None
        self._readings: deque[tuple[float, dict[int, tuple[int, int]]]] = deque(maxlen=3)
        self._store: Any = _get_default_store().clone()  # a connection of its own
        # Two threads, as the store does not answer where the process that keeps it is the one that stopped.
        for watch in (self._publish_and_read, self._tell):
            threading.Thread(target=watch, name="attendance", daemon=True).start()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Around whatever waits for other processes."""
        self._exchanges += 1
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _publish_and_read(self) -> None:
        beat = 0
        with suppress(RuntimeError):  # the store is gone: the run is at its end
            while True:
                beat += 1
                self._store.set(self._key(self._index), f"{beat} {self._exchanges}")
                if self._since is None:
                    self._readings.clear()
                else:
                    self._readings.append((time.monotonic(), self._published()))
                time.sleep(_BEAT)

    def _tell(self) -> None:
        told = 0  # the exchange of which waiting was told last
        while True:
            time.sleep(_BEAT / 2)
            since, exchange = self._since, self._exchanges
            waited = 0.0 if since is None else time.monotonic() - since
            if waited > PATIENCE and exchange != told:
                told = exchange
                limit = f"; it gives up after {self._timeout}" if self._timeout else ""
                logger.warning(
                    "process %d has waited %.0f s for %s%s",
                    self._index,
                    waited,
                    self._absent(exchange),
                    limit,
                )

    def _absent(self, exchange: int) -> str:
        """Whom this process waits for in its exchange of that number, in words."""
        readings = list(self._readings)
        if len(readings) < 2 or time.monotonic() - readings[-1][0] > 4 * _BEAT:
            return "process 0 or the launcher, which does not answer (stopped or not reachable)"
        earlier, latest = readings[0][1], readings[-1][1]
        still = [other for other in self._others if latest.get(other) == earlier.get(other)]
        behind = [other for other in self._others if other in latest and latest[other][1] < exchange]
        absent = still or behind
        if not absent:
            return "the others, which are as far and alive (the network?)"
        named = f"process{'es' if len(absent) > 1 else ''} {', '.join(map(str, absent))}"
        return f"{named} ({'stopped or not reachable' if still else 'busy, or stuck'})"

    def _published(self) -> dict[int, tuple[int, int]]:
        """Beat and number of exchanges of every other process that has published them."""
        found = {}
        for other in self._others:
            if self._store.check([self._key(other)]):
                beat, exchanges = self._store.get(self._key(other)).split()
                found[other] = (int(beat), int(exchanges))
        return found

    @staticmethod
    def _key(index: int) -> str:
        return f"galip_hf/attendance/{index}"


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error of torch says that another process cannot be reached any more."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


__all__ = ["PATIENCE", "Attendance", "is_lost_connection"]
