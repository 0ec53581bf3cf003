"""What fine-tuning is made of: the numbers of a run, its examples, and what tells one task from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from speech_ssl.checkpoints.artifact import Artifact
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.manifest import Utterance
from speech_ssl.data.reading import Targets
from speech_ssl.inference.runtime import Runtime
from speech_ssl.model import presets
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.ctc import CTCConfig
from speech_ssl.objectives.events import EventsConfig
from speech_ssl.runs.events import Listener, silent
from speech_ssl.runs.notes import Notes
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.ranks import Ranks
from speech_ssl.training.run import Run


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """What a variant returns: a run whose encoder is that of the artifact it starts from.

    encoder: fields of the encoder's config that differ while it is trained, such as dropout.
    scratch: the encoder of a run that starts from no artifact. All of it is trained then, at once.
    """

    name: str
    objective: CTCConfig | EventsConfig
    data: DataConfig
    train: TrainConfig
    encoder: Mapping[str, float] = field(default_factory=dict)
    scratch: EncoderConfig = field(default_factory=presets.tiny)

    def run(self, artifact: Artifact | None) -> Run:
        config = self.scratch if artifact is None else artifact.encoder.config
        objective = self.objective
        if artifact is None:
            objective = replace(objective, head_only=0.0, train_frontend=True)
        elif not objective.train_frontend:
            config = replace(config, feature_grad_scale=0.0)
        return Run(
            name=self.name,
            encoder=replace(config, **self.encoder),  # type: ignore[arg-type]
            objective=objective,
            data=self.data,
            train=self.train,
        )


@dataclass(frozen=True)
class Examples:
    """train, valid: to learn from, and to choose the checkpoint by. test: for the figures at the end."""

    train: Sequence[Utterance]
    valid: Sequence[Utterance]
    test: Sequence[Utterance]


class TuningTask(Protocol):
    """What tells transcription from sound events."""

    def taught(self, utterance: Utterance) -> Sequence[object]:
        """What a run depends on in a row, beside what every run does."""
        ...

    def filled(self, tuning: FineTuning, examples: Examples) -> FineTuning:
        """With the labels or the vocabulary that the examples have."""
        ...

    def targets(self, tuning: FineTuning, encoder: Encoder) -> Targets: ...
    def measure(self, runtime: Runtime, head: str, test: Sequence[Utterance], notes: Notes) -> dict[str, Any]:
        """Figures of the finished model on held-out clips, through the runtime as users have it."""
        ...


@dataclass(frozen=True, kw_only=True)
class TuningRequest:
    """What is asked beside the numbers. head: its name in the artifact. The others: as for `pretrain`."""

    out: Path
    head: str
    ranks: Ranks
    init: str | None = None
    resume: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    tell: Listener = silent
