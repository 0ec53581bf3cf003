"""The precision in which an encoder computes: the requested one, or what "auto" means on this device."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.precision import DTYPES, emulation, native
from speech_ssl.types import SAMPLE_RATE, Waveform

logger = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
Computed = Literal["fp32", "bf16", "fp16", "int8"]

AUTO_ERROR = 0.03
""""auto" falls back to fp32 if frames of any layer differ from fp32 by more than this (relative L2)."""


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raises ValueError for an unsupported precision; logs the cost of an emulated one."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, not {precision!r}")
    if precision == "int8" and device.type != "cpu":
        raise ValueError("precision 'int8' runs on the CPU only: leave it at 'auto', or use device='cpu'")
    if precision == "int8" and torch.backends.quantized.engine == "none":
        raise ValueError("this build of torch has no int8 kernels: use precision 'fp32'")
    if precision in ("bf16", "fp16") and (cost := emulation(precision, device)) is not None:
        logger.warning(cost)


def fitted(encoder: Encoder, device: torch.device, precision: Precision) -> tuple[Encoder, Computed]:
    """A copy of an encoder for inference on a device, and the precision in which it computes.

    "auto" is what the device computes natively. bf16 on a GPU is used as it is. bf16 on the CPU, where nobody
    expects it, and fp16, whose range ends at 65,504, are used only if the result is within AUTO_ERROR of
    fp32. This is decided by computing, not by timing: every process with the same model and processor decides
    alike.
    """
    if precision != "auto":
        return _converted(encoder, device, precision), precision
    chosen = native(device)
    if chosen == "fp32" or (chosen == "bf16" and device.type == "cuda"):
        return _converted(encoder, device, chosen), chosen
    cpu = torch.device("cpu")
    reduced = _converted(encoder, cpu, "fp32")
    exact = _states(reduced, cpu, "fp32")
    reduced = reduced.to(device, DTYPES[chosen])
    error = _distance(_states(reduced, device, chosen), exact)
    if error <= AUTO_ERROR:
        return reduced, chosen
    logger.info("%s is %.1f %% off fp32 with this model: fp32 is taken", chosen, 100 * error)
    return _converted(encoder, device, "fp32"), "fp32"


@contextmanager
def computing(device: torch.device, precision: Computed) -> Iterator[None]:
    """Context for the passes of an encoder from `fitted`. In fp32 without TF32."""
    reduced = precision in ("bf16", "fp16")
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=dtype, enabled=reduced),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=reduced),
    ):
        yield


def voice(samples: int) -> Waveform:
    """A voice that glides and pulses. An encoder's error on it is within a tenth of that on speech."""
    time_S = np.arange(samples) / SAMPLE_RATE
    phase_S = 2 * np.pi * np.cumsum(110 + 90 * time_S) / SAMPLE_RATE
    harmonics_S = sum(np.sin(k * phase_S) / k for k in range(1, 25))
    return np.asarray(0.1 * harmonics_S * np.sin(4 * np.pi * time_S) ** 2, dtype=np.float32)


def _converted(encoder: Encoder, device: torch.device, precision: Computed) -> Encoder:
    """A copy with weight norm folded, without dropout and gradients."""
    encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
    encoder.fold_weight_norm_()
    if precision == "int8":
        _quantize_linears(encoder)
    elif precision != "fp32":
        encoder = encoder.to(DTYPES[precision])
    return encoder.to(device)


def _states(encoder: Encoder, device: torch.device, precision: Computed) -> list[Tensor]:
    wave = voice(max(SAMPLE_RATE, encoder.receptive_field))
    with computing(device, precision):
        wave_BS = torch.from_numpy(wave)[None].to(device)
        states = encoder.hidden_states(wave_BS, torch.tensor([len(wave)], device=device))
    return [x_BTD.float().cpu() for x_BTD in states]


def _distance(ones: list[Tensor], others: list[Tensor]) -> float:
    """The largest relative distance over the layers; NaN if one is NaN."""
    return float(torch.stack([(x - y).norm() / y.norm() for x, y in zip(ones, others, strict=True)]).max())


class Int8Linear(nn.Module):
    """y = x W + b with W in int8, one scale per output, and x quantised by its range at each call.

    torch.ao.quantization would do the same but is deprecated; the operators under it are not.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
        zeros = torch.zeros(len(scales), dtype=torch.long)
        quantized = torch.quantize_per_channel(weight, scales.double(), zeros, axis=0, dtype=torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(quantized, linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        # reduce_range: CPUs without VNNI add pairs of products in 16 bits, which 8-bit inputs would overflow.
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, reduce_range=True)
        return y


def _quantize_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            _quantize_linears(child)
