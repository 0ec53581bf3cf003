"""What is known of a model without running it, and what follows from what it gave."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from speech_ssl.checkpoints.ngram import NGram
from speech_ssl.inference import answers
from speech_ssl.inference.answers import Choice, Classification, Clock, TextDecoder, Transcript
from speech_ssl.inference.chunking import Chunker, Window
from speech_ssl.inference.levels import Meter
from speech_ssl.inference.units import KEPT, WHOLE, dense
from speech_ssl.inference.windows import ClipOutput
from speech_ssl.model.specs import CTCSpec, EventsSpec, HeadSpec
from speech_ssl.text import Vocabulary
from speech_ssl.types import SAMPLE_RATE, Waveform

if TYPE_CHECKING:
    from speech_ssl.inference.beam import BeamSearch

logger = logging.getLogger(__name__)
_SEARCHES = threading.Lock()
"""Held while one is made."""
HeadTask: TypeAlias = Literal["transcription", "classification"]
HEADS: dict[HeadTask, tuple[type[HeadSpec], str, str]] = {
    "transcription": (CTCSpec, "transcribe", "ctc"),
    "classification": (EventsSpec, "classify", "events"),
}


def output_bytes(spec: object) -> int:
    """Of a head's outputs of one frame, and of what is made of them on the way to an answer."""
    if isinstance(spec, CTCSpec):
        units = len(spec.vocabulary)
        return 5 * units if units <= WHOLE else 7 * KEPT + 8  # with a byte for each to be looked through
    assert isinstance(spec, EventsSpec)
    return 4 * (3 if spec.pooling == "attentive" else 2) * len(spec.labels)  # and their probabilities


@dataclass
class Card:
    """A model as others see it: it may be elsewhere, or be loaded no more.

    name, sha256: of the artifact. width: D of the frames. num_layers: N; layers are 0 to N, as
    transformers' hidden_states. hop, min_samples: in samples at 16 kHz. batch_s: seconds of padded
    audio that one pass should have at most. heads: name -> what it was made for. heads_left_out: why those
    of another library's checkpoint are not there. ngrams: what texts of heads are searched with, by the
    heads' names. Its methods may be called in any thread.
    """

    name: str
    sha256: str
    width: int
    num_layers: int
    batch_s: float
    chunker: Chunker
    heads: Mapping[str, HeadSpec]
    heads_left_out: Mapping[str, str] = field(default_factory=dict)
    ngrams: Mapping[str, NGram] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._searches: dict[str, BeamSearch | None] = {}

    @property
    def hop(self) -> int:
        return self.chunker.hop

    @property
    def min_samples(self) -> int:
        return self.chunker.receptive_field

    @property
    def window_s(self) -> float:
        """Seconds of the longest window."""
        return self.chunker.window_s

    def check_layer(self, layer: int) -> int:
        """A layer as an index from 0, negatives counted from the end. Raises ValueError out of range."""
        if not -self.num_layers - 1 <= layer <= self.num_layers:
            raise ValueError(
                f"layer {layer} is not there: {self.name} has 0 to {self.num_layers}, or -1 for the last"
            )
        return layer if layer >= 0 else layer + self.num_layers + 1

    def check_head(self, task: HeadTask, name: str | None = None) -> str:
        """The name of the head for a task: the one named, else the model's first. Raises ValueError."""
        kind, does, recipe = HEADS[task]
        names = [n for n, spec in self.heads.items() if isinstance(spec, kind)]
        if not names:
            why = f" ({self.heads_left_out[recipe]})" if recipe in self.heads_left_out else ""
            raise ValueError(
                f"the model {self.name} cannot {does}: it has no head for it{why}. Add one with `python -m "
                f"recipes.finetune_{recipe}`, or load another model"
            )
        if name is not None and name not in names:
            raise ValueError(
                f"the model {self.name} has no head {name!r} to {does}: it has {', '.join(names)}"
            )
        return name or names[0]

    def plan(self, num_samples: int) -> list[Window]:
        """The windows of a clip: one if it is short. Raises AudioError `too_short`."""
        return self.chunker.plan(num_samples)

    def plan_of(self, wave: Waveform) -> list[Window]:
        """The same for a clip that is all there, with its level: what its windows are normalised by."""
        return self.chunker.plan_of(wave)

    @property
    def meter(self) -> Meter | None:
        """What the model normalises clips by; None: by nothing that is of a whole clip."""
        return self.chunker.meter

    def clock(self, whole: ClipOutput) -> Clock:
        return Clock(self.hop / SAMPLE_RATE, self.min_samples / SAMPLE_RATE, whole.duration_s)

    def search(self, head: str) -> BeamSearch | None:
        """With the language model that came with a head; None if there is none, or it cannot be used, which
        is logged once."""
        with _SEARCHES:
            if head not in self._searches:
                self._searches[head] = self._search(head) if head in self.ngrams else None
            return self._searches[head]

    def _search(self, head: str) -> BeamSearch | None:
        from speech_ssl.inference.beam import BeamSearch

        spec = self.heads[head]
        assert isinstance(spec, CTCSpec)
        try:
            return BeamSearch(Vocabulary(spec.vocabulary, spec.spaced), lm=self.ngrams[head])
        except ValueError as error:
            logger.warning("the language model of %s is not used: %s", self.name, error)
            return None

    def transcript(
        self, whole: ClipOutput, head: str, decoder: TextDecoder | None = None, *, best_path: bool = False
    ) -> Transcript:
        """What a head heard said in a clip that has been run: by the decoder, else by the language model that
        came with the head, else by the best path. best_path: by that in any case."""
        if decoder is None and not best_path:
            decoder = self.search(head)
        spec = self.heads[head]
        assert isinstance(spec, CTCSpec)
        passed = whole.passed
        said = answers.transcribe(passed.heads[head], spec, self.clock(whole), decoder, passed.loudness)
        return replace(said, warnings=whole.warnings)

    def settled(self, whole: ClipOutput, head: str) -> int:
        """How many of a clip's first frames have a text that no later frame can change. To a language model
        all is one sentence."""
        if self.search(head) is not None:
            return 0
        spec = self.heads[head]
        assert isinstance(spec, CTCSpec)
        return answers.settled(whole.passed.heads[head], spec)

    def classification(self, whole: ClipOutput, head: str, choice: Choice) -> Classification:
        spec = self.heads[head]
        assert isinstance(spec, EventsSpec)
        heard = answers.classify(dense(whole.passed.heads[head]), spec, self.clock(whole), choice)
        return replace(heard, warnings=whole.warnings)
