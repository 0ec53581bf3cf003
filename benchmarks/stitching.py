"""How far the frames of a long clip, computed in windows, are from those of the whole clip in one pass.

    python -m benchmarks.stitching FILE... [--model default]

The files should be minutes long: whole, they need memory quadratic in their length on some devices. For
several lengths of window and context it prints the relative L2 distance of the frames, that of the mean
over time (the pooled embedding), and how much more audio the overlap makes the model compute.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

import speech_ssl
from speech_ssl import audio
from speech_ssl.inference.chunking import CONTEXT_S, WINDOW_S, Chunker
from speech_ssl.inference.runtime import Runtime
from speech_ssl.types import Waveform

WINDOWS = ((10.0, 1.0), (10.0, 2.0), (WINDOW_S, 0.0), (WINDOW_S, CONTEXT_S), (20.0, 4.0), (40.0, 2.0))
"""Seconds of window and of context."""


@dataclass(frozen=True)
class Distance:
    frames: float
    pooled: float
    computed: float  # seconds computed for each second of audio


def distance(runtime: Runtime, wave: Waveform, whole_TD: NDArray[np.float32], chunker: Chunker) -> Distance:
    """Of the frames stitched from `chunker`'s windows to those of the whole."""
    windows = replace(chunker, meter=runtime.meter).plan_of(wave)
    kept = []
    for window in windows:
        frames_TD = runtime.encode_windows([wave[window.start : window.stop]], [-1], [window.level])[0]
        kept.append(frames_TD[window.skip : window.skip + window.keep])
    stitched_TD = np.concatenate(kept)
    computed = sum(window.stop - window.start for window in windows) / len(wave)
    return Distance(
        relative(stitched_TD, whole_TD), relative(stitched_TD.mean(0), whole_TD.mean(0)), computed
    )


def relative(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def main() -> None:
    parser = argparse.ArgumentParser(description="The distance of stitched frames to those of the whole.")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--model", default="default")
    options = parser.parse_args()
    runtime = speech_ssl.load(options.model, precision="fp32")
    waves = [audio.decode(path) for path in options.files]
    wholes = [runtime.encode_windows([wave], [-1])[0] for wave in waves]
    print(f"{len(waves)} file(s) of {', '.join(f'{len(wave) / 16_000:.0f}' for wave in waves)} s")
    for window_s, context_s in WINDOWS:
        chunker = Chunker.of_seconds(runtime.hop, runtime.min_samples, window_s=window_s, context_s=context_s)
        found = [distance(runtime, *pair, chunker) for pair in zip(waves, wholes, strict=True)]
        frames, pooled, computed = (
            np.mean([getattr(d, name) for d in found]) for name in ("frames", "pooled", "computed")
        )
        print(
            f"windows of {window_s:g} s with {context_s:g} s beside each cut: frames {frames:.2%} off, "
            f"pooled {pooled:.2%}; {computed:.2f} s computed a second"
        )


if __name__ == "__main__":
    main()
