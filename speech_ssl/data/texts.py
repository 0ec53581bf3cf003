"""Transcripts as targets: the units of a clip's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speech_ssl.data.manifest import ManifestError, Utterance
from speech_ssl.text import BLANK, Vocabulary, normalize
from speech_ssl.types import SAMPLE_RATE, least_frames


def vocabulary_of(utterances: Sequence[Utterance]) -> Vocabulary:
    """All characters of the normalised texts. Raises ValueError where there is no text."""
    texts = [normalize(utterance.text) for utterance in utterances]
    if not any(texts):
        raise ValueError("no clip has a text: transcription needs the manifest's column 'text'")
    return Vocabulary.of([*texts, " "])


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary from a file with one character per line, without the blank. The space is a line with
    a space, or `|`. Raises ManifestError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    characters = [" " if line == "|" else line for line in (line.rstrip("\r") for line in lines) if line]
    if wrong := [c for c in characters if c != " " and normalize(f"a{c}a") != f"a{c}a"]:
        raise ManifestError(
            f"{path}: {wrong[0]!r} does not occur in normalised texts, which are lower case without "
            "punctuation: leave it out"
        )
    if long := [c for c in characters if len(c) > 1]:  # only other libraries' models may have such
        raise ManifestError(f"{path}: {long[0]!r}: the units must be single characters, one per line")
    try:
        return Vocabulary((BLANK, *characters))
    except ValueError as error:
        raise ManifestError(f"{path}: {error}") from None


@dataclass(frozen=True)
class TextTargets:
    """Units of a clip's normalised text. hop, receptive_field: the encoder's, in samples."""

    vocabulary: Vocabulary
    hop: int
    receptive_field: int

    def __call__(self, utterance: Utterance) -> list[int]:
        """Raises ValueError for a clip without text, for characters that the vocabulary lacks, and for a text
        that does not fit into the clip's frames: it has no alignment, and its loss would be infinite."""
        text = normalize(utterance.text)
        if not text:
            raise ValueError(f"{utterance.id}: no text to learn from")
        units = self.vocabulary.encode(text)
        least = int(least_frames(np.array(units)))
        samples = round(utterance.duration_s * SAMPLE_RATE)
        frames = max((samples - self.receptive_field) // self.hop + 1, 0)
        if least > frames:
            raise ValueError(
                f"{utterance.id}: its {len(units)} characters need {least} frames, but "
                f"{utterance.duration_s:g} s are {frames}: is it the text of this clip?"
            )
        return units
