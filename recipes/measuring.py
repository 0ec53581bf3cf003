"""What finished models are measured on, and how the figures are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from recipes.skipped import Notes
from speech_ssl import audio
from speech_ssl.data.manifest import Utterance
from speech_ssl.data.source import cut_short
from speech_ssl.inference.clips import Clip
from speech_ssl.inference.runtime import Runtime
from speech_ssl.types import SAMPLE_RATE


def readable(
    clips: Sequence[Utterance], runtime: Runtime, notes: Notes, at_once_s: float = 300.0
) -> Iterator[tuple[list[Utterance], list[Clip]]]:
    """Clips with their waves, all of each file or part, minutes at a time; those that cannot be read or are
    too short are left out. `notes` are told, also of what is wrong with the others."""
    some: list[tuple[Utterance, Clip]] = []
    for clip in clips:
        try:
            wave = audio.decode(
                clip.path, start_s=clip.start or 0.0, stop_s=clip.end, warn=partial(notes.warned, clip)
            )
            runtime.plan(len(wave))
        except (ValueError, OSError) as error:
            notes.skipped(clip, f"{clip.id}, of the test: {error}")
            continue
        if short := cut_short(clip, len(wave) / SAMPLE_RATE):
            notes.warned(clip, short)
        some.append((clip, wave))
        if sum(c.duration_s for c, _ in some) >= at_once_s:
            yield [c for c, _ in some], [w for _, w in some]
            some = []
    if some:
        yield [c for c, _ in some], [w for _, w in some]


def shown(figures: Mapping[str, Any]) -> str:
    """The plain ones, in a line."""
    plain = {k: v for k, v in figures.items() if isinstance(v, str | int | float)}
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())
