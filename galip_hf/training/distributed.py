"""What processes of one run tell each other: mean gradients, and small facts on the host.

The networks are not wrapped in DistributedDataParallel. A step calls the generator three times, its gradients
come from several backward passes, and of the heads only those of the domains at hand take part: its rules
(one forward before each backward, every parameter used) would forbid all of that or make ranks drift apart
without an error. Here gradients are averaged once, when all of them are there.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import get_int_from_env, parse_flag_from_env
from torch import Tensor, nn

from ..model.errors import GalipError

T = TypeVar("T")

_BUCKET_BYTES = 64 * 2**20


def process_state() -> PartialState:
    """Accelerate's view of this process and the others.

    Raises:
        GalipError: several processes were launched, but do not see each other.
    """
    # Only Accelerate's larger classes look at this flag; without it processes on a CPU would run alone.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    launched = get_int_from_env(["WORLD_SIZE"], 1)
    if launched > 1 and state.num_processes == 1:
        raise GalipError(
            f"{launched} processes were launched, but each would train alone; on a machine without a GPU set "
            "ACCELERATE_USE_CPU=true"
        )
    return state


class ProcessGroup:
    """The processes of a run; all calls are no-ops for a single one.

    `host_flags` uses gloo, so that it does not wait for the devices' queues.
    """

    def __init__(self) -> None:
        self.state = process_state()
        self._host: Any = (
            torch.distributed.new_group(backend="gloo") if self.state.num_processes > 1 else None
        )

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.state.num_processes

    def host_flags(self, flags: Sequence[bool]) -> list[bool]:
        """For each flag: is it set on any process? The same answer on all of them."""
        if self._host is None:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=self._host)
        return [bool(value) for value in shared.tolist()]

    def on_main(self, action: Callable[[], object]) -> None:
        """Run something on the first process; the others wait, and fail with it.

        Raises:
            GalipError: the action's; on the others, one that says so.
        """
        failure: GalipError | None = None
        if self.state.is_main_process:
            try:
                action()
            except GalipError as error:
                failure = error
        (has_failed,) = self.host_flags([failure is not None])
        if failure:
            raise failure
        if has_failed:
            raise GalipError("stopped with the first process, which tells why")

    def of_main(self, value: T) -> T:
        """The first process's value, on all of them: what is decided by it is then decided alike."""
        if self._host is None:
            return value
        shared = [value]
        torch.distributed.broadcast_object_list(shared, src=0, group=self._host)
        return shared[0]

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
        torch.distributed.all_reduce(values)
        return values / self.size

    def broadcast(self, module: nn.Module) -> None:
        """Give all processes the parameters and buffers of the first one."""
        if self.size > 1:
            for value in [*module.parameters(), *module.buffers()]:
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
