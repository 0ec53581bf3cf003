"""Which arithmetic a device computes natively: what `precision="auto"` stands for."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Literal

import torch

Float = Literal["fp32", "bf16", "fp16"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]

DTYPES: dict[Float, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
X86 = ("x86_64", "amd64")
AVX512_WITHOUT_BF16 = ("AVX512_CORE", "AVX512_CORE_VNNI")


def native(device: torch.device) -> Float:
    """The fastest arithmetic of floating-point numbers that is the device's own.

    CUDA: bf16 from compute capability 8.0 on (Ampere), fp16 from 7.0 on (whose tensor cores know no
    other), else fp32. CPU: bf16 where oneDNN multiplies it natively, else fp32.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "fp32"


def resolve(precision: Precision, device: torch.device) -> Float:
    return native(device) if precision == "auto" else precision


def emulation(precision: Float, device: torch.device) -> str | None:
    """One line on what it costs to ask for an arithmetic that the device emulates, and what to ask for
    instead; else None."""
    cost = emulation_cost(precision, device)
    return None if cost is None else f"{cost}: precision 'auto' takes what is fast here"


def emulation_cost(precision: Float, device: torch.device) -> str | None:
    """As `emulation`, without the advice."""
    if precision in ("fp32", native(device)):
        return None
    if precision == "fp16" and (device.type == "cuda" or _cpu_multiplies_fp16()):
        return None
    name = "this processor" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{name} has no {precision} arithmetic and emulates it, which can take ten times as long as fp32"


def _cpu_multiplies_bf16() -> bool:
    """What oneDNN may use of the processor. On x86 it accepts bf16 from AVX-512 on, and with AVX-NE-CONVERT,
    but has its products computed in fp32 unless there is AVX512_BF16 or AMX."""
    if not _has_onednn() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in X86:  # ARM: that was the processor's own flag
        return True
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
    if limit.upper() in AVX512_WITHOUT_BF16:
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _cpu_multiplies_fp16() -> bool:
    return _has_onednn() and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def processor_name() -> str:
    """For figures, which name the processor that they are from."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        told = ""
    found = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    return found[1] if found else platform.processor() or "unknown"
