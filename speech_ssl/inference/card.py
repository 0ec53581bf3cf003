"""A model's properties, known without running it, and requests to it."""

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
    """Raises ValueError for an unknown task, and for an empty list."""
    if unknown := [task for task in tasks if task not in TASKS]:
        raise ValueError(f"task {unknown[0]!r} is not known: choose from {', '.join(TASKS)}")
    if not tasks:
        raise ValueError(f"no task was requested: choose from {', '.join(TASKS)}")


class ChoiceError(ValueError):
    """The model does not have what was requested. param: the parameter at fault: "layer", "head", or "model"
    if no head does the task. code: a machine-readable code."""

    def __init__(self, message: str, param: str, code: str = "unsupported_task") -> None:
        super().__init__(message)
        self.param, self.code = param, code


@dataclass(frozen=True, slots=True)
class PassRequest:
    """What a model must compute for each clip, resolved by `ModelCard.choose` and sent with the request.

    layer: of the embedding, 0 to N; None: no embedding. pooling: of its frames. speech, sounds: the heads
    that transcribe and classify; None: none. choice: which labels and events to return.
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
        """Whether the frames of whole clips must be kept."""
        return self.layer is not None and self.pooling == "none"


@dataclass
class ModelCard:
    """A model's properties, also for processes that do not hold the model.

    name, sha256: of the artifact. width: D of the frames. num_layers: N; layers are 0 to N, as in
    transformers' hidden_states. hop, min_samples: in samples at 16 kHz. batch_s: the most padded seconds in
    one pass. heads: name -> spec. heads_left_out: why heads of another library's checkpoint are missing.
    ngrams: the language model of each head that has one, by the head's name. Its methods may be called from
    any thread.
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
        """Duration of the longest window in seconds."""
        return self.chunker.window_s

    def check_layer(self, layer: int) -> int:
        """The layer as an index from 0; negative numbers count from the end. Raises ChoiceError (a
        ValueError) if it is out of range."""
        if not -self.num_layers - 1 <= layer <= self.num_layers:
            raise ChoiceError(
                f"layer {layer} is not there: {self.name} has 0 to {self.num_layers}, or -1 for the last",
                "layer",
                "invalid_value",
            )
        return layer if layer >= 0 else layer + self.num_layers + 1

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All tasks that the model can do."""
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
        """Resolve a request: heads by name (by default the first of their kind), the layer counted from 0.
        tasks: None: all that the model can do. Raises ChoiceError for what the model does not have,
        ValueError for an unknown task."""
        tasks = self.tasks if tasks is None else tasks
        check_tasks(tasks)
        speech = self.check_head("transcription", speech_head) if "transcription" in tasks else None
        sounds = self.check_head("classification", sounds_head) if "classification" in tasks else None
        wanted = self.check_layer(layer) if "embedding" in tasks else None
        return PassRequest(wanted, pooling, speech, sounds, choice)

    def check_head(self, task: HeadTask, name: str | None = None) -> str:
        """The head for a task: the named one, else the model's first. Raises ChoiceError."""
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
        """A head's labels in the order of its outputs; None for one that transcribes."""
        spec = self.heads[head]
        return spec.labels if isinstance(spec, EventsSpec) else None

    def output_bytes(self, head: str) -> int:
        """Bytes per frame of a head's outputs, including what is computed from them for an answer."""
        spec = self.heads[head]
        if isinstance(spec, CTCSpec):
            units = len(spec.vocabulary)
            return 5 * units if units <= WHOLE else 7 * KEPT + 8  # and a byte each to scan them
        assert isinstance(spec, EventsSpec)
        return 4 * (3 if spec.pooling == "attentive" else 2) * len(spec.labels)  # and their probabilities

    def plan(self, num_samples: int) -> list[Window]:
        """The windows of a clip, one if it is short. Raises AudioError `too_short`."""
        return self.chunker.plan(num_samples)

    def plan_of(self, wave: Waveform) -> list[Window]:
        """The windows of a whole wave, with its level, by which they are normalised."""
        return self.chunker.plan_of(wave)

    @property
    def meter(self) -> Meter | None:
        """Measures the moments by which the model normalises a clip; None if it uses none of a whole clip."""
        return self.chunker.meter
