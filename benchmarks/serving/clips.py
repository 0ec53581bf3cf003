"""Clips to send: made up, or those of a manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import lfilter

from speech_ssl.data.manifest import read_manifest
from speech_ssl.types import SAMPLE_RATE

SEED = 0
COUNT = 64
SHORTEST_S, LONGEST_S = 1.0, 20.0


def made_clips(folder: Path, *, count: int = COUNT) -> list[Path]:
    """16-bit WAV of lengths that are equally likely between the shortest and the longest: a tone that fades
    in over low noise. The same ones each time."""
    rng = np.random.default_rng(SEED)
    paths = []
    for number, seconds in enumerate(rng.uniform(SHORTEST_S, LONGEST_S, count)):
        path = folder / f"{number:03}.wav"
        soundfile.write(path, _sound(seconds, rng), SAMPLE_RATE, subtype="PCM_16")
        paths.append(path)
    return paths


def _sound(seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    time_s = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = lfilter([0.05], [1.0, -0.95], rng.normal(size=len(time_s)))
    tone = np.sin(2 * np.pi * rng.uniform(100, 1000) * time_s) * time_s / seconds
    return np.asarray(0.3 * noise + 0.3 * tone)


def listed_clips(manifest: Path) -> list[Path]:
    """The files of a manifest, in an order of their own. Raises ValueError for one with parts of files."""
    rows = read_manifest(manifest)
    if any(row.start is not None for row in rows):
        raise ValueError(f"{manifest}: has parts of files, and what is sent is whole files")
    if not rows:
        raise ValueError(f"{manifest}: lists no file")
    return _shuffled([row.path for row in rows])


def _shuffled(paths: Sequence[Path]) -> list[Path]:
    return [paths[index] for index in np.random.default_rng(SEED).permutation(len(paths))]
