"""The windowed pass: clips are cut into windows, batched by length and run; each clip is stitched from its
windows.

`chunking` cuts the windows. The engine takes waves and returns a WindowOutput for each. Code with its own
queue in between, such as the service, uses only the Stitcher.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from speech_ssl.inference.chunking import Window
from speech_ssl.inference.units import Rows
from speech_ssl.inference.window_output import Layers, WindowOutput
from speech_ssl.types import SAMPLE_RATE, AudioWarning, Levels, Pooling, Waveform

BATCH_S = {"cpu": 20.0, "cuda": 160.0}
"""Padded seconds in a pass, by device type."""
LOOKAHEAD = 8
"""Audio, in batches, that is gathered to group it by length."""

PoolingOrNone: TypeAlias = Pooling | Literal["none"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One window of a clip, with its samples, for batching. `clip` and `index` say where it belongs."""

    clip: int
    index: int
    window: Window
    wave: Waveform


@dataclass(frozen=True, slots=True)
class ClipOutput:
    """The model's output for a whole clip, and problems of its audio."""

    passed: WindowOutput
    duration_s: float
    warnings: tuple[AudioWarning, ...] = ()


class Run(Protocol):
    """One padded pass, such as `TorchEngine.run` and `Runtime.run_windows`."""

    def __call__(
        self,
        waves: Sequence[Waveform],
        layers: Sequence[Layers],
        heads: Sequence[str] = (),
        levels: Levels | None = None,
        units: Sequence[int] | None = None,
    ) -> list[WindowOutput]: ...


@dataclass(frozen=True, slots=True)
class WindowedPass:
    """What to compute for windows, and how to batch them.

    layer, heads, units: requested for each window, as in `TorchEngine.run`. batch_s: padded seconds in a
    batch; lookahead_s: seconds of audio that are gathered to group it by length.
    """

    run: Run
    layer: Layers
    heads: Sequence[str] = ()
    units: Sequence[int] | None = None
    batch_s: float = BATCH_S["cpu"]
    lookahead_s: float = LOOKAHEAD * BATCH_S["cpu"]

    def over(self, pieces: Iterable[Piece]) -> Iterator[tuple[Piece, WindowOutput]]:
        """Each piece with the output of its window, in the order of the batches."""
        for batch in batches(pieces, budget_s=self.batch_s, lookahead_s=self.lookahead_s):
            waves, levels = [piece.wave for piece in batch], [piece.window.level for piece in batch]
            passed = self.run(waves, [self.layer] * len(batch), self.heads, levels, self.units)
            yield from zip(batch, passed, strict=True)

    def in_order(self, windows: Iterable[tuple[Window, Waveform]]) -> Iterator[WindowOutput]:
        """The outputs of one clip's windows in order, without overlaps."""
        early: dict[int, WindowOutput] = {}
        following = 0
        for piece, passed in self.over(pieces([windows])):
            early[piece.index] = passed.kept(piece.window.skip, piece.window.keep)
            while following in early:
                yield early.pop(following)
                following += 1

    def stitched(
        self, clips: Sequence[Iterable[tuple[Window, Waveform]]], pooling: PoolingOrNone = "none"
    ) -> list[Stitcher]:
        """The stitcher of each clip, with all its windows."""
        stitchers = [Stitcher(pooling) for _ in clips]
        for piece, passed in self.over(pieces(clips)):
            stitchers[piece.clip].add(piece.window, passed)
        return stitchers


def pieces(clips: Iterable[Iterable[tuple[Window, Waveform]]]) -> Iterator[Piece]:
    for number, windows in enumerate(clips):
        for index, (window, wave) in enumerate(windows):
            yield Piece(number, index, window, wave)


def batches(pieces: Iterable[Piece], *, budget_s: float, lookahead_s: float) -> Iterator[list[Piece]]:
    """Group pieces into batches of at most `budget_s`, padded to their longest.

    Up to `lookahead_s` of audio are gathered and sorted by length before they are cut into batches. A piece
    longer than the budget is a batch of its own.
    """
    held: list[Piece] = []
    seconds = 0.0
    for piece in pieces:
        held.append(piece)
        seconds += piece.window.seconds
        if seconds >= lookahead_s:
            yield from _cut(held, budget_s)
            held, seconds = [], 0.0
    yield from _cut(held, budget_s)


def _cut(pieces: list[Piece], budget_s: float) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    for piece in sorted(pieces, key=lambda p: len(p.wave), reverse=True):
        if batch and batch[0].window.seconds * (len(batch) + 1) > budget_s:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


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
