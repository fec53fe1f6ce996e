"""`make gpu-check`: parity, speed and memory of this machine's GPU, against the plain form, as a table.

python -m benchmarks.gpu_check [--device auto] [--repeats 5]

On a GPU: the default generator, ViT-B/16 and BERT-base with random weights at 256 x 256, in fp32, TF32 and
bf16. Without one, its own logic is run on the CPU with tiny networks, in less than a minute: the figures of
such a run say nothing about speed. For each precision:

- parity: the largest and the root mean square difference of a translation from the plain form in float64 on
  the CPU, as a share of the standard deviation of the output;
- inference: a batch of slices in the plain form, by `translate`, and by `translate` under torch.compile (on a
  GPU alone), in turn;
- a training step in the plain form and by the trainer, in turn, and the largest relative difference of their
  first losses.

It fails where fp32 differs from float64, or the trainer's losses from the plain form's, by more than
rounding.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.plain import PlainTraining, plain_generator
from benchmarks.training.train_step import difference, make_trainer
from galip_hf import GalipForImageTranslation
from galip_hf.clip.backbone import ClipBackbone
from galip_hf.clip.tiny_clip import build_tiny_clip
from galip_hf.devices import chosen_device

TOLERANCE = 1e-3  # of fp32 from float64, in standard deviations of the output; of the losses, relative
TINY: dict[str, Any] = {
    "base_channels": 8, "channel_multipliers": [1, 2], "attention_rates": [2], "attention_head_width": 8,
    "norm_groups": 8, "label_width": 16, "text_width": 16, "text_length": 12, "text_embedding_width": 24,
}  # fmt: skip


def precisions(device: torch.device) -> list[str]:
    """What is compared on a device; TF32 is CUDA's."""
    return ["fp32", "tf32", "bf16"] if device.type == "cuda" else ["fp32", "bf16"]


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Set TF32, and autocast for bf16, in the block."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def make_backbone(full: bool) -> ClipBackbone:
    """ViT-B/16 and BERT-base, or the smallest towers that do."""
    if full:
        return common.full_size_backbone()
    with tempfile.TemporaryDirectory() as folder:
        directory = build_tiny_clip(
            Path(folder) / "clip", [domain["prompt"] for domain in common.domains(3)],
            image_size=32, patch_size=8, width=32, depth=4, heads=4, embedding_width=24,
            text_width=16, text_depth=1, context_length=12,
        )  # fmt: skip
        return ClipBackbone.from_pretrained(directory)


