from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import speech_ssl
from speech_ssl.inference import arithmetic
from speech_ssl.inference.engines import torch as engines
from tests.command_line import Run, without_progress

torch.set_num_threads(1)  # small models: more threads only get in each other's way
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for processes that tests start
# What tests compare is computed in fp32 on the CPU, whatever would be chosen here. That is the matter of
# tests/test_precision.py and tests/inference/test_arithmetic.py. Tests of a GPU name it.
arithmetic.native = lambda device: "fp32"
engines.automatic = lambda: "cpu"
with suppress(ModuleNotFoundError):  # the environment with fairseq2 has none, nor tests that use it
    from hypothesis import HealthCheck, settings

    # What is tested is what comes out, not how soon on a busy machine.
    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """Of the process's log, which would go on writing to the captured stderr of a test that set it up, and of
    the environment, which the service changes for the processes that it starts."""
    root = logging.getLogger()
    handlers, level, environment = root.handlers[:], root.level, dict(os.environ)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def prompts() -> Path:
    """The folder of the real recordings that are shipped, with their manifest.tsv."""
    return Path(speech_ssl.__file__).parent / "assets" / "prompts"


@pytest.fixture(scope="session")
def answering_artifact(tiny_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same encoder with three heads of random weights: "ctc", "sounds" and "moods"."""
    from tests.narrow import add_random_heads

    return add_random_heads(tiny_artifact, tmp_path_factory.mktemp("heads") / "all")


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an artifact with an untrained tiny encoder: fast, and the same on every run."""
    from speech_ssl.checkpoints.artifact import save_artifact
    from speech_ssl.model.encoder import Encoder
    from speech_ssl.model.presets import tiny

    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(tiny()).eval()
    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    return save_artifact(encoder, folder, name="tiny-random", training={"steps": 0}, licence="Apache-2.0")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    from speech_ssl.cli import main

    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["speech-ssl", *map(str, args)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, without_progress(err)

    return call
