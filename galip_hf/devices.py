"""Which device and which precision `auto` stands for."""

import torch

from .model.errors import GalipError

AUTO = "auto"


def chosen_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`, tried out; `auto` is a CUDA or XPU device, MPS, or else the CPU.

    Args:
        name: `auto`, or a device of torch such as `cpu` or `cuda:1`.
        local_rank: place of this process among those of its machine; with `auto`, each takes another device.

    Raises:
        GalipError: no such device, or not usable here.
    """
    if name == AUTO:
        name = _best_device(local_rank)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise GalipError(f"device {name}: not usable ({str(error).splitlines()[0]})") from None
    return device


def _best_device(local_rank: int) -> str:
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if module.is_available():
            return f"{kind}:{local_rank % module.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def chosen_precision(name: str, device: torch.device) -> str:
    """The precision `name`; `auto` is bf16 on a CPU that computes it, else fp32.

    In docs/speed.md bf16 on a CPU was measured to lose less than 0.05 dB. On accelerators it was not
    measured, so that `auto` stays with fp32 there.
    """
    if name != AUTO:
        return name
    return "bf16" if device.type == "cpu" and cpu_computes_bf16() else "fp32"


def cpu_computes_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself (AMX, or AVX-512's bf16 instructions)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


__all__ = ["AUTO", "chosen_device", "chosen_precision", "cpu_computes_bf16"]
