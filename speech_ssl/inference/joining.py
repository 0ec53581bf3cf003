"""Windows of a clip into one, without holding it twice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from speech_ssl.inference.units import Outputs, TopUnits
from speech_ssl.inference.window_output import WindowOutput

Rows = NDArray[np.float32] | NDArray[np.integer]


class Joining:
    """As `WindowOutput.joined`, of parts that come one by one and have so many frames in all.

    Each is copied to its place and not kept: that would be the whole windows that they were cut from, and all
    again when joined."""

    def __init__(self, frames: int) -> None:
        self._frames, self._at = frames, 0
        self._first: WindowOutput | None = None
        self._whole: list[Rows] = []

    def add(self, part: WindowOutput) -> None:
        """The next. All parts have the same layer and heads."""
        rows = list(_rows_of(part))
        if self._first is None:
            self._first = part
            self._whole = [
                np.empty((self._frames, *each.shape[1:]), each.dtype) if len(each) else each for each in rows
            ]
        count = max(map(len, rows), default=0)
        assert self._at + count <= self._frames
        for whole, each in zip(self._whole, rows, strict=True):
            if len(each):
                whole[self._at : self._at + count] = each
        self._at += count

    def result(self) -> WindowOutput:
        """Of all that have been added."""
        assert self._first is not None and self._at in (0, self._frames)  # 0: there is nothing of any frame
        frames, loudness, *others = self._whole
        rest = iter(others)
        heads = {name: _filled(outputs, rest) for name, outputs in self._first.heads.items()}
        return WindowOutput(frames, heads, loudness)  # type: ignore[arg-type]


def _rows_of(part: WindowOutput) -> Iterator[Rows]:
    """All that has a row for each frame."""
    yield part.frames
    yield part.loudness
    for outputs in part.heads.values():
        if isinstance(outputs, TopUnits):
            yield from (outputs.units_TK, outputs.log_probs_TK, outputs.blank_T, outputs.rest_T)
        else:
            yield outputs


def _filled(like: Outputs, rows: Iterator[Rows]) -> Outputs:
    if isinstance(like, TopUnits):
        return TopUnits(next(rows), next(rows), next(rows), next(rows), like.size)  # type: ignore[arg-type]
    return next(rows)  # type: ignore[return-value]
