"""Which arithmetic the training uses, and how freed memory is treated."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager
from typing import Literal

import torch

from command_line import UserError

Precision = Literal["fp32", "bf16"]

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def choose_precision(name: str, device: torch.device) -> Precision:
    """bf16 where the hardware multiplies it faster than fp32; raises UserError when it was asked for in vain."""
    if name == "fp32":
        return "fp32"
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        # Without these instructions torch emulates bf16 on a CPU, several times slower than fp32.
        capabilities = torch.cpu.get_capabilities()
        has_bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    else:
        has_bf16 = False
    if name == "bf16" and not has_bf16 and device.type != "cpu":
        raise UserError(f"--precision bf16 is not supported by the device {device}; choose --precision fp32")
    return "bf16" if has_bf16 or name == "bf16" else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Matrix products in `precision` inside; weights, residual stream and loss stay in fp32 (Micikevicius et al. 2017,
    "Mixed Precision Training", arxiv.org/abs/1710.03740).
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks instead of returning them to the system.

    Each step allocates the same activations anew. By default every block above 32 MB at most is mapped and unmapped
    each time, and the page faults of fresh memory cost more than the arithmetic done on it. Other systems and C
    libraries are left as they are.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
