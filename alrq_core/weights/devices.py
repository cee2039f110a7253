"""Finds the kernels of this project's own where a device runs them."""

import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """Return `kernels` for a tensor on a CUDA GPU; None where plain torch does the work."""
    return _kernels() if tensor.is_cuda else None


@cache
def _kernels() -> ModuleType | None:
    try:
        from alrq_core.weights import kernels

        # Triton compiles on its first call.
        codes = torch.zeros(1, 32, dtype=torch.int8, device="cuda")
        kernels.fused_weight(codes, codes[:, :1].half(), 2, 4, torch.float32)
    except Exception as error:
        warnings.warn(
            "Codes of gptq are made and dequantised without kernels of their own, many times "
            f"slower: {type(error).__name__}: {error}. Install Triton and a C compiler.",
            stacklevel=3,
        )
        return None
    return kernels
