"""A request's clips on their way through the model: what is wanted of them, and what comes back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import ServiceError
from speech_ssl.audio import AudioWarning
from speech_ssl.inference.card import ModelCard, PassRequest
from speech_ssl.inference.chunking import Window
from speech_ssl.inference.outputs import ClipOutput, Stitcher, WindowOutput
from speech_ssl.inference.units import Rows
from speech_ssl.types import Moments, Waveform

FRAME_BYTES = 4
"""Of each number of a vector."""
LOUDNESS_BYTES, TEXT_BYTES = 16, 32
"""For each frame; of words, their times and their probabilities as JSON 50 frames have a kilobyte."""
Vectors: TypeAlias = NDArray[np.float32]
Windows: TypeAlias = deque[tuple[Window, "Future[WindowOutput]"]]


def clip_bytes(card: ModelCard, wanted: PassRequest, plan: Sequence[Window]) -> int:
    """Of what is held for a clip until its answer is made, and of the text of that."""
    of_frame = LOUDNESS_BYTES + TEXT_BYTES + sum(map(card.output_bytes, wanted.heads))
    if wanted.holds_frames:
        of_frame += FRAME_BYTES * card.width
    return FRAME_BYTES * card.width + of_frame * sum(window.keep for window in plan)


@dataclass(frozen=True)
class WindowTask:
    """One window's way through the model. level: as `Window.level`."""

    wave: Waveform
    layer: int | None
    heads: tuple[str, ...]
    level: Moments | None = None


@dataclass(frozen=True)
class ClipResult:
    """What was wanted of one clip. vectors: (D,) pooled, (T, D) frames. whole: the heads' outputs. warnings:
    of its file."""

    vectors: Vectors | None
    whole: ClipOutput
    warnings: Sequence[AudioWarning] = ()


@dataclass(frozen=True)
class QueuedClip:
    """A clip whose windows are queued. name: for error messages."""

    name: str
    windows: Windows
    warnings: Sequence[AudioWarning] = ()

    async def passed(self) -> AsyncIterator[tuple[Window, WindowOutput]]:
        """Its windows' results in order; each can be had once."""
        while self.windows:
            window, future = self.windows.popleft()
            try:
                yield window, await asyncio.wrap_future(future)
            except ValueError as error:
                raise ServiceError(422, "unprocessable", str(error), param=self.name) from error

    async def parts(self) -> AsyncIterator[WindowOutput]:
        """The same without what overlaps."""
        async for window, passed in self.passed():
            yield passed.kept(window.skip, window.keep)

    async def heard(self, wanted: PassRequest) -> ClipResult:
        """Pooled as windows come in: the frames of a long clip are never held together."""
        stitcher = Stitcher(wanted.pooling, frames=sum(window.keep for window, _ in self.windows))
        async for window, passed in self.passed():
            part = stitcher.add(window, passed)
            self.check([*part.numbers, part.frames])
        vectors = None if wanted.layer is None else stitcher.vectors
        self.check([] if vectors is None or vectors.ndim > 1 else [vectors])
        whole = stitcher.clip()
        return ClipResult(vectors, replace(whole, passed=whole.passed.without_frames()), self.warnings)

    def check(self, arrays: Sequence[Rows]) -> None:
        if not all(np.isfinite(array).all() for array in arrays):
            raise ServiceError(422, "bad_samples", "the model's answer is not finite", param=self.name)
