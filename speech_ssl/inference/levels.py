"""The level of a whole clip: the moments by which the front end normalises it.

A window of a long clip is normalised as in one pass over the clip: by the mean and variance of all samples
(LARGE), of all outputs of the first convolution (the group norm of BASE), or of all mel bins (w2v-BERT). They
are known once the whole clip has been read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from speech_ssl.model.config import EncoderConfig, LogMel
from speech_ssl.types import Moments, Waveform

BLOCK_SAMPLES = 1 << 16


@dataclass(frozen=True, slots=True)
class Meter:
    """What is measured: `size` samples every `stride` samples or, if `bins` is not 0, the energies of `bins`
    bands in them.

    For a convolution, the moments of the samples under its kernel are enough: it is linear, so the moments of
    its outputs follow from them.
    """

    size: int = 1
    stride: int = 1
    bins: int = 0

    @classmethod
    def of(cls, config: EncoderConfig) -> Meter | None:
        """The meter for an encoder; None if its front end does not normalise over time."""
        if isinstance(frontend := config.frontend, LogMel):
            from speech_ssl.model.frontends.mel import STEP, WINDOW

            return cls(WINDOW, STEP, frontend.bins)
        if frontend.norm == "group":
            return cls(frontend.kernels[0], frontend.strides[0])
        return cls() if frontend.normalize_wave else None

    def measured(self, blocks: Iterable[Waveform]) -> Moments:
        """The moments of a whole clip."""
        level = Level(self)
        for block in blocks:
            level.add(block)
        return level.moments

    def rows(self, wave: Waveform) -> NDArray[np.floating]:
        if self.bins:
            import torch

            from speech_ssl.model.frontends.mel import log_mel

            with torch.inference_mode():
                return np.asarray(log_mel(torch.from_numpy(wave)[None].double(), self.bins)[0])
        return sliding_window_view(wave, self.size)[:: self.stride]


class Level:
    """The moments of a clip so far. Blocks may have any size."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._rest: Waveform = np.empty(0, dtype=np.float32)  # samples from the next row on
        self._before = 0  # samples until the next row begins
        width = meter.bins or meter.size
        self.moments = Moments.of(np.empty((0, width)))

    def add(self, wave: Waveform) -> None:
        for start in range(0, len(wave), BLOCK_SAMPLES):
            self._add(wave[start : start + BLOCK_SAMPLES])

    def _add(self, block: Waveform) -> None:
        meter = self._meter
        block, self._before = block[self._before :], max(self._before - len(block), 0)
        heard = np.concatenate([self._rest, block]) if len(self._rest) else block
        count = max((len(heard) - meter.size) // meter.stride + 1, 0)
        if count:
            self.moments += Moments.of(meter.rows(heard))
        self._rest = heard[count * meter.stride :].copy()
        self._before += max(count * meter.stride - len(heard), 0)
