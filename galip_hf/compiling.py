"""`torch.compile` where there is a compiler for it, and one line where there is none."""

import logging

import torch
from torch import nn

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


def compile_where_possible(module: nn.Module, device: torch.device) -> bool:
    """Compile a module in place, its weights' names unchanged; False, and a warning, where that cannot be."""
    reason = missing_compiler(device)
    if reason:
        logger.warning("torch_compile: %s; training goes on without it", reason)
        return False
    module.compile()
    return True


__all__ = ["compile_where_possible", "missing_compiler"]
