"""The windowed pass: clips are cut into windows, batched by length and run; each clip is stitched from its
windows.

`chunking` cuts the windows. The engine takes waves and returns a WindowOutput for each. Code with its own
queue in between, such as the service, uses only the Stitcher of `outputs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from speech_ssl.inference.chunking import Window
from speech_ssl.inference.outputs import Layers, PoolingOrNone, Stitcher, WindowOutput
from speech_ssl.types import Levels, Waveform

BATCH_S = {"cpu": 20.0, "cuda": 160.0}
"""Padded seconds in a pass, by device type."""
LOOKAHEAD = 8
"""Audio, in batches, that is gathered to group it by length."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One window of a clip, with its samples, for batching. `clip` and `index` say where it belongs."""

    clip: int
    index: int
    window: Window
    wave: Waveform


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
