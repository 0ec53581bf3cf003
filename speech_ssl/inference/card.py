"""What is known of a model without running it, and what follows from what it gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from speech_ssl.inference import answers
from speech_ssl.inference.answers import Choice, Classification, Clock, Decoder, Transcript
from speech_ssl.inference.chunking import Chunker, Window
from speech_ssl.inference.clips import Whole
from speech_ssl.inference.levels import Meter
from speech_ssl.inference.units import dense
from speech_ssl.model.heads import CTCSpec, EventsSpec, HeadSpec
from speech_ssl.types import SAMPLE_RATE, Waveform

HeadTask: TypeAlias = Literal["transcription", "classification"]
HEADS: dict[HeadTask, tuple[type[HeadSpec], str, str]] = {
    "transcription": (CTCSpec, "transcribe", "ctc"),
    "classification": (EventsSpec, "classify", "events"),
}


@dataclass
class Card:
    """A model as others see it: it may be elsewhere, or be loaded no more.

    name, sha256: of the artifact. width: D of the frames. num_layers: N; layers are 0 to N, as
    transformers' hidden_states. hop, min_samples: in samples at 16 kHz. batch_s: seconds of padded
    audio that one pass should have at most. heads: name -> what it was made for. heads_left_out: why those
    of another library's checkpoint are not there. Its methods may be called in any thread.
    """

    name: str
    sha256: str
    width: int
    num_layers: int
    batch_s: float
    chunker: Chunker
    heads: Mapping[str, HeadSpec]
    heads_left_out: Mapping[str, str] = field(default_factory=dict)

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

    def clock(self, whole: Whole) -> Clock:
        return Clock(self.hop / SAMPLE_RATE, self.min_samples / SAMPLE_RATE, whole.duration_s)

    def transcript(self, whole: Whole, head: str, decoder: Decoder | None = None) -> Transcript:
        """What a head heard said in a clip that has been run."""
        spec = self.heads[head]
        assert isinstance(spec, CTCSpec)
        passed = whole.passed
        said = answers.transcribe(passed.heads[head], spec, self.clock(whole), decoder, passed.loudness)
        return replace(said, warnings=whole.warnings)

    def settled(self, whole: Whole, head: str) -> int:
        """How many of a clip's first frames have a text that no later frame can change."""
        spec = self.heads[head]
        assert isinstance(spec, CTCSpec)
        return answers.settled(whole.passed.heads[head], spec)

    def classification(self, whole: Whole, head: str, choice: Choice) -> Classification:
        spec = self.heads[head]
        assert isinstance(spec, EventsSpec)
        heard = answers.classify(dense(whole.passed.heads[head]), spec, self.clock(whole), choice)
        return replace(heard, warnings=whole.warnings)
