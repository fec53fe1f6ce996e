"""Inference: `GalipForImageTranslation.translate` against the plain form, at full size, alternating.

python benchmarks/translate.py [--batch-sizes 1 2 4] [--repeats 5]

256 x 256 slices, the default generator and a BERT-base text tower with random weights, fp32. Three sides: the
plain generator with the prompt encoded anew for every slice, as the published test loop goes; the plain
generator alone; `translate` with a prepared target. Their outputs must agree to 1e-5. Then three targets of
one slice against one, the share of the machine's measured peak that the generator's operations reach, and the
peak memory of each side in a process of its own.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import common
import torch
from plain import plain_generator, plain_translate
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from galip_hf import GalipForImageTranslation
from galip_hf.clip_backbone import ClipBackbone

TOLERANCE = 1e-5
DOMAIN = 1
SIDES = ["plain with prompt", "plain generator", "translate"]


def sides(
    model: GalipForImageTranslation, backbone: ClipBackbone | None, batch_size: int
) -> dict[str, Callable[[], Tensor]]:
    """Translation of `batch_size` slices by each form; the published loop takes one slice at a time."""
    slices = torch.rand(batch_size, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    if backbone is not None:
        model.set_prompts(backbone)
    plain, labels = plain_generator(model), torch.full((batch_size,), DOMAIN)
    target = [model.prepare_target(model.config.domain_names[DOMAIN])]

    def with_prompt() -> Tensor:
        assert backbone is not None
        return torch.cat([plain_translate(plain, backbone, one[None], DOMAIN) for one in slices])

    def plain_alone() -> Tensor:
        return plain(slices, labels).translation

    return dict(
        zip(SIDES, [with_prompt, plain_alone, lambda: model.translate(slices, target)[0]], strict=True)
    )


@torch.inference_mode()
def compare(
    model: GalipForImageTranslation, backbone: ClipBackbone, batch_size: int, repeats: int
) -> dict[str, Any]:
    """Largest difference of the outputs, and times of a batch, at one batch size."""
    calls = sides(model, backbone, batch_size)
    outputs = {name: call() for name, call in calls.items()}
    difference = max(float((output - outputs[SIDES[2]]).abs().max()) for output in outputs.values())
    if difference > TOLERANCE:
        sys.exit(f"the outputs differ by {difference:.2e}, more than {TOLERANCE}: no comparison")
    times = common.summary(common.alternate(calls, repeats), SIDES[0])
    return {"batch_size": batch_size, "largest_difference": difference, "sides": times}


@torch.inference_mode()
def targets(model: GalipForImageTranslation, repeats: int) -> dict[str, Any]:
    """One slice to one target and to three, which share the first part of the encoder."""
    slices = torch.rand(1, 1, 256, 256)
    prepared = [model.prepare_target(name) for name in model.config.domain_names]
    calls = {
        "one target": lambda: model.translate(slices, prepared[:1]),
        "three targets": lambda: model.translate(slices, prepared),
    }
    return common.summary(common.alternate(calls, repeats), "one target")


@torch.inference_mode()
def generator_gflop(model: GalipForImageTranslation) -> float:
    """10^9 floating-point operations of one slice; a multiplication and an addition are two."""
    target = [model.prepare_target(model.config.domain_names[DOMAIN])]
    with FlopCounterMode(display=False) as counter:
        model.translate(torch.zeros(1, 1, 256, 256), target)
    return counter.get_total_flops() / 1e9


def peak_memory(side: str, batch_size: int, threads: int) -> float:
    """Peak resident memory, GB, of two calls of one side in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", side, "--batch-sizes", str(batch_size)]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout))


def show(rows: list[dict[str, Any]], several: dict[str, Any], shares: dict[str, float]) -> None:
    for row in rows:
        for name, times in row["sides"].items():
            slice_ms = 1000 * times["median_s"] / row["batch_size"]
            memory = f"{times['peak_memory_gb']:.2f} GB" if "peak_memory_gb" in times else ""
            print(
                f"batch {row['batch_size']}  {name:18s}{slice_ms:8.0f} ms a slice"
                f"  x{times['speedup']:.2f}  {memory}"
            )
        print(f"batch {row['batch_size']}  outputs differ by {row['largest_difference']:.1e} at most")
    print(f"three targets cost {1 / several['three targets']['speedup']:.2f} times one")
    print("share of the peak: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))


def main() -> None:
    parser = common.parser(__doc__, "translate.json")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--memory-of", choices=SIDES, help="print one side's peak memory, GB")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = common.full_size_generator()
    if arguments.memory_of:
        # The first side alone needs the text tower, which comes with the image tower (0.35 GB).
        backbone = common.full_size_backbone() if arguments.memory_of == SIDES[0] else None
        with torch.inference_mode():
            call = sides(model, backbone, arguments.batch_sizes[0])[arguments.memory_of]
            call(), call()
        print(common.peak_memory_gb())
        return
    backbone = common.full_size_backbone()
    rows = [compare(model, backbone, size, arguments.repeats) for size in arguments.batch_sizes]
    for name, times in rows[0]["sides"].items():
        times["peak_memory_gb"] = peak_memory(name, rows[0]["batch_size"], arguments.threads)
    several, gflop, peak = targets(model, arguments.repeats), generator_gflop(model), common.machine_peak()
    seconds = rows[0]["sides"][SIDES[2]]["median_s"] / rows[0]["batch_size"]
    shares = {name: gflop / seconds / value for name, value in peak.items()}
    show(rows, several, shares)
    result = {
        "benchmark": "translate", "precision": "fp32", "rows": rows, "targets": several,
        "gflop_of_a_slice": gflop, "machine_peak_gflops": peak, "share_of_peak": shares,
    }  # fmt: skip
    common.write(result, arguments.output)


if __name__ == "__main__":
    main()
