"""A clip that is still being said: its windows run as soon as later audio cannot change their bounds.

A model that normalises a clip by what is in all of it hears these windows at the level of the audio so far,
SETTLED_S of it at least, and again at the level of the whole clip when that has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from tempfile import SpooledTemporaryFile
from typing import IO

import numpy as np

from service.batcher import Overloaded
from service.batches import Ticket
from service.models.clips import Windows, WindowTask, clip_bytes
from service.models.engine import Engine
from service.models.model import Model
from service.record import current
from speech_ssl.audio import AudioError
from speech_ssl.inference.card import PassRequest
from speech_ssl.inference.chunking import Window
from speech_ssl.inference.levels import Level
from speech_ssl.inference.outputs import ClipOutput, Stitcher, WindowOutput
from speech_ssl.types import SAMPLE_RATE, Moments, Waveform

logger = logging.getLogger(__name__)

SETTLED_S = 30.0
"""Of audio, after which its level changes slowly."""
SAMPLE_BYTES = 4
IN_MEMORY = 1 << 20
"""Bytes of a stream, to be heard again; the rest is in a temporary file."""
AT_ONCE = 8
"""Windows of a stream that are heard again."""


class Live:
    """What is run and kept of a stream. The windows, and so the answers, are those of the finished clip: only
    the last two of a plan depend on how long the clip will be. To be closed at its end."""

    def __init__(
        self, engine: Engine, model: Model, ticket: Ticket[WindowTask, WindowOutput], wanted: PassRequest
    ) -> None:
        self._model, self._ticket, self._wanted = model, ticket, wanted
        self._reserve = engine.reserving(ticket)
        self._held = current().held
        # Events are told of all that has been heard, from a copy of it.
        self._copies = 1 + (wanted.sounds is not None)
        self._most_s = engine.settings.max_clip_s
        self._blocks: list[Waveform] = []
        self._begin = 0  # of the blocks, in samples of the clip
        self._submitted = 0
        self._windows: Windows = deque()
        self._stitcher = Stitcher()
        self._heard: list[Window] = []  # that are in it
        self._level = None if (meter := model.card.meter) is None else Level(meter)
        self._all: IO[bytes] = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - see `close`
        self._all_there = True
        self.samples = 0
        self.heard_out = asyncio.Event()
        self.changed = asyncio.Event()

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    @property
    def ended(self) -> bool:
        return self.heard_out.is_set()

    @property
    def waiting_s(self) -> float:
        """Of audio that is in no window yet."""
        return (self.samples - self._begin) / SAMPLE_RATE

    def add(self, block: Waveform) -> None:
        """Raises AudioError `too_long`, Overloaded, TooLarge, Stopped."""
        if self.seconds + len(block) / SAMPLE_RATE > self._most_s:
            raise AudioError("too_long", f"longer than {self._most_s:g} s")
        self._reserve(len(block) / SAMPLE_RATE)
        self._blocks.append(block)
        self.samples += len(block)
        if self._level is not None:
            self._level.add(block)
            self._remember(block)
        if self._level is None or self.seconds >= SETTLED_S:
            self._submit(self._plan()[self._submitted : -2])
        self.changed.set()

    def _remember(self, block: Waveform) -> None:
        try:
            self._all.write(block.astype("<f4", copy=False).data)
        except OSError as error:  # a full disk: nothing can be heard again, and the rest goes on
            if self._all_there:
                logger.error("a stream cannot be kept: %s", error)
            self._all_there = False

    def end(self) -> None:
        """Raises AudioError `too_short`."""
        self._submit(self._levelled(self._model.card.plan(self.samples))[self._submitted :])
        self.heard_out.set()
        self.changed.set()

    @property
    def running(self) -> bool:
        """Whether there is a window whose result can be waited for."""
        return bool(self._windows)

    async def next_part(self) -> WindowOutput:
        """The next window's, without what overlaps; kept for the end."""
        window, future = self._windows.popleft()
        part = self._stitcher.add(window, await asyncio.wrap_future(future))
        self._heard.append(window)
        return part

    async def tentative(self) -> list[WindowOutput] | None:
        """What the rest would give if the clip ended here; None if it is too short or the queue is full."""
        windows = self._plan()[self._submitted :]
        if not windows or not self._wanted.heads:
            return None
        waves = [self._wave(window) for window in windows]
        with self._model.ticket() as ticket:
            try:
                ticket.reserve(sum(len(wave) for wave in waves) / SAMPLE_RATE)
            except Overloaded:
                return None
            running = [self._run(ticket, wave, window) for wave, window in zip(waves, windows, strict=True)]
            passed = [await asyncio.wrap_future(future) for future in running]
        return [one.kept(window.skip, window.keep) for window, one in zip(windows, passed, strict=True)]

    async def whole(self, patience_s: float) -> ClipOutput:
        """Once, at the end, when all parts have been had: as the finished clip is heard. What takes longer
        than `patience_s` to hear again stays as it was."""
        level = None if self._level is None or len(self._heard) == 1 else self._level.moments
        again = [window for window in self._heard if window.level is not level and self._all_there]
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self._hear_again(again, level)
        whole, self._stitcher = self._stitcher.clip(), Stitcher()
        return whole

    async def _hear_again(self, windows: Sequence[Window], level: Moments | None) -> None:
        waiting, running = deque(windows), Windows()
        for _ in windows:
            while waiting and len(running) < AT_ONCE:
                window = replace(waiting.popleft(), level=level)
                self._all.seek(window.start * SAMPLE_BYTES)
                data = self._all.read((window.stop - window.start) * SAMPLE_BYTES)
                wave = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
                running.append((window, self._run(self._ticket, wave, window)))
            window, future = running.popleft()
            self._stitcher.add(window, await asyncio.wrap_future(future))

    def close(self) -> None:
        self._all.close()

    def with_rest(self, parts: Sequence[WindowOutput], seconds: float) -> ClipOutput:
        """All that has been had, and what is tentative."""
        return ClipOutput(WindowOutput.joined([*self._stitcher.parts, *parts]), seconds)

    def _plan(self) -> list[Window]:
        try:
            return self._levelled(self._model.card.plan(self.samples))
        except AudioError:
            return []

    def _levelled(self, plan: list[Window]) -> list[Window]:
        if self._level is None or len(plan) == 1:
            return plan
        return [replace(window, level=self._level.moments) for window in plan]

    def _submit(self, windows: Sequence[Window]) -> None:
        self._held.more(self._copies * clip_bytes(self._model.card, self._wanted, windows))
        for window in windows:
            self._windows.append((window, self._run(self._ticket, self._wave(window), window)))
            self._submitted += 1
        if windows and (plan := self._plan()[self._submitted :]):
            self._blocks = [self._joined()[plan[0].start - self._begin :].copy()]
            self._begin = plan[0].start

    def _run(
        self, ticket: Ticket[WindowTask, WindowOutput], wave: Waveform, window: Window
    ) -> Future[WindowOutput]:
        return ticket.submit(
            WindowTask(wave, None, self._wanted.heads, window.level), len(wave) / SAMPLE_RATE
        )

    def _wave(self, window: Window) -> Waveform:
        return self._joined()[window.start - self._begin : window.stop - self._begin].copy()

    def _joined(self) -> Waveform:
        if len(self._blocks) > 1:
            self._blocks = [np.concatenate(self._blocks)]
        return self._blocks[0]
