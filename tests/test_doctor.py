"""`speech-ssl doctor`: what it finds out, what it says of what is broken, and what it never says."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import speech_ssl
from speech_ssl import audio, doctor
from speech_ssl.doctor import examine
from speech_ssl.doctor_output import written
from speech_ssl.precision import native
from tests.command_line import Run

PARTS = ("versions", "packages", "extras", "processor", "memory", "threads", "formats", "cpu")


@pytest.fixture
def slow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the packaged model where its speed is not the matter."""
    timed = {"precision": "fp32", "load_s": 1.0, "audio_s": 5.0, "pass_s": 50.0, "real_time_factor": 10.0}
    monkeypatch.setattr(doctor, "timed", lambda device: timed)


def test_a_report_of_this_machine(run: Run) -> None:
    status, out, err = run("doctor", "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["speech_ssl"] == speech_ssl.__version__ and report["problems"] == []
    for name in ("torch", "torchaudio", "numpy", "soundfile", "transformers"):
        assert report["packages"][name] == metadata.version(name)
    assert report["packages"]["libsndfile"][0].isdigit()
    assert report["formats"] == list(audio.FORMATS)
    assert report["threads"]["torch"] == torch.get_num_threads()
    cpu = report["devices"][0]
    assert cpu["device"] == "cpu" and cpu["training_precision"] == native(torch.device("cpu"))
    assert cpu["default"]["precision"] == speech_ssl.load("default").precision
    assert cpu["default"]["audio_s"] == doctor.CLIP_S and cpu["default"]["real_time_factor"] > 0
    assert 1 <= report["processor"]["cores"] <= report["processor"]["of"]
    assert 0 < report["memory"]["available"] <= report["memory"]["total"]


def test_for_people_it_is_a_line_or_more_for_each_part(run: Run, slow_model: None) -> None:
    status, out, _ = run("doctor")
    assert status == 0 and max(map(len, out.splitlines())) <= 110
    for part in PARTS:
        assert sum(line.startswith(f"{part} ") for line in out.splitlines()) == 1, part
    assert "problem" not in out and "factor 10.0000" in out
    assert f"torch {metadata.version('torch')}" in out


def test_it_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OMP_NUM_THREADS": "3",
        "OMP_PROC_BIND": "/home/anna/secret",
        "HF_TOKEN": "secret",
        "SPEECH_SSL_API_KEYS": "/home/anna/secret",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/anna"))

    def fails(*arguments: object, **options: object) -> None:
        raise ValueError("/home/anna/models/config.json: damaged")

    monkeypatch.setattr("speech_ssl.load", fails, raising=False)
    report = examine()
    assert report["environment"]["OMP_NUM_THREADS"] == "3"
    assert report["environment"]["OMP_PROC_BIND"] == "(set)"
    assert report["problems"] == ["the packaged model on cpu: ~/models/config.json: damaged"]
    for text in (json.dumps(report), "\n".join(written(report))):
        for secret in ("anna", "secret", str(Path(speech_ssl.__file__).parent)):
            assert secret not in text


def test_what_fails_is_told_beside_what_does_not(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError("no\nkernel")

    monkeypatch.setattr("speech_ssl.load", fails, raising=False)
    status, out, _ = run("doctor")
    assert status == 1
    assert "problem    the packaged model on cpu: RuntimeError: no kernel\n" in out
    assert all(f"{part} " in out for part in PARTS) and "unknown" not in out


def test_without_torch_the_rest_is_told(monkeypatch: pytest.MonkeyPatch, slow_model: None, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    status, out, _ = run("doctor")
    assert status == 1
    for part in ("processor", "threads", "devices"):
        assert f"problem    {part}: ModuleNotFoundError" in out
    assert "processor  unknown, see the problems\n" in out and "formats    WAV" in out


def test_extras_and_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch, slow_model: None) -> None:
    there = doctor._version
    absent = ("av", "soxr", "matplotlib", "transformers")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in absent else there(name))
    report = examine()
    assert report["extras"]["av"] == ["av"] and report["extras"]["train"] == ["matplotlib"]
    assert report["extras"]["hub"] == [] and "test" not in report["extras"]
    assert report["packages"]["soxr"] is None and "transformers" not in report["packages"]
    assert report["problems"] == ["not installed: soxr"]
    text = " ".join("\n".join(written(report)).split())
    assert "train (matplotlib)" in text and "av (av)" in text and "soxr None" not in text


def test_where_it_is_not_installed_it_says_so(monkeypatch: pytest.MonkeyPatch, slow_model: None) -> None:
    monkeypatch.setattr(doctor, "DISTRIBUTION", "no-such-distribution")
    report = examine()
    assert report["packages"] is None and report["extras"] is None
    assert (
        report["problems"][0].startswith("packages: PackageNotFoundError")
        and "no-such" in report["problems"][0]
    )
    assert written(report)[1] == "packages   unknown, see the problems"


@pytest.mark.parametrize(
    "module", ["Kernel Module  535.1.2  Thu", "Open Kernel Module for x86_64  535.1.2  R"]
)
def test_a_gpu(monkeypatch: pytest.MonkeyPatch, slow_model: None, module: str) -> None:
    about = SimpleNamespace(name="Some GPU", major=7, minor=5, total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    driver = f"NVRM version: NVIDIA UNIX x86_64 {module}\n"
    monkeypatch.setattr(doctor, "_text", lambda path: driver if "nvidia" in path else "")
    report = examine()
    gpu = report["devices"][1]
    assert (gpu["device"], gpu["capability"], gpu["memory"]) == ("cuda:0", "7.5", 16.0)
    assert (gpu["driver"], gpu["training_precision"]) == ("535.1.2", "fp16")
    assert "Some GPU, compute capability 7.5, 16.0 GiB" in "\n".join(written(report))


def test_a_container_and_a_machine_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"/sys/fs/cgroup/cpu.max": "150000 100000\n", "/sys/fs/cgroup/memory.max": f"{2 << 30}\n"}
    monkeypatch.setattr(doctor, "_text", lambda path: limits.get(path, ""))
    assert doctor.processor()["quota"] == 1.5
    memory = doctor.memory()
    assert memory["limit"] == 2.0 and memory["available"] is None


def test_a_slow_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 10.0, 15.0])
    monkeypatch.setattr("speech_ssl.doctor.time", SimpleNamespace(perf_counter=lambda: next(moments)))
    timed = doctor.timed("cpu")
    assert (timed["load_s"], timed["pass_s"], timed["real_time_factor"]) == (1.0, 5.0, 1.0)
