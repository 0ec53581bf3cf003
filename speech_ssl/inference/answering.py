"""From a model's outputs for a clip to answers. This needs the outputs of its heads, but not the model."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from speech_ssl.inference import answers
from speech_ssl.inference.answers import Choice, Classification, Clock, TextDecoder, Transcript
from speech_ssl.inference.card import ModelCard, PassRequest
from speech_ssl.inference.outputs import ClipOutput
from speech_ssl.inference.units import dense
from speech_ssl.model.heads.specs import CTCSpec, EventsSpec
from speech_ssl.text import Vocabulary
from speech_ssl.types import SAMPLE_RATE

if TYPE_CHECKING:
    from speech_ssl.inference.ctc.beam import BeamSearch

logger = logging.getLogger(__name__)


class Answering:
    """Makes the answers of one model. Its methods may be called from any thread."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._searches: dict[str, BeamSearch | None] = {}
        self._lock = threading.Lock()  # held while a search is created

    def heard(
        self, whole: ClipOutput, wanted: PassRequest, decoder: TextDecoder | None = None
    ) -> tuple[Transcript | None, Classification | None]:
        """The transcript and the classification of a clip; None for one that was not requested."""
        return (
            None if wanted.speech is None else self.transcript(whole, wanted.speech, decoder),
            None if wanted.sounds is None else self.classification(whole, wanted.sounds, wanted.choice),
        )

    def transcript(self, whole: ClipOutput, head: str, decoder: TextDecoder | None = None) -> Transcript:
        """Transcribe by the given decoder, else by the head's own language model, else by the best path."""
        decoder = self.search(head) if decoder is None else decoder
        passed, clock = whole.passed, self.clock(whole)
        said = answers.transcribe(passed.heads[head], self.ctc(head), clock, decoder, passed.loudness)
        return replace(said, warnings=whole.warnings)

    def settled(self, whole: ClipOutput, head: str) -> int:
        """How many of a clip's first frames have a text that no later frame can change. With a language model
        none, since it treats everything as one sentence."""
        if self.search(head) is not None:
            return 0
        return answers.settled(whole.passed.heads[head], self.ctc(head))

    def classification(self, whole: ClipOutput, head: str, choice: Choice) -> Classification:
        outputs_TO = dense(whole.passed.heads[head])
        heard = answers.classify(outputs_TO, self._events(head), self.clock(whole), choice)
        return replace(heard, warnings=whole.warnings)

    def frame_scores(self, whole: ClipOutput, head: str) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Label probabilities for each frame (T, K), and the frame edges in seconds (T + 1,)."""
        outputs_TO = dense(whole.passed.heads[head])
        return answers.frame_scores(outputs_TO, self._events(head), self.clock(whole))

    def clock(self, whole: ClipOutput) -> Clock:
        return Clock(self._card.hop / SAMPLE_RATE, self._card.min_samples / SAMPLE_RATE, whole.duration_s)

    def search(self, head: str) -> BeamSearch | None:
        """The search with the head's own language model. None if the head has none, or if it cannot be used,
        which is logged once."""
        with self._lock:
            if head not in self._searches:
                self._searches[head] = self._search(head) if head in self._card.ngrams else None
            return self._searches[head]

    def _search(self, head: str) -> BeamSearch | None:
        from speech_ssl.inference.ctc.beam import BeamSearch

        spec = self.ctc(head)
        try:
            return BeamSearch(Vocabulary(spec.vocabulary, spec.spaced), lm=self._card.ngrams[head])
        except ValueError as error:
            logger.warning("the language model of %s is not used: %s", self._card.name, error)
            return None

    def ctc(self, head: str) -> CTCSpec:
        """The spec of a head that transcribes."""
        spec = self._card.heads[head]
        assert isinstance(spec, CTCSpec)
        return spec

    def _events(self, head: str) -> EventsSpec:
        spec = self._card.heads[head]
        assert isinstance(spec, EventsSpec)
        return spec
