"""Convolutional positions: rounded lengths, which spare oneDNN its compiling, change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speech_ssl.model import positions
from speech_ssl.model.config import EncoderConfig, StackedConvolutions, WideConvolution
from speech_ssl.model.convolution import conv_over_time
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


@pytest.mark.parametrize("channels", [4, 16, 24])
def test_narrow_depthwise_convolutions_in_bf16_come_to_an_end(channels: int) -> None:
    """oneDNN would compile for ever where the processor has AVX-512 and bf16."""
    x_BTC, weight_CK = torch.randn(1, 50, channels), torch.randn(channels, 1, 31)
    wanted = conv_over_time(x_BTC, weight_CK, None, padding=15, groups=channels)
    rounded = (x_BTC.bfloat16(), weight_CK.bfloat16())
    found = conv_over_time(*rounded, None, padding=15, groups=channels)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, atol=0.2, rtol=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = conv_over_time(x_BTC, weight_CK, None, padding=15, groups=channels)
    torch.testing.assert_close(under.float(), wanted, atol=0.2, rtol=0.05)
