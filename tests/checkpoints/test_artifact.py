"""The artifact: what comes back, and what is refused with which words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from speech_ssl.checkpoints.artifact import ArtifactError, load_artifact, load_extra, save_artifact
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.presets import tiny


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Encoder(tiny())


def save(encoder: Encoder, folder: Path, **options) -> Path:
    return save_artifact(encoder, folder, name="model", training={"steps": 7}, licence="MIT", **options)


def test_what_is_saved_comes_back(encoder: Encoder, tmp_path: Path):
    extra = {"quantizer.weight": torch.randn(3, 4), "steps": torch.tensor(5)}
    folder = save(encoder, tmp_path / "a", extra=extra)
    artifact = load_artifact(folder)
    assert artifact.name == "model" and artifact.config["training"] == {"steps": 7}
    assert artifact.config["licence"] == "MIT" and artifact.config["heads"] == {}
    assert artifact.encoder.config == encoder.config
    for key, tensor in encoder.state_dict().items():
        torch.testing.assert_close(artifact.encoder.state_dict()[key], tensor, rtol=0, atol=0)
    loaded = load_extra(folder)
    assert loaded.keys() == extra.keys() and all(torch.equal(loaded[key], extra[key]) for key in extra)
    wave = torch.randn(1, 8000)
    lengths = torch.tensor([8000])
    assert torch.equal(artifact.encoder(wave, lengths).x_BTD, encoder(wave, lengths).x_BTD)


def test_a_loaded_encoder_can_be_trained_on(encoder: Encoder, tmp_path: Path):
    loaded = load_artifact(save(encoder, tmp_path / "a")).encoder
    loaded(torch.randn(1, 4000), torch.tensor([4000])).x_BTD.sum().backward()
    grads = {name for name, p in loaded.named_parameters() if p.grad is not None}
    assert grads == {name for name, _ in loaded.named_parameters()} - {"hidden_vector"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_halves_the_file_and_loads_as_float32(encoder: Encoder, tmp_path: Path, dtype):
    whole, half = save(encoder, tmp_path / "whole"), save(encoder, tmp_path / "half", dtype=dtype)
    size = [(folder / "encoder.safetensors").stat().st_size for folder in (whole, half)]
    assert size[1] == pytest.approx(size[0] / 2, rel=0.02)
    state = load_artifact(half).encoder.state_dict()
    for key, tensor in encoder.state_dict().items():
        assert state[key].dtype == torch.float32
        assert torch.equal(state[key], tensor.to(dtype).float())


def with_value(encoder: Encoder, value: float) -> Encoder:
    changed = Encoder(encoder.config)
    changed.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        changed.norm.bias[0] = value
    return changed


def test_what_half_precision_cannot_hold_is_not_stored(encoder: Encoder, tmp_path: Path):
    """Nor what is no number in any; and the artifact that was there stays."""
    folder, large = save(encoder, tmp_path / "a"), with_value(encoder, 1e5)
    before = load_artifact(folder).sha256
    with pytest.raises(
        ArtifactError, match=r"'norm.bias' reaches 1e\+05, and torch.float16 6.55e\+04: store"
    ):
        save(large, folder, dtype=torch.float16)
    with pytest.raises(ArtifactError, match="'x' reaches"):
        save(encoder, folder, dtype=torch.float16, extra={"x": torch.tensor([1.0, -7e4])})
    for value in (float("nan"), float("-inf")):
        with pytest.raises(ArtifactError, match="'norm.bias' holds infinite values or NaN: the training"):
            save(with_value(encoder, value), folder)
    assert load_artifact(folder).sha256 == before
    save(large, folder, dtype=torch.bfloat16)
    assert load_artifact(folder).encoder.norm.bias[0] == torch.tensor(1e5).bfloat16()


def test_the_identity_is_that_of_the_weights_too(encoder: Encoder, tmp_path: Path):
    first, again = (load_artifact(save(encoder, tmp_path / name)).sha256 for name in ("a", "b"))
    assert first == again
    other = Encoder(tiny())
    assert load_artifact(save(other, tmp_path / "c")).sha256 != first


def test_an_artifact_is_replaced_whole_and_nothing_else_is(encoder: Encoder, tmp_path: Path):
    folder = save(encoder, tmp_path / "a", extra={"x": torch.ones(1)})
    save(encoder, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "encoder.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # no leftovers beside it

    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="something other than an artifact"):
        save(encoder, precious)
    assert (precious / "thesis.tex").read_text() == "years of work"
    with pytest.raises(ArtifactError, match="is a file"):
        save(encoder, precious / "thesis.tex")


def test_a_failed_save_leaves_the_old_artifact(encoder: Encoder, tmp_path: Path):
    folder = save(encoder, tmp_path / "a")
    before = load_artifact(folder).sha256
    with pytest.raises(TypeError):
        save_artifact(encoder, folder, name="x", training={"not JSON": object()}, licence="")
    assert load_artifact(folder).sha256 == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


SAVER = """
import sys, torch
from speech_ssl.checkpoints.artifact import save_artifact
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.presets import tiny
encoder = Encoder(tiny())
print("go", flush=True)
while True:
    save_artifact(encoder, sys.argv[1], name="new", training={}, licence="")
