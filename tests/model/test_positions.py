"""Convolutional positions: rounded lengths, which spare oneDNN its compiling, change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speech_ssl.model import positions
from speech_ssl.model.config import EncoderConfig, StackedConvolutions, WideConvolution
from speech_ssl.model.positions import conv_positions
from speech_ssl.model.presets import tiny
from speech_ssl.types import Frames

KINDS = {
    "one": tiny(),
    "stacked": replace(tiny(), positions=StackedConvolutions(layers=3)),
    "batch norm": replace(tiny(), positions=WideConvolution(norm="batch")),
}


def frames_of(length: int) -> Frames:
    x_BTD = torch.randn(2, length, 256, generator=torch.Generator().manual_seed(length))
    x_BTD[1, length // 2 :] = 0
    return Frames(x_BTD, torch.tensor([length, length // 2]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [2, 31, 32, 33, 100])
def test_lengths_are_rounded_without_gradients_and_the_result_is_the_same(kind: str, length: int) -> None:
    config: EncoderConfig = KINDS[kind]
    module = conv_positions(config)
    assert module is not None
    exact_BTD = module(frames_of(length)).detach()  # as in training, of the length itself
    with torch.inference_mode():
        torch.testing.assert_close(module(frames_of(length)), exact_BTD, atol=1e-5, rtol=0)


def test_clips_of_many_lengths_need_few_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    convolve = positions.conv_over_time
    monkeypatch.setattr(
        positions, "conv_over_time", lambda x, *a, **k: (seen.append(x.shape[1]), convolve(x, *a, **k))[1]
    )
    module = conv_positions(tiny())
    with torch.inference_mode():
        for length in range(2, 97, 5):
            assert module(frames_of(length)).shape[1] == length
    assert set(seen) == {32, 64, 96}
