"""Whether all processes were given the same run: nodes have disks, recipes and launchers of their own."""

import platform
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from ..data.table import SliceReader
from ..model.errors import GalipError
from .distributed import ProcessGroup
from .training_args import GalipTrainingArguments

# What may differ between nodes: paths, and what only the first process acts on.
_OF_A_NODE = (
    "output_dir",
    "initial_model",
    "initial_heads",
    "num_workers",
    "report_to",
    "project",
    "hub_repo_id",
    "hub_private",
)
_SAMPLED_SLICES = 64
# Nodes compute prompt states and pixels for themselves; another processor may round them differently.
_ROUNDING = 1e-3


def require_same_facts(processes: ProcessGroup, facts: Mapping[str, Any]) -> None:
    """Stop all processes, with the same message, where one of them has another value than the first.

    Args:
        processes: of the run.
        facts: plain values by name.

    Raises:
        GalipError: on all processes.
    """
    if processes.size == 1:
        return
    first, *others = processes.gathered([(platform.node(), dict(facts))])
    for index, (node, values) in enumerate(others, start=1):
        for name in sorted(set(first[1]) | set(values)):
            expected, found = first[1].get(name), values.get(name)
            if found != expected:
                raise GalipError(
                    f"process {index} on {node} has {name} {found!r}, process 0 on {first[0]} {expected!r}; "
                    "give every node the same recipe, options and data"
                )


def require_same_settings(
    processes: ProcessGroup, arguments: GalipTrainingArguments, model: Mapping[str, Any]
) -> None:
    """Stop all processes where training arguments or the model's configuration differ.

    Raises:
        GalipError: see `require_same_facts`.
    """
    settings = {
        f"training.{name}": value for name, value in arguments.to_dict().items() if name not in _OF_A_NODE
    }
    require_same_facts(processes, settings | {f"model.{name}": value for name, value in model.items()})


def require_same_tensor(processes: ProcessGroup, own: Tensor, what: str) -> None:
    """Stop all processes where a tensor is not that of the first process, to rounding.

    Args:
        processes: of the run.
        own: this process's tensor.
        what: what it is of, for the message.

    Raises:
        GalipError: on all processes.
    """
    expected = processes.on_main(lambda: own.cpu())
    differs = not same_to_rounding(expected, own)
    flags = processes.host_flags(
        [differs and index == processes.state.process_index for index in range(processes.size)]
    )
    if any(flags):
        nodes = processes.gathered([platform.node()])
        index = flags.index(True)
        raise GalipError(
            f"process {index} on {nodes[index]} has another {what} than process 0 on {nodes[0]}; give every "
            "node the same one"
        )


def same_to_rounding(expected: Tensor, found: Tensor) -> bool:
    """Whether two tensors are those of the same data or model, computed on two machines perhaps."""
    found = found.to(expected)
    return expected.shape == found.shape and torch.allclose(expected, found, rtol=1e-5, atol=_ROUNDING)


def table_sample(tables: datasets.DatasetDict) -> Tensor:
    """Numbers that two tables have in common only if their slices are the same: float64, one axis.

    Of each split the number of rows, and mean and standard deviation of 64 of its slices. A large table is
    not read as a whole.
    """
    values: list[float] = []
    for name in sorted(tables):
        reader = SliceReader(tables[name])
        values.append(len(reader))
        count = min(_SAMPLED_SLICES, len(reader))
        for number in range(count):
            image = reader[number * len(reader) // count]
            values += [float(image.mean(dtype=np.float64)), float(image.std(dtype=np.float64))]
    return torch.tensor(values, dtype=torch.float64)


__all__ = [
    "require_same_facts",
    "require_same_settings",
    "require_same_tensor",
    "same_to_rounding",
    "table_sample",
]
