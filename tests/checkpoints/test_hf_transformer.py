"""Transformer-type relatives of wav2vec 2.0 against transformers: every hidden state, in any batch."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.transformer_families import (
    CASES,
    FAMILIES,
    LARGE,
    ONE_EACH,
    PADDED_RIGHT,
    assert_same,
    our_encoder,
    our_states,
    padded,
    their_model,
    their_states,
)


@pytest.mark.parametrize("case", CASES)
def test_every_hidden_state_is_that_of_transformers(case: str) -> None:
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    field = encoder.receptive_field
    torch.manual_seed(1)
    waves = [torch.randn(samples) for samples in (field, field + encoder.hop, 307, 1_501)]
    alone = [their_states(model, wave[None]) for wave in waves]
    for wave, theirs in zip(waves, alone, strict=True):
        assert_same(our_states(encoder, wave[None]), theirs)
    together = our_states(encoder, *padded(waves, 123))
    for row, theirs in enumerate(alone):
        frames = theirs[0].shape[1]
        assert_same([state[row, :frames] for state in together], [state[0] for state in theirs])
        assert not together[-1][row, frames:].any()


@pytest.mark.parametrize("case", PADDED_RIGHT)
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # of its WavLM
def test_padded_as_transformers_pads(case: str) -> None:
    """A group norm in front lets the padding in there, and so do the positions of data2vec and a batch norm
    before those of HuBERT."""
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    torch.manual_seed(2)
    wave_BS, lengths_B = padded([torch.randn(1_501), torch.randn(702)], 88)
    ours, theirs = our_states(encoder, wave_BS, lengths_B), their_states(model, wave_BS, lengths_B)
    for row, frames in enumerate(encoder.frame_count(lengths_B).tolist()):
        assert_same([state[row, :frames] for state in ours], [state[row, :frames] for state in theirs])


@pytest.mark.parametrize("case", ONE_EACH)
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(60, 2_000), min_size=2, max_size=4),
    padding=st.integers(0, 900),
    seed=st.integers(0, 99),
)
def test_a_clip_gives_the_same_frames_alone_and_in_any_batch(
    case: str, lengths: list[int], padding: int, seed: int
) -> None:
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    generator = torch.Generator().manual_seed(seed)
    waves = [torch.randn(n, generator=generator) for n in lengths]
    wave_BS, lengths_B = padded(waves, padding)
    wave_BS += 1e3 * (torch.arange(wave_BS.shape[1]) >= lengths_B[:, None])
    together = our_states(encoder, wave_BS, lengths_B)
    for row, wave in enumerate(waves):
        alone = our_states(encoder, wave[None])
        assert_same([state[row, : alone[0].shape[1]] for state in together], [state[0] for state in alone])


@pytest.mark.parametrize("case", ONE_EACH)
def test_bf16_on_the_cpu_is_near(case: str) -> None:
    """It computes attention in parts: each clip as alone, and near to what fp32 gives."""
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    encoder.fold_weight_norm_()
    torch.manual_seed(3)
    waves = [torch.randn(2_000), torch.randn(1_001)]
    exact = our_states(encoder, *padded(waves, 50))[-1]
    encoder = encoder.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = our_states(encoder, *padded(waves, 50))[-1].float()
        alone = our_states(encoder, waves[1][None])[-1][0].float()
    assert (together - exact).norm() / exact.norm() < 0.05
    assert (together[1, : len(alone)] - alone).norm() / alone.norm() < 0.03


FULL = {
    "wav2vec2 BASE": ("wav2vec2", {}),
    "wav2vec2 LARGE": ("wav2vec2", LARGE),
    "hubert LARGE": ("hubert", LARGE),
    "wavlm LARGE": ("wavlm", LARGE),
}
LARGE_SIZES = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL)
def test_full_sizes(case: str) -> None:
    family, changes = FULL[case]
    make_config, make_model = FAMILIES[family]
    config = make_config(**changes, **(LARGE_SIZES if case.endswith("LARGE") else {}))
    torch.manual_seed(0)
    model = make_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 or parameter.shape[0] == 1 or parameter.numel() < 9_000:
                parameter.add_(0.1 * torch.randn_like(parameter))
    encoder = our_encoder(json.loads(config.to_json_string()), model.state_dict())
    wave_BS = torch.randn(1, 24_000)
    assert_same(our_states(encoder, wave_BS), their_states(model, wave_BS))
