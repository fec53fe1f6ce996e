"""The processes of one run: who does what first, what they tell each other, and mean gradients.

The networks are not wrapped in DistributedDataParallel. A step calls the generator three times, its gradients
come from several backward passes, and only the heads of the domains in the batch take part. DDP's rules (one
forward before each backward, every parameter used) forbid this, and breaking some of them makes ranks drift
apart without an error. Here gradients are averaged once, after the last backward pass of the step.

Nodes need not share a disk. The first process alone reads and writes checkpoints, the log and the model;
what the others need of them is sent. Inputs that every node keeps on its own disk (the table, the CLIP model)
are made or downloaded by one process of each node, see `ProcessGroup.in_turns`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import get_int_from_env, parse_flag_from_env
from torch import Tensor, nn

from ..files import told_if_full
from ..model.errors import GalipError
from .attendance import Attendance, is_lost_connection

T = TypeVar("T")

_BUCKET_BYTES = 64 * 2**20


def process_state(timeout: timedelta | None = None) -> PartialState:
    """Accelerate's view of this process and the others.

    Args:
        timeout: how long a process waits for the others; counts in the first call of a process only. By
            default torch's.

    Raises:
        GalipError: several processes were launched, but do not see each other.
    """
    # Only Accelerate's larger classes look at this flag; without it processes on a CPU would run alone.
    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), **options)
    launched = get_int_from_env(["WORLD_SIZE"], 1)
    if launched > 1 and state.num_processes == 1:
        raise GalipError(
            f"{launched} processes were launched, but each would train alone; on a machine without a GPU set "
            "ACCELERATE_USE_CPU=true"
        )
    return state


class ProcessGroup:
    """The processes of a run. With a single process nothing is sent, and the same code runs.

    Objects and flags travel over gloo, on the host, so that they do not wait for the devices' queues.

    Args:
        timeout: how long a process waits for the others before it gives up; by default torch's.

    Raises:
        GalipError: see `process_state`.
    """

    def __init__(self, timeout: timedelta | None = None) -> None:
        self.state = process_state(timeout)
        self._host: Any = (
            torch.distributed.new_group(backend="gloo", timeout=timeout)
            if self.state.num_processes > 1
            else None
        )
        self._attendance = (
            Attendance(self.state.process_index, self.size, timeout) if self._host is not None else None
        )

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.state.num_processes

    def _exchange(self) -> AbstractContextManager[None]:
        """Around what waits for the others."""
        return nullcontext() if self._attendance is None else self._attendance.exchange()

    @contextmanager
    def told_if_lost(self) -> Iterator[None]:
        """Turn the errors of torch about another process that has ended into one line.

        Raises:
            GalipError: another process cannot be reached.
        """
        try:
            yield
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            raise GalipError(
                f"process {self.state.process_index} lost another process, which was killed, failed or took "
                "too long; see its own message, if it has one. Start all of them again, with resume=true"
            ) from None

    # Work that one process does for others

    def on_main(self, call: Callable[[], T]) -> T:
        """Run `call` on the first process alone; its result, on all of them.

        Raises:
            GalipError: that of `call`; on the other processes, one that points to it.
        """
        shared: list[Any] = [self._attempt(call, self.state.is_main_process)]
        if self._host is not None:
            with self._exchange():
                torch.distributed.broadcast_object_list(shared, src=0, group=self._host)
        return shared[0]

    def tensors_of_main(self, call: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """As `on_main`, for tensors on the host: sent one by one, so that no large message is built.

        Raises:
            GalipError: see `on_main`.
        """
        tensors: dict[str, Tensor] = {}

        def read() -> dict[str, tuple[torch.Size, torch.dtype]]:
            tensors.update(call())
            return {name: (value.shape, value.dtype) for name, value in tensors.items()}

        for name, (shape, dtype) in self.on_main(read).items():
            tensors.setdefault(name, torch.empty(shape, dtype=dtype))
            if self._host is not None:
                with self._exchange():
                    torch.distributed.broadcast(tensors[name], src=0, group=self._host)
        return tensors

    def together(self, call: Callable[[], T]) -> T:
        """Run `call` on all processes at the same time; each gets its own result.

        Raises:
            GalipError: that of `call`, where it failed; on the other processes, one that points to it.
        """
        return self._attempt(call, True)  # type: ignore[return-value]

    def in_turns(self, call: Callable[[], T]) -> T:
        """Run `call` on the first process, then on the first one of each other node, then on all others.

        For what makes files that are missing and then reads them. On a disk that all nodes share, the first
        process makes them and all others find them; on disks of their own, one process of each node does.

        Raises:
            GalipError: as in `together`; the processes whose turn comes later do not begin.
        """
        own = 0 if self.state.is_main_process else 1 if self.state.is_local_main_process else 2
        results = [self._attempt(call, turn == own) for turn in range(3)]
        return results[own]  # type: ignore[return-value]

    def _attempt(self, call: Callable[[], T], takes_part: bool) -> T | None:
        """Run `call` where `takes_part` is set; when it fails anywhere, raise everywhere."""
        result: T | None = None
        failure: GalipError | None = None
        if takes_part:
            try:
                with told_if_full():
                    result = call()
            except GalipError as error:
                failure = error
        is_own = [index == self.state.process_index for index in range(self.size)]
        failed = self.host_flags([failure is not None and own for own in is_own])
        if failure is not None:
            raise failure
        if any(failed):
            raise GalipError(f"stopped because process {failed.index(True)} failed; its message says why")
        return result

    def host_flags(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag: is it set on any process? The same answer on all of them."""
        if self._host is None:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.int32)
        with self._exchange():
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=self._host)
        return [bool(value) for value in shared.tolist()]

    def gathered(self, own: Sequence[T]) -> list[T]:
        """The objects of all processes, in the order of the processes; the same on all of them."""
        if self._host is None:
            return list(own)
        parts: list[Any] = [None] * self.size
        with self._exchange():
            torch.distributed.all_gather_object(parts, list(own), group=self._host)
        return [item for part in parts for item in part]

    # Tensors on the devices

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes; a missing one counts as 0.

        Give the same parameters on all processes.
        """
        if self.size == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with self._exchange():
                torch.distributed.all_reduce(flat)
            flat /= self.size
            parts = flat.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(
                bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)]
            )

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.size == 1:
            return values
        values = values.clone()
        with self._exchange():
            torch.distributed.all_reduce(values)
        return values / self.size

    def broadcast(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first one."""
        if self.size > 1:
            for value in [*module.parameters(), *module.buffers()]:
                with self._exchange():
                    torch.distributed.broadcast(value.data, src=0)


def _buckets(tensors: Sequence[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        bucket.append(tensor)
        held += tensor.numel() * tensor.element_size()
        if held >= _BUCKET_BYTES:
            yield bucket
            bucket, held = [], 0
    if bucket:
        yield bucket


__all__ = ["ProcessGroup", "process_state"]
