"""Transcription by CTC: what its targets are, and how a finished model is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from speech_ssl.data.manifest import Utterance
from speech_ssl.data.reading import Targets
from speech_ssl.data.splits import given_splits, split_utterances
from speech_ssl.data.texts import TextTargets, vocabulary_of
from speech_ssl.inference.runtime import Runtime
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.ctc import CTCConfig
from speech_ssl.runs.notes import Notes
from speech_ssl.runs.reading import readable
from speech_ssl.runs.tuning import Examples, FineTuning
from speech_ssl.text import Vocabulary, normalize


@dataclass(frozen=True)
class TranscriptionTask:
    """vocabulary: given by the user; else it is made from the texts."""

    vocabulary: Vocabulary | None = None

    def taught(self, utterance: Utterance) -> Sequence[object]:
        return (utterance.text, utterance.lang)

    def examples(self, utterances: Sequence[Utterance]) -> Examples:
        train, valid = split_utterances(utterances)
        return Examples(train, valid, given_splits(utterances)[2] or valid)

    def filled(self, tuning: FineTuning, examples: Examples) -> FineTuning:
        vocabulary = self.vocabulary or vocabulary_of([*examples.train, *examples.valid])
        assert isinstance(tuning.objective, CTCConfig)
        return replace(tuning, objective=replace(tuning.objective, vocabulary=vocabulary.symbols))

    def targets(self, tuning: FineTuning, encoder: Encoder) -> Targets:
        assert isinstance(tuning.objective, CTCConfig)
        vocabulary = Vocabulary(tuning.objective.vocabulary)
        return TextTargets(vocabulary, encoder.hop, encoder.receptive_field)

    def measure(self, runtime: Runtime, head: str, test: Sequence[Utterance], notes: Notes) -> dict[str, Any]:
        """Word and character errors of the best path, and some transcripts to look at."""
        from speech_ssl.evaluation.metrics.error_rates import error_rates

        references: list[str] = []
        hypotheses: list[str] = []
        for clips, waves in readable([clip for clip in test if normalize(clip.text)], runtime, notes):
            references += [clip.text for clip in clips]
            hypotheses += [transcript.text for transcript in runtime.transcribe(waves, head=head)]
        rates = error_rates(references, hypotheses)
        return {
            "clips": len(references),
            "wer": rates.normalized_wer,
            "cer": rates.normalized_cer,
            "wer_as_written": rates.wer,
            "cer_as_written": rates.cer,
            "words": rates.words.total,
            "examples": [list(pair) for pair in zip(references, hypotheses, strict=True)][:20],
        }
