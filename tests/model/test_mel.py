"""The log-mel front end against transformers' SeamlessM4TFeatureExtractor, and in any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speech_ssl import audio
from speech_ssl.checkpoints.transformers.conformer import model_type_of
from speech_ssl.inference.chunking import Chunker
from speech_ssl.model.config import Conformer, EncoderConfig, LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.flat import REQUIRED, flat_of, hashed, stored_config
from speech_ssl.model.frontends.mel import MelFrontend, log_mel

pytestmark = pytest.mark.numerical

transformers = pytest.importorskip("transformers")


def config(bins: int = 80) -> EncoderConfig:
    parts = {"frontend": LogMel(bins=bins), "positions": None, "block": Conformer(kernel=7)}
    return EncoderConfig(**parts, width=32, depth=1, heads=4, ffn_width=40)  # type: ignore[arg-type]


def ours(waves: list[Tensor], bins: int = 80, padding: int = 0, filled: float = 0.0) -> list[Tensor]:
    wave_BS = torch.full((len(waves), max(map(len, waves)) + padding), filled)
    for row_S, wave in zip(wave_BS, waves, strict=True):
        row_S[: len(wave)] = wave
    frames = MelFrontend(bins)(wave_BS, torch.tensor([len(wave) for wave in waves]))
    assert frames.x_BTD.dtype == torch.float32
    return [x_TC[:count] for x_TC, count in zip(frames.x_BTD, frames.lengths_B.tolist(), strict=True)]


def theirs(wave: Tensor, bins: int = 80) -> Tensor:
    extractor = transformers.SeamlessM4TFeatureExtractor(feature_size=bins, num_mel_bins=bins)
    answer = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    frames: Tensor = answer["input_features"][0, : int(answer["attention_mask"].sum())]
    return frames


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def test_speech_is_heard_as_transformers_hears_it(prompts: Path) -> None:
    """Features have variance 1. The rest is transformers' rounding to float32 before it normalises."""
    for path in sorted((prompts / "audio").glob("*.flac"))[:6]:
        wave = torch.from_numpy(audio.decode(path))
        torch.testing.assert_close(ours([wave])[0], theirs(wave), atol=5e-6, rtol=0)


@pytest.mark.parametrize("samples", [560, 719, 720, 879, 880, 1_040, 9_001, 16_000, 32_123])
@pytest.mark.parametrize("bins", [80, 20])
def test_noise_is_heard_as_transformers_hears_it(samples: int, bins: int) -> None:
    """719 samples make two steps, 720 a third one that belongs to no frame but counts in the statistics."""
    wave = noise(samples)
    torch.testing.assert_close(ours([wave], bins)[0], theirs(wave, bins), atol=1e-4, rtol=0)


def test_silence_and_a_constant_are_silent() -> None:
    """There transformers leaves up to 0.003, the rounding of its means."""
    for wave in (torch.zeros(8_000), torch.full((8_000,), 0.5)):
        assert ours([wave])[0].abs().max() < 1e-6
        torch.testing.assert_close(ours([wave])[0], theirs(wave), atol=5e-3, rtol=0)


def test_loudness_changes_nothing() -> None:
    wave = noise(9_001)
    torch.testing.assert_close(ours([0.01 * wave])[0], ours([wave])[0], atol=1e-4, rtol=0)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(560, 6_000), min_size=1, max_size=4),
    padding=st.integers(0, 3_000),
    filled=st.sampled_from([0.0, 1e3, -7.0]),
    seed=st.integers(0, 99),
)
def test_a_clip_is_heard_the_same_alone_and_in_any_batch(
    lengths: list[int], padding: int, filled: float, seed: int
) -> None:
    waves = [noise(samples, seed + row) for row, samples in enumerate(lengths)]
    for wave, together in zip(waves, ours(waves, padding=padding, filled=filled), strict=True):
        torch.testing.assert_close(together, ours([wave])[0], atol=1e-6, rtol=0)


def test_frames_are_counted_exactly() -> None:
    encoder = Encoder(config())
    assert (encoder.hop, encoder.receptive_field) == (320, 560)
    chunker = Chunker(encoder.hop, encoder.receptive_field, window=50, context=5)
    lengths = [*range(555, 565), *range(875, 885), *range(1_195, 1_205), 16_000, 319_999]
    counted = encoder.frame_count(torch.tensor(lengths)).tolist()
    assert counted == [encoder.frame_count(n) for n in lengths] == [chunker.frame_count(n) for n in lengths]
    made = [0 if n < 560 else len(theirs(noise(n))) for n in lengths[:-1]]
    assert counted[:-1] == made == [0 if n < 560 else len(ours([noise(n)])[0]) for n in lengths[:-1]]


