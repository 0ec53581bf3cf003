"""Batches of similar length, measured in padded seconds of audio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from speech_ssl.inference.chunking import Window
from speech_ssl.types import Waveform


@dataclass(frozen=True, slots=True)
class Piece:
    """One window of a clip, with its samples: what is batched. `clip` and `index` say where it belongs."""

    clip: int
    index: int
    window: Window
    wave: Waveform


def batches(pieces: Iterable[Piece], *, budget_s: float, lookahead_s: float) -> Iterator[list[Piece]]:
    """Group pieces so that a batch, padded to its longest, costs at most `budget_s`.

    Up to `lookahead_s` of audio are gathered and sorted by length before they are cut into batches. A
    piece longer than the budget is a batch of its own.
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
