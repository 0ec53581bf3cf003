"""Whether channels cancel each other out in their mean, as those of a wrongly wired microphone do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CANCELLED = 0.01
"""With a smaller share of the channels' energy in the mean, they cancel out. Sixteen uncorrelated channels
leave a sixteenth."""
AUDIBLE = 1e-3
"""Least share of the energy that is not a constant offset: with less, rounding would decide."""


class PhaseMeter:
    """Sums over blocks, without offsets, which do not cancel where the audio does."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._energy = self._mean_energy = 0.0
        self._sum_C = np.zeros(channels)

    def add(self, block_SC: NDArray[np.float32], mean_S: NDArray[np.float32]) -> None:
        if len(self._sum_C) < 2:
            return
        self._count += len(block_SC)
        # Not by BLAS, which takes memory that the service's decoders may not have.
        self._energy += float(np.einsum("sc,sc->", block_SC, block_SC, dtype=np.float64))
        self._mean_energy += float(np.einsum("s,s->", mean_S, mean_S, dtype=np.float64))
        self._sum_C += block_SC.sum(axis=0, dtype=np.float64)

    @property
    def cancelled(self) -> bool:
        channels = len(self._sum_C)
        if not self._count:
            return False
        energy = (self._energy - float(self._sum_C @ self._sum_C) / self._count) / channels
        mean_energy = self._mean_energy - float(self._sum_C.mean()) ** 2 / self._count
        return energy * channels > AUDIBLE * self._energy and mean_energy < CANCELLED * energy