"""


def test_a_save_that_is_killed_leaves_a_whole_artifact(encoder: Encoder, tmp_path: Path):
    """What lies beside it may be half written; what has the name is whole."""
    for delay in (0.0, 0.02, 0.05):
        folder = tmp_path / f"at-{delay}" / "a"
        save(encoder, folder)
        saver = subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], stdout=subprocess.PIPE)
        assert saver.stdout is not None and saver.stdout.readline() == b"go\n"
        time.sleep(delay)
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        saver.stdout.close()
        candidates = [folder] if folder.exists() else list(folder.parent.glob("*.old"))
        assert load_artifact(candidates[0]).name in ("model", "new")


def edit_config(**changes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            config[key] = value(config[key]) if callable(value) else value
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def edit_weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Change the tensors, and the sum with them: the fault is then found by its key."""

    def damage(folder: Path) -> None:
        import hashlib

        path = folder / "encoder.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        edit_config(files={path.name: {"sha256": digest}})(folder)

    return damage


def flip_a_bit(folder: Path) -> None:
    path = folder / "encoder.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def not_safetensors(folder: Path) -> None:
    import hashlib

    (folder / "encoder.safetensors").write_bytes(b"\x80\x04pickle")
    digest = hashlib.sha256(b"\x80\x04pickle").hexdigest()
    edit_config(files={"encoder.safetensors": {"sha256": digest}})(folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
    "not an object": (lambda f: (f / "config.json").write_text("[1]"), "not a JSON object"),
    "of another library": (
        lambda f: (f / "config.json").write_text('{"hidden_size": 8}'),
        "config.json: of no library that is known here",
    ),
    "version": (edit_config(format_version=99), "format version 99"),
    "field of another type": (edit_config(name=3), "'name'"),
    "files escape": (edit_config(files={"../config.json": {"sha256": "0"}}), "'files' is malformed"),
    "encoder not listed": (edit_config(files={}), "does not list encoder.safetensors"),
    "encoder field": (edit_config(encoder=lambda e: {**e, "heads": 3}), "width 256 must be a multiple"),
    "unknown encoder field": (edit_config(encoder=lambda e: {**e, "wide": 3}), "unknown field 'wide'"),
    "encoder field of another type": (
        edit_config(encoder=lambda e: {**e, "dropout": None, "depth": 1.5}),
        "no encoder can be made of it",
    ),
    "no weights": (lambda f: (f / "encoder.safetensors").unlink(), "encoder.safetensors is missing"),
    "a bit flipped": (flip_a_bit, "encoder.safetensors: its sha256"),
    "not safetensors": (not_safetensors, "not a safetensors file"),
    "missing key": (edit_weights(lambda t: t.pop("norm.weight")), "key 'norm.weight' is missing"),
    "unknown key": (edit_weights(lambda t: t.update(x=torch.ones(1))), "key 'x' is unknown"),
    "infinite": (
        edit_weights(lambda t: t.update({"norm.bias": torch.full([256], torch.inf).half()})),
        "key 'norm.bias' holds infinite values or NaN: make",
    ),
    "shape": (
        edit_weights(lambda t: t.update({"norm.bias": torch.ones(7)})),
        r"'norm.bias' has shape \(7,\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(encoder: Encoder, tmp_path: Path, damage: str):
    folder = save(encoder, tmp_path / "a")
    do, message = DAMAGE[damage]
    do(folder)
    with pytest.raises(ArtifactError, match=message) as caught:
        load_artifact(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(ArtifactError, match="no such folder"):
        load_artifact(tmp_path / "nope")


def test_readable_by_others(encoder: Encoder, tmp_path: Path):
    """A service may run as another user than the training."""
    before = os.umask(0o022)
    try:
        folder = save(encoder, tmp_path / "a")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())


def test_a_folded_encoder_saves_the_same(encoder: Encoder, tmp_path: Path):
    folded = Encoder(EncoderConfig.from_dict(encoder.config.to_dict()))
    folded.load_state_dict(encoder.state_dict())
    folded.fold_weight_norm_()
    plain = load_artifact(save(encoder, tmp_path / "plain"))
    assert load_artifact(save(folded, tmp_path / "folded")).sha256 == plain.sha256
