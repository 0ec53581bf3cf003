"""Fine-tuning: from an artifact and labelled manifests to an artifact with a head, and its figures."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from speech_ssl.checkpoints.artifact import (
    Artifact,
    Head,
    add_head,
    head_file,
    load_artifact,
    save_artifact,
)
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.folds import Fold, folds, hold_out
from speech_ssl.data.labels import timed_windows
from speech_ssl.data.loader import FILES, evaluation
from speech_ssl.data.manifest import Utterance
from speech_ssl.data.reading import Targets
from speech_ssl.data.source import Sounding, Source
from speech_ssl.data.texts import read_vocabulary
from speech_ssl.files import write_atomically
from speech_ssl.inference.runtime import Runtime, named_artifact
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.ctc import CTCConfig
from speech_ssl.objectives.events import Events, EventsConfig
from speech_ssl.objectives.tuned import Tuned
from speech_ssl.runs.events import ArtifactSaved, Listener, Measured, Note, silent
from speech_ssl.runs.folders import best_weights, leaving_artifact, open_folder, results_of
from speech_ssl.runs.notes import Notes, telling_silence
from speech_ssl.runs.reading import batches_of, begun, fingerprint, fixed_validation, loader_of, read_all
from speech_ssl.runs.sound_events import WINDOW_S, ClipLabels, TimedEvents, over_folds
from speech_ssl.runs.transcription import TranscriptionTask
from speech_ssl.runs.tuning import Examples, FineTuning, TuningRequest, TuningTask
from speech_ssl.training.loop import train
from speech_ssl.training.ranks import Ranks, alone
from speech_ssl.training.run import Run
from speech_ssl.types import Batch

RESULTS = "results.json"
MEASURED = 64
"""About so many training clips are heard to standardise what a head for events sees."""
PROBED = 5_000
"""About so many at most give a linear head its start: their means, by layer, are held in memory."""


def finetune(  # noqa: PLR0913 - all that there is to ask
    tuning: FineTuning,
    manifests: Sequence[Path | str],
    out: Path | str,
    ranks: Ranks | None = None,
    *,
    init: str | None = None,
    head: str | None = None,
    lang: str | None = None,
    vocabulary: Path | str | None = None,
    folded: Literal["split", "speaker"] | None = None,
    resume: bool = False,
    changes: Mapping[str, Any] = MappingProxyType({}),
    tell: Listener = silent,
) -> dict[str, Any]:
    """Train, leave the best weights in `out`/artifact, measure them, and write `out`/results.json, which is
    returned: on the first rank, elsewhere it is empty.

    head: its name in the artifact, else "ctc" or "events". lang: of the clips to use. vocabulary: file with
    the characters of a transcription, one a line, else they are those of the texts. folded: events are
    cross-validated by this column, each fold a run in a folder of its own. The others, and what is raised:
    as for `pretrain`. Without `init` it is trained from random weights.
    """
    ranks, objective = ranks or alone(), tuning.objective
    if (folded if isinstance(objective, CTCConfig) else vocabulary) is not None:
        raise ValueError("folded is for sound events, and vocabulary for transcription")
    request = TuningRequest(
        out=Path(out),
        head=head if head is not None else "ctc" if isinstance(objective, CTCConfig) else "events",
        ranks=ranks,
        init=init,
        resume=resume,
        changes=changes,
        tell=tell if ranks.first else silent,
    )
    utterances = _of_language(read_all(manifests), lang)
    if isinstance(objective, CTCConfig):
        texts = TranscriptionTask(None if vocabulary is None else read_vocabulary(Path(vocabulary)))
        return tune(tuning, texts, texts.examples(utterances), request)
    task = ClipLabels()
    if objective.timed:
        utterances, events = timed_windows(utterances, window_s=WINDOW_S)
        task = TimedEvents(events)
    if folded is None:
        return tune(tuning, task, task.examples(hold_out(utterances)), request)
    return _cross_validate(tuning, task, folds(utterances, folded), request)


def _of_language(utterances: list[Utterance], lang: str | None) -> list[Utterance]:
    if lang is None:
        return utterances
    chosen = [utterance for utterance in utterances if utterance.lang == lang]
    if not chosen:
        known = sorted({utterance.lang or "(none)" for utterance in utterances})
        raise ValueError(f"no clip has lang {lang!r}: the manifest has {', '.join(known[:12])}")
    return chosen


def _cross_validate(
    tuning: FineTuning, task: ClipLabels, parts: Sequence[Fold], request: TuningRequest
) -> dict[str, Any]:
    """A run a fold, in `out`/fold-NAME; those that are finished are not done again. Tells and writes the
    figures over all of them."""
    results = []
    for number, fold in enumerate(parts, start=1):
        out = request.out / f"fold-{number:02d}-{re.sub(r'[^A-Za-z0-9_-]', '_', fold.name)}"
        request.tell(Note(f"fold {fold.name}: {len(fold.test)} clips to test on"))
        results.append(tune(tuning, task, task.examples(fold), replace(request, out=out)))
    if not request.ranks.first:
        return {}
    summary = {"run": tuning.name, "seed": tuning.train.seed, "folds": len(parts), **over_folds(results)}
    _write_results(summary, "all folds", request)
    return summary


def tune(tuning: FineTuning, task: TuningTask, examples: Examples, request: TuningRequest) -> dict[str, Any]:
    """One run of `finetune`."""
    ranks, tell = request.ranks, request.tell
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
    notes = Notes.into(request.out, tell)
    (training, cut), (valid, cut_valid) = (_fitting(part, data) for part in (examples.train, examples.valid))
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
    run = open_folder(request.out, run, inputs, ranks, resume=request.resume, changes=changes, tell=tell)
    if finished:
        return results_of(request.out / RESULTS, request.changes, tell)
    if artifact is None:
        tell(Note("no --init: the encoder starts from random weights"))
    if ranks.first:
        for clip in cut + cut_valid:
            most = f"a batch has {data.longest_s:g} s at most"
            notes.skipped(clip, f"{clip.id}: {clip.duration_s:.1f} s, {most}")
    tell(begun(run.name, loader, training, valid))
    validation = fixed_validation(valid, data, notes if ranks.first else None, targets, source=source)
    if artifact is not None and isinstance(objective, Events):
        prepare_head(objective.to(ranks.device), training, validation, data, targets, tell)
    with (
        leaving_artifact(ranks, partial(leave_tuned, objective, run, request, artifact, validation)),
        telling_silence(loader, tell),
    ):
        batches = batches_of(loader, ranks)
        train(objective, batches, validation, run.train, out=request.out, ranks=ranks, tell=tell)
    if not ranks.first:
        return {}
    made = load_artifact(request.out / "artifact")
    runtime = Runtime(made, device=str(ranks.device), precision="fp32")
    figures = task.measure(runtime, request.head, examples.test, notes)
    taken = {"step": made.heads[request.head].training["step"], "seconds": round(time.monotonic() - began, 1)}
    results = {"run": run.name, "seed": run.train.seed, **taken, "clips": len(examples.test), **figures}
    _write_results(results, "held out", request)
    return results


def prepare_head(
    objective: Events,
    training: Sequence[Utterance],
    validation: Callable[[], Iterable[Batch]],
    data: DataConfig,
    targets: Targets,
    tell: Listener,
) -> None:
    """Show the head what it will see, and let it start as a linear probe if it can. Not for a random encoder:
    its states vary so little that they would not stay in the measured range for a step."""

    def some(clips: int) -> Iterator[Batch]:
        return evaluation(training[:: max(len(training) // clips, 1)], data, targets=targets)

    objective.measure(some(MEASURED))
    if objective.starts_linear:
        loss = objective.start_linear(some(PROBED), validation())
        tell(Note(f"the head starts as a linear probe of the encoder: held-out loss {loss:.3f}"))


def _write_results(results: Mapping[str, Any], of: str, request: TuningRequest) -> None:
    write_atomically(request.out / RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    request.tell(Measured(of, results))


def _fitting(clips: Sequence[Utterance], data: DataConfig) -> tuple[list[Utterance], list[Utterance]]:
    """Those that a batch holds, and those it would cut: a text or label belongs to the whole clip."""
    most = data.longest_s
    return [c for c in clips if c.duration_s <= most], [c for c in clips if c.duration_s > most]


def leave_tuned(
    objective: Tuned,
    run: Run,
    request: TuningRequest,
    artifact: Artifact | None,
    validation: Callable[[], Iterable[Batch]],
    finished: bool,
) -> None:
    """The best weights as an artifact. A frozen encoder keeps its other heads, a trained one none. Scores of
    labels are calibrated on the clips that chose the weights; not after a signal, which leaves seconds."""
    chosen = best_weights(objective, request.out)
    assert isinstance(run.objective, CTCConfig | EventsConfig)
    training = {"recipe": run.to_dict(), "step": chosen.step, f"valid_{objective.best_by}": chosen.best}
    if finished and isinstance(objective, Events):
        training["temperature"] = objective.calibrate(validation())
    licence = "as the audio it was trained on allows"
    head = Head(run.objective.spec, objective.head, training, licence)
    folder = request.out / "artifact"
    if artifact is not None and objective.frozen:
        if request.head in artifact.heads:
            request.tell(Note(f"the head {request.head} of {artifact.name} is replaced"))
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
                request.tell(Note(f"left out, for the encoder was trained on: heads {names}"))
        save_artifact(
            objective.encoder,
            folder,
            name=run.name,
            training=training,
            licence=licence,
            heads={request.head: head},
        )
    request.tell(ArtifactSaved(folder, chosen.step))
