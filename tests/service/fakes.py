"""A small model that really looks at the samples, and can be slowed, held and poisoned."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.models import worker
from service.server import serve
from service.settings import Settings
from speech_ssl.inference.card import ModelCard
from speech_ssl.inference.chunking import Chunker
from speech_ssl.inference.outputs import WindowOutput
from speech_ssl.types import Levels

RATE, HOP, FIELD = 16_000, 320, 400


class FakeRuntime:
    """Frames are statistics of 400 samples every 320, times the layer. `open_gate` holds every pass."""

    name, sha256, num_layers, batch_s = "fake", "", 3, 8.0

    def __init__(self, *, window_s: float = 4.0, slowness: float = 0.0, width: int = 5) -> None:
        self.width = width  # a multiple of 5: the statistics again and again
        self.chunker = Chunker.of_seconds(HOP, FIELD, window_s=window_s, context_s=0.5)
        self.slowness = slowness  # seconds of a pass for each second of audio
        self.open_gate = threading.Event()
        self.open_gate.set()
        self.entered = threading.Semaphore(0)  # released at the beginning of every pass
        self.passes: list[list[float]] = []  # seconds of the waves in each
        self.poison: type[Exception] | None = None
        self._busy = threading.Lock()

    def check_layer(self, layer: int) -> int:
        return self.card().check_layer(layer)

    def run_windows(
        self,
        waves: Sequence[NDArray[np.float32]],
        layers: Sequence[int],
        heads: Sequence[str] = (),
        levels: Levels | None = None,
    ) -> list[WindowOutput]:
        if not self._busy.acquire(blocking=False):
            raise AssertionError("called in two threads at a time")
        try:
            seconds = [len(wave) / RATE for wave in waves]
            self.passes.append(seconds)
            self.entered.release()
            assert self.open_gate.wait(60)
            time.sleep(self.slowness * sum(seconds))
            if self.poison and any(np.abs(wave).max() > 0.99 for wave in waves):
                raise self.poison("a sample this loud")
            return [
                WindowOutput(np.tile(self.frames(wave, self.check_layer(layer)), self.width // 5), {})
                for wave, layer in zip(waves, layers, strict=True)
            ]
        finally:
            self._busy.release()

    @staticmethod
    def use_threads(count: int) -> None:
        assert count >= 1

    def card(self) -> ModelCard:
        return ModelCard(self.name, self.sha256, self.width, self.num_layers, self.batch_s, self.chunker, {})

    @staticmethod
    def frames(wave: NDArray[np.float32], layer: int) -> NDArray[np.float32]:
        spans = np.lib.stride_tricks.sliding_window_view(wave, FIELD)[::HOP].astype(np.float64)
        with np.errstate(over="ignore"):
            values = [spans.mean(1), spans.std(1), spans.max(1), spans.min(1), np.abs(np.diff(spans)).sum(1)]
        return (np.stack(values, axis=1) * (layer + 1)).astype(np.float32)


class Deadly(FakeRuntime):
    """Its process dies of a clip as loud as 0.9, and hangs at one of 0.8."""

    def run_windows(
        self,
        waves: Sequence[NDArray[np.float32]],
        layers: Sequence[int],
        heads: Sequence[str] = (),
        levels: Levels | None = None,
    ) -> list[WindowOutput]:
        loudest = max(float(np.abs(wave).max()) for wave in waves)
        if loudest == np.float32(0.9):
            os.kill(os.getpid(), signal.SIGKILL)
        if loudest == np.float32(0.8):
            time.sleep(3600)
        return super().run_windows(waves, layers, heads, levels)


def load(
    slowness: float = 0.0, load_time: float = 0.0, gate: Path | None = None, width: int = 5
) -> FakeRuntime:
    """gate: while this file is there, nothing is loaded."""
    logging.getLogger(__name__).warning("slow\nhere")
    time.sleep(load_time)
    while gate is not None and gate.exists():
        time.sleep(0.01)
    return Deadly(slowness=slowness, width=width)


def main() -> None:
    """A real service around it, in processes as those of `python -m service`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slowness", type=float, default=0.0)
    parser.add_argument("--load-time", type=float, default=0.0)
    parser.add_argument("--gate", type=Path)
    parser.add_argument("--width", type=int, default=5)
    options = parser.parse_args()
    settings = Settings()
    names = ["default", *settings.models]
    worker.PRELOADED = ["service.edge.logs"]  # PyTorch, which it does not need, takes seconds
    loading = partial(fakes.load, options.slowness, options.load_time, options.gate, options.width)
    serve(settings, {name: loading for name in names})


if __name__ == "__main__":
    from tests.service import fakes  # by its name, not __main__'s: the processes have to find it

    main()
