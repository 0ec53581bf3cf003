"""What can be read out of a frozen encoder, layer by layer, and out of nothing but a spectrum."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.evaluation.probes.figures import draw_layers
from speech_ssl.evaluation.probes.report import (
    BEST,
    MIXED,
    RANDOM,
    ProbedProblem,
    column,
    layer_lines,
    probe_lines,
    write_csv,
)
from speech_ssl.evaluation.probes.representations import (
    MIN_SAMPLES,
    Cached,
    Representation,
    cached,
    encoder_states,
    log_mel,
    mfcc,
    random_encoder,
)
from speech_ssl.evaluation.probes.tasks import Problem, Task, solve, solve_layers
from speech_ssl.inference.runtime import named_artifact
from speech_ssl.runs.events import ClipRead, LayersProbed, Listener, Note, ReadingBegun, ReadingEnded, silent

SEED = 0
SPECTRA: Mapping[str, Representation] = {"log-mel": log_mel, "MFCC": mfcc}


class ProbeJob(NamedTuple):
    """A task, and the manifest that it is tried on. data: what to call that in tables."""

    task: Task
    data: str
    utterances: list[Utterance]


def probe(
    tasks: Iterable[tuple[Task, Path | str]],
    out: Path | str,
    *,
    init: str = "default",
    device: str = "auto",
    tell: Listener = silent,
) -> list[ProbedProblem]:
    """Try each task on its manifest, with the hidden states of an artifact's encoder, the same encoder at
    random, and spectra. Leaves probes.csv, layers.csv, layers.png and probes.json in `out`.

    device: auto, cpu or cuda. Raises ValueError for what cannot be probed, before any audio is read, and for
    a folder with other probes; ModuleNotFoundError where matplotlib is not installed.
    """
    out, started = Path(out), time.monotonic()
    jobs = _jobs(tasks)
    for job in jobs:  # what cannot be probed is refused before an hour of audio is read
        job.task.problems(job.task.clips(job.utterances))
    artifact = named_artifact(init)
    device = _device(device)
    _check_out(out)
    representations = {
        **SPECTRA,
        RANDOM: encoder_states(random_encoder(artifact.encoder.config, SEED), device),
        MIXED: encoder_states(artifact.encoder, device),
    }
    rows: list[ProbedProblem] = []
    reports: list[dict[str, object]] = []
    clips: list[Utterance] = []
    for job in jobs:
        began, before, clips = time.monotonic(), clips, job.task.clips(job.utterances)
        if clips != before:  # two tasks of one manifest may follow each other
            found = _read(job, clips, representations, artifact.encoder.receptive_field, tell)
        read_s, began = time.monotonic() - began, time.monotonic()
        new = [_solved(job.data, problem, found) for problem in job.task.problems(found.clips)]
        seconds = {"features": round(read_s, 1), "probes": round(time.monotonic() - began, 1)}
        reports.append(_report(job, found, new, seconds))
        rows += new
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "probes.csv", probe_lines(rows))
    write_csv(out / "layers.csv", layer_lines(rows))
    summary = {
        "seed": SEED,
        "artifact": {"name": artifact.name, "sha256": artifact.sha256},
        "device": device,
        "seconds": round(time.monotonic() - started, 1),
        "tasks": reports,
    }
    tell(LayersProbed(rows))
    draw_layers([column(row) for row in rows], out / "layers.png", title=f"probes of {artifact.name}")
    (out / "probes.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", "utf-8")
    tell(Note(f"probes.csv, layers.csv, layers.png and probes.json are in {out}"))
    return rows


def _jobs(tasks: Iterable[tuple[Task, Path | str]]) -> list[ProbeJob]:
    """Each manifest is a data set of its own, and is read once."""
    read: dict[Path, list[Utterance]] = {}
    jobs = []
    for task, path in ((task, Path(path)) for task, path in tasks):
        if path not in read:
            read[path] = read_manifest(path)
        jobs.append(ProbeJob(task, path.resolve().parent.name, read[path]))
    return jobs


def _solved(data: str, problem: Problem, found: Cached) -> ProbedProblem:
    outcomes = {name: solve(problem, x_NLD, seed=SEED) for name, x_NLD in found.means.items()}
    row = ProbedProblem(data, problem, outcomes, solve_layers(problem, found.means[MIXED], seed=SEED))
    outcomes[BEST] = row.layers[row.best]
    return row


def _read(
    job: ProbeJob,
    clips: Sequence[Utterance],
    representations: Mapping[str, Representation],
    min_samples: int,
    tell: Listener,
) -> Cached:
    """Features of all clips; the first of those that cannot be read are named."""
    tell(ReadingBegun(f"{job.task.name}, {job.data}", sum(clip.duration_s for clip in clips)))
    try:
        found = cached(
            clips,
            representations,
            min_samples=max(min_samples, MIN_SAMPLES),
            tick=lambda seconds: tell(ClipRead(seconds)),
        )
    finally:
        tell(ReadingEnded())
    for reason in list(found.failures.values())[:5]:
        tell(Note(f"skipped: {reason}"))
    return found


def _report(
    job: ProbeJob, found: Cached, rows: Sequence[ProbedProblem], seconds: Mapping[str, float]
) -> dict[str, object]:
    problems = [
        {
            "name": row.problem.name,
            "note": "; ".join(filter(None, (row.problem.note, row.outcomes[MIXED].note))),
            "tested": len(row.problem.tested_labels),
            "classes": len(set(row.problem.labels)),
        }
        for row in rows
    ]
    return {
        "task": job.task.name,
        "data": job.data,
        "clips": len(found.clips),
        "audio_s": round(sum(clip.duration_s for clip in found.clips), 1),
        "seconds": dict(seconds),
        "problems": problems,
        "skipped": found.failures,
    }


def _device(name: str) -> str:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {name!r} is not known: use auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device: use --device cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _check_out(out: Path) -> None:
    if (out / "probes.json").exists():
        raise ValueError(f"{out} holds the probes of another run: choose another folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose another name for the folder")
