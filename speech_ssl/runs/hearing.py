"""HEAR's protocol on a manifest: frozen scene embeddings, shallow heads, folds."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.data.split_names import named_kind
from speech_ssl.evaluation.hear import heads
from speech_ssl.evaluation.hear.api import HearModel, load_model
from speech_ssl.evaluation.probes.linear import folds
from speech_ssl.evaluation.probes.representations import MIN_SAMPLES, Cached, Means, cached, log_mel
from speech_ssl.inference.engines.torch import checked_device
from speech_ssl.runs.events import ClipRead, Listener, Note, ReadingBegun, ReadingEnded, silent
from speech_ssl.types import Waveform

RESULTS = "hear.json"
SEED = 0
SCENE, LOG_MEL, GUESSING = "scene embedding", "log-mel", "guessing"


@dataclass(frozen=True)
class HearPlan:
    """folds: how many the manifest must have in its column `split`; None: those that are there, or else
    speakers. clips: at most so many, the first ones of each fold; None: all."""

    name: str
    folds: int | None = None
    clips: int | None = None
    grid: Sequence[heads.Point] = heads.GRID
    schedule: heads.Schedule = field(default_factory=heads.Schedule)


@dataclass(frozen=True)
class HearScores:
    """Of one representation with one head. mean, deviation: of the folds' accuracies."""

    representation: str
    head: str
    mean: float
    deviation: float
    uar: float
    folds: dict[str, float]


def hear(
    plan: HearPlan,
    manifest: Path | str,
    out: Path | str,
    *,
    init: str = "default",
    device: str = "auto",
    tell: Listener = silent,
) -> list[HearScores]:
    """Cross-validate heads on an artifact's scene embeddings and on log-mel means and deviations. Leaves
    hear.json and hear.csv in `out`.

    init: as `load_model` takes it, such as "default:layer=3". Raises ValueError for a manifest without labels
    or folds, a model or device that is not there, and a folder with other results.
    """
    out = Path(out)
    if (out / RESULTS).exists() or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out} holds the results of another run, or is a file: choose another folder")
    clips, by = folded(read_manifest(Path(manifest)), plan)
    model = load_model(init).to(checked_device(device))
    found = _read(plan.name, clips, model, tell)
    labels, keys = [clip.label for clip in found.clips], [getattr(clip, by) for clip in found.clips]
    results = [_guessing(labels, keys)]
    for name, x_NLD in found.means.items():
        mlp = heads.shallow(x_NLD, labels, keys, grid=plan.grid, schedule=plan.schedule, seed=SEED)
        for head, scores in (("linear", heads.linear(x_NLD, labels, keys, seed=SEED)), ("MLP", mlp)):
            results.append(
                HearScores(name, head, scores.mean, scores.deviation, scores.uar, scores.accuracies)
            )
    out.mkdir(parents=True, exist_ok=True)
    _write(out, results, {"task": plan.name, "folds_by": by, "model": init, **_counts(found, labels)})
    tell(Note(f"{RESULTS} and hear.csv are in {out}"))
    return results


def folded(utterances: Sequence[Utterance], plan: HearPlan) -> tuple[list[Utterance], str]:
    """The clips with a label, and the column that names their folds. Raises ValueError where there are none
    such, or not as many folds as the plan has."""
    labelled = [utterance for utterance in utterances if utterance.label]
    names = {clip.split for clip in labelled}
    if plan.folds is not None:
        if len(names) != plan.folds or "" in names:
            raise ValueError(
                f"{plan.name} has {plan.folds} folds in the column 'split', fold00 and so on, not "
                f"{len(names)}: {', '.join(sorted(names)[:6]) or 'no clip has a label'}"
            )
        return _some(labelled, "split", plan.clips), "split"
    if len(names) > 2 and all(name and named_kind(name) is None for name in names):
        return _some(labelled, "split", plan.clips), "split"
    if len({clip.speaker for clip in labelled}) > 2 and all(clip.speaker for clip in labelled):
        return _some(labelled, "speaker", plan.clips), "speaker"
    raise ValueError(
        f"{plan.name} needs labels, and three folds or more: names such as fold00 in the column 'split', "
        "neither train, dev nor test, or else a speaker for every clip"
    )


def _some(clips: list[Utterance], column: str, most: int | None) -> list[Utterance]:
    if most is None:
        return clips
    seen: Counter[str] = Counter()
    kept = []
    for clip in clips:
        seen[getattr(clip, column)] += 1
        if seen[getattr(clip, column)] <= most:
            kept.append(clip)
    return kept


def _read(name: str, clips: Sequence[Utterance], model: HearModel, tell: Listener) -> Cached:
    def scene(waves: Sequence[Waveform]) -> Means:
        return model.scenes(waves)[:, None]

    tell(ReadingBegun(name, sum(clip.duration_s for clip in clips)))
    try:
        found = cached(
            clips,
            {SCENE: scene, LOG_MEL: log_mel},
            min_samples=max(model.encoder.receptive_field, MIN_SAMPLES),
            tick=lambda seconds: tell(ClipRead(seconds)),
        )
    finally:
        tell(ReadingEnded())
    for reason in list(found.failures.values())[:5]:
        tell(Note(f"skipped: {reason}"))
    return found


def _guessing(labels: Sequence[str], keys: Sequence[str]) -> HearScores:
    """Always the most frequent label of the other folds."""
    parts, _ = folds(keys, labels)
    accuracies = {}
    for name, train, test in parts:
        likely = Counter(labels[int(i)] for i in train).most_common(1)[0][0]
        accuracies[name] = float(np.mean([labels[int(i)] == likely for i in test]))
    values = list(accuracies.values()) or [0.0]
    return HearScores(
        GUESSING, "", float(np.mean(values)), float(np.std(values)), 1 / len(set(labels)), accuracies
    )


def lines(results: Sequence[HearScores]) -> list[str]:
    """A table: accuracy as the mean over folds and their standard deviation, and UAR over all clips."""
    return [
        f"{'representation':<16}  {'head':<6}  {'accuracy':>15}  {'UAR':>6}",
        *(f"{r.representation:<16}  {r.head:<6}  {_spread(r):>15}  {r.uar:>6.3f}" for r in results),
    ]


def _spread(one: HearScores) -> str:
    return f"{one.mean:.3f} ± {one.deviation:.3f}"


def _counts(found: Cached, labels: Sequence[str]) -> dict[str, Any]:
    return {"clips": len(labels), "labels": dict(Counter(labels)), "skipped": found.failures}


def _write(out: Path, results: Sequence[HearScores], about: dict[str, Any]) -> None:
    rows = [vars(one) for one in results]
    text = json.dumps({**about, "seed": SEED, "results": rows}, indent=2, ensure_ascii=False)
    (out / RESULTS).write_text(text + "\n", "utf-8")
    with (out / "hear.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("representation", "head", "fold", "accuracy"))
        for one in results:
            writer.writerows((one.representation, one.head, *each) for each in one.folds.items())
