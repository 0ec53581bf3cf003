"""Models of the Hugging Face hub, without a network: what is asked for, and what is said when it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import speech_ssl
from speech_ssl.checkpoints.artifact import ArtifactError
from speech_ssl.checkpoints.opening import convert
from speech_ssl.checkpoints.transformers import hub
from tests.checkpoints.test_fairseq2 import omnilingual
from tests.checkpoints.test_hf_weights import lora
from tests.checkpoints.transformers_models import made, saved

huggingface_hub = pytest.importorskip("huggingface_hub")
Asked = list[dict[str, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Asked:
    """A hub with one model; what it was asked for."""
    calls: Asked = []

    def snapshot_download(model: str, **options: Any) -> str:
        calls.append({"model": model, **options})
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_model_by_its_id(asked: Asked, tmp_path: Path) -> None:
    saved(made("Wav2Vec2", "ForCTC"), tmp_path / "snapshot")
    runtime = speech_ssl.load("someone/some-model")
    assert runtime.heads and [call["model"] for call in asked] == ["someone/some-model"]
    assert asked[0]["revision"] is None and "*.safetensors" in asked[0]["allow_patterns"]
    assert not any("bin" in pattern or "py" in pattern for pattern in asked[0]["allow_patterns"])
    speech_ssl.load("someone/some-model@v1.0")
    assert asked[1]["revision"] == "v1.0" and asked[1]["model"] == "someone/some-model"


def test_a_pickle_is_asked_for_by_convert_alone(asked: Asked, tmp_path: Path) -> None:
    model = made("Wav2Vec2", "Model")
    folder = saved(model, tmp_path / "snapshot")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="has no model.safetensors"):
        speech_ssl.load("someone/old-model")
    assert len(asked) == 1
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    convert("someone/old-model", tmp_path / "artifact")
    assert "pytorch_model*.bin" in asked[-1]["allow_patterns"]


def test_what_peft_trained_is_named(asked: Asked, tmp_path: Path) -> None:
    """By the model's name, not by a folder of the cache; convert looks for a pickle first."""
    lora(tmp_path / "snapshot")
    for attempt in (speech_ssl.load, lambda name: convert(name, tmp_path / "artifact")):
        with pytest.raises(ArtifactError, match=r"someone/tuned: holds a PEFT adapter \(LORA\)"):
            attempt("someone/tuned")
    saved(made("Wav2Vec2", "Model"), tmp_path / "snapshot")
    (tmp_path / "snapshot" / "model.safetensors").unlink()
    asked.clear()
    with pytest.raises(ArtifactError, match=r"someone/tuned: holds a PEFT adapter"):
        convert("someone/tuned", tmp_path / "artifact")
    assert "pytorch_model*.bin" in asked[-1]["allow_patterns"]


def test_a_file_of_fairseq2(asked: Asked, tmp_path: Path) -> None:
    """As Omnilingual ASR's models are on the hub: no config, one file of torch, perhaps a tokenizer."""
    (tmp_path / "snapshot").mkdir()
    omnilingual(tmp_path / "snapshot", 40)
    with pytest.raises(ArtifactError, match="someone/omni: has no config.json of transformers; .*convert"):
        speech_ssl.load("someone/omni")
    assert len(asked) == 1
    assert convert("someone/omni", tmp_path / "artifact").heads
    assert asked[-1]["allow_patterns"] == ["*.pt", "*.model"]
    (tmp_path / "snapshot" / "omni.pt").unlink()
    with pytest.raises(ArtifactError, match="someone/omni: has no config.json of transformers, and 0 files"):
        convert("someone/omni", tmp_path / "artifact2")


def failing(error: Exception) -> Callable[..., str]:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    return snapshot_download


def test_what_cannot_be_fetched_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        huggingface_hub.errors.LocalEntryNotFoundError("offline\nand more"),
        huggingface_hub.errors.RepositoryNotFoundError(
            "401 Client Error\nRepository Not Found", response=Answer()
        ),
        OSError("no route to host"),
    ):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", failing(error))
        with pytest.raises(
            ArtifactError, match="someone/none: cannot be fetched from the Hugging Face hub"
        ) as said:
            speech_ssl.load("someone/none")
        assert "\n" not in str(said.value)


class Answer:
    """What the hub's errors ask of an HTTP response."""

    headers: dict[str, str] = {}
    request = None


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ArtifactError, match=r"someone/none: no such folder; .*speech-ssl\[hub\]"):
        speech_ssl.load("someone/none")


def test_folders_go_before_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Asked) -> None:
    saved(made("Wav2Vec2", "Model"), tmp_path / "some" / "model")
    monkeypatch.chdir(tmp_path)
    speech_ssl.load("some/model")
    assert not asked


@pytest.mark.parametrize(
    "name, is_id",
    [("a/b", True), ("a/b@main", True), *((name, False) for name in ("a", "a/b/c", "/a/b", "./a", "../a"))],
)
def test_what_an_id_is(name: str, is_id: bool) -> None:
    assert hub.is_id(name) is is_id
