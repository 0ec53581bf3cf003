"""The output of one pass of the encoder and its heads for one wave."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speech_ssl.inference.ctc.word_times import Loudness
from speech_ssl.inference.units import Outputs, Rows, TopUnits

Layers: TypeAlias = int | tuple[int, ...] | None
"""The layer, 0 to N, whose frames are requested, or several; None: no frames."""
NO_FRAMES: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)


class WindowOutput(NamedTuple):
    """The output of one pass for one wave."""

    frames: NDArray[np.float32]
    """At the wave's own layer: (T, D); at its own L layers: (T, L, D)."""
    heads: Mapping[str, Outputs]
    """Outputs of each requested head: (T, O), or the most probable units of a large vocabulary."""
    loudness: Loudness = NO_FRAMES
    """Mean square of the samples around each frame's middle, by parts of a hop: (T, E). Used for the times of
    words; empty without heads."""

    @property
    def rows(self) -> list[Rows]:
        """All arrays with a row for each frame, or with none at all."""
        outputs = (x.rows if isinstance(x, TopUnits) else [x] for x in self.heads.values())
        return [self.frames, self.loudness, *(array for arrays in outputs for array in arrays)]

    def of_rows(self, rows: Iterable[Rows]) -> WindowOutput:
        """A copy with these arrays in place of `rows`, for other frames."""
        frames, loudness, *others = rows
        rest = iter(others)
        heads = {
            name: x.of_rows(next(rest) for _ in x.rows) if isinstance(x, TopUnits) else next(rest)
            for name, x in self.heads.items()
        }
        return WindowOutput(frames, heads, loudness)  # type: ignore[arg-type]

    def kept(self, skip: int, keep: int) -> WindowOutput:
        """`keep` frames from `skip` on."""
        return self.of_rows(rows[skip : skip + keep] if len(rows) else rows for rows in self.rows)

    def only(self, heads: Sequence[str]) -> WindowOutput:
        """The part of a shared pass that one request needs."""
        loudness = self.loudness if heads else NO_FRAMES
        return self._replace(heads={name: self.heads[name] for name in heads}, loudness=loudness)

    def without_frames(self) -> WindowOutput:
        """The heads' outputs alone: the frames of hours would fill the memory."""
        return self._replace(frames=NO_FRAMES)

    @property
    def numbers(self) -> list[Rows]:
        """The values that came from the heads."""
        return [rows for rows in self.rows[2:] if rows.dtype == np.float32]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.rows)

    @staticmethod
    def joined(parts: Sequence[WindowOutput]) -> WindowOutput:
        """Concatenated over time."""
        if len(parts) == 1:
            return parts[0]
        return parts[0].of_rows(
            np.concatenate(arrays) for arrays in zip(*(p.rows for p in parts), strict=True)
        )
