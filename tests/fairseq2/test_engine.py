"""`--engine fairseq2` takes the steps of our own loop: alone, with DDP, with FSDP2, and when resumed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from speech_ssl.objectives.base import Floor
from speech_ssl.objectives.wav2vec2 import Wav2Vec2
from speech_ssl.runs import pretrain
from speech_ssl.training.health import Collapsed, NonFinite
from speech_ssl.training.loop import Stopped
from speech_ssl.training.ranks import Ranks
from speech_ssl.training.run import Run
from tests.fairseq2.twenty import dropping, twenty

ALONE = Ranks(0, 1, torch.device("cpu"))
CLOCKS = {"seconds", "audio_s_per_s", "data_time", "compute_time", "total_time", "wall_time"}
OURS_ALONE = {"grad_norm_max", "skipped_steps"}
PATIENCE_S = 300.0  # for what takes seconds on a quiet machine


def log(out: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Of each kind and step, the numbers."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {(entry.pop("kind"), entry.pop("step")): entry for entry in entries}


def check_same_run(out: Path, expected: Path, *, rtol: float) -> None:
    """Each number of each step, and the weights of the artifact."""
    mine, theirs = log(out), log(expected)
    assert mine.keys() == theirs.keys()
    for key, numbers in theirs.items():
        assert not numbers.keys() - OURS_ALONE - mine[key].keys()
        for name in numbers.keys() - CLOCKS - OURS_ALONE:
            assert mine[key][name] == pytest.approx(numbers[name], rel=rtol), (key, name)
    check_same_weights(out, expected, atol=rtol)


def check_same_weights(out: Path, expected: Path, *, atol: float) -> None:
    mine, theirs = (load_file(each / "artifact" / "encoder.safetensors") for each in (out, expected))
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, atol=atol, rtol=0, msg=name)


def here(run: Run, manifest: Path, out: Path, engine: str, **how: Any) -> Path:
    pretrain(run, [manifest], out, ALONE, init=None, engine=engine, **{"resume": False, **how})
    return out


def command(manifest: Path, out: Path, variant: str, *options: str, processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    recipe = ["-m", "tests.fairseq2.twenty", variant, "--manifest", str(manifest), "--out", str(out)]
    return [sys.executable, *launcher, *recipe, "--device", "cpu", *options]


def spread(manifest: Path, out: Path, variant: str, *options: str, processes: int = 2) -> Path:
    line = command(manifest, out, variant, *options, processes=processes)
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def ours(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return here(twenty(), manifest, tmp_path_factory.mktemp("local") / "twenty", "local")


@pytest.fixture(scope="module")
def ours_dropping(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return here(dropping(), manifest, tmp_path_factory.mktemp("local") / "dropping", "local")


@pytest.fixture(scope="module")
def theirs_dropping(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return here(dropping(), manifest, tmp_path_factory.mktemp("fairseq2") / "dropping", "fairseq2")


def test_one_process_takes_the_same_steps(theirs_dropping, ours_dropping):
    check_same_run(theirs_dropping, ours_dropping, rtol=1e-6)


def test_its_recorder_has_the_watched_numbers(theirs_dropping):
    lines = (theirs_dropping / "metrics" / "train.jsonl").read_text().splitlines()
    recorded = {entry["Step"]: entry for entry in map(json.loads, lines)}
    logged = log(theirs_dropping)
    assert sorted(recorded) == list(range(1, 21))
    for name in ("loss", "code_perplexity", "worst_codebook", "effective_rank"):
        assert [recorded[n][name] for n in recorded] == [logged["train", n][name] for n in recorded]
    assert (theirs_dropping / "metrics" / "valid.jsonl").exists()


def test_ddp_takes_the_same_steps(manifest, ours_dropping, tmp_path):
    check_same_run(
        spread(manifest, tmp_path / "r", "dropping", "--engine", "fairseq2"), ours_dropping, rtol=1e-4
    )


def test_fsdp2_takes_the_same_steps(manifest, ours, tmp_path):
    out = spread(manifest, tmp_path / "run", "twenty", "--engine", "fairseq2-fsdp2")
    check_same_run(out, ours, rtol=1e-4)
    shards = sorted((out / "checkpoints" / "step_20").glob("optimizer/**/*.pt"))
    assert len(shards) == 2
    for path in shards:  # nothing but plain tensors, and about half of them
        state = torch.load(path, weights_only=True)["state"]
        size = sum(s["exp_avg"].numel() for s in state.values())
        assert type(state[0]["exp_avg"]) is torch.Tensor and size == pytest.approx(
            parameters(ours) / 2, rel=0.1
        )


def parameters(out: Path) -> int:
    files = ("encoder.safetensors", "pretraining.safetensors")
    return sum(t.numel() for name in files for t in load_file(out / "artifact" / name).values())


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let a signal come in the given step."""

    def arrange(step: int) -> None:
        forward, calls = Wav2Vec2.forward, iter(range(10_000))

        def interrupted(self: Wav2Vec2, *args: Any, **kwargs: Any) -> Any:
            if self.training and next(calls) == 2 * (step - 1):  # two batches a step
                os.kill(os.getpid(), signal.SIGTERM)
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(Wav2Vec2, "forward", interrupted)

    return arrange


