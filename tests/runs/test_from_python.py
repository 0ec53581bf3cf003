"""Runs as a program starts them: what they return and tell, and that they print nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import speech_ssl
from speech_ssl import runs
from speech_ssl.data.manifest import read_manifest, write_manifest
from speech_ssl.runs.events import (
    ArtifactSaved,
    CheckpointSaved,
    ClipNoted,
    Measured,
    RunBegun,
    StepLogged,
    StepTaken,
    TrainingBegun,
    TrainingEnded,
)
from speech_ssl.training.checkpoint import BEST, LAST
from speech_ssl.training.ranks import Ranks
from tests.recipes import tuning
from tests.recipes.test_command import brief
from tests.training.toys import CPU


@pytest.fixture(scope="module")
def few(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some prompts with labels, and a file that is not there."""
    path = tmp_path_factory.mktemp("few") / "manifest.tsv"
    chosen = [u for u in read_manifest(prompts / "manifest.tsv") if u.duration_s > 1][:10]
    split = [
        replace(u, label="ab"[i // 2 % 2], split="train" if i % 2 else "dev") for i, u in enumerate(chosen)
    ]
    write_manifest(path, [*split, replace(split[0], path=path.parent / "gone.flac")])
    return path


@pytest.fixture(scope="module")
def pretrained(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[runs.RunEvent]]:
    """The folder of a run of two steps, and what it told."""
    out, told = tmp_path_factory.mktemp("runs") / "pretrained", list[runs.RunEvent]()
    assert runs.pretrain(brief(), [few], out, CPU, tell=told.append) == out / "artifact"
    return out, told


def test_pre_training_tells_its_events_in_order(pretrained: tuple[Path, list[runs.RunEvent]]) -> None:
    out, told = pretrained
    assert isinstance(told[0], RunBegun)
    assert (told[0].name, told[0].clips, told[0].held_out) == ("wav2vec2-smoke", 5, 6)
    (gone,) = (event for event in told if isinstance(event, ClipNoted))
    assert (gone.kind, gone.path.name, gone.file) == ("skipped", "gone.flac", out / "skipped.jsonl")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [{"kind": e.kind, "step": e.step, **e.numbers} for e in told if isinstance(e, StepLogged)] == lines
    assert [e for e in told if not isinstance(e, ClipNoted | StepLogged)][1:] == [
        TrainingBegun(0, 2),
        StepTaken(1),
        StepTaken(2),
        CheckpointSaved(out / BEST, 2),
        CheckpointSaved(out / LAST, 2),
        TrainingEnded(2),
        ArtifactSaved(out / "artifact", 2),
    ]


def test_a_resumed_run_begins_where_it_ended(pretrained: tuple[Path, list[runs.RunEvent]], few: Path) -> None:
    out, told = pretrained[0], list[runs.RunEvent]()
    with pytest.raises(ValueError, match="already holds a run"):
        runs.pretrain(brief(), [few], out, CPU, tell=told.append)
    assert not told
    runs.pretrain(brief(), [str(few)], str(out), CPU, resume=True, tell=told.append)
    assert told[1:] == [TrainingBegun(2, 2), TrainingEnded(2), ArtifactSaved(out / "artifact", 2)]


@pytest.mark.parametrize("objective", ["ctc", "events"])
def test_fine_tuning_returns_what_it_tells(
    pretrained: tuple[Path, list[runs.RunEvent]],
    few: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    objective: str,
) -> None:
    variant = tuning.ctc() if objective == "ctc" else tuning.clips()
    told = list[runs.RunEvent]()
    init = str(pretrained[0] / "artifact")
    figures = runs.finetune(variant, [few], tmp_path, CPU, init=init, tell=told.append)
    assert figures == json.loads((tmp_path / "results.json").read_text())
    assert told[-1] == Measured("held out", figures) and ArtifactSaved in map(type, told)
    assert [e.step for e in told if isinstance(e, StepTaken)] == [1, 2]
    runtime = speech_ssl.load(tmp_path / "artifact")
    assert list(runtime.heads) == [objective]
    assert not any(capfd.readouterr())


def test_only_the_first_process_tells(few: Path, tmp_path: Path) -> None:
    """The others say nothing even of a run that is wrong."""
    told = list[runs.RunEvent]()
    with pytest.raises(ValueError, match="start a number of processes that divides it"):
        runs.pretrain(brief(), [few], tmp_path, Ranks(1, 2, CPU.device), tell=told.append)
    assert not told
