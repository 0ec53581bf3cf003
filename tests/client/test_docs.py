"""The examples of docs/client.md, against a service."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile

import speech_ssl.client
from speech_ssl.inference import load
from tests.service.support import serving

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "client.md").read_text()


def test_examples_run(
    answering_artifact: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", *soundfile.read(prompts / "audio" / "speed-dial.flac"))
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "my-audio").mkdir()
    shutil.copy("clip.wav", "my-audio/good.wav")
    shutil.copy("notes.txt", "my-audio/bad.wav")
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    with serving(load(answering_artifact), jobs_dir=tmp_path / "jobs") as http:
        for block in blocks:
            exec(block.replace("http://localhost:8000", str(http.base_url)), names)
    assert names["frames"].shape[1:] == names["vector"].shape and names["both"].transcription is not None
    assert [path.name for path in names["vectors"]] == ["good.wav"]
    assert "bad.wav: " in (said := capsys.readouterr().out) and "not this file: unsupported_format" in said
    assert f"1 good.wav {names['transcript'].text}\n" in said and "\n0 bad.wav " in said


def test_every_error_is_told_of() -> None:
    errors = [
        name
        for name, value in vars(speech_ssl.client).items()
        if isinstance(value, type) and issubclass(value, speech_ssl.client.ServiceError)
    ]
    assert errors and all(f"| `{name}`" in TEXT for name in errors)
