"""One vector for a clip, from its frames as they come."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from speech_ssl.types import Pooling


class Pool:
    """Mean or maximum over all frames added so far, in memory that does not grow.

    The mean is summed in float64: the order and the size of the pieces make no difference.
    """

    def __init__(self, how: Pooling) -> None:
        if how not in get_args(Pooling):
            raise ValueError(f"pooling must be 'mean' or 'max', not {how!r}")
        self.how = how
        self.count = 0
        self._state: NDArray[np.float64] | None = None

    def add(self, frames: NDArray[np.float32]) -> None:
        """Further frames (T, D), in any order; T may be 0."""
        if not len(frames):
            return
        self.count += len(frames)
        if self.how == "mean":
            piece = frames.sum(axis=0, dtype=np.float64)
            self._state = piece if self._state is None else self._state + piece
        else:
            piece = frames.max(axis=0).astype(np.float64)
            self._state = piece if self._state is None else np.maximum(self._state, piece)

    def result(self) -> NDArray[np.float32]:
        """The vector (D,) for all frames added."""
        if self._state is None:
            raise ValueError("nothing to pool: no frames were added")
        vector = self._state / self.count if self.how == "mean" else self._state
        return vector.astype(np.float32)