def finished(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """`call`, and wait for the device."""

    def run() -> Any:
        result = call()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return result

    return run


def peak_gb(device: torch.device) -> float:
    """Peak memory since the last call, GB (10^9 bytes); of the process where the device has no count."""
    if device.type != "cuda":
        return common.peak_memory_gb()
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.reset_peak_memory_stats()
    return peak


def timed(sides: dict[str, Callable[[], Any]], device: torch.device, repeats: int) -> dict[str, Any]:
    """Speed of each side against the first, in turn; then its peak memory, by a call of its own."""
    calls = {name: finished(call, device) for name, call in sides.items()}
    rows: dict[str, Any] = common.summary(common.alternate(calls, repeats), next(iter(calls)))
    for name, call in calls.items():
        peak_gb(device)
        call()
        rows[name]["peak_memory_gb"] = peak_gb(device)
    return rows


@torch.inference_mode()
def parity(
    model: GalipForImageTranslation, images: Tensor, device: torch.device, names: Sequence[str]
) -> dict[str, Any]:
    """Differences of a translation from the plain form in float64 on the CPU, for each precision."""
    exact = plain_generator(model).cpu().double()
    expected = exact(images.double(), torch.full((len(images),), 1)).translation
    model.to(device).float()
    rows = {}
    for name in names:
        with computing_in(name, device):
            target = [model.prepare_target(model.config.domain_names[1])]
            found = model.translate(images.to(device), target)[0]
        error = (found.cpu().double() - expected).abs() / expected.std()
        rows[name] = {"largest": float(error.max()), "rms": float(error.square().mean().sqrt())}
    return rows


@torch.inference_mode()
def inference(
    model: GalipForImageTranslation, images: Tensor, device: torch.device, name: str, repeats: int
) -> dict[str, Any]:
    """Times and memory of the plain form, `translate` and, on CUDA, its compiled form."""
    plain, images = plain_generator(model), images.to(device)
    labels = torch.full((len(images),), 1, device=device)
    with computing_in(name, device):
        targets = [model.prepare_target(model.config.domain_names[1])]
        sides: dict[str, Callable[[], Any]] = {
            "plain": lambda: plain(images, labels),
            "translate": lambda: model.translate(images, targets),
        }
        if device.type == "cuda":
            compiled = torch.compile(model.translate, mode="reduce-overhead", fullgraph=True, dynamic=False)
            sides["compiled"] = lambda: compiled(images, targets)
        return timed(sides, device, repeats)


def training(
    backbone: ClipBackbone, full: bool, size: int, device: torch.device, name: str, repeats: int, folder: Path
) -> dict[str, Any]:
    """Times and memory of a training step, and the difference of its first losses."""
    options = {"mixed_precision": "bf16"} if name == "bf16" else {}
    model = None if full else common.full_size_generator(**TINY)
    trainer = make_trainer(folder, size, backbone, 3, model=model, batch_size=2, **options)
    batches = next(trainer.loader.steps(0))
    present = sorted(set(batches[0].target_domains))
    plain = PlainTraining(
        trainer.state.generator, trainer.state.discriminator, trainer.backbone, trainer.arguments
    )
    sides = {
        "plain": lambda: plain.training_step(batches[0]),
        "trainer": lambda: trainer.training_step(batches, present)["losses"],
    }
    with computing_in(name, device):
        first = {side: {key: float(value) for key, value in step().items()} for side, step in sides.items()}
        rows = timed(sides, device, repeats)
    return {"sides": rows, "loss_difference": difference(first["trainer"], first["plain"])}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"{result['device']}, torch {torch.__version__}, {result['size']} pixels, batch {result['batch']}",
        "",
        "| precision | work | side | milliseconds | against the plain form | peak memory | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rows in result["precisions"].items():
        for work in ("inference", "training"):
            for side, row in rows[work]["sides"].items():
                told = rows["parity"]["rms"] if work == "inference" else rows["training"]["loss_difference"]
                lines.append(
                    f"| {name} | {work} | {side} | {1000 * row['median_s']:.1f} | {row['speedup']:.2f}× | "
                    f"{row['peak_memory_gb']:.2f} GB | {'' if side == 'plain' else f'{told:.1e}'} |"
                )
    return "\n".join(lines) + "\n"


def check(device: torch.device, repeats: int) -> dict[str, Any]:
    """Everything, on one device."""
    full = device.type != "cpu"
    size, batch = (256, 4) if full else (32, 2)
    fields = {} if full else TINY
    images = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(0))
    names, backbone = precisions(device), make_backbone(full)
    of_parity = parity(common.full_size_generator(**fields), images, device, names)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else str(device),
        "size": size,
        "batch": batch,
        "precisions": {},
    }
    for name in names:
        model = common.full_size_generator(**fields).to(device)
        with tempfile.TemporaryDirectory() as folder:
            result["precisions"][name] = {
                "parity": of_parity[name],
                "inference": {"sides": inference(model, images, device, name, repeats)},
                "training": training(backbone, full, size, device, name, repeats, Path(folder)),
            }
    return result


def faults(result: dict[str, Any]) -> list[str]:
    """What is wrong, a line each."""
    exact = result["precisions"]["fp32"]
    found = {
        "fp32 inference differs from float64": exact["parity"]["largest"],
        "fp32 losses differ from the plain form's": exact["training"]["loss_difference"],
    }
    return [f"{what} by {by:.1e}, more than {TOLERANCE:g}" for what, by in found.items() if by > TOLERANCE]


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.parser(__doc__, "gpu_check.json")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    result = check(chosen_device(arguments.device), arguments.repeats)
    text = table(result)
    print(text)
    common.write(result, arguments.output)
    arguments.output.with_suffix(".md").write_text(text, encoding="utf-8")
    for fault in faults(result):
        print(f"wrong: {fault}")
    return 1 if faults(result) else 0


if __name__ == "__main__":
    sys.exit(main())
