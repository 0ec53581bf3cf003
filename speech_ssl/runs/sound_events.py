"""The tasks of sound events: what their targets are, and how a finished model is measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech_ssl.data.folds import Fold
from speech_ssl.data.labels import (
    ClipTargets,
    Event,
    TimedTargets,
    balanced_weights,
    label_names,
    labels_of,
    whole_files,
)
from speech_ssl.data.manifest import Utterance
from speech_ssl.data.reading import Targets
from speech_ssl.evaluation.metrics import detection, psds
from speech_ssl.inference.runtime import Runtime
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.heads.specs import EventsSpec
from speech_ssl.objectives.events import EventsConfig
from speech_ssl.runs.notes import Notes
from speech_ssl.runs.reading import readable
from speech_ssl.runs.tuning import Examples, FineTuning

WINDOW_S = 10.0
"""Of timed events: files are cut into windows of at most this length."""


@dataclass(frozen=True)
class ClipLabels:
    """Each row is a clip with its labels."""

    def taught(self, utterance: Utterance) -> Sequence[object]:
        return (utterance.label, utterance.speaker)

    def examples(self, fold: Fold) -> Examples:
        """Raises ValueError where a part has nothing to learn or to measure: before the training."""
        examples = Examples(fold.train, fold.valid, fold.test or fold.valid)
        parts = {
            "train on": examples.train,
            "test on": examples.test,
            "choose the checkpoint by": examples.valid,
        }
        for purpose, rows in parts.items():
            if not any(self.has_label(row) for row in rows):
                raise ValueError(
                    f"none of the {len(rows)} clips to {purpose} has a label: fill the column 'label', or "
                    "mark others in the column 'split'"
                )
        return examples

    def has_label(self, utterance: Utterance) -> bool:
        return bool(labels_of(utterance))

    def filled(self, tuning: FineTuning, examples: Examples) -> FineTuning:
        objective = tuning.objective
        assert isinstance(objective, EventsConfig)
        names = self.names(examples)
        weights: Sequence[float] = ()
        if objective.exclusive:
            counts = Counter(label for clip in examples.train for label in labels_of(clip))
            weights = balanced_weights([counts[name] for name in names])
        return replace(tuning, objective=replace(objective, labels=names, class_weights=tuple(weights)))

    def names(self, examples: Examples) -> tuple[str, ...]:
        return label_names([*examples.train, *examples.valid, *examples.test])

    def targets(self, tuning: FineTuning, encoder: Encoder) -> Targets:
        assert isinstance(tuning.objective, EventsConfig)
        return ClipTargets(tuning.objective.labels, multilabel=not tuning.objective.exclusive)

    def measure(self, runtime: Runtime, head: str, test: Sequence[Utterance], notes: Notes) -> dict[str, Any]:
        """Accuracies, confusions and calibration error of exclusive labels; mean average precision and
        lwlrap of tags."""
        spec = runtime.heads[head]
        assert isinstance(spec, EventsSpec)
        names: list[list[str]] = []
        scores: list[list[float]] = []
        rows = [clip for clip in test if len(labels_of(clip)) == 1 or not spec.exclusive]
        for clips, waves in readable(rows, runtime, notes):
            for clip, found in zip(clips, runtime.classify(waves, head=head), strict=True):
                score_of = {label.label: label.score for label in found.labels}
                scores.append([score_of[name] for name in spec.labels])
                names.append(labels_of(clip))
        if spec.exclusive:
            truth, said = [name[0] for name in names], [spec.labels[int(np.argmax(row))] for row in scores]
            right = [one == other for one, other in zip(truth, said, strict=True)]
            error = detection.expected_calibration_error(right, [max(row) for row in scores])
            return {"clips": len(names), **_exclusive(truth, said, spec.labels), "ece": error}
        truth_NK = np.array([[name in clip for name in spec.labels] for clip in names])
        precision = detection.mean_average_precision(truth_NK, np.array(scores), spec.labels)
        return {
            "clips": len(names),
            "mean_ap": precision.mean,
            "lwlrap": detection.lwlrap(truth_NK, np.array(scores)),
            "average_precisions": dict(precision.per_label),
        }


@dataclass(frozen=True)
class TimedEvents(ClipLabels):
    """events: of each window by its id; see `timed_windows`."""

    events: Mapping[str, Sequence[Event]] = field(default_factory=dict)

    def taught(self, utterance: Utterance) -> Sequence[object]:
        return (*self.events[utterance.id], utterance.speaker)

    def has_label(self, utterance: Utterance) -> bool:
        return bool(self.events[utterance.id])

    def names(self, examples: Examples) -> tuple[str, ...]:
        return tuple(sorted({label for events in self.events.values() for label, _, _ in events}))

    def targets(self, tuning: FineTuning, encoder: Encoder) -> Targets:
        assert isinstance(tuning.objective, EventsConfig)
        return TimedTargets(tuning.objective.labels, self.events)

    def measure(self, runtime: Runtime, head: str, test: Sequence[Utterance], notes: Notes) -> dict[str, Any]:
        """Event-based F1 (collars of 200 ms, at the end 20 % of the length if that is more), and PSDS: of
        whole files, as the measures are defined. The windows of training would cut events in two."""
        files, events = whole_files(test, self.events)
        spec = runtime.heads[head]
        assert isinstance(spec, EventsSpec)
        references: dict[str, list[detection.Event]] = {}
        found: dict[str, list[detection.Event]] = {}
        scores: dict[str, psds.TimedScores] = {}
        for clips, waves in readable(files, runtime, notes):
            heard = runtime.classify_frames(waves, head=head)
            for clip, (answer, scores_TK, edges_s) in zip(clips, heard, strict=True):
                references[clip.id] = [detection.Event(*event) for event in events[clip.id]]
                found[clip.id] = [detection.Event(e.label, e.start, e.end) for e in answer.events]
                scores[clip.id] = psds.TimedScores(scores_TK, edges_s, answer.duration_s)
        f1 = detection.event_based_f1(references, found, spec.labels)
        areas = {
            f"psds_{number}": psds.psds(references, scores, spec.labels, scenario).value
            for number, scenario in enumerate((psds.REACTION, psds.CONFUSION), start=1)
        }
        counted = {"clips": len(references)}
        return {**counted, "event_f1": f1.macro_f1, "event_f1_micro": f1.micro_f1, **areas}


def _exclusive(truth: Sequence[str], said: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    result = detection.classification(truth, said, labels)
    return {
        "accuracy": result.accuracy,
        "balanced_accuracy": result.balanced_accuracy,
        "labels": list(labels),
        "confusion": result.confusion_KK.tolist(),
    }


def over_folds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the folds with their spread; and of exclusive labels the figures of all clips together."""
    summary: dict[str, Any] = {"seconds": round(sum(r["seconds"] for r in results), 1)}
    summary["clips"] = sum(r["clips"] for r in results)
    for name in ("accuracy", "ece", "mean_ap", "lwlrap", "event_f1", "psds_1", "psds_2"):
        values = [r[name] for r in results if name in r]
        if values:
            summary |= {f"mean_{name}": float(np.mean(values)), f"std_{name}": float(np.std(values))}
            summary[f"folds_{name}"] = values
    if all("confusion" in r for r in results):
        labels = sorted({label for r in results for label in r["labels"]})
        total_KK = sum(_placed(r, labels) for r in results)
        assert isinstance(total_KK, np.ndarray)
        hits_K, clips_K = total_KK.diagonal(), total_KK.sum(1)
        summary["pooled_accuracy"] = float(hits_K.sum() / clips_K.sum())
        summary["pooled_balanced_accuracy"] = float(np.mean(hits_K[clips_K > 0] / clips_K[clips_K > 0]))
        summary |= {"labels": labels, "confusion": total_KK.tolist()}
    return summary


def _placed(result: Mapping[str, Any], labels: Sequence[str]) -> NDArray[np.int64]:
    """A fold's confusion matrix among all labels: a fold may lack some."""
    place = [labels.index(label) for label in result["labels"]]
    whole_KK = np.zeros((len(labels), len(labels)), dtype=np.int64)
    whole_KK[np.ix_(place, place)] = result["confusion"]
    return whole_KK
