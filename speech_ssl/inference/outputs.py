"""The output of a pass of the encoder and its heads for a window, and a clip stitched from its windows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from speech_ssl.inference.chunking import Window
from speech_ssl.inference.ctc.word_times import Loudness
from speech_ssl.inference.units import Outputs, Rows, TopUnits
from speech_ssl.types import SAMPLE_RATE, AudioWarning, Pooling

Layers: TypeAlias = int | tuple[int, ...] | None
"""The layer, 0 to N, whose frames are requested, or several; None: no frames."""
PoolingOrNone: TypeAlias = Pooling | Literal["none"]
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


@dataclass(frozen=True, slots=True)
class ClipOutput:
    """The model's output for a whole clip, and problems of its audio."""

    passed: WindowOutput
    duration_s: float
    warnings: tuple[AudioWarning, ...] = ()


class Stitcher:
    """Stitches a clip from the outputs of its windows, which may come in any order.

    pooling: of the frames, which are then not kept; "none" keeps them. frames: the clip's total, for callers
    that know it and add windows in order: each is copied to its place, so that memory holds no more than the
    result. Of other windows, only the frames that count are kept.
    """

    def __init__(self, pooling: PoolingOrNone = "none", *, frames: int | None = None) -> None:
        self._pool = None if pooling == "none" else Pool(pooling)
        self._place = None if frames is None else _Place(frames)
        self._parts: dict[int, WindowOutput] = {}  # by the start of their windows
        self._stop = 0
        self.windows = self.frames = 0
        """Windows and frames added."""

    def add(self, window: Window, passed: WindowOutput) -> WindowOutput:
        """Add a window's output and return the part of it that counts. A window added before is replaced,
        unless frames are pooled."""
        counting = held = passed.kept(window.skip, window.keep)
        self.windows, self.frames = self.windows + 1, self.frames + window.keep
        self._stop = max(self._stop, window.stop)
        if self._pool is not None:
            self._pool.add(counting.frames)
            held = counting.without_frames()
        if self._place is not None:
            self._place.add(held)
            return counting
        if max(map(len, passed.rows)) > window.keep:  # do not keep the dropped frames in memory
            held = held.of_rows(rows.copy() for rows in held.rows)
        self._parts[window.start] = held
        return held if self._pool is None else counting

    @property
    def parts(self) -> list[WindowOutput]:
        """The kept outputs, in the order of the clip."""
        return [self._parts[start] for start in sorted(self._parts)]

    @property
    def output(self) -> WindowOutput:
        """The output for the whole clip, without pooled frames."""
        return WindowOutput.joined(self.parts) if self._place is None else self._place.result()

    def clip(self, warnings: Sequence[AudioWarning] = ()) -> ClipOutput:
        return ClipOutput(self.output, self._stop / SAMPLE_RATE, tuple(warnings))

    @property
    def pooled(self) -> NDArray[np.float32]:
        """(D,), or with several layers (L, D). Raises ValueError if nothing was added."""
        assert self._pool is not None
        return self._pool.result()

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(D,) if pooled, else all frames (T, D)."""
        return self.output.frames if self._pool is None else self.pooled


class _Place:
    """The output of a clip with a known number of frames, filled in order."""

    def __init__(self, frames: int) -> None:
        self._frames, self._at = frames, 0
        self._whole: list[Rows] = []
        self._first: WindowOutput | None = None

    def add(self, part: WindowOutput) -> None:
        """Add the next part. All parts have the same layer and heads."""
        if self._first is None:
            self._first = part
            self._whole = [
                np.empty((self._frames, *rows.shape[1:]), rows.dtype) if len(rows) else rows
                for rows in part.rows
            ]
        count = max(map(len, part.rows))
        assert self._at + count <= self._frames
        for whole, rows in zip(self._whole, part.rows, strict=True):
            if len(rows):
                whole[self._at : self._at + count] = rows
        self._at += count

    def result(self) -> WindowOutput:
        assert self._first is not None and self._at in (0, self._frames)  # 0: no array has frames
        return self._first.of_rows(self._whole)


class Pool:
    """Mean or maximum over all frames added so far; memory does not grow.

    The mean is summed in float64: the order and size of the pieces make no difference.
    """

    def __init__(self, how: Pooling) -> None:
        if how not in get_args(Pooling):
            raise ValueError(f"pooling must be 'mean' or 'max', not {how!r}")
        self.how = how
        self.count = 0
        self._state: NDArray[np.float64] | None = None

    def add(self, frames: NDArray[np.float32]) -> None:
        """Add frames (T, D), or (T, L, D) with several layers, in any order; T may be 0."""
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
        """The vector (D,), or (L, D), over all frames added."""
        if self._state is None:
            raise ValueError("nothing to pool: no frames were added")
        vector = self._state / self.count if self.how == "mean" else self._state
        return vector.astype(np.float32)
