"""Where settings come from, and that all of them are written down."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import server
from service.settings import FILE_VARIABLE, PREFIX, Settings

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def test_arguments_go_before_the_environment_and_that_before_the_file(monkeypatch, tmp_path):
    file = tmp_path / "service.toml"
    file.write_text('model = "from-file"\nport = 1\nmax_queue_s = 5.5\n')
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    monkeypatch.setenv(PREFIX + "PORT", "2")
    monkeypatch.setenv(PREFIX + "MAX_CHANNELS", "3")
    settings = Settings(max_channels=4)
    assert (settings.model, settings.port, settings.max_queue_s, settings.max_channels) == (
        "from-file",
        2,
        5.5,
        4,
    )
    assert settings.host == "127.0.0.1"


def test_mistakes_are_refused(monkeypatch, tmp_path):
    file = tmp_path / "service.toml"
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    with pytest.raises(ValueError, match="there is no file"):
        Settings()
    file.write_text("max_queue = 5\n")
    with pytest.raises(ValidationError, match="max_queue"):
        Settings()
    file.write_text("port = [")
    with pytest.raises(ValueError):
        Settings()
    monkeypatch.delenv(FILE_VARIABLE)
    with pytest.raises(ValidationError, match="a is to be b, which is no model: there is default, c"):
        Settings(models={"c": {"source": "default"}}, aliases={"a": "b"})
    for bad in (
        {"port": 70000},
        {"aliases": {"a b": "default"}},
        {"max_padding": 1.0},
        {"max_queue_s": 0},
        {"precision": "fp8"},
    ):
        with pytest.raises(ValidationError):
            Settings(**bad)


@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "-1"])
def test_times_are_some_that_a_process_can_wait(value, monkeypatch):
    """The system counts them in milliseconds, of 31 bits."""
    times = [name for name in Settings.model_fields if re.search(r"(timeout|keep)_s$", name)]
    assert "decode_timeout_s" in times and len(times) >= 7
    for name in times:
        monkeypatch.setenv(PREFIX + name.upper(), value)
        with pytest.raises(ValidationError, match=name):
            Settings()
        monkeypatch.delenv(PREFIX + name.upper())
    for name in ("max_clip_s", "max_queue_s", "max_batch_s"):
        with pytest.raises(ValidationError, match=name):
            Settings(**{name: float("inf")})
    with pytest.raises(ValidationError):
        Settings(models={"other": {"source": "default", "unload_after_s": value}})
    assert Settings(decode_timeout_s=86_400).decode_timeout_s == 86_400


def test_every_setting_is_documented_with_its_default():
    rows = re.findall(r"^\| `(\w+)` \| `?(.*?)`? \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    written = {name: (default, text) for name, default, text in rows}
    expected = {
        PREFIX + name.upper(): (_written(field.default), field.description)
        for name, field in Settings.model_fields.items()
    }
    assert written == expected


def _written(default):
    if default is None:
        return "unset"
    return json.dumps(default) if isinstance(default, dict) else str(default)


@pytest.mark.parametrize(
    ("device", "driver", "visible", "gpu"),
    [
        ("cpu", True, "0", False),
        ("cuda:1", False, "0", True),
        ("auto", True, "0", True),
        ("auto", True, "", False),
        ("auto", False, "0", False),
    ],
)
def test_auto_is_known_to_be_a_gpu_without_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, driver: bool, visible: str, gpu: bool
) -> None:
    """There a model has one process, not two."""
    monkeypatch.setattr(server, "DRIVER", tmp_path if driver else tmp_path / "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert server._is_gpu(device) == gpu
