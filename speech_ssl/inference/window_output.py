"""What a pass of the encoder and its heads gives for one wave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from speech_ssl.inference.units import Outputs, joined, numbers
from speech_ssl.inference.word_times import Loudness

NO_FRAMES: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)


class WindowOutput(NamedTuple):
    """What one pass gives for one wave."""

    frames: NDArray[np.float32]
    """Of the wave's own layer: (T, D)."""
    heads: Mapping[str, Outputs]
    """Outputs of each head that was asked for: (T, O), or the likeliest units of a large vocabulary."""
    loudness: Loudness = NO_FRAMES
    """Mean square of the samples around each frame's middle, by parts of a hop: (T, E). Empty without
    heads: it is what tells words apart where they meet."""

    def kept(self, skip: int, keep: int) -> WindowOutput:
        """The frames from `skip` on, `keep` of them."""
        rows = slice(skip, skip + keep)
        heads = {name: x_TO[rows] for name, x_TO in self.heads.items()}
        return WindowOutput(self.frames[rows], heads, self.loudness[rows])

    def only(self, heads: Sequence[str]) -> WindowOutput:
        """What one wanted of a pass that others shared."""
        loudness = self.loudness if heads else NO_FRAMES
        return self._replace(heads={name: self.heads[name] for name in heads}, loudness=loudness)

    def without_frames(self) -> WindowOutput:
        """The heads' outputs alone: frames of hours would fill the memory."""
        return self._replace(frames=NO_FRAMES)

    @property
    def numbers(self) -> list[NDArray[np.float32]]:
        """Those that the heads gave."""
        return [numbers(outputs) for outputs in self.heads.values()]

    @property
    def nbytes(self) -> int:
        return self.frames.nbytes + self.loudness.nbytes + sum(x.nbytes for x in self.heads.values())

    @staticmethod
    def joined(parts: Sequence[WindowOutput]) -> WindowOutput:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        heads = {name: joined([part.heads[name] for part in parts]) for name in parts[0].heads}
        frames = np.concatenate([part.frames for part in parts])
        return WindowOutput(frames, heads, np.concatenate([part.loudness for part in parts]))