def test_a_frame_sees_its_receptive_field_alone() -> None:
    """Before its bins are normalised over the clip."""
    wave = noise(3_200)[None]
    x_BTM = log_mel(wave, 80)
    for changed, steps in ((320, range(0, 3)), (719, range(2, 5)), (720, range(3, 5))):
        other = wave.clone()
        other[0, changed] += 1.0
        differs = (log_mel(other, 80) - x_BTM).abs().amax(2)[0] > 0
        assert differs.nonzero().flatten().tolist() == list(steps)


def test_precision_around_changes_nothing() -> None:
    wave = noise(9_001)
    frontend = MelFrontend(80).to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        x_BTC = frontend(wave[None], torch.tensor([9_001])).x_BTD
    assert x_BTC.dtype == torch.float32
    assert torch.equal(x_BTC[0, : len(ours([wave])[0])], ours([wave])[0])


def test_gradients_reach_the_blocks_after_inference() -> None:
    """What is made once and kept was made under inference mode, by an engine, perhaps."""
    torch.manual_seed(0)
    encoder = Encoder(config(17)).eval()
    wave_BS, lengths_B = noise(3_000)[None], torch.tensor([3_000])
    with torch.inference_mode():
        encoder(wave_BS, lengths_B)
    encoder(wave_BS.requires_grad_(), lengths_B).x_BTD.square().sum().backward()
    assert all(p.grad is not None for name, p in encoder.named_parameters() if name != "hidden_vector")
    assert wave_BS.grad is not None and bool(wave_BS.grad.isfinite().all())


def test_too_short_is_told() -> None:
    with pytest.raises(ValueError, match="at least 560 samples, got 559"):
        ours([noise(559)])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mel_bins": -1}, "bins of LogMel must be whole, from 1"),
        ({"mel_bins": 40}, "conv_channels must be .80,. beside"),
        ({"conv_strides": [321]}, "conv_strides"),
        ({"normalize_wave": True}, "normalize_wave must be False"),
    ],
)
def test_flat_configs_that_cannot_be(options: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        stored_config({**REQUIRED, **flat_of(config()), **options})


def test_the_bank_is_kaldis() -> None:
    """torchaudio's port of Kaldi makes the same energies, in float32."""
    from torchaudio.compliance import kaldi

    wave = noise(16_000)
    found = kaldi.fbank(wave[None] * 2**15, num_mel_bins=80, window_type="povey", dither=0.0)
    torch.testing.assert_close(log_mel(wave[None].double(), 80)[0].float(), found, atol=2e-3, rtol=0)


def test_normalised_together_bins_keep_the_shape_of_the_spectrum() -> None:
    """By hand in float64; a gain changes nothing."""
    frontend, lengths = MelFrontend(20, norm="clip"), torch.tensor([16_000, 9_000])
    wave_BS = torch.stack([noise(16_000), noise(16_000, 1)])
    wave_BS[1, 9_000:] = 7.0
    found = frontend(wave_BS, lengths)
    for row, samples in enumerate(lengths.tolist()):
        steps_TM = log_mel(wave_BS[row : row + 1, :samples].double(), 20)[0]
        wanted_TM = (steps_TM - steps_TM.mean()) / (steps_TM.var() + 1e-7).sqrt()
        count = int(found.lengths_B[row])
        torch.testing.assert_close(found.x_BTD[row, :count].reshape(-1, 20), wanted_TM[: 2 * count].float())
    torch.testing.assert_close(frontend(wave_BS * 0.25, lengths).x_BTD, found.x_BTD, atol=1e-5, rtol=0)
    assert found.x_BTD[0].mean(0).std() > 0.3 > 0.1 > ours([wave_BS[0]], 20)[0].mean(0).std()
    together = config().changed(frontend={"norm": "clip"})
    assert stored_config(together.to_dict()) == together
    assert hashed(flat_of(together)) != hashed(flat_of(config()))
    with pytest.raises(ValueError, match="frontend"):
        model_type_of(together.changed(block={"norm": "layer"}))


@pytest.mark.parametrize("stacked", [1, 3, 4])
def test_frames_hold_as_many_steps_as_asked(stacked: int) -> None:
    """Side by side, each step in one frame; the hash tells of it."""
    frontend, plain = MelFrontend(20, stacked), MelFrontend(20, 1)
    wave, length = noise(8_000)[None], torch.tensor([8_000])
    found, steps = frontend(wave, length), plain(wave, length).x_BTD[0]
    count = int(found.lengths_B)
    assert count == len(steps) // stacked == frontend.frame_count(8_000)
    assert torch.equal(found.x_BTD[0].reshape(-1, 20), steps[: count * stacked])
    assert (frontend.hop, frontend.receptive_field) == (160 * stacked, 160 * stacked + 240)
    slower = config().changed(frontend={"stacked": stacked})
    assert stored_config(slower.to_dict()) == slower
    assert hashed(flat_of(slower)) != hashed(flat_of(config()))
    with pytest.raises(ValueError, match="frontend"):
        model_type_of(slower.changed(block={"norm": "layer"}))
