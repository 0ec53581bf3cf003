"""What is known of a model without running it, and what can be asked of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from speech_ssl.checkpoints.ngram import NGram
from speech_ssl.inference.answers import Choice
from speech_ssl.inference.chunking import Chunker, Window
from speech_ssl.inference.levels import Meter
from speech_ssl.inference.outputs import PoolingOrNone
from speech_ssl.inference.units import KEPT, WHOLE
from speech_ssl.model.heads.specs import CTCSpec, EventsSpec, HeadSpec
from speech_ssl.types import Waveform

Task = Literal["embedding", "transcription", "classification"]
TASKS: tuple[Task, ...] = get_args(Task)
HeadTask: TypeAlias = Literal["transcription", "classification"]
HEADS: dict[HeadTask, tuple[type[HeadSpec], str, str]] = {
    "transcription": (CTCSpec, "transcribe", "ctc"),
    "classification": (EventsSpec, "classify", "events"),
}


EVERY_LABEL = Choice()


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises ValueError for one that is not known, or none."""
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"task {unknown[0]!r} is not known: choose from {', '.join(TASKS)}")
    if not tasks:
        raise ValueError(f"no task was asked for: choose from {', '.join(TASKS)}")


class ChoiceError(ValueError):
    """What was asked for is not there. param: what of it is wrong: "layer", "head", or "model" where no head
    does it. code: for programs."""

    def __init__(self, message: str, param: str, code: str = "unsupported_task") -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True, slots=True)
class PassRequest:
    """What a model is to give of each clip, resolved by `ModelCard.choose`: it goes with the request.

    layer: 0 to N, of the embedding; None: there is none. pooling: of its frames. speech, sounds: the heads
    that transcribe and classify; None: nothing does. choice: of labels and events.
    """

    layer: int | None = None
    pooling: PoolingOrNone = "mean"
    speech: str | None = None
    sounds: str | None = None
    choice: Choice = EVERY_LABEL

    @property
    def heads(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for name in (self.speech, self.sounds) if name is not None))

    @property
    def holds_frames(self) -> bool:
        """Of whole clips."""
        return self.layer is not None and self.pooling == "none"


@dataclass
class ModelCard:
    """The facts of a model, which may be elsewhere, or be loaded no more.

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
            raise ChoiceError(
                f"layer {layer} is not there: {self.name} has 0 to {self.num_layers}, or -1 for the last",
                "layer",
                "invalid_value",
            )
        return layer if layer >= 0 else layer + self.num_layers + 1

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All that the model can."""
        return tuple(task for task in TASKS if task == "embedding" or self._heads_of(task))

    def choose(
        self,
        tasks: Sequence[Task] | None = None,
        *,
        layer: int = -1,
        pooling: PoolingOrNone = "mean",
        speech_head: str | None = None,
        sounds_head: str | None = None,
        choice: Choice = EVERY_LABEL,
    ) -> PassRequest:
        """What is asked of the model: heads by name, where none is said the first of their kind; the layer
        from 0. tasks: None: all that it can. Raises ChoiceError for what the model does not have, ValueError
        for a task that is not known."""
        tasks = self.tasks if tasks is None else tasks
        check_tasks(tasks)
        speech = self.check_head("transcription", speech_head) if "transcription" in tasks else None
        sounds = self.check_head("classification", sounds_head) if "classification" in tasks else None
        wanted = self.check_layer(layer) if "embedding" in tasks else None
        return PassRequest(wanted, pooling, speech, sounds, choice)

    def check_head(self, task: HeadTask, name: str | None = None) -> str:
        """The name of the head for a task: the one named, else the model's first. Raises ChoiceError."""
        _, does, recipe = HEADS[task]
        names = self._heads_of(task)
        if not names:
            why = f" ({self.heads_left_out[recipe]})" if recipe in self.heads_left_out else ""
            raise ChoiceError(
                f"the model {self.name} cannot {does}: it has no head for it{why}. Add one with `python -m "
                f"recipes.finetune_{recipe}`, or load another model",
                "model" if name is None else "head",
            )
        if name is not None and name not in names:
            raise ChoiceError(
                f"the model {self.name} has no head {name!r} to {does}: it has {', '.join(names)}", "head"
            )
        return name or names[0]

    def _heads_of(self, task: HeadTask) -> list[str]:
        kind, _, _ = HEADS[task]
        return [name for name, spec in self.heads.items() if isinstance(spec, kind)]

    def labels(self, head: str) -> tuple[str, ...] | None:
        """Of a head that classifies, in its own order; None of one that transcribes."""
        spec = self.heads[head]
        return spec.labels if isinstance(spec, EventsSpec) else None

    def output_bytes(self, head: str) -> int:
        """Of a head's outputs of one frame, and of what is made of them on the way to an answer."""
        spec = self.heads[head]
        if isinstance(spec, CTCSpec):
            units = len(spec.vocabulary)
            return 5 * units if units <= WHOLE else 7 * KEPT + 8  # with a byte for each to be looked through
        assert isinstance(spec, EventsSpec)
        return 4 * (3 if spec.pooling == "attentive" else 2) * len(spec.labels)  # and their probabilities

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
