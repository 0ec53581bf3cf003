"""Log-probabilities of units, for vocabularies so large that an hour of them would fill the memory.

A model for 1,600 languages has 10,000 units, of which a frame makes a few probable at most. Everything that
reads them (the best path, a beam search, the times of a text that one of the two found) needs only those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

WHOLE = 256
"""Vocabularies of up to this many units are kept whole: at most 1 kB per frame."""
KEPT = 64
"""For larger ones, this many units are kept per frame: 0.4 kB."""
LEAST_REST = 1e-10
Rows: TypeAlias = NDArray[np.float32] | NDArray[np.integer]


@dataclass(frozen=True, slots=True, eq=False)
class TopUnits:
    """The most probable units of each frame.

    units_TK, log_probs_TK: the best first. blank_T: of unit 0, whether it is among them or not. rest_T: the
    average of each other unit. size: V, the units of the vocabulary.
    """

    units_TK: NDArray[np.integer]
    log_probs_TK: NDArray[np.float32]
    blank_T: NDArray[np.float32]
    rest_T: NDArray[np.float32]
    size: int

    @classmethod
    def of(
        cls,
        units_TK: NDArray[np.integer],
        log_probs_TK: NDArray[np.float32],
        blank_T: NDArray[np.float32],
        size: int,
    ) -> TopUnits:
        rest_T = 1 - np.exp(log_probs_TK, dtype=np.float64).sum(axis=1)
        rest_T = np.log(np.maximum(rest_T, LEAST_REST) / max(size - units_TK.shape[1], 1))
        rest_T = np.minimum(rest_T, log_probs_TK[:, -1]).astype(np.float32)
        return cls(units_TK.astype(np.min_scalar_type(size)), log_probs_TK, blank_T, rest_T, size)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.size

    @property
    def rows(self) -> list[Rows]:
        """All arrays with a row for each frame."""
        return [self.units_TK, self.log_probs_TK, self.blank_T, self.rest_T]

    def of_rows(self, rows: Iterable[Any]) -> TopUnits:
        """A copy with these arrays in place of `rows`, for other frames."""
        units_TK, log_probs_TK, blank_T, rest_T = rows
        return replace(self, units_TK=units_TK, log_probs_TK=log_probs_TK, blank_T=blank_T, rest_T=rest_T)

    def __len__(self) -> int:
        return len(self.units_TK)

    def __getitem__(self, frames: slice) -> TopUnits:
        return self.of_rows(array[frames] for array in self.rows)

    def dense(self) -> NDArray[np.float32]:
        """(T, V): use it for parts of a recording."""
        log_probs_TV = np.repeat(self.rest_T[:, None], self.size, axis=1)
        log_probs_TV[:, 0] = self.blank_T
        np.put_along_axis(log_probs_TV, self.units_TK.astype(np.intp), self.log_probs_TK, axis=1)
        return log_probs_TV


Outputs: TypeAlias = NDArray[np.float32] | TopUnits
"""A head's outputs: (T, O), or the most probable units of a large vocabulary."""


def dense(outputs: Outputs) -> NDArray[np.float32]:
    return outputs.dense() if isinstance(outputs, TopUnits) else outputs


def blanks(outputs: Outputs) -> NDArray[np.float32]:
    """The log-probabilities of unit 0 (T,)."""
    return outputs.blank_T if isinstance(outputs, TopUnits) else outputs[:, 0]


def best_path(outputs: Outputs) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The most probable unit of each frame, and its log-probability: (T,) each."""
    if isinstance(outputs, TopUnits):
        return outputs.units_TK[:, 0].astype(np.intp), outputs.log_probs_TK[:, 0]
    path_T = outputs.argmax(axis=1)
    return path_T, outputs[np.arange(len(path_T)), path_T]


def numbers(outputs: Outputs) -> NDArray[np.float32]:
    """The values that came from the head, to be checked."""
    return outputs.log_probs_TK if isinstance(outputs, TopUnits) else outputs
