"""Checkpoints: bit for bit what was saved, or a clear refusal, and never half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from speech_ssl.files import write_atomically
from speech_ssl.training.checkpoint import (
    CheckpointError,
    RunState,
    load_checkpoint,
    save_checkpoint,
)
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.optim import build_optimizer

CONFIG = TrainConfig(steps=10)
STATE = RunState(step=3, loader={"epoch": 1, "index": 7}, best=0.1 + 0.2, below={"codes": 2})


def stepped(seed: int, steps: int, width: int = 4) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 1))
    optimizer = build_optimizer(module, CONFIG)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    for number in range(steps):
        advance(module, optimizer, number)
    return module, optimizer


def advance(module: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    module(torch.randn(5, 3, generator=torch.Generator().manual_seed(number))).square().sum().backward()
    optimizer.step()


def test_a_round_trip_is_bit_exact_and_so_is_what_follows(tmp_path: Path) -> None:
    module, optimizer = stepped(0, 3)
    save_checkpoint(tmp_path / "last", STATE, module, optimizer)
    again, its_optimizer = stepped(1, 0)
    assert load_checkpoint(tmp_path / "last", again, its_optimizer) == STATE
    for group in its_optimizer.param_groups:
        group["lr"] = 0.01
    for number in range(3, 6):
        advance(module, optimizer, number)
        advance(again, its_optimizer, number)
    for mine, theirs in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_weights_alone_load_without_the_optimizer(tmp_path: Path) -> None:
    module, _ = stepped(0, 3)
    save_checkpoint(tmp_path / "best", STATE, module)
    again, _ = stepped(1, 0)
    assert load_checkpoint(tmp_path / "best", again).step == 3
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_truncated_file_is_refused_in_one_line(tmp_path: Path, keep: int) -> None:
    module, optimizer = stepped(0, 1)
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, STATE, module, optimizer)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="last.safetensors cannot be read as a checkpoint") as caught:
        load_checkpoint(path, module, optimizer)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_refused_and_says_where(tmp_path: Path) -> None:
    module, optimizer = stepped(0, 1)
    save_checkpoint(tmp_path / "last", STATE, module, optimizer)
    with pytest.raises(CheckpointError, match=r"belongs to another model: .*0\.weight") as caught:
        load_checkpoint(tmp_path / "last", *stepped(0, 0, width=5))
    assert "\n" not in str(caught.value)


def test_a_header_of_another_version_is_refused(tmp_path: Path) -> None:
    module, _ = stepped(0, 0)
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    save_file(tensors, tmp_path / "last", {"state": json.dumps({"steps_done": 3})})
    with pytest.raises(CheckpointError, match="another version"):
        load_checkpoint(tmp_path / "last", module)


def test_a_crash_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, optimizer = stepped(0, 1)
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, STATE, module, optimizer)
    before = path.read_bytes()
    advance(module, optimizer, 1)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)  # all is written, nothing is renamed
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, RunState(step=4), module, optimizer)
    assert path.read_bytes() == before
    assert load_checkpoint(path, module, optimizer).step == 3

    for step in (5, 6):  # and what the crash left does not stay
        save_checkpoint(path, RunState(step=step), module, optimizer)
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_the_file_is_on_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def renamed(path: Path, target: Path) -> Path:
        order.append("rename")
        return replace(path, target)

    def synced(descriptor: int) -> None:
        order.append("sync")
        fsync(descriptor)

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    write_atomically(tmp_path / "file", b"data")
    assert order == ["sync", "rename", "sync"]
    assert (tmp_path / "file").read_bytes() == b"data"


def test_the_header_is_plain_json(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "best", STATE, nn.Linear(1, 1))
    with safe_open(tmp_path / "best", "pt") as file:
        assert json.loads(file.metadata()["state"])["loader"] == {"epoch": 1, "index": 7}
