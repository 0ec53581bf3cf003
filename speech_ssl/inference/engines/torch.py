"""The PyTorch engine: one padded forward pass, on a given device and in a given precision."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speech_ssl.inference.arithmetic import Precision, check_precision, computing, fitted
from speech_ssl.inference.ctc.word_times import Loudness, loudness_of
from speech_ssl.inference.outputs import NO_FRAMES, Layers, WindowOutput
from speech_ssl.inference.units import KEPT, WHOLE, Outputs, TopUnits
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.heads.head import CTCHead
from speech_ssl.types import Levels, Waveform, pad


class TorchEngine:
    """An encoder and its heads on a device, for inference: weight norm folded, no dropout, no gradients.

    precision: the batch-invariance contract holds for "fp32"; TF32 is off. "bf16" and "fp16" keep weights and
    activations in 16 bits (the wave's normalisation stays in float32). "int8" quantises the linear layers
    dynamically, on the CPU only, and computes rows one by one, since a quantised activation has one scale for
    its whole batch. "auto": see `arithmetic.fitted`. Heads stay in fp32.

    Raises ValueError for a missing device, and for a precision that it does not support.
    """

    def __init__(
        self,
        encoder: Encoder,
        device: str,
        precision: Precision,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.device = checked_device(device)
        check_precision(precision, self.device)
        self.encoder, self.precision = fitted(encoder, self.device, precision)
        self.heads = {
            name: copy.deepcopy(head).eval().requires_grad_(False).to(self.device)
            for name, head in (heads or {}).items()
        }

    def run(
        self,
        waves: Sequence[Waveform],
        layers: Sequence[Layers],
        heads: Sequence[str] = (),
        levels: Levels | None = None,
        units: Sequence[int] | None = None,
    ) -> list[WindowOutput]:
        """One pass: each wave's frames at its own layer, 0 to N (None: no frames; several: (T, L, D)), and
        the outputs of the named heads. levels: of the clips that the waves are windows of; None: waves are
        clips. units: only these units, in this order, for heads that transcribe; None: all, or the most
        probable ones of a large vocabulary. No wave may be too short for a frame."""
        levels = [None] * len(waves) if levels is None else levels
        if self.precision == "int8":
            rows = zip(waves, layers, levels, strict=True)
            return [
                one
                for wave, layer, level in rows
                for one in self._run([wave], [layer], heads, [level], units)
            ]
        return self._run(waves, layers, heads, levels, units)

    def _run(
        self,
        waves: Sequence[Waveform],
        layers: Sequence[Layers],
        heads: Sequence[str],
        levels: Levels,
        units: Sequence[int] | None,
    ) -> list[WindowOutput]:
        padded_BS, lengths = pad(waves)
        with computing(self.device, self.precision):
            wave_BS = torch.from_numpy(padded_BS).to(self.device)
            lengths_B = torch.tensor(lengths, device=self.device)
            states = self.encoder.hidden_states(
                wave_BS,
                lengths_B,
                last=None if heads else max(max(_several(layer), default=0) for layer in layers),
                levels=levels,
            )
            frames_B = self.encoder.frame_count(lengths_B)
            outputs = {name: _Outputs(self.heads[name], states, frames_B, units) for name in heads}
            counts = [self.encoder.frame_count(length) for length in lengths]
            return [
                WindowOutput(
                    _frames(states, layer, i, count),
                    {name: outputs[name].of(i, count) for name in heads},
                    self._loudness(waves[i], count) if heads else NO_FRAMES,
                )
                for i, (layer, count) in enumerate(zip(layers, counts, strict=True))
            ]

    def _loudness(self, wave: Waveform, frames: int) -> Loudness:
        return loudness_of(wave, frames, self.encoder.hop, self.encoder.receptive_field)


class _Outputs:
    """A head's outputs for a batch, on the device; with a large vocabulary only the most probable units."""

    def __init__(
        self, head: nn.Module, states: Sequence[Tensor], frames_B: Tensor, units: Sequence[int] | None
    ) -> None:
        x_BTO: Tensor = head(states, frames_B)
        self._top: tuple[Tensor, Tensor] | None = None
        self._size = x_BTO.shape[-1]
        if isinstance(head, CTCHead) and units is not None:
            x_BTO = x_BTO[..., list(units)]
        elif isinstance(head, CTCHead) and self._size > WHOLE:
            self._top = x_BTO.topk(KEPT, dim=-1)
            x_BTO = x_BTO[..., :1].clone()  # frees the rest
        self._x_BTO = x_BTO

    def of(self, row: int, count: int) -> Outputs:
        if self._top is None:
            return _rows(self._x_BTO, row, count)
        log_probs_TK, units_TK = (np.array(x_BTK[row, :count].cpu().numpy()) for x_BTK in self._top)
        return TopUnits.of(units_TK, log_probs_TK, _rows(self._x_BTO, row, count)[:, 0], self._size)


def _several(layer: Layers) -> Sequence[int]:
    return () if layer is None else (layer,) if isinstance(layer, int) else layer


def _frames(states: Sequence[Tensor], layer: Layers, row: int, count: int) -> NDArray[np.float32]:
    if layer is None:
        return NO_FRAMES
    rows = [_rows(states[each], row, count) for each in _several(layer)]
    return rows[0] if isinstance(layer, int) else np.stack(rows, axis=1)


def _rows(x_BTD: Tensor, row: int, count: int) -> NDArray[np.float32]:
    return np.array(x_BTD[row, :count].float().cpu().numpy())


def automatic() -> str:
    """The device that "auto" selects."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def checked_device(name: str) -> torch.device:
    """Raises ValueError for an unknown or missing device."""
    name = automatic() if name == "auto" else name
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is not known: use 'auto', 'cpu', 'cuda' or 'cuda:N'") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported: use 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ValueError(f"device {name!r} is not there ({count} CUDA devices found): use 'cpu'")
    return device
