"""Which device a process computes on, also where that is not the first one, with a CUDA that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from speech_ssl.training.meter import OnItsWay
from speech_ssl.training.ranks import joined_ranks


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Of two GPUs, those that became the current one."""
    devices: list[torch.device] = []
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
def test_one_process_computes_on_the_device_it_was_given(
    chosen: list[torch.device], name: str, index: int
) -> None:
    with joined_ranks(name) as ranks:
        assert ranks.device == torch.device("cuda", index)
        assert chosen == [ranks.device]


def test_on_the_cpu_there_is_none_to_choose(chosen: list[torch.device]) -> None:
    with joined_ranks("cpu") as ranks:
        assert ranks.device == torch.device("cpu") and ranks.from_first("as it is") == "as it is"
    assert not chosen


@dataclass
class Stream:
    device: torch.device


@dataclass
class OnGPU:
    """A tensor on a GPU, as far as OnItsWay looks at it."""

    value: torch.Tensor
    device: torch.device
    is_cuda: bool = True

    @property
    def shape(self) -> Sequence[int]:
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def detach(self) -> torch.Tensor:
        return self.value


def test_what_is_on_its_way_waits_for_its_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the current one, whose queue may be empty: what is read there would be stale."""
    log: list[tuple[str, Any]] = []

    class Event:
        def record(self, stream: Stream) -> None:
            log.append(("recorded", stream.device))

        def synchronize(self) -> None:
            log.append(("waited", None))

    second, empty = torch.device("cuda", 1), torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))
    travelling = OnItsWay(OnGPU(torch.tensor(7.0), second))  # type: ignore[arg-type]
    assert log == [("recorded", second)]
    assert travelling.read() == 7.0 and log[-1] == ("waited", None)


@pytest.mark.gpu
def test_on_the_last_gpu_it_arrives() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    assert OnItsWay(torch.tensor([1.0, 2.0], device=device) * 3).read().tolist() == [3.0, 6.0]
