"""A run that goes on: on another processor, with other numbers, and always to the same bits."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes import label_efficiency
from speech_ssl.data.manifest import read_manifest, write_manifest
from speech_ssl.objectives.wav2vec2 import Wav2Vec2
from speech_ssl.precision import Float
from speech_ssl.runs.command import pretraining as command
from speech_ssl.runs.pretraining import auto_of
from speech_ssl.training.checkpoint import LAST
from speech_ssl.training.run import Run
from tests.recipes import tuning
from tests.recipes.test_command import brief
from tests.recipes.tuning import Ended, call, done, refusal
from tests.training.toys import CPU


def six() -> Run:
    train = replace(brief().train, steps=6, peak_lr=1e-3, save_every=2, valid_every=3, log_every=1)
    return replace(brief(), train=train)


def auto() -> Run:
    return replace(six(), train=replace(six().train, precision="auto"))


def half() -> Run:
    return replace(six(), train=replace(six().train, steps=1, precision="bf16"))


main = command(six, auto, half, doc="For tests.")


@pytest.fixture(scope="module")
def few(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of a few prompts, two of them held out."""
    utterances = [u for u in read_manifest(prompts / "manifest.tsv") if u.duration_s > 1][:10]
    path = tmp_path_factory.mktemp("few") / "manifest.tsv"
    write_manifest(path, [replace(u, split="dev" if n < 2 else "train") for n, u in enumerate(utterances)])
    return path


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a signal come in the training step (of this process) after which a run is to stop, less one."""

    def arrange(steps: int) -> None:
        forward, calls = Wav2Vec2.forward, iter(range(10_000))

        def interrupted(self: Wav2Vec2, *args: Any, **kwargs: Any) -> Any:
            if self.training and next(calls) == steps - 2:  # it is noticed a step later
                signal.raise_signal(signal.SIGTERM)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(Wav2Vec2, "forward", interrupted)

    return arrange


def stopped(*arguments: object) -> Ended:
    ended = call(main, *arguments)
    assert ended.status == 128 + signal.SIGTERM, ended.stderr
    return ended


def recorded(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())  # type: ignore[no-any-return]


def test_a_changed_number_holds_from_its_step_on_and_resumes_to_the_same_bits(
    few: Path, tmp_path: Path, stop_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "run", tmp_path / "other"
    run = ("six", "--manifest", few, "--out")
    change = ("--resume", "--set", "peak_lr=2e-4", "--set", "clip_norm=0.5", "--set", "log_every=2")
    stop_after(2)
    stopped(*run, out)
    shutil.copytree(out, other)
    stop_after(2)
    stopped(*run, out, *change)
    monkeypatch.undo()
    done(main, *run, out, "--resume")  # keeps what was changed
    done(main, *run, other, *change)
    assert (out / LAST).read_bytes() == (other / LAST).read_bytes()
    assert recorded(out) == recorded(other)
    assert recorded(out)["changes"] == [
        {"step": 2, "name": "peak_lr", "was": 1e-3, "now": 2e-4},
        {"step": 2, "name": "clip_norm", "was": None, "now": 0.5},
        {"step": 2, "name": "log_every", "was": 1, "now": 2},
    ]
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rates = {entry["step"]: entry["lr"] for entry in entries if entry["kind"] == "train"}
    assert set(rates) == {1, 2, 4, 6} and rates[2] == pytest.approx(1e-3)
    assert rates[4] == pytest.approx(2e-4 * 3 / 5)
    before = (out / LAST).read_bytes(), recorded(out)
    line = refusal(main, *run, out, "--resume", "--set", "seed=1")
    assert "--set seed: a run must keep it" in line
    assert before == ((out / LAST).read_bytes(), recorded(out))


@pytest.mark.parametrize(
    ("recipe", "variant"), [(main, "six"), (tuning.transcription, "ctc"), (tuning.sounds, "clips")]
)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--set", "peak_lr=1"), "--set changes a run that is resumed: give --resume too"),
        (("--resume", "--set", "peak_lr"), "--set takes NAME=VALUE, not 'peak_lr'"),
        (("--resume", "--set", "batches_per_step=2"), "--set batches_per_step: a run must keep it"),
    ],
)
def test_what_set_does_not_take_is_one_line(
    few: Path, tmp_path: Path, recipe: tuning.Main, variant: str, options: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "run"
    assert said in refusal(recipe, variant, "--manifest", few, "--out", out, *options)
    assert not out.exists()


def test_a_study_has_no_number_to_change(few: Path, tmp_path: Path) -> None:
    options = ("smoke", "--manifest", few, "--out", tmp_path / "study", "--resume", "--set", "peak_lr=1")
    assert "--set changes one run, and a study is many" in refusal(label_efficiency.main, *options)


def test_fine_tuning_records_a_change(few: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = ("ctc", "--manifest", few, "--out", out)
    done(tuning.transcription, *run)
    (out / "results.json").unlink()  # as if it was killed while it measured
    done(tuning.transcription, *run, "--resume", "--set", "peak_lr=2e-4")
    changes = [{"step": 2, "name": "peak_lr", "was": 1e-3, "now": 2e-4}]
    assert recorded(out)["changes"] == changes
    ended = done(tuning.transcription, *run, "--resume", "--set", "peak_lr=1e-4")
    assert ended.stderr.endswith("run is finished: --set changes nothing in it\n")
    assert recorded(out)["changes"] == changes


def computes_natively(monkeypatch: pytest.MonkeyPatch, precision: Float) -> None:
    for place in ("speech_ssl.precision", "speech_ssl.runs.folders", "speech_ssl.runs.pretraining"):
        monkeypatch.setattr(f"{place}.native", lambda device: precision)
    monkeypatch.setattr("speech_ssl.precision._cpu_multiplies_fp16", lambda: False)


@pytest.mark.parametrize("begun", ["bf16", "fp16", "fp32"])
def test_on_another_processor_it_keeps_the_precision_it_began_with(
    few: Path,
    tmp_path: Path,
    stop_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    begun: Float,
) -> None:
    out = tmp_path / "run"
    run = ("auto", "--manifest", few, "--out", out)
    computes_natively(monkeypatch, begun)
    stop_after(2)
    said = [stopped(*run).stderr]
    monkeypatch.undo()
    elsewhere: Float = "fp32" if begun != "fp32" else "bf16"
    computes_natively(monkeypatch, elsewhere)
    said.append(done(main, *run, "--resume").stderr)
    assert recorded(out)["train"]["precision"] == begun and "changes" not in recorded(out)
    artifact = json.loads((out / "artifact" / "config.json").read_text())
    assert artifact["training"]["recipe"]["train"]["precision"] == begun
    told = [[line for line in text.splitlines() if "emulates it" in line] for text in said]
    assert not told[0] and len(told[1]) == (begun != "fp32")
    for line in told[1]:
        assert line.startswith(
            f"the run goes on in {begun}, as it began or was told to: this processor has no"
        )
        assert line.endswith("--resume --set precision=auto takes what is fast here")
    last = (out / LAST).read_bytes()
    done(main, *run, "--resume", "--set", "precision=auto")  # it is over, and could go on
    assert (out / LAST).read_bytes() == last
    changes = [{"step": 6, "name": "precision", "was": begun, "now": elsewhere}]
    assert recorded(out)["changes"] == changes


def test_asking_for_what_is_emulated_is_told_once(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computes_natively(monkeypatch, "fp32")
    ended = done(main, "half", "--manifest", few, "--out", tmp_path / "run")
    (line,) = (line for line in ended.stderr.splitlines() if "bf16" in line)
    assert line.startswith("this processor has no bf16 arithmetic and emulates it") and "'auto'" in line
    computes_natively(monkeypatch, "bf16")
    assert "bf16" not in done(main, "half", "--manifest", few, "--out", tmp_path / "native").stderr


def test_another_engine_takes_no_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    for best, theirs in (("bf16", "bf16"), ("fp16", "fp32"), ("fp32", "fp32")):
        computes_natively(monkeypatch, best)  # type: ignore[arg-type]
        assert [auto_of(engine, CPU) for engine in ("local", "fairseq2")] == [best, theirs]
