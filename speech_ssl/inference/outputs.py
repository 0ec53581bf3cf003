"""What a pass of the encoder and its heads gives for a window, and a clip put together of its windows."""

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
"""The layer, 0 to N, of which frames are wanted, or several; None: no frames."""
PoolingOrNone: TypeAlias = Pooling | Literal["none"]
NO_FRAMES: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)


class WindowOutput(NamedTuple):
    """What one pass gives for one wave."""

    frames: NDArray[np.float32]
    """Of the wave's own layer: (T, D); of its own L layers: (T, L, D)."""
    heads: Mapping[str, Outputs]
    """Outputs of each head that was asked for: (T, O), or the likeliest units of a large vocabulary."""
    loudness: Loudness = NO_FRAMES
    """Mean square of the samples around each frame's middle, by parts of a hop: (T, E). Empty without
    heads: it is what tells words apart where they meet."""

    @property
    def rows(self) -> list[Rows]:
        """All that has a row for each frame, or has none at all."""
        outputs = (x.rows if isinstance(x, TopUnits) else [x] for x in self.heads.values())
        return [self.frames, self.loudness, *(array for arrays in outputs for array in arrays)]

    def of_rows(self, rows: Iterable[Rows]) -> WindowOutput:
        """The same of other frames: with these in the place of `rows`."""
        frames, loudness, *others = rows
        rest = iter(others)
        heads = {
            name: x.of_rows(next(rest) for _ in x.rows) if isinstance(x, TopUnits) else next(rest)
            for name, x in self.heads.items()
        }
        return WindowOutput(frames, heads, loudness)  # type: ignore[arg-type]

    def kept(self, skip: int, keep: int) -> WindowOutput:
        """The frames from `skip` on, `keep` of them."""
        return self.of_rows(rows[skip : skip + keep] if len(rows) else rows for rows in self.rows)

    def only(self, heads: Sequence[str]) -> WindowOutput:
        """What one wanted of a pass that others shared."""
        loudness = self.loudness if heads else NO_FRAMES
        return self._replace(heads={name: self.heads[name] for name in heads}, loudness=loudness)

    def without_frames(self) -> WindowOutput:
        """The heads' outputs alone: frames of hours would fill the memory."""
        return self._replace(frames=NO_FRAMES)

    @property
    def numbers(self) -> list[Rows]:
        """Those that the heads gave."""
        return [rows for rows in self.rows[2:] if rows.dtype == np.float32]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.rows)

    @staticmethod
    def joined(parts: Sequence[WindowOutput]) -> WindowOutput:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        return parts[0].of_rows(
            np.concatenate(arrays) for arrays in zip(*(p.rows for p in parts), strict=True)
        )


@dataclass(frozen=True, slots=True)
class ClipOutput:
    """What the model gave for a whole clip, and what is wrong with its audio."""

    passed: WindowOutput
    duration_s: float
    warnings: tuple[AudioWarning, ...] = ()


class Stitcher:
    """A clip, put together of what its windows gave, which may come in any order.

    pooling: of the frames, which are then not held; "none": they are kept. frames: how many the clip has in
    all, for whoever knows that and adds its windows in order: each is copied to its place, so that no more is
    held than the result. Of windows that are held no more is than what counts of them.
    """

    def __init__(self, pooling: PoolingOrNone = "none", *, frames: int | None = None) -> None:
        self._pool = None if pooling == "none" else Pool(pooling)
        self._place = None if frames is None else _Place(frames)
        self._parts: dict[int, WindowOutput] = {}  # by where their windows begin
        self._stop = 0
        self.windows = self.frames = 0
        """That have been added."""

    def add(self, window: Window, passed: WindowOutput) -> WindowOutput:
        """What a window gave; of a window that was added before it takes the place, but where frames are
        pooled. Returns what counts of it."""
        counting = held = passed.kept(window.skip, window.keep)
        self.windows, self.frames = self.windows + 1, self.frames + window.keep
        self._stop = max(self._stop, window.stop)
        if self._pool is not None:
            self._pool.add(counting.frames)
            held = counting.without_frames()
        if self._place is not None:
            self._place.add(held)
            return counting
        if max(map(len, passed.rows)) > window.keep:  # what does not count is not to be held with it
            held = held.of_rows(rows.copy() for rows in held.rows)
        self._parts[window.start] = held
        return held if self._pool is None else counting

    @property
    def parts(self) -> list[WindowOutput]:
        """Those that are held, in the order of the clip."""
        return [self._parts[start] for start in sorted(self._parts)]

    @property
    def output(self) -> WindowOutput:
        """Of the whole clip; pooled frames are not in it."""
        return WindowOutput.joined(self.parts) if self._place is None else self._place.result()

    def clip(self, warnings: Sequence[AudioWarning] = ()) -> ClipOutput:
        return ClipOutput(self.output, self._stop / SAMPLE_RATE, tuple(warnings))

    @property
    def pooled(self) -> NDArray[np.float32]:
        """(D,), of several layers (L, D). Raises ValueError if nothing was added."""
        assert self._pool is not None
        return self._pool.result()

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(D,) pooled, else all frames (T, D)."""
        return self.output.frames if self._pool is None else self.pooled


class _Place:
    """For so many frames in all."""

    def __init__(self, frames: int) -> None:
        self._frames, self._at = frames, 0
        self._whole: list[Rows] = []
        self._first: WindowOutput | None = None

    def add(self, part: WindowOutput) -> None:
        """The next. All parts have the same layer and heads."""
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
        assert self._first is not None and self._at in (0, self._frames)  # 0: there is nothing of any frame
        return self._first.of_rows(self._whole)


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
        """Further frames (T, D), or (T, L, D) of several layers, in any order; T may be 0."""
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
        """The vector (D,), or (L, D), for all frames added."""
        if self._state is None:
            raise ValueError("nothing to pool: no frames were added")
        vector = self._state / self.count if self.how == "mean" else self._state
        return vector.astype(np.float32)
