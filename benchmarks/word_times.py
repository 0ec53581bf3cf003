"""How far word times are from the truth: clips put end to end, so that the joins are known.

    python -m benchmarks.word_times --model ARTIFACT --manifest M.tsv [--lang en] [--pause 0.2]

Each two clips of one speaker are cut to their speech and joined, at once or with a pause of faint noise
between them. At the join the last word of the first must end, and the first of the second begin. Their known
texts are aligned: what is measured is the times, not the recognition.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

import speech_ssl
from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.data.split_names import SplitKind, split_kind
from speech_ssl.evaluation.probes.representations import load_wave
from speech_ssl.inference import Runtime
from speech_ssl.text import normalize
from speech_ssl.types import SAMPLE_RATE, Waveform

WANTED_S = 0.04
FAINT = 1e-3  # the noise of a pause


def speech_of(wave: Waveform, top_db: float = 30.0) -> Waveform:
    """Without the quiet ends."""
    import librosa

    return np.ascontiguousarray(librosa.effects.trim(wave, top_db=top_db, frame_length=400, hop_length=80)[0])


def errors_at_join(
    runtime: Runtime, first: Utterance, second: Utterance, pause_s: float = 0.0
) -> tuple[float, float]:
    """Seconds by which the first clip's end and the second's beginning are missed; late is positive."""
    before, after = (speech_of(load_wave(clip)) for clip in (first, second))
    pause = FAINT * np.random.default_rng(0).standard_normal(round(pause_s * SAMPLE_RATE))
    text = f"{normalize(first.text)} {normalize(second.text)}"
    (aligned,) = runtime.align([np.concatenate([before, pause.astype(np.float32), after])], [text])
    last = len(normalize(first.text).split()) - 1
    end_s, start_s = len(before) / SAMPLE_RATE, (len(before) + len(pause)) / SAMPLE_RATE
    return aligned.words[last].end - end_s, aligned.words[last + 1].start - start_s


def measure(
    runtime: Runtime, clips: Sequence[Utterance], most: int, pause_s: float = 0.0
) -> NDArray[np.float64]:
    """Errors of ends and starts (N, 2), in seconds."""
    pairs = [
        (a, b)
        for a, b in pairwise(clips)
        if a.speaker == b.speaker and normalize(a.text) and normalize(b.text)
    ]
    if not pairs:
        raise ValueError("no two clips of one speaker with texts follow each other: see --split and --lang")
    return np.array([errors_at_join(runtime, *pair, pause_s) for pair in pairs[:most]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--manifest", type=Path, action="append", required=True)
    parser.add_argument("--lang")
    parser.add_argument("--split", choices=get_args(SplitKind), default="valid")
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two clips")
    given = parser.parse_args()
    try:
        clips = [
            u for path in given.manifest for u in read_manifest(path) if split_kind(u.split) == given.split
        ]
        clips = [u for u in clips if given.lang in (None, u.lang)]
        errors_N2 = measure(speech_ssl.load(given.model), clips, given.pairs, given.pause)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    report(errors_N2)


def report(errors_N2: NDArray[np.float64]) -> None:
    print(
        f"{len(errors_N2)} joins; milliseconds   mean  median |error|  90 %   within {1000 * WANTED_S:g} ms"
    )
    for name, errors_N in (("end of the first", errors_N2[:, 0]), ("start of the second", errors_N2[:, 1])):
        size_N = np.abs(errors_N)
        print(
            f"{name:24} {1000 * errors_N.mean():8.1f} {1000 * np.median(size_N):10.1f} "
            f"{1000 * np.quantile(size_N, 0.9):11.1f} {(size_N <= WANTED_S).mean():10.0%}"
        )


if __name__ == "__main__":
    main()
