"""The benchmarks for a GPU in their small forms on a CPU, and what they say where there is none."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import correctness, pretrain_small, pretrain_throughput
from recipes.pretrain_wav2vec2 import smoke
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.model.encoder import Encoder
from speech_ssl.types import Frames
from tests import warm

ROOT = Path(__file__).resolve().parents[2]
NOT_THERE = ["click", "fastapi", "librosa", "pyarrow", "pydantic", "torchaudio", "uvicorn"]


@pytest.mark.parametrize("benchmark", [correctness, pretrain_throughput, pretrain_small])
def test_without_a_gpu_one_line_says_so(benchmark, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    needed = ["--manifest", "m.tsv", "--out", str(tmp_path)] if benchmark is pretrain_small else []
    assert benchmark.main(needed) == 0
    assert capsys.readouterr().out == "not measured: no CUDA device\n"


def test_they_and_the_recipe_need_few_packages():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_THERE}))
import recipes.pretrain_wav2vec2
from benchmarks.gpu import correctness, pretrain_small, pretrain_throughput
from recipes.pretrain_wav2vec2 import smoke
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_correctness_on_a_cpu(capsys):
    assert correctness.main(["--device", "cpu", "--tiny"]) == 0
    out = capsys.readouterr().out
    assert out.count(" ok\n") == 3 * 6
    assert "TOO FAR" not in out


def test_correctness_notices_frames_that_depend_on_the_batch(monkeypatch, capsys):
    forward = Encoder.forward

    def leaking(encoder, wave_BS, lengths_B):
        x_BTD, frames_B = forward(encoder, wave_BS, lengths_B)
        return Frames(x_BTD + 0.01 * x_BTD.mean(0), frames_B)

    monkeypatch.setattr(Encoder, "forward", leaking)
    monkeypatch.setattr(correctness, "CHECKS", (correctness.check_encoder,))
    assert correctness.main(["--device", "cpu", "--tiny"]) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.endswith("TOO FAR")]
    assert len(wrong) == 3 and all("a clip alone and in a batch" in line for line in wrong)


def test_a_figure_that_is_no_number_is_not_good():
    assert not correctness.Row("nan", float("nan"), 1.0).good
    assert correctness.Row("told only", 5.0, None).good


def test_throughput_of_both_on_a_cpu(capsys, prompts):
    arguments = ["--device", "cpu", "--tiny", "--steps", "2", "--warmup", "1"]
    assert pretrain_throughput.main([*arguments, "--manifest", str(prompts / "manifest.tsv")]) == 0
    out = capsys.readouterr().out
    assert out.count("audio hours an hour") == 3
    assert out.count("faster here") == 2
    ours, theirs = (line.split()[1] for line in out.splitlines() if line.endswith("parameters"))
    assert ours == theirs  # the peer is the same model


def test_a_loss_that_is_not_finite_is_noticed():
    module = torch.nn.Linear(1, 1)
    batches = [pretrain_throughput.noise_batch([0.1])] * 3

    def loss_of(step, batch):
        return module.weight.sum() * (float("inf") if step == 1 else 1.0)

    assert not pretrain_throughput.measure(module, loss_of, batches, warmup=1).finite
    assert pretrain_throughput.measure(torch.nn.Linear(1, 1), lambda *_: module.bias.sum(), batches, 1).finite


@pytest.mark.slow
def test_a_run_that_is_stopped_leaves_an_artifact_and_goes_on(prompts, tmp_path):
    out = tmp_path / "run"
    command = ["benchmarks.gpu.pretrain_small", "--device", "cpu", "--tiny"]
    command += ["--manifest", str(prompts / "manifest.tsv"), "--out", str(out)]
    with (tmp_path / "told").open("w+") as told:
        process = warm.Popen(command, stdout=told, stderr=told)
        while process.poll() is None and not (out / "last.safetensors").exists():
            time.sleep(0.02)
        process.terminate()
        assert process.wait() == 0
    assert "minutes this time" in (tmp_path / "told").read_text()
    first = load_artifact(out / "artifact").config["training"]["step"]
    again = warm.run(command)
    assert again.returncode == 0, again.stderr
    steps = smoke().train.steps
    assert first < steps
    assert f"train: step {steps} " in again.stdout
    assert first <= load_artifact(out / "artifact").config["training"]["step"] <= steps
    logged = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert logged == sorted(logged)  # it went on, it did not begin again


def test_the_time_limit_stops_the_process(tmp_path):
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); time.sleep(60)"
    assert pretrain_small.run_for([sys.executable, "-c", code], minutes=0.05) == 128 + signal.SIGTERM
    assert pretrain_small.run_for([sys.executable, "-c", "raise SystemExit(2)"], minutes=1) == 2
