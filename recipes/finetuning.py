"""What recipes with labels share: from an artifact and a labelled manifest to an artifact with a head."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from recipes.common import (
    asked_changes,
    batches_of,
    best_weights,
    describe,
    fingerprint,
    fixed_validation,
    leaving_artifact,
    loader_of,
    orderly_exit,
    recipe_parser,
)
from recipes.folders import open_folder, results_of
from recipes.measuring import shown
from recipes.skipped import Notes, telling_silence
from speech_ssl.checkpoints.artifact import (
    Artifact,
    Head,
    add_head,
    head_file,
    load_artifact,
    save_artifact,
)
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.loader import FILES, Targets, evaluation
from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.data.source import Sounding, Source
from speech_ssl.inference.runtime import Runtime, named_artifact
from speech_ssl.model import presets
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Tuned
from speech_ssl.objectives.ctc import CTCConfig
from speech_ssl.objectives.events import Events, EventsConfig
from speech_ssl.training.checkpoint import write_atomically
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.loop import train
from speech_ssl.training.ranks import Ranks, joined_ranks
from speech_ssl.training.run import Run
from speech_ssl.types import Batch

RESULTS = "results.json"
MEASURED = 64
"""About so many training clips are heard to standardise what a head for events sees."""
PROBED = 5_000
"""About so many at most give a linear head its start: their means, by layer, are held in memory."""


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


class Task(Protocol):
    """What tells transcription from sound events."""

    def taught(self, utterance: Utterance) -> Sequence[object]:
        """What a run depends on in a row, beside what every run does."""
        ...

    def examples(self, utterances: Sequence[Utterance]) -> Examples: ...
    def filled(self, tuning: FineTuning, examples: Examples) -> FineTuning:
        """With the labels or the vocabulary that the examples have."""
        ...

    def targets(self, tuning: FineTuning, encoder: Encoder) -> Targets: ...
    def measure(self, runtime: Runtime, head: str, test: Sequence[Utterance], notes: Notes) -> dict[str, Any]:
        """Figures of the finished model on held-out clips, through the runtime as users have it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asks, beside the variant. head: the name it gets in the artifact."""

    manifests: Sequence[Path]
    out: Path
    head: str
    init: str | None = None
    resume: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    lang: str | None = None


def command(
    *variants: Callable[[], FineTuning],
    doc: str | None,
    head: str,
    options: Callable[[argparse.ArgumentParser], None],
    start: Callable[[FineTuning, Request, argparse.Namespace, Ranks], None],
) -> Callable[..., None]:
    """The command line of a fine-tuning recipe. options: adds its own; start: runs it."""
    named = {variant.__name__: variant for variant in variants}

    def main(arguments: Sequence[str] | None = None) -> None:
        parser = recipe_parser(list(named), doc)
        parser.add_argument("--head", default=head, help="its name in the artifact (default: %(default)s)")
        parser.add_argument("--lang", help="use the clips of this language alone (column 'lang')")
        options(parser)
        given = parser.parse_args(arguments)
        with orderly_exit(), joined_ranks(given.device) as ranks:
            request = Request(
                manifests=given.manifest,
                out=given.out,
                head=given.head,
                init=given.init,
                resume=given.resume,
                changes=asked_changes(given),
                lang=given.lang,
            )
            start(named[given.variant](), request, given, ranks)

    return main


def read_examples(request: Request) -> list[Utterance]:
    """All rows of the manifests, of the language asked for."""
    utterances = [utterance for path in request.manifests for utterance in read_manifest(path)]
    if request.lang is None:
        return utterances
    chosen = [utterance for utterance in utterances if utterance.lang == request.lang]
    if not chosen:
        known = sorted({utterance.lang or "(none)" for utterance in utterances})
        raise ValueError(f"no clip has lang {request.lang!r}: the manifest has {', '.join(known[:12])}")
    return chosen


def finetune(
    tuning: FineTuning, task: Task, examples: Examples, request: Request, ranks: Ranks
) -> dict[str, Any]:
    """Train, leave the best weights in `out`/artifact, measure them, and write `out`/results.json."""
    head_file(request.head)
    artifact = None if request.init is None else named_artifact(request.init)
    if artifact is not None and artifact.folder.resolve() == (request.out / "artifact").resolve():
        raise ValueError(
            f"{request.init} would be overwritten by the run's own artifact: choose another --out"
        )
    tuning = task.filled(tuning, examples)
    run = tuning.run(artifact)
    torch.manual_seed(run.train.seed)
    encoder = Encoder(run.encoder)
    objective = run.objective.build(encoder)
    assert isinstance(objective, Tuned)
    if artifact is not None:
        encoder.load_state_dict(artifact.encoder.state_dict())
    ranks.share(run.train.batches_per_step)
    targets, data = task.targets(tuning, encoder), tuning.data
    notes = Notes.into(request.out, aloud=ranks.first)
    (training, cut), (valid, cut_valid) = (
        _fitting(clips, data) for clips in (examples.train, examples.valid)
    )
    if not training:
        raise ValueError(
            f"no clip is as short as {data.longest_s:g} s, which is what a batch holds: cut them"
        )
    inputs = fingerprint([*examples.train, *examples.valid, *examples.test], artifact, task.taught)
    began = time.monotonic()
    # A text cannot be heard in silence. A label can: "silence" may be one.
    source: Source = Sounding() if isinstance(run.objective, CTCConfig) else FILES
    loader = loader_of(training, data, run.train.seed, notes, source, targets)
    finished = request.resume and (request.out / RESULTS).exists()
    changes = {} if finished else request.changes
    run = open_folder(request.out, run, inputs, ranks, resume=request.resume, changes=changes)
    if finished:
        return results_of(request.out / RESULTS, request.changes, ranks)
    if ranks.first:
        if artifact is None:
            print("no --init: the encoder starts from random weights", file=sys.stderr)
        for clip in cut + cut_valid:
            most = f"a batch has {data.longest_s:g} s at most"
            notes.skipped(clip, f"{clip.id}: {clip.duration_s:.1f} s, {most}")
        describe(run, loader, training, valid)
    validation = fixed_validation(valid, data, notes if ranks.first else None, targets, source=source)
    if artifact is not None and isinstance(objective, Events):
        prepare_head(objective.to(ranks.device), training, validation, data, targets)
    with (
        leaving_artifact(ranks, lambda: leave_tuned(objective, run, request, artifact)),
        telling_silence(loader, ranks),
    ):
        train(objective, batches_of(loader, ranks), validation, run.train, out=request.out, ranks=ranks)
    if not ranks.first:
        return {}
    runtime = Runtime(load_artifact(request.out / "artifact"), device=str(ranks.device), precision="fp32")
    figures = task.measure(runtime, request.head, examples.test, notes)
    return tell(figures, request, examples.test, run, time.monotonic() - began)


def prepare_head(
    objective: Events,
    training: Sequence[Utterance],
    validation: Callable[[], Iterable[Batch]],
    data: DataConfig,
    targets: Targets,
) -> None:
    """Show the head what it will see, and let it start as a linear probe if it can. Not for a random encoder:
    its states vary so little that they would not stay in the measured range for a step."""

    def some(clips: int) -> Iterator[Batch]:
        return evaluation(training[:: max(len(training) // clips, 1)], data, targets=targets)

    objective.measure(some(MEASURED))
    if objective.starts_linear:
        loss = objective.start_linear(some(PROBED), validation())
        print(f"the head starts as a linear probe of the encoder: held-out loss {loss:.3f}", file=sys.stderr)


def tell(
    figures: Mapping[str, Any], request: Request, test: Sequence[Utterance], run: Run, seconds: float
) -> dict[str, Any]:
    """Print them, and write them to results.json."""
    head = load_artifact(request.out / "artifact").heads[request.head]
    results = {
        "run": run.name,
        "seed": run.train.seed,
        "step": head.training["step"],
        "seconds": round(seconds, 1),
        "clips": len(test),
        **figures,
    }
    write_atomically(request.out / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    print("held out: " + shown(results))
    return results


def _fitting(clips: Sequence[Utterance], data: DataConfig) -> tuple[list[Utterance], list[Utterance]]:
    """Those that a batch holds, and those it would cut: a text or label belongs to the whole clip."""
    most = data.longest_s
    return [c for c in clips if c.duration_s <= most], [c for c in clips if c.duration_s > most]


def leave_tuned(objective: Tuned, run: Run, request: Request, artifact: Artifact | None) -> None:
    """The best weights as an artifact. A frozen encoder keeps its other heads, a trained one none."""
    chosen = best_weights(objective, request.out)
    assert isinstance(run.objective, CTCConfig | EventsConfig)
    training = {"recipe": run.to_dict(), "step": chosen.step, f"valid_{objective.best_by}": chosen.best}
    licence = "as the audio it was trained on allows"
    head = Head(run.objective.spec, objective.head, training, licence)
    folder = request.out / "artifact"
    if artifact is not None and objective.frozen:
        if request.head in artifact.heads:
            print(f"the head {request.head} of {artifact.name} is replaced", file=sys.stderr)
        if artifact.extra is None:
            add_head(artifact.folder, folder, request.head, head)
        else:  # another library's
            save_artifact(
                artifact.encoder,
                folder,
                name=artifact.name,
                training=artifact.config["training"],
                licence=artifact.config["licence"],
                heads={**artifact.heads, request.head: head},
                extra=artifact.extra,
            )
    else:
        if artifact is not None:
            objective.encoder.config = artifact.encoder.config
            before = {"name": artifact.name, "sha256": artifact.sha256}
            training = {**training, "init": {**before, "training": artifact.config["training"]}}
            licence = f"{artifact.config['licence']}, and {licence}"
            if artifact.heads:
                names = ", ".join(artifact.heads)
                print(f"left out, for the encoder was trained on: heads {names}", file=sys.stderr)
        save_artifact(
            objective.encoder,
            folder,
            name=run.name,
            training=training,
            licence=licence,
            heads={request.head: head},
        )
    print(f"the weights of step {chosen.step} are in {folder}", file=sys.stderr)
