"""The loader on real files, good and bad, and its worker processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import resource_sharer
from multiprocessing.connection import Connection
from multiprocessing.resource_sharer import DupFd
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speech_ssl.audio import AudioError, Limits
from speech_ssl.data.loader import Loader, _prepare_worker, evaluation
from speech_ssl.data.manifest import Utterance, read_manifest
from speech_ssl.data.source import FileSource
from speech_ssl.types import AudioWarning
from tests.data.ramps import CONFIG, RATE, START, assert_same, loader, take


def write(path: Path, seconds: float, rate: int = RATE) -> None:
    samples = np.random.default_rng(len(path.name)).uniform(-0.5, 0.5, round(seconds * rate))
    soundfile.write(path, samples, rate, subtype="PCM_16")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve good files, and one of each sort of bad one: all of them claim two seconds."""
    names = [f"good{number}.wav" for number in range(12)]
    for number, name in enumerate(names):
        write(tmp_path / name, 2.0, (16_000, 22_050, 48_000)[number % 3])
    write(tmp_path / "long.wav", 9.0)
    write(tmp_path / "short.wav", 0.6)
    write(tmp_path / "tiny.wav", 0.1)
    (tmp_path / "text.wav").write_text("no audio " * 99)
    (tmp_path / "none.wav").touch()
    whole = (tmp_path / "good0.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:30])
    soundfile.write(tmp_path / "nan.wav", np.full(2 * RATE, np.nan), RATE, subtype="FLOAT")
    (tmp_path / "folder.wav").mkdir()
    names += ["long.wav", "short.wav", "tiny.wav", "text.wav", "none.wav", "cut.wav", "nan.wav"]
    names += ["folder.wav", "missing.wav"]
    rows = "".join(f"{name}\t2.0\n" for name in names) + "below.wav\t0.2\n"
    (tmp_path / "manifest.tsv").write_text("path\tduration_s\n" + rows)
    return tmp_path / "manifest.tsv"


BAD = {"tiny.wav", "text.wav", "none.wav", "cut.wav", "nan.wav", "folder.wav", "missing.wav"}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_skipped_counted_and_named(corpus: Path, workers: int) -> None:
    told: list[tuple[str, str]] = []
    config = dataclasses.replace(CONFIG, crop_s=None, workers=workers)
    reading = Loader(
        read_manifest(corpus), config, seed=0, on_failure=lambda row, why: told.append((row.id, why))
    )
    steps = take(reading.iterate(START), 60)
    assert steps[-1][1].epoch > 2  # every file was met more than once
    assert set(reading.failures) == BAD
    assert sorted(told) == sorted(reading.failures.items())
    for name, reason in reading.failures.items():
        assert name in reason
        assert "\n" not in reason
    assert "1600 samples" in reading.failures["tiny.wav"]
    assert reading.too_short == 1
    lengths = {length for batch, _ in steps for length in batch.lengths_B.tolist()}
    assert lengths == {2 * RATE, round(0.6 * RATE)}  # 9 s that claim 2 are cut; 0.6 s are used as they are
    assert all(torch.isfinite(batch.wave_BS).all() for batch, _ in steps)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_audio_that_is_used_is_told_once(corpus: Path, workers: int) -> None:
    left = np.random.default_rng(0).uniform(-0.3, 0.3, 2 * RATE)
    soundfile.write(corpus.parent / "good1.wav", np.stack([left, -left], axis=1), RATE)
    expected = {("good1.wav", "opposite_phase"), ("short.wav", "truncated")}
    told: list[tuple[str, str]] = []

    def note(row: Utterance, warning: AudioWarning) -> None:
        told.append((row.id, warning.code))
        assert row.id in warning.message and "\n" not in warning.message

    config = dataclasses.replace(CONFIG, workers=workers)
    take(Loader(read_manifest(corpus), config, seed=0, on_warning=note).iterate(START), 60)
    assert len(told) == 2 and set(told) == expected
    told.clear()
    list(evaluation(read_manifest(corpus), config, on_warning=note))
    assert set(told) == expected


def test_a_part_that_a_file_does_not_have_is_told(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", 2.0)
    (tmp_path / "m.tsv").write_text("path\tduration_s\tstart\tend\na.wav\t9\t1\t3\na.wav\t9\t0.5\t2.04\n")
    told: list[str] = []
    config = dataclasses.replace(CONFIG, crop_s=None)
    list(
        evaluation(read_manifest(tmp_path / "m.tsv"), config, on_warning=lambda _, w: told.append(w.message))
    )
    assert told == [f"{tmp_path / 'a.wav'}: the audio ends at 2.00 s, the manifest says 3.00 s"]


def test_workers_change_nothing_but_the_speed(corpus: Path) -> None:
    config = dataclasses.replace(CONFIG, crop_s=0.5, batch_s=2.0)
    runs = [
        take(Loader(read_manifest(corpus), dataclasses.replace(config, workers=w), seed=1).iterate(START), 40)
        for w in (0, 1, 2)
    ]
    for run in runs[1:]:
        assert_same([batch for batch, _ in run], [batch for batch, _ in runs[0]])
        assert [state for _, state in run] == [state for _, state in runs[0]]


def test_a_part_of_a_file_is_read_within_its_bounds(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", 10)
    (tmp_path / "m.tsv").write_text("path\tduration_s\tstart\tend\na.wav\t10\t4\t5.5\n")
    (row,) = read_manifest(tmp_path / "m.tsv")
    whole = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    np.testing.assert_array_equal(FileSource().read(row, 0.0, 1.5), whole[4 * RATE : round(5.5 * RATE)])
    np.testing.assert_array_equal(FileSource().read(row, 0.5, 1.0), whole[round(4.5 * RATE) : 5 * RATE])
    limited = FileSource(Limits(max_seconds=1))
    with pytest.raises(AudioError, match="longer than 1 s"):
        limited.read(row, 0.0, 1.5)


def test_evaluation_tells_of_failures_and_takes_first_crops(corpus: Path) -> None:
    told: list[str] = []
    batches = list(evaluation(read_manifest(corpus), CONFIG, on_failure=lambda row, _: told.append(row.id)))
    assert set(told) == BAD
    assert sum(len(batch.lengths_B) for batch in batches) == 14
    row = read_manifest(corpus)[0]
    first = FileSource().read(row, 0.0, CONFIG.longest_s)
    assert any(np.array_equal(wave, first) for batch in batches for wave in batch.wave_BS.numpy())


# --- processes -------------------------------------------------------------------------------------


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks processes up in /proc")


def children() -> set[int]:
    path = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children")
    return {int(pid) for pid in path.read_text().split()}


@needs_proc
def test_workers_ignore_signals_and_end_with_the_iterator() -> None:
    before = children()
    steps = loader(config=dataclasses.replace(CONFIG, workers=2)).iterate(START)
    take(steps, 2)  # one from each: both are past their start
    workers = children() - before
    assert len(workers) == 2
    for pid in workers:  # as when a whole process group is told to stop
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    take(steps, 40)
    assert children() - before == workers
    steps.close()
    assert children() == before


KILLED = """
import time
from pathlib import Path
from speech_ssl.data.batching import DataConfig
from speech_ssl.data.loader import Loader, LoaderState
from speech_ssl.data.manifest import Utterance, read_manifest
steps = Loader(read_manifest({manifest!r}), DataConfig(batch_s=4, workers=1), seed=0).iterate(LoaderState())
next(steps)
print("going", flush=True)
time.sleep(60)
"""


@needs_proc
@pytest.mark.slow
def test_workers_of_a_killed_run_end_too(corpus: Path) -> None:
    script = [sys.executable, "-c", KILLED.format(manifest=str(corpus))]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "going\n"
        listed = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert listed
        run.kill()
    deadline = 15.0
    while deadline > 0 and any(Path("/proc", pid).exists() for pid in listed):
        threading.Event().wait(0.2)
        deadline -= 0.2
    assert not any(Path("/proc", pid).exists() for pid in listed)


@pytest.mark.slow
def test_a_script_that_fails_ends_though_its_traceback_holds_the_workers(corpus: Path) -> None:
    code = KILLED.format(manifest=str(corpus)).replace("time.sleep(60)", "raise RuntimeError('oops')")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and "oops" in run.stderr


def _hands_over(connection: Connection) -> None:
    """A worker with a file to hand over, as the memory of a tensor is, and a fault to tell of."""
    _prepare_worker(0)
    DupFd(os.dup(2))
    connection.send(resource_sharer._resource_sharer._address)  # type: ignore[attr-defined]
    connection.recv()
    sys.excepthook(ValueError, ValueError("a fault"), None)
    time.sleep(0.3)
    os._exit(0)


def test_a_run_that_ends_while_a_tensor_is_handed_over_leaves_no_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ours, its = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_hands_over, args=(its,))
    worker.start()
    with socket.socket(socket.AF_UNIX) as training:
        training.connect(ours.recv())
    ours.send("the training process is gone")
    worker.join()
    text = capfd.readouterr().err
    assert "ValueError: a fault" in text and "resource_sharer" not in text and "PipeError" not in text
