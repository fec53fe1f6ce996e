"""What the benchmarks share: full-size models with random weights, alternating timing, peak memory, output.

Shapes decide speed, so weights are random; every comparison first checks that both sides compute the same.
"""

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from galip_hf import GalipConfig, GalipForImageTranslation, __version__
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.clip.tiny_clip import build_tiny_clip


def full_size_backbone(seed: int = 0) -> ClipBackbone:
    """ViT-B/16 and BERT-base with random weights, in BiomedCLIP's wiring: context 256, embedding 512."""
    with tempfile.TemporaryDirectory() as folder:
        directory = build_tiny_clip(
            Path(folder) / "clip",
            ["this MRI is T1-weighted", "this MRI is T2-weighted", "this MRI is PD-weighted"],
            image_size=224,
            patch_size=16,
            width=768,
            depth=12,
            heads=12,
            embedding_width=512,
            text_width=768,
            text_depth=12,
            context_length=256,
            feed_forward_multiplier=4,
            seed=seed,
        )
        return ClipBackbone.from_pretrained(directory)


def full_size_generator(seed: int = 0, **fields: Any) -> GalipForImageTranslation:
    """The default generator; convolutions as large as trained ones, so that outputs are of order 1."""
    torch.manual_seed(seed)
    model = GalipForImageTranslation(GalipConfig(**fields)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_uniform_(module.weight, a=5**0.5)
        model.prompt_states.normal_()
    return model


def domains(number: int) -> list[dict[str, Any]]:
    """Some domains, for `GalipConfig`; their names and prompts do not matter here."""
    names = ["T1", "T2", "PD", *(f"MR{index}" for index in range(3, number))][:number]
    intensity = {"rule": "percentile", "lower": 0.0, "upper": 99.5}
    return [
        {"name": name, "prompt": f"this MRI is {name}-weighted", "modality": "MR", "intensity": intensity}
        for name in names
    ]


def alternate(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, the sides in turn within each repeat; one call of each first, not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, call in sides.items():
            gc.collect()
            started = time.perf_counter()
            call()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Median, minimum and maximum of each side; speedup: the median over repeats of the reference over it."""
    return {
        name: {
            "median_s": statistics.median(values),
            "min_s": min(values),
            "max_s": max(values),
            "speedup": statistics.median(
                base / value for base, value in zip(seconds[reference], values, strict=True)
            ),
        }
        for name, values in seconds.items()
    }


def peak_memory_gb() -> float:
    """Highest resident memory of this process so far, GB (10^9 bytes).

    From /proc: `getrusage` would count that of the process which started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e9


class Side:
    """A process of its own for one side of a comparison: it answers a line that asks with a line of JSON.

    Args:
        module: the benchmark, which with `--work NAME` calls `answer`; run from the repository root.
        name: of the side.
        options: of the module, by name without dashes.
    """

    def __init__(self, module: str, name: str, **options: Any) -> None:
        self.name = name
        command = [sys.executable, "-m", module, "--work", name]
        for option, value in options.items():
            command += [f"--{option.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to one line."""
        assert self.process.stdin and self.process.stdout
        print(what, file=self.process.stdin, flush=True)
        answered = self.process.stdout.readline()
        if not answered:
            sys.exit(f"{self.name}: ended without an answer")
        result: dict[str, Any] = json.loads(answered)
        return result

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def answer(call: Callable[[str], Mapping[str, Any]]) -> None:
    """What the process of a side does: `call` of each line, its figures and the peak memory so far."""
    for line in sys.stdin:
        figures = call(line.strip())
        print(json.dumps({**figures, "peak_memory_gb": peak_memory_gb()}), flush=True)


def gflops(flops: float, call: Callable[[], Any], repeats: int = 7) -> float:
    """GFLOP/s of a call that does `flops`, median."""
    return flops / statistics.median(alternate({"call": call}, repeats)["call"]) / 1e9


def machine_peak() -> dict[str, float]:
    """GFLOP/s that this machine reaches in a matrix product and in the generator's typical convolution."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    image, weight = torch.randn(1, 64, 128, 128), torch.randn(64, 64, 3, 3)
    with torch.inference_mode():
        return {
            "gemm": gflops(2 * 1536**3, lambda: a @ b),
            "convolution": gflops(
                2 * 64 * 64 * 9 * 128**2, lambda: torch.nn.functional.conv2d(image, weight, padding=1)
            ),
        }


def environment() -> dict[str, Any]:
    """What a number needs beside it."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    return {
        "galip_hf": __version__,
        "commit": commit.stdout.strip() or None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def parser(description: str | None, output: str, *, timed: bool = True) -> argparse.ArgumentParser:
    """Options that every benchmark has; `--repeats` where calls are timed."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    if timed:
        arguments.add_argument(
            "--repeats", type=int, default=5, help="counted calls of each side (default: 5)"
        )
    arguments.add_argument("--output", type=Path, default=Path("outputs/benchmarks") / output)
    return arguments


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write a benchmark's result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(), **result}, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}")
