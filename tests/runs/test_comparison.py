"""Methods beside each other: what is trained and kept, what a failure and a signal leave, and the page."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from recipes.compare_objectives import main, methods, smoke
from recipes.pretrain_apc import smoke as apc
from recipes.pretrain_wav2vec2 import smoke as wav2vec2
from speech_ssl import runs
from speech_ssl.data.manifest import read_manifest, write_manifest
from speech_ssl.evaluation.comparison import vectors
from speech_ssl.evaluation.comparison.report import beaten, cell, verdict
from speech_ssl.evaluation.comparison.results import Entry, Row, TaskScore, load_entries, rows
from speech_ssl.evaluation.probes.tasks import keyword
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Objective
from speech_ssl.training.events import StepTaken
from speech_ssl.training.loop import Stopped
from speech_ssl.training.run import Run

BASELINES = {"log-mel", "MFCC", "random weights", "random weights of the shipped model", "shipped model"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Impossible:
    def build(self, encoder: Encoder) -> Objective:
        raise ValueError("this method cannot be built")


def quick(run: Run) -> Run:
    return replace(run, data=replace(run.data, workers=0))


PLAN = runs.ComparisonPlan(methods=(quick(wav2vec2()), quick(apc())), budget_s=0.2, clips=24, command="again")


@pytest.fixture(scope="module")
def labelled(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompts, by whether they have one word or several."""
    clips = [u for u in read_manifest(prompts / "manifest.tsv") if u.text and u.duration_s > 0.6]
    path = tmp_path_factory.mktemp("labelled") / "words.tsv"
    write_manifest(path, [replace(u, label="one" if " " not in u.text else "several") for u in clips])
    return path


