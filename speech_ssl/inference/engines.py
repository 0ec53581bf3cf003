"""What runs an encoder: one padded forward pass, in a device's and a precision's terms."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speech_ssl.inference.word_times import Loudness, loudness_of
from speech_ssl.model.encoder import Encoder
from speech_ssl.types import Waveform

Precision = Literal["auto", "fp32", "bf16", "int8"]
NO_FRAMES: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)


class Passed(NamedTuple):
    """What one pass gives for one wave."""

    frames: NDArray[np.float32]
    """Of the wave's own layer: (T, D)."""
    heads: dict[str, NDArray[np.float32]]
    """Outputs of each head that was asked for: (T, O)."""
    loudness: Loudness = NO_FRAMES
    """Mean square of the samples around each frame's middle, by parts of a hop: (T, E). Empty without
    heads: it is what tells words apart where they meet."""

    def kept(self, skip: int, keep: int) -> Passed:
        """The frames from `skip` on, `keep` of them."""
        rows = slice(skip, skip + keep)
        heads = {name: x_TO[rows] for name, x_TO in self.heads.items()}
        return Passed(self.frames[rows], heads, self.loudness[rows])

    def only(self, heads: Sequence[str]) -> Passed:
        """What one wanted of a pass that others shared."""
        loudness = self.loudness if heads else NO_FRAMES
        return self._replace(heads={name: self.heads[name] for name in heads}, loudness=loudness)

    def without_frames(self) -> Passed:
        """The heads' outputs alone: frames of hours would fill the memory."""
        return self._replace(frames=NO_FRAMES)

    @staticmethod
    def joined(parts: Sequence[Passed]) -> Passed:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        heads = {name: np.concatenate([part.heads[name] for part in parts]) for name in parts[0].heads}
        frames = np.concatenate([part.frames for part in parts])
        return Passed(frames, heads, np.concatenate([part.loudness for part in parts]))


class TorchEngine:
    """An encoder and its heads on a device, for inference: weight norm folded, no dropout, no gradients.

    precision "fp32" is what the batch-invariance contract speaks of; TF32 is off. "bf16" holds weights
    and activations in bfloat16 (the wave's normalisation stays in float32). "int8" quantises the linear
    layers dynamically, on the CPU only, and computes rows one by one, since the scale of a quantised
    activation is that of its whole batch. "auto" is fp32 on the CPU and bf16 on CUDA. Heads stay in fp32.

    Raises ValueError for a device that is not there, or a precision that it cannot do.
    """

    def __init__(
        self,
        encoder: Encoder,
        device: str,
        precision: Precision,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.device = _checked_device(device)
        self.precision = _checked_precision(precision, self.device)
        encoder = copy.deepcopy(encoder).eval().requires_grad_(False)
        encoder.fold_weight_norm_()
        if self.precision == "bf16":
            encoder = encoder.to(torch.bfloat16)
        if self.precision == "int8":
            _quantize_linears(encoder)
        self.encoder = encoder.to(self.device)
        self.heads = {
            name: copy.deepcopy(head).eval().requires_grad_(False).to(self.device)
            for name, head in (heads or {}).items()
        }

    def run(
        self, waves: Sequence[Waveform], layers: Sequence[int | None], heads: Sequence[str] = ()
    ) -> list[Passed]:
        """One pass: each wave's frames at its own layer, 0 to N (None: no frames), and the outputs of
        the heads named. No wave may be too short for a frame."""
        if self.precision == "int8":
            rows = zip(waves, layers, strict=True)
            return [passed for wave, layer in rows for passed in self._run_padded([wave], [layer], heads)]
        return self._run_padded(waves, layers, heads)

    def _run_padded(
        self, waves: Sequence[Waveform], layers: Sequence[int | None], heads: Sequence[str]
    ) -> list[Passed]:
        lengths = [len(wave) for wave in waves]
        padded = np.zeros((len(waves), max(lengths)), dtype=np.float32)
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = wave
        with self._arithmetic():
            wave_BS = torch.from_numpy(padded).to(self.device)
            lengths_B = torch.tensor(lengths, device=self.device)
            states = self.encoder.hidden_states(
                wave_BS, lengths_B, last=None if heads else max(layer or 0 for layer in layers)
            )
            frames_B = self.encoder.frame_count(lengths_B)
            outputs = {name: self.heads[name](states, frames_B) for name in heads}
            counts = [self.encoder.frame_count(length) for length in lengths]
            return [
                Passed(
                    NO_FRAMES if layer is None else _rows(states[layer], i, count),
                    {n: _rows(x_BTO, i, count) for n, x_BTO in outputs.items()},
                    self._loudness(waves[i], count) if heads else NO_FRAMES,
                )
                for i, (layer, count) in enumerate(zip(layers, counts, strict=True))
            ]

    def _loudness(self, wave: Waveform, frames: int) -> Loudness:
        return loudness_of(wave, frames, self.encoder.hop, self.encoder.receptive_field)

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        bf16 = self.precision == "bf16"
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=bf16),
        ):
            yield


def _rows(x_BTD: Tensor, row: int, count: int) -> NDArray[np.float32]:
    return np.array(x_BTD[row, :count].float().cpu().numpy())


class Int8Linear(nn.Module):
    """y = x W + b with W in int8, one scale an output, and x quantised by its range at each call.

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
        # reduce_range: CPUs without VNNI add pairs of products in 16 bits, which 8-bit inputs overflow.
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, reduce_range=True)
        return y


def _quantize_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear(child))
        else:
            _quantize_linears(child)


def _checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not known: use 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: use 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"device {name!r} is not there ({count} CUDA devices found): use 'cpu'")
    return device


def _checked_precision(precision: Precision, device: torch.device) -> Precision:
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {', '.join(get_args(Precision))}, not {precision!r}")
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if precision == "int8" and device.type != "cpu":
        raise ValueError("precision 'int8' runs on the CPU only: use 'bf16' on a GPU, or device='cpu'")
    if precision == "int8" and torch.backends.quantized.engine == "none":
        raise ValueError("this build of torch has no int8 kernels: use precision 'fp32' or 'bf16'")
    return precision