def test_a_stopped_run_resumes_bit_for_bit(manifest, theirs_dropping, stop_at, tmp_path):
    out = tmp_path / "run"
    stop_at(12)
    with pytest.raises(Stopped, match="SIGTERM after step 13"):
        here(dropping(), manifest, out, "fairseq2")
    assert (out / "artifact" / "config.json").exists()
    assert [path.name for path in (out / "checkpoints").glob("step_*")] == ["step_13"]
    stop_at(10_000)
    here(dropping(), manifest, out, "fairseq2", resume=True)
    check_same_run(out, theirs_dropping, rtol=0)
    last, expected = (load_file(each / "last.safetensors") for each in (out, theirs_dropping))
    assert all(torch.equal(last[name], expected[name]) for name in expected)
    before = (out / "last.safetensors").read_bytes()
    here(dropping(), manifest, out, "fairseq2", resume=True)  # it is over: nothing happens
    assert (out / "last.safetensors").read_bytes() == before


def test_a_stopped_run_goes_on_with_other_numbers(manifest, stop_at, tmp_path):
    out = tmp_path / "run"
    stop_at(12)
    with pytest.raises(Stopped, match="SIGTERM after step 13"):
        here(twenty(), manifest, out, "fairseq2")
    stop_at(10_000)
    here(twenty(), manifest, out, "fairseq2", resume=True, changes={"peak_lr": 1e-5, "weight_decay": 0.5})
    recorded = json.loads((out / "run.json").read_text())["changes"]
    assert [(change["step"], change["name"]) for change in recorded] == [
        (13, "peak_lr"),
        (13, "weight_decay"),
    ]
    rates = {step: numbers["lr"] for (kind, step), numbers in log(out).items() if kind == "train"}
    assert rates[13] > 1e-4 > 1e-5 >= rates[20] > 0


