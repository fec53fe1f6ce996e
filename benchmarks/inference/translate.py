"""Inference: `translate`, as `galip-hf translate` runs it, against the plain form, at full size, alternating.

python -m benchmarks.inference.translate [--batch-sizes 1 2 4] [--repeats 5] [--sides ...]

256 x 256 slices, the default generator and a BERT-base text tower with random weights, fp32. Each side has a
process of its own; one of them computes at a time, once unmeasured and once measured. Their outputs must
agree to 1e-5.

Sides: `plain-prompt`, the plain generator with the prompt encoded anew for every slice, as the published test
loop goes; `plain`, the plain generator alone; `plain-kept`, the same with the allocator told to keep what is
freed; `translate`, with a prepared target, as in `galip-hf translate`, which tells the allocator so;
`translate-default`, the same with the allocator left alone, as the library does.

Then three targets of one slice against one, and the share of the machine's measured peak that is reached.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.plain import plain_generator, plain_translate
from galip_hf import GalipForImageTranslation
from galip_hf.commands.startup import keep_freed_memory
from galip_hf.model.unet import load_generator

TOLERANCE = 1e-5
DOMAIN = 1
SIDES = ("plain-prompt", "plain", "plain-kept", "translate", "translate-default")


def make_calls(side: str, batch_size: int, directory: Path) -> dict[str, Callable[[], Tensor]]:
    """What a side can be asked for: `one` target, or `three`; (targets * B, 1, 256, 256)."""
    if side in ("plain-kept", "translate"):
        keep_freed_memory()
    slices = torch.rand(batch_size, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    if side.startswith("translate"):
        model = load_generator(directory)
        targets = [model.prepare_target(name) for name in model.config.domain_names]
        return {
            "one": lambda: model.translate(slices, [targets[DOMAIN]])[0],
            "three": lambda: torch.cat(model.translate(slices, targets)),
        }
    plain = plain_generator(GalipForImageTranslation.from_pretrained(directory))
    labels = torch.full((batch_size,), DOMAIN)
    if side != "plain-prompt":
        return {"one": lambda: plain(slices, labels).translation}
    backbone = common.full_size_backbone()

    def with_prompt() -> Tensor:  # the published loop takes one slice at a time
        return torch.cat([plain_translate(plain, backbone, one[None], DOMAIN) for one in slices])

    return {"one": with_prompt}


@torch.inference_mode()
def work(arguments: Any) -> None:
    """The process of a side: `one` or `three` targets, or `output FILE` for the images."""
    calls = make_calls(arguments.work, arguments.batch_sizes[0], arguments.model)

    def figures(what: str) -> dict[str, Any]:
        kind, _, path = what.partition(" ")
        if path:
            torch.save(calls["one"](), path)
            return {}
        calls[kind]()  # not counted: the other sides' data are in the caches, as they are not between slices
        started = time.perf_counter()
        calls[kind]()
        return {"seconds": time.perf_counter() - started}

    common.answer(figures)


def compare(names: Sequence[str], batch_size: int, directory: Path, arguments: Any) -> dict[str, Any]:
    """Largest difference of the outputs, times of a batch and peak memory, at one batch size."""
    options = {"batch_sizes": batch_size, "model": directory, "threads": arguments.threads}
    sides = [common.Side("benchmarks.inference.translate", name, **options) for name in names]
    outputs = []
    for side in sides:
        path = directory.with_name(f"{side.name}.pt")
        side.ask(f"output {path}")
        outputs.append(torch.load(path))
    difference = max(float((output - outputs[0]).abs().max()) for output in outputs)
    if difference > TOLERANCE:
        sys.exit(f"the outputs differ by {difference:.2e}, more than {TOLERANCE}: no comparison")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    for repeat in range(arguments.repeats + 1):  # the first is not counted
        for side in sides:
            answer = side.ask("one")
            memory[side.name] = answer["peak_memory_gb"]
            if repeat:
                seconds[side.name].append(answer["seconds"])
    table: dict[str, Any] = common.summary(seconds, names[0])
    row = {"batch_size": batch_size, "largest_difference": difference, "sides": table}
    for side in sides:
        table[side.name]["peak_memory_gb"] = memory[side.name]
        if side.name.startswith("translate"):
            row["three_targets"] = several_targets(side, arguments.repeats)
        side.close()
    return row


def several_targets(side: common.Side, repeats: int) -> float:
    """Time of three targets over that of one, in turn."""
    kinds = {kind: lambda kind=kind: side.ask(kind) for kind in ("one", "three")}
    return 1 / common.summary(common.alternate(kinds, repeats), "one")["three"]["speedup"]


@torch.inference_mode()
def generator_gflop() -> float:
    """10^9 floating-point operations of one slice; a multiplication and an addition are two."""
    model = common.full_size_generator()
    target = [model.prepare_target(model.config.domain_names[DOMAIN])]
    with FlopCounterMode(display=False) as counter:
        model.translate(torch.zeros(1, 1, 256, 256), target)
    return counter.get_total_flops() / 1e9


def show(row: dict[str, Any], gflop: float, peak: dict[str, float]) -> None:
    """A line for each side: milliseconds a slice, how often faster than each plain form."""
    batch_size, sides = row["batch_size"], row["sides"]
    for name, times in sides.items():
        taken = times["median_s"] / batch_size
        speedups = "  ".join(
            f"x{sides[plain]['median_s'] / times['median_s']:.2f} of {plain}"
            for plain in ("plain-prompt", "plain")
            if plain in sides
        )
        print(
            f"batch {batch_size}  {name:18s}{1000 * taken:6.0f} ms a slice  {speedups}  "
            f"{times['peak_memory_gb']:.2f} GB  {gflop / taken / peak['gemm']:.0%} of peak",
            flush=True,
        )
    print(f"batch {batch_size}  outputs differ by {row['largest_difference']:.1e} at most", flush=True)
    if "three_targets" in row:
        print(f"batch {batch_size}  three targets cost {row['three_targets']:.2f} times one", flush=True)


def main() -> None:
    parser = common.parser(__doc__, "translate.json")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["plain-prompt", "plain", "translate"])
    parser.add_argument("--work", choices=SIDES, help="be the process of a side")
    parser.add_argument("--model", type=Path, help="for --work: directory of the model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.work:
        work(arguments)
        return
    peak, gflop, rows = common.machine_peak(), generator_gflop(), []
    with tempfile.TemporaryDirectory() as folder:
        directory, model = Path(folder) / "model", common.full_size_generator()
        model.set_prompts(common.full_size_backbone())
        model.save_pretrained(directory)
        for batch_size in arguments.batch_sizes:
            rows.append(compare(arguments.sides, batch_size, directory, arguments))
            show(rows[-1], gflop, peak)
    result = {
        "benchmark": "translate", "precision": "fp32", "rows": rows,
        "gflop_of_a_slice": gflop, "machine_peak_gflops": peak,
    }  # fmt: skip
    common.write(result, arguments.output)


if __name__ == "__main__":
    main()
