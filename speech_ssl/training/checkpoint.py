"""A run's state on disk: safetensors with a JSON header, written so that the old file survives a crash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from speech_ssl.files import write_atomically

LAST, BEST = "last.safetensors", "best.safetensors"
FAIRSEQ2_STEPS = "checkpoints/step_*/trainer"
"""What fairseq2 saves at each step beside the model and the optimizer."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


@dataclass(slots=True)
class RunState:
    """The progress of a run. Everything else follows from this and the run's numbers."""

    step: int = 0
    loader: dict[str, Any] | None = None
    best: float | None = None
    best_loss: float | None = None
    """The loss at the best validation; breaks ties."""
    stale: int = 0
    """Validations since the best one."""
    below: dict[str, int] | None = None
    """For each kind of log line and watched number: lines in a row below its floor."""
    guard: dict[str, float] | None = None
    """As returned by `Guard.numbers`. Only in files; during a run these numbers are on the device."""


def save_checkpoint(
    path: Path, state: RunState, module: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> None:
    tensors = {f"module.{k}": v for k, v in module.state_dict().items()}
    if optimizer is not None:
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in values.items()}
    header = {field.name: getattr(state, field.name) for field in fields(state)}
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(path, save(plain, {"state": json.dumps(header)}))


def last_step(out: Path) -> int:
    """The step from which a run in this folder resumes. Raises CheckpointError for a damaged file."""
    steps = [int(path.parent.name.removeprefix("step_")) for path in out.glob(FAIRSEQ2_STEPS)]
    if (out / LAST).exists():
        steps.append(_read(out / LAST, tensors=False)[0]["step"])
    return max(steps, default=0)


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> RunState:
    """Raises CheckpointError if the file is damaged or belongs to another model."""
    header, tensors = _read(path)
    weights = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} belongs to another model: {str(error).splitlines()[1].strip()}"
        ) from None
    if optimizer is not None:
        _load_optimizer(optimizer, tensors)
    try:
        return RunState(**header)
    except TypeError as error:
        raise CheckpointError(f"{path} belongs to another version of this program: {error}") from None


def _read(path: Path, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header with the state, and the file's tensors."""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["state"])
            return header, {k: file.get_tensor(k) for k in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from None


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