def test_a_stopped_run_of_fsdp2_resumes(manifest, ours, tmp_path):
    out = tmp_path / "run"
    line = command(manifest, out, "twenty", "--engine", "fairseq2-fsdp2", processes=2)
    popen = subprocess.Popen(line, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (out / "checkpoints" / "step_5").exists():
            assert popen.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(PATIENCE_S) != 0
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.wait()
    stopped = json.loads((out / "artifact" / "config.json").read_text())["training"]["step"]
    assert 5 <= stopped < 20
    with pytest.raises(ValueError, match="engine was 'fairseq2-fsdp2', is now 'fairseq2'"):
        here(twenty(), manifest, out, "fairseq2", resume=True)
    check_same_run(spread(manifest, out, "twenty", "--engine", "fairseq2-fsdp2", "--resume"), ours, rtol=1e-4)


def test_it_is_resumed_by_as_many_processes(manifest, tmp_path):
    run = replace(twenty(), train=replace(twenty().train, steps=5))
    out = here(run, manifest, tmp_path / "run", "fairseq2")
    folder = out / "checkpoints" / "step_5" / "trainer"
    (folder / "rank_01.pt").write_bytes((folder / "rank_00.pt").read_bytes())
    with pytest.raises(ValueError, match="saved by 2 processes: resume it with as many, not 1"):
        here(run, manifest, out, "fairseq2", resume=True)


def test_a_damaged_checkpoint_is_named(manifest, stop_at, tmp_path):
    stop_at(6)
    with pytest.raises(Stopped):
        here(twenty(), manifest, tmp_path / "run", "fairseq2")
    path = next((tmp_path / "run" / "checkpoints").glob("step_7/model/**/*.pt"))
    path.write_bytes(b"PK not a checkpoint")
    with pytest.raises(ValueError, match="step_7 cannot be resumed from: .*Delete that folder"):
        here(twenty(), manifest, tmp_path / "run", "fairseq2", resume=True)


class Executed:
    """A pickle that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("part", ["trainer", "model", "optimizer", "data_reader"])
def test_nothing_in_a_checkpoint_is_executed(manifest, stop_at, tmp_path, part):
    stop_at(6)
    with pytest.raises(Stopped):
        here(twenty(), manifest, tmp_path / "run", "fairseq2")
    path = next((tmp_path / "run" / "checkpoints").glob(f"step_7/{part}/**/*.pt"))
    torch.save({"state": Executed(tmp_path / "made")}, path)
    with pytest.raises(ValueError, match="step_7 cannot be resumed from"):
        here(twenty(), manifest, tmp_path / "run", "fairseq2", resume=True)
    assert not (tmp_path / "made").exists()


def test_a_run_killed_before_its_first_validation_is_a_run(manifest, monkeypatch, tmp_path):
    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("speech_ssl.training.fairseq2.engine.evaluate", broken)
        here(twenty(), manifest, tmp_path / "run", "fairseq2")
    with pytest.raises(ValueError, match="already holds a run"):
        here(twenty(), manifest, tmp_path / "run", "fairseq2")


def test_patience_ends_it_at_the_same_step(manifest, monkeypatch, tmp_path):
    monkeypatch.setattr(Wav2Vec2, "best_by", "grows")
    monkeypatch.setattr(Wav2Vec2, "report", lambda self, means: {"grows": -float(self.temperature)})
    monkeypatch.setattr(Wav2Vec2, "floors", lambda self: {})
    run = twenty()
    run = replace(run, train=replace(run.train, valid_every=2, save_every=5, patience=2))
    for engine in ("local", "fairseq2"):
        out = here(run, manifest, tmp_path / engine, engine)
        assert max(step for _, step in log(out)) == 6, engine
        assert json.loads((out / "artifact" / "config.json").read_text())["training"]["step"] == 2
    here(run, manifest, tmp_path / "fairseq2", "fairseq2", resume=True)
    assert max(step for _, step in log(tmp_path / "fairseq2")) == 6


def test_the_probe_looks_at_what_is_trained(manifest, monkeypatch, tmp_path):
    def weight(objective: Wav2Vec2) -> dict[str, float]:
        return {"weight": float(objective.encoder.hidden_vector.detach().sum())}

    monkeypatch.setattr("speech_ssl.runs.pretraining._online_probe", lambda _: weight)
    run = replace(twenty(), train=replace(twenty().train, steps=5, probe_every=2))
    seen = []
    for engine in ("local", "fairseq2"):
        entries = log(here(run, manifest, tmp_path / engine, engine))
        seen.append([entries["probe", step]["weight"] for step in (2, 4, 5)])
    assert seen[0] == seen[1] and len(set(seen[0])) == 3


def test_a_collapse_stops_it(manifest, monkeypatch, tmp_path):
    floors = {"code_perplexity": Floor(1e6, "raise it")}
    monkeypatch.setattr(Wav2Vec2, "floors", lambda self: floors)
    run = replace(twenty(), train=replace(twenty().train, on_collapse="stop", valid_every=20))
    with pytest.raises(Collapsed, match="code_perplexity has been below 1e"):
        here(run, manifest, tmp_path / "run", "fairseq2")
    assert max(step for kind, step in log(tmp_path / "run") if kind == "train") == run.train.watch_patience


def test_what_is_not_finite_stops_it_before_it_is_saved(manifest, monkeypatch, tmp_path):
    forward, calls = Wav2Vec2.forward, iter(range(10_000))

    def broken(self: Wav2Vec2, *args: Any, **kwargs: Any) -> Any:
        loss = forward(self, *args, **kwargs)
        return loss if next(calls) < 14 else replace(loss, total=loss.total * math.nan)

    monkeypatch.setattr(Wav2Vec2, "forward", broken)
    run = replace(twenty(), train=replace(twenty().train, valid_every=20))
    with pytest.raises(NonFinite, match="at step 8.*--resume --set peak_lr=0.0005, .*in the manifest"):
        here(run, manifest, tmp_path / "run", "fairseq2")
    (model,) = (tmp_path / "run" / "checkpoints").glob("step_5/model/**/*.pt")
    assert all(t.isfinite().all() for t in torch.load(model, weights_only=True).values())


@pytest.mark.parametrize(
    ("change", "engine", "said"),
    [
        ({"valid_every": 3, "log_every": 2}, "fairseq2", "valid_every is 3: .*a multiple of log_every, 2"),
        ({"save_every": 5, "log_every": 2}, "fairseq2", "save_every is 5: .*a multiple of log_every, 2"),
        ({"precision": "fp16"}, "fairseq2", "fp16 needs the loss scaling of our own loop"),
        ({}, "fairseq2-fsdp2", "FSDP2 needs several processes"),
    ],
)
def test_what_it_cannot_do_is_said(manifest, tmp_path, change, engine, said):
    run = replace(twenty(), train=replace(twenty().train, **change))
    with pytest.raises(ValueError, match=said):
        here(run, manifest, tmp_path / "run", engine)


def test_fsdp2_on_the_cpu_refuses_layer_drop(manifest, tmp_path):
    line = command(manifest, tmp_path / "run", "dropping", "--engine", "fairseq2-fsdp2", processes=2)
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode != 0 and "error: FSDP2 needs all processes to skip the same layers" in done.stderr
