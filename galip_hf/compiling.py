"""`torch.compile` where there is a compiler for it, and one line where there is none."""

import logging

import torch

logger = logging.getLogger(__name__)


def missing_compiler(device: torch.device) -> str | None:
    """Why a model on `device` cannot be compiled here; None where it can."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "triton is not installed or does not know this GPU"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler (g++ or clang++) is installed"
    return None


def can_compile(device: torch.device) -> bool:
    """Whether a model on `device` can be compiled here; a warning where it cannot."""
    reason = missing_compiler(device)
    if reason:
        logger.warning("torch_compile: %s; training goes on without it", reason)
    return reason is None


__all__ = ["can_compile", "missing_compiler"]