@pytest.fixture(scope="module")
def compared(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    broken = replace(quick(wav2vec2()), name="broken", objective=Impossible())
    plan = replace(PLAN, methods=(broken, *PLAN.methods))
    out = tmp_path_factory.mktemp("comparison") / "out"
    page = runs.compare(plan, [labelled], [(keyword(), labelled)], out)
    assert page == out / "report.html"
    return out


def test_all_are_tried_though_one_fails(compared: Path) -> None:
    found = {entry.name: entry for entry in load_entries(compared)}
    assert found.keys() == BASELINES | {"broken", "wav2vec2-smoke", "apc-smoke"}
    assert "cannot be built" in found["broken"].failure and not found["broken"].scores
    mine = found["wav2vec2-smoke"]
    (score,) = mine.scores
    assert len(score.layers) == len(mine.ranks) == 3 and 0 < score.score <= 1
    assert mine.steps >= 12 and mine.heard_h == pytest.approx(mine.steps * 2 * 4.0 / 3600)
    assert any(point.loss is not None for point in mine.curve)
    assert any(point.probe is not None for point in mine.curve)
    assert mine.vectors is not None and len(mine.vectors.map) == 24
    assert (mine.front_end, found["apc-smoke"].front_end) == ("wave", "log-mel")


def test_the_page_shows_all_and_asks_for_nothing(compared: Path) -> None:
    page = (compared / "report.html").read_text(encoding="utf-8")
    for name in (*BASELINES, "wav2vec2-smoke", "apc-smoke", "cannot be built", "With one seed", "again"):
        assert name in page
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page and "<script" not in page


def test_called_again_it_does_what_is_missing_alone(compared: Path, labelled: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in (compared / "results").glob("*.json")}
    plan = replace(PLAN, methods=PLAN.methods[1:], seeds=(0, 1))
    runs.compare(plan, [labelled], [(keyword(), labelled)], compared)
    now = {path: path.stat().st_mtime_ns for path in (compared / "results").glob("*.json")}
    (new,) = now.keys() - files.keys()
    assert new.stem == "apc-smoke-seed1" and all(now[path] == time for path, time in files.items())
    with pytest.raises(ValueError, match="another budget_s"):
        runs.compare(replace(plan, budget_s=9.0), [labelled], [(keyword(), labelled)], compared)


def begun(out: Path, compared: Path) -> Path:
    """A folder with what was measured before: the baselines, and how long a step takes."""
    (out / "runs").mkdir(parents=True)
    (out / "runs" / "apc-smoke.pace.json").write_text('{"step_s": 0.02}')
    (out / "results").mkdir()
    for name in BASELINES:
        (out / "results" / f"{name}.json").write_bytes((compared / "results" / f"{name}.json").read_bytes())
    return out


@pytest.mark.slow
def test_a_signal_ends_it_and_it_goes_on_to_the_same_result(
    compared: Path, labelled: Path, tmp_path: Path
) -> None:
    plan = replace(PLAN, methods=PLAN.methods[1:])
    tasks = [(keyword(), labelled)]
    stopped, whole = begun(tmp_path / "stopped", compared), begun(tmp_path / "whole", compared)
    steps = 0

    def interrupting(event: runs.RunEvent) -> None:
        nonlocal steps
        steps += isinstance(event, StepTaken)
        if steps == 4 and isinstance(event, StepTaken):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        runs.compare(plan, [labelled], tasks, stopped, tell=interrupting)
    assert not (stopped / "results" / "apc-smoke-seed0.json").exists()
    runs.compare(plan, [labelled], tasks, stopped)
    runs.compare(plan, [labelled], tasks, whole)
    first, second = (next(e for e in load_entries(f) if e.kind == "method") for f in (stopped, whole))
    assert first == second


def score(values: tuple[float, ...], task: str = "a", metric: str = "accuracy") -> TaskScore:
    return TaskScore(task, metric, 0.5, values, int(np.argmax(values)), max(values))


def row(name: str, *seeds: float, kind: str = "method", metric: str = "accuracy") -> Row:
    found = [
        Entry(name=name, kind="method", seed=n, scores=(score((v,), metric=metric),))
        for n, v in enumerate(seeds)
    ]
    return Row(name, kind, found)


def test_what_is_noise_is_called_noise() -> None:
    found = [row("far", 0.5, 0.55), row("near", 0.80, 0.88), row("best", 0.85, 0.9)]
    assert (
        verdict(found, "a") == "a: best is first, but the seeds of near reach as far: their order is noise."
    )
    assert "first by more than the spread" in verdict([found[0], found[2]], "a")
    assert "With one seed" in verdict([row("one", 0.5), row("two", 0.6)], "a")
    assert verdict([row("low", 0.1, 0.2, metric="EER"), row("high", 0.3, 0.4, metric="EER")], "a").startswith(
        "a: low is first by"
    )
    assert cell(found[1].scores("a")) == "0.840 (0.800\u20130.880)"


def test_a_baseline_is_beaten_by_all_seeds_or_not() -> None:
    spectrum = row("log-mel", 0.8, kind="baseline")
    for seeds, wanted in (((0.81, 0.9), 1), ((0.79, 0.9), 0)):
        method = row("mine", *seeds)
        assert beaten([method, spectrum], method, ["a"]) == wanted
    ordered = rows([*row("worse", 0.5).entries, *row("better", 0.6).entries], ["a"])
    assert [each.name for each in ordered] == ["better", "worse"]


def test_vectors_are_measured_as_the_papers_say() -> None:
    generator = np.random.default_rng(0)
    x_ND = generator.normal(size=(400, 8)).astype(np.float32)
    assert vectors.effective_rank(x_ND) == pytest.approx(8, abs=0.3)
    assert vectors.effective_rank(np.outer(x_ND[:, 0], np.ones(8)).astype(np.float32)) == pytest.approx(1)
    assert vectors.effective_rank(np.ones((5, 3), np.float32)) == 0.0
    assert vectors.alignment(x_ND, x_ND) == 0.0
    shuffled = x_ND[generator.permutation(400)]
    assert vectors.alignment(x_ND, shuffled) == pytest.approx(2.0, abs=0.15)
    # On a sphere of 8 dimensions E exp(-2 (2 - 2 cos)) over independent directions, by sampling.
    cosine = (lambda u: u[0] / np.linalg.norm(u, axis=0))(generator.normal(size=(8, 400_000)))
    assert vectors.uniformity(x_ND) == pytest.approx(np.log(np.exp(-4 + 4 * cosine).mean()), abs=0.05)
    line = np.outer(np.linspace(-1, 1, 9), np.ones(4)).astype(np.float32)
    assert np.allclose(vectors.plane(line)[:, 1], 0, atol=1e-6)


def test_the_recipe_has_every_method_and_refuses_unknown_ones(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {run.name for run in smoke().methods} == {run.name for run in methods("smoke")}
    assert {"wav2vec2-tiny", "apc-tiny", "cpc-tiny"} <= {run.name for run in methods("tiny")}
    words = ["smoke", "--manifest", str(labelled), "--out", str(tmp_path / "out")]
    for more, told in (
        (["--task", f"keyword={labelled}", "--only", "rnn"], "no method 'rnn'"),
        (["--task", str(labelled)], "say which task it is for"),
        (["--task", f"keyword={labelled}", "--budget-s", "-1"], "above 0"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert ended.value.code == 2 and told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
