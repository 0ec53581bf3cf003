"""Long clips in overlapping windows, with exact frame arithmetic.

Frame t of a clip sees the samples [t * hop, t * hop + receptive_field). A window is a run of whole frames.
Its frames near a cut lack context and are dropped; what all windows keep is each frame of the clip exactly
once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from speech_ssl.audio import AudioError
from speech_ssl.inference.levels import Level, Meter
from speech_ssl.types import SAMPLE_RATE, Moments, Waveform

if TYPE_CHECKING:  # loads torch, which processes that only decode audio do not need
    from speech_ssl.model.encoder import Encoder

WINDOW_S, CONTEXT_S = 20.0, 2.0
HELD_S = 120.0
"""Seconds of a clip kept in memory while its level is measured; longer clips are decoded twice."""


@dataclass(frozen=True, slots=True)
class Window:
    """Samples [start, stop) of a clip. Of the frames computed from them, [skip, skip + keep) are used.

    level: of the whole clip, if it has several windows and the model normalises by it.
    """

    start: int
    stop: int
    skip: int
    keep: int
    level: Moments | None = field(default=None, compare=False)

    @property
    def seconds(self) -> float:
        return (self.stop - self.start) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Chunker:
    """Cuts clips into windows of at most `window` frames with `context` frames at each cut.

    hop and receptive_field are the encoder's, in samples. A clip of up to `window` frames is one window. In a
    longer one the last two windows share the remaining frames equally, so that none is tiny.
    multiple: windows, and the frames kept of them, begin and end at multiples of this many frames, except at
    a clip's end. window and context must be multiples too.
    meter: measures what the model normalises a clip by; None: it uses nothing of the whole clip.
    """

    hop: int
    receptive_field: int
    window: int
    context: int
    multiple: int = 1
    meter: Meter | None = None

    def __post_init__(self) -> None:
        if self.multiple < 1 or self.window % self.multiple or self.context % self.multiple:
            raise ValueError(
                f"a window of {self.window} frames and a context of {self.context} must be multiples of "
                f"{self.multiple}"
            )
        if self.context < 0 or self.window <= 2 * self.context:
            raise ValueError(
                f"a window of {self.window} frames needs more than twice {self.context} of context"
            )

    @classmethod
    def of_seconds(
        cls,
        hop: int,
        receptive_field: int,
        *,
        window_s: float,
        context_s: float,
        multiple: int = 1,
        meter: Meter | None = None,
    ) -> Chunker:
        """To be multiples, windows may be shorter than given, and the context longer."""
        frames = (round(window_s * SAMPLE_RATE) - receptive_field) // hop + 1
        context = round(context_s * SAMPLE_RATE / hop)
        window, context = frames - frames % multiple, context + -context % multiple
        return cls(hop, receptive_field, window, context, multiple, meter)

    @classmethod
    def of(
        cls, encoder: Encoder, *, window_s: float = WINDOW_S, context_s: float = CONTEXT_S, multiple: int = 1
    ) -> Chunker:
        """For an encoder, with the meter that its front end needs."""
        return cls.of_seconds(
            encoder.hop,
            encoder.receptive_field,
            window_s=window_s,
            context_s=context_s,
            multiple=multiple,
            meter=Meter.of(encoder.config),
        )

    @property
    def window_s(self) -> float:
        """Duration of the longest window in seconds."""
        return (self.window * self.hop + self.receptive_field - 1) / SAMPLE_RATE

    def frame_count(self, samples: int) -> int:
        """Exactly the frame count of the stacked convolutions: their nested floor divisions reduce to one."""
        return max((samples - self.receptive_field) // self.hop + 1, 0)

    def plan(self, samples: int) -> list[Window]:
        """The windows of a clip, in order. Raises AudioError `too_short` if it has no frame."""
        self._check_length(samples)
        plan: list[Window] = []
        first = 0
        while self._is_long(samples, first):
            plan.append(self._full_window(first))
            first += self._stride
        return plan + self._last_windows(samples, first)

    def plan_of(self, wave: Waveform) -> list[Window]:
        """The windows of a whole wave, with its level. Raises as `plan`."""
        plan = self.plan(len(wave))
        level = self.meter.measured([wave]) if self.meter and len(plan) > 1 else None
        return [replace(window, level=level) for window in plan]

    def cut_wave(self, wave: Waveform) -> Iterator[tuple[Window, Waveform]]:
        """The windows of `plan_of` with their samples, as views. Raises as `plan`."""
        for window in self.plan_of(wave):
            yield window, wave[window.start : window.stop]

    def cut_file(
        self, blocks: Iterable[Waveform], again: Callable[[], Iterable[Waveform]]
    ) -> Iterator[tuple[Window, Waveform]]:
        """The windows of `plan_of` with their samples, for a clip that is read in blocks.

        The clip's level is known only at its end. If the clip is longer than HELD_S, its blocks are therefore
        read a second time, from `again`, so that memory does not grow with the clip. Raises as `plan`.
        """
        if self.meter is None:
            yield from self.cut(blocks)
            return
        held, level, samples = [np.empty(0, dtype=np.float32)], Level(self.meter), 0
        for block in (following := iter(blocks)):
            held.append(block)
            samples += len(block)
            if samples > HELD_S * SAMPLE_RATE:
                break
        else:
            yield from self.cut_wave(np.concatenate(held))
            return
        while held:
            level.add(held.pop(0))
        for block in following:
            level.add(block)
            samples += len(block)
        moments = level.moments if self.frame_count(samples) > self.window else None
        for window, wave in self.cut(again()):
            yield replace(window, level=moments), wave

    def cut(self, blocks: Iterable[Waveform]) -> Iterator[tuple[Window, Waveform]]:
        """The windows of `plan` with their samples, from a stream of unknown length.

        Holds about two windows of samples, whatever the length of the stream.
        """
        held: list[Waveform] = []
        samples = first = 0  # samples read; first frame of the next window, at which `held` begins
        for block in blocks:
            held.append(block)
            samples += len(block)
            while self._is_long(samples, first):
                wave = np.concatenate(held)
                window = self._full_window(first)
                yield window, wave[: window.stop - window.start].copy()
                first += self._stride
                held = [wave[self._stride * self.hop :]]
        self._check_length(samples)
        wave = np.concatenate(held)
        for window in self._last_windows(samples, first):
            yield window, wave[window.start - first * self.hop : window.stop - first * self.hop]

    @property
    def _stride(self) -> int:
        return self.window - 2 * self.context

    def _check_length(self, samples: int) -> None:
        if samples < self.receptive_field:
            least = self.receptive_field / SAMPLE_RATE
            raise AudioError(
                "too_short",
                f"{samples / SAMPLE_RATE:g} s is too short: the model needs {least:g} s "
                f"({self.receptive_field} samples at 16 kHz)",
            )

    def _is_long(self, samples: int, first: int) -> bool:
        """Whether more frames are left from frame `first` on than two windows hold."""
        return self.frame_count(samples) - first > self.window + self._stride

    def _full_window(self, first: int) -> Window:
        skip = self.context if first else 0
        stop = (first + self.window - 1) * self.hop + self.receptive_field
        return Window(first * self.hop, stop, skip, self.window - self.context - skip)

    def _last_windows(self, samples: int, first: int) -> list[Window]:
        """One or two windows for the frames from `first` on."""
        skip = self.context if first else 0
        left = self.frame_count(samples) - first
        if left <= self.window:
            return [Window(first * self.hop, samples, skip, left - skip)]
        half = left // 2
        middle = first + half + -half % self.multiple  # the frame where the kept parts of the two meet
        stop = (middle + self.context - 1) * self.hop + self.receptive_field
        return [
            Window(first * self.hop, stop, skip, middle - first - skip),
            Window((middle - self.context) * self.hop, samples, self.context, first + left - middle),
        ]
