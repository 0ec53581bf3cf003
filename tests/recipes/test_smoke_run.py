"""The smoke run on real speech, in real processes: what it leaves, and that no death of it changes that."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import speech_ssl
from recipes.pretrain_wav2vec2 import smoke as smoke_run
from speech_ssl.checkpoints.artifact import load_artifact, load_extra
from speech_ssl.training.checkpoint import BEST, LAST
from tests.recipes.runs import RECIPE, assert_bits_equal, complete, log, smoke, weights

STEPS = smoke_run().train.steps
GOLDEN = Path(__file__).parents[1] / "golden" / "pretrain_wav2vec2_smoke.txt"


def test_it_leaves_an_artifact_that_encodes_speech(undisturbed: Path, prompts: Path) -> None:
    runtime = speech_ssl.load(undisturbed / "artifact")
    clip = next((prompts / "audio").glob("*.flac"))
    features = runtime.encode([clip])[0]
    assert features.frames.shape[1] == runtime.width == 64
    assert np.isfinite(features.frames).all() and features.frames.std() > 0
    config = load_artifact(undisturbed / "artifact").config
    assert config["name"] == "wav2vec2-smoke"
    assert config["training"]["recipe"] == smoke_run().to_dict()


def test_the_artifact_is_the_best_step(undisturbed: Path) -> None:
    validations = log(undisturbed, "valid")
    best = min(validations, key=lambda entry: entry["contrastive"])
    training = load_artifact(undisturbed / "artifact").config["training"]
    assert (training["step"], training["valid_contrastive"]) == (best["step"], best["contrastive"])
    kept = {k.removeprefix("module."): v for k, v in weights_of(undisturbed / BEST).items()}
    for name, value in load_extra(undisturbed / "artifact").items():
        assert torch.equal(kept[name], value), name


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in load_file(path).items() if k.startswith("module.")}


def test_it_logs_what_a_user_wants_to_see(undisturbed: Path) -> None:
    run = smoke_run().train
    entries = log(undisturbed, "train")
    assert [entry["step"] for entry in entries] == list(range(run.log_every, STEPS + 1, run.log_every))
    assert [e["step"] for e in log(undisturbed, "valid")] == list(
        range(run.valid_every, STEPS + 1, run.valid_every)
    )
    wanted = {"loss", "contrastive", "accuracy", "chance", "code_perplexity", "effective_rank", "lr"}
    assert wanted | {"grad_norm", "audio_s_per_s"} <= entries[-1].keys()
    assert not log(undisturbed, "collapse")
    assert json.loads((undisturbed / "run.json").read_text())["name"] == "wav2vec2-smoke"
    assert list((undisturbed / "tensorboard").iterdir())
    assert not (undisturbed / "skipped.jsonl").exists()


@pytest.mark.numerical
def test_it_does_not_collapse(undisturbed: Path) -> None:
    last = log(undisturbed, "valid")[-1]
    assert last["code_perplexity"] > 0.1 * 64
    assert last["effective_rank"] > 2


@pytest.mark.numerical
def test_the_losses_are_those_on_record(undisturbed: Path) -> None:
    """A change of these numbers is a change of the method, or a mistake. After a change of the method:

    python -m recipes.pretrain_wav2vec2 smoke --manifest speech_ssl/assets/prompts/manifest.tsv \
        --out runs/golden --device cpu && python -c "import json; [print(e['step'], e['loss']) for e in
        map(json.loads, open('runs/golden/log.jsonl')) if e['kind'] == 'train']" \
        > tests/golden/pretrain_wav2vec2_smoke.txt
    """
    golden = [line.split() for line in GOLDEN.read_text().splitlines()]
    entries = log(undisturbed, "train")
    assert [entry["step"] for entry in entries] == [int(step) for step, _ in golden]
    assert [e["loss"] for e in entries] == pytest.approx([float(loss) for _, loss in golden], rel=1e-3)


def test_killed_then_terminated_it_ends_at_the_same_bits(
    undisturbed: Path, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with smoke(manifest, out) as process:
        process.wait_for_step(5)  # the first checkpoint is being written, or is there
        time.sleep(random.random())  # anywhere: between steps, in one, or while a checkpoint is written
        process.popen.kill()
        assert process.wait() == -signal.SIGKILL, "the run was over before it was killed"

    with smoke(manifest, out, "--resume") as process:
        process.wait_for_step(15)
        process.popen.terminate()
        assert process.wait() == 128 + signal.SIGTERM, process.stderr
    last_line = process.stderr.splitlines()[-1]
    assert last_line.startswith("stopped by SIGTERM after step ") and last_line.endswith("with --resume")
    assert "Traceback" not in process.stderr
    load_artifact(out / "artifact")  # the best weights so far

    complete(manifest, out, "--resume")
    assert_bits_equal(out, undisturbed)
    assert (out / LAST).read_bytes() == (undisturbed / LAST).read_bytes()
    assert log(out, "valid") == log(undisturbed, "valid")
    sums = [load_artifact(folder / "artifact").config["files"] for folder in (out, undisturbed)]
    assert sums[0] == sums[1]


@pytest.mark.slow
def test_killed_many_times_it_ends_at_the_same_bits(
    undisturbed: Path, manifest: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for reached in (1, 6, 11, 16, 21):
        with smoke(manifest, out, "--resume") as process:  # the first time there is nothing to resume
            if reached > 1:
                process.wait_for_step(reached - 1)
            time.sleep(2 * random.random())  # also before the first step, and while modules are imported
            process.popen.kill()
            process.wait()
    complete(manifest, out, "--resume")
    assert_bits_equal(out, undisturbed)
    assert [e["step"] for e in log(out, "train")] == [e["step"] for e in log(undisturbed, "train")]
    assert not [path for path in out.iterdir() if path.name.endswith(".part")]


def test_resuming_a_finished_run_changes_nothing(undisturbed: Path, manifest: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    shutil.rmtree(out / "artifact")  # as if it was killed just before the end
    complete(manifest, out, "--resume")
    assert_bits_equal(out, undisturbed)
    assert (out / "log.jsonl").read_bytes() == (undisturbed / "log.jsonl").read_bytes()
    ours, theirs = (folder / "artifact" / "config.json" for folder in (out, undisturbed))
    assert ours.read_bytes() == theirs.read_bytes()  # with the sums of all other files


@pytest.mark.numerical
@pytest.mark.slow
def test_two_processes_train_as_one(undisturbed: Path, manifest: Path, tmp_path: Path) -> None:
    torchrun = ("torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1")
    launcher = (*torchrun, "--nproc-per-node", "2", "-m", RECIPE)
    complete(manifest, tmp_path / "run", launcher=launcher)
    mine, its = (
        {k: v for k, v in weights(out).items() if k.startswith("module.")}
        for out in (undisturbed, tmp_path / "run")
    )
    torch.testing.assert_close(its, mine, rtol=0, atol=1e-5)
    for one, two in zip(log(undisturbed, "valid"), log(tmp_path / "run", "valid"), strict=True):
        assert two["contrastive"] == pytest.approx(one["contrastive"], rel=1e-4)
