"""Nothing of the folder that the service is started in is run, and decoders know no secrets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from speech_ssl.audio import AudioError, Limits
from speech_ssl.sandbox import decoder, isolation
from speech_ssl.sandbox.pool import Sandbox
from tests.service.support import ROOT, encoded, tone

NAMES = ("json", "selectors", "signal", "socket", "struct", "numpy", "soundfile", "typing")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with modules that leave a mark, called as ours and Python's own are."""
    for name in NAMES:
        code = f"open({str(tmp_path / 'mark')!r}, 'a').write('{name} ')\nraise SystemExit(9)\n"
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", ["", ".", os.pathsep, f"{ROOT}{os.pathsep}", f".{os.pathsep}{ROOT}"])
def test_a_decoder_imports_nothing_from_it(folder: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("PYTHONPATH", path)
    box = Sandbox(1, 1 << 30, 60.0)
    box.start()
    try:
        assert sum(map(len, box.stream(encoded(tone(1.0)), limits=Limits()))) == 16_000
    finally:
        box.stop()
    assert not (folder / "mark").exists()


def test_a_decoder_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("SPEECH_SSL_API_KEYS", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OTEL_EXPORTER_OTLP_HEADERS")
    for name in secrets:
        monkeypatch.setenv(name, "hunter2")
    box = Sandbox(1, 1 << 30, 60.0)
    box.start()
    try:
        (one,) = [box._free.get()]
        assert one is not None
        process = Path("/proc") / str(one.popen.pid)
        assert b"hunter2" not in (process / "environ").read_bytes()
        assert (process / "cwd").readlink() == Path("/")
        box._free.put(one)
    finally:
        box.stop()


def _instead(popen: Callable[..., Any], program: str, command: list[str], **options: Any) -> Any:
    return popen([sys.executable, "-c", program], **options)


def test_what_a_decoder_says_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a file has taken over, as far as it is told what to say."""
    lies = [
        decoder.HEAD.pack(decoder.BLOCK, 1 << 31),
        decoder.HEAD.pack(decoder.ERROR, 1 << 31),
        decoder.HEAD.pack(b"?", 4) + b"what",
        decoder.HEAD.pack(decoder.BLOCK, 7) + b"samples",
        decoder.HEAD.pack(decoder.ERROR, 4) + b"what",
        decoder.HEAD.pack(decoder.WARNING, 9) + b"truncated"[::-1],
    ]
    for lie in lies:
        began = decoder.HEAD.pack(decoder.STARTED, 0)
        lied = f"os.read(0, 1); os.write(1, {lie!r}); os.read(0, 1 << 20); os.read(0, 1)"
        program = f"import os; os.write(1, {began!r}); {lied}"
        lying = partial(_instead, subprocess.Popen, program)
        with monkeypatch.context() as patch:
            patch.setattr("speech_ssl.sandbox.process.subprocess.Popen", lying)
            box = Sandbox(1, 1 << 30, 60.0)
            box.start()
            with pytest.raises(AudioError, match="no sensible answer"):
                list(box.stream(b"RIFF", limits=Limits()))
            box.stop()


LOAD = """
from functools import partial
from service.models.worker import Worker, preload
from tests.service import fakes

if __name__ == "__main__":
    worker = Worker(partial(fakes.load), timeout_s=60, lost=int, threads=preload())
    worker.start()
    print(worker.card().name)
    worker.close()
"""


def test_neither_does_the_process_of_a_model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Started as a console script is, whose own folder is in sys.path and not the working directory."""
    script = tmp_path_factory.mktemp("bin") / "serve.py"
    script.write_text(LOAD)
    ran = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "fake"), ran.stderr
    assert not (folder / "mark").exists()


def test_the_path_is_that_of_the_service(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "below").mkdir()
    monkeypatch.setattr(sys, "path", ["/elsewhere", str(ROOT)])
    for given, kept in (
        ("", [str(ROOT)]),
        (f"/a{os.pathsep}{ROOT}{os.pathsep}", ["/a", str(ROOT)]),
        (os.pathsep.join([".", "below", str(folder)]), [str(folder / "below"), str(folder), str(ROOT)]),
    ):
        monkeypatch.setenv("PYTHONPATH", given)
        assert isolation.import_path() == kept
    monkeypatch.setattr(sys, "path", ["/elsewhere"])  # found in another way: installed
    monkeypatch.delenv("PYTHONPATH")
    assert isolation.import_path() == []
