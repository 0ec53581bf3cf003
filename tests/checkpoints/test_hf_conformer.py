"""wav2vec2-conformer and w2v-BERT 2.0 against transformers: every hidden state, in any batch; both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.checkpoints.artifact import load_artifact, save_artifact
from speech_ssl.checkpoints.conversion import ConversionError, Tensors
from speech_ssl.checkpoints.transformers.conformer import (
    model_type_of,
    read_config,
    read_encoder,
    write_config,
    write_encoder,
)
from speech_ssl.inference.runtime import Runtime
from speech_ssl.model.config import (
    ClippedDistances,
    Conformer,
    EncoderConfig,
    LogMel,
    Transformer,
    WideConvolution,
)
from speech_ssl.model.encoder import Encoder
from tests import sounds
from tests.checkpoints.conformer_families import (
    CASES,
    FAMILIES,
    ONE_EACH,
    assert_same,
    our_encoder,
    our_states,
    padded,
    row_of,
    their_model,
    their_states,
)

CONFORMER = EncoderConfig(positions=None, block=Conformer())
RATES = "encoder.embed_positions.inv_freq"


def noise(lengths: list[int], seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(samples, generator=generator) for samples in lengths]


def clip_lengths(encoder: Encoder) -> list[int]:
    """Of one frame, of two, and of many; with mel bins also of an odd number of steps."""
    field, hop = encoder.receptive_field, encoder.hop
    return [
        field,
        field + hop,
        field + 7 * hop + hop // 2 + 1,
        9_001 if isinstance(encoder.config.frontend, LogMel) else 1_501,
    ]


@pytest.mark.parametrize("case", CASES)
def test_every_hidden_state_is_that_of_transformers(case: str) -> None:
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    waves = noise(clip_lengths(encoder))
    together = our_states(encoder, *padded(waves, 777))
    for row, wave in enumerate(waves):
        frames = encoder.frame_count(len(wave))
        theirs = row_of(their_states(model, [wave]), 0)
        assert_same(row_of(our_states(encoder, *padded([wave], 0)), 0), theirs, frames)
        assert_same(row_of(together, row), theirs, frames)
        assert not together[-1][row, frames:].any()


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("bert")])
def test_padded_as_transformers_pads(case: str) -> None:
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    waves = noise(clip_lengths(encoder))
    ours, theirs = our_states(encoder, *padded(waves, 0)), their_states(model, waves)
    for row, wave in enumerate(waves):
        assert_same(row_of(ours, row), row_of(theirs, row), encoder.frame_count(len(wave)))


@pytest.mark.parametrize("case", ONE_EACH)
@settings(max_examples=8)
@given(
    lengths=st.lists(st.integers(560, 4_000), min_size=2, max_size=4),
    padding=st.integers(0, 2_000),
    seed=st.integers(0, 99),
)
def test_a_clip_gives_the_same_frames_alone_and_in_any_batch(
    case: str, lengths: list[int], padding: int, seed: int
) -> None:
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    waves = noise(lengths, seed)
    wave_BS, lengths_B = padded(waves, padding)
    wave_BS += 1e3 * (torch.arange(wave_BS.shape[1]) >= lengths_B[:, None])
    together = our_states(encoder, wave_BS, lengths_B)
    for row, wave in enumerate(waves):
        alone = our_states(encoder, *padded([wave], 0))
        assert_same(row_of(together, row), row_of(alone, 0), encoder.frame_count(len(wave)), atol=5e-5)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case: str) -> None:
    """What is written, transformers loads strictly and computes the same with; it is read back as it was."""
    theirs, model = their_model(case)
    encoder = our_encoder(theirs, model.state_dict())
    family = model_type_of(encoder.config)
    assert family == theirs["model_type"]
    written = json.loads(json.dumps(write_config(encoder.config, family)))
    assert read_config(written, "config.json") == encoder.config
    tensors = write_encoder(encoder.state_dict(), encoder.config, family)
    again = our_encoder(written, tensors)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in encoder.state_dict().items())

    make_config, make_model = FAMILIES[family]
    copy = make_model(make_config.from_dict(written)).eval()
    copy.load_state_dict(tensors, strict=True)
    waves = noise(clip_lengths(encoder)[-1:])
    for mine, their in zip(their_states(copy, waves), their_states(model, waves), strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["conformer rotary", "bert"])
def test_without_a_hidden_vector_it_is_zero(case: str) -> None:
    config, model = their_model(case)
    tensors = {key: value for key, value in model.state_dict().items() if key != "masked_spec_embed"}
    assert not our_encoder(config, tensors).hidden_vector.any()
    assert our_encoder(config, model.state_dict()).hidden_vector.any()


@pytest.mark.parametrize(
    ("case", "changes", "named"),
    [
        (
            "bert",
            {"use_intermediate_ffn_before_adapter": True},
            "'use_intermediate_ffn_before_adapter' is true, and 'add_adapter' is not",
        ),
        (
            "conformer rotary",
            {"position_embeddings_type": "relative_key"},
            "'relative_key', which wav2vec2-con",
        ),
        ("bert", {"position_embeddings_type": "alibi"}, "'position_embeddings_type' is 'alibi'"),
        ("bert", {"position_embeddings_type": ["rotary"]}, "'position_embeddings_type' is "),
        ("bert", {"feature_projection_input_dim": 41}, "'feature_projection_input_dim' is 41"),
        ("bert", {"conv_depthwise_kernel_size": 6}, "kernel of Conformer must be odd, not 6"),
        ("bert", {"conv_depthwise_kernel_size": 0}, "'conv_depthwise_kernel_size' is 0"),
        ("bert", {"hidden_act": "selu"}, "'hidden_act' is 'selu'"),
        ("conformer rotary", {"hidden_size": 36}, "even width of heads"),
        ("conformer rotary", {"feat_extract_norm": "batch"}, "norm of Convolutions"),
    ],
)
def test_configs_that_are_refused(case: str, changes: dict[str, Any], named: str) -> None:
    config, _ = their_model(case)
    with pytest.raises(ConversionError, match=named) as caught:
        read_config({**config, **changes}, "folder/config.json")
    assert str(caught.value).startswith("folder/config.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("conformer rotary", "rotary_embedding_base"),
        ("conformer rotary", "position_embeddings_type"),
        ("conformer rotary", "conv_dim"),
        ("bert", "left_max_position_embeddings"),
        ("bert", "feature_projection_input_dim"),
        ("bert", "conv_depthwise_kernel_size"),
    ],
)
def test_a_field_that_is_missing_is_named(case: str, name: str) -> None:
    config, _ = their_model(case)
    del config[name]
    with pytest.raises(ConversionError, match=f"'{name}' is missing"):
        read_config(config, "config.json")


def test_rates_that_the_config_does_not_say_are_refused() -> None:
    config, model = their_model("conformer rotary")
    tensors = dict(model.state_dict())
    assert our_encoder(config, {**tensors, RATES: tensors[RATES].half()})
    with pytest.raises(ConversionError, match=f"'{RATES}' is not what rotary_embedding_base 5000 gives"):
        our_encoder({**config, "rotary_embedding_base": 5_000}, tensors)


def test_keys_that_are_missing_or_left_over_are_named() -> None:
    config, model = their_model("bert")
    tensors = dict(model.state_dict())
    read = read_config(config, "config.json")
    left = Tensors({**tensors, "adapter.layers.0.weight": torch.zeros(1)}, "model.safetensors")
    read_encoder(left, read)
    assert left.keys() == ["adapter.layers.0.weight"]
    key = "encoder.layers.1.conv_module.pointwise_conv2.weight"
    with pytest.raises(ConversionError, match=key):
        read_encoder(Tensors({k: v for k, v in tensors.items() if k != key}, "model.safetensors"), read)


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("wav2vec2-bert", {"block": {"norm": "layer"}}, "frontend is Convolutions"),
        ("wav2vec2-bert", {}, "block is Conformer.*norm='batch'"),
        ("wav2vec2-conformer", {"positions": ClippedDistances()}, "positions"),
        ("wav2vec2-conformer", {"block": {"norm": "layer"}}, "block is Conformer.*norm='layer'"),
        ("wav2vec2-conformer", {"frontend": LogMel()}, "frontend is LogMel"),
        (
            "wav2vec2-conformer",
            {"block": Transformer(), "positions": WideConvolution()},
            "block is Transformer",
        ),
        ("wav2vec2-conformer", {"feature_norm": False}, "feature_norm"),
        ("wavlm", {}, "model type 'wavlm' is not known"),
    ],
)
def test_encoders_that_the_family_cannot_be(family: str, changes: dict[str, Any], named: str) -> None:
    config = CONFORMER.changed(**changes)
    with pytest.raises(ValueError, match=named):
        write_config(config, family)


def test_training_leaves_the_batch_norms_statistics() -> None:
    """A clip's frames do not depend on its neighbours there either."""
    config, model = their_model("conformer relative")
    still = {name: 0.0 for name in config if name.endswith("dropout") or name == "layerdrop"}
    encoder = our_encoder({**config, **still}, model.state_dict()).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    waves = noise([1_501, 702])
    states = encoder.hidden_states(*padded(waves, 50))
    states[-1].square().sum().backward()
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    missing = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    assert missing == ["hidden_vector"]
    for row, wave in enumerate(waves):
        alone = our_states(encoder.eval(), *padded([wave], 0))
        assert_same(row_of(states, row), row_of(alone, 0), encoder.frame_count(len(wave)))


@pytest.mark.parametrize("case", CASES)
def test_bf16_on_the_cpu_is_near(case: str) -> None:
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    waves = noise([16_000, 9_001] if isinstance(encoder.config.frontend, LogMel) else [2_000, 1_001])
    exact = our_states(encoder, *padded(waves, 50))[-1]
    encoder = encoder.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = our_states(encoder, *padded(waves, 50))[-1].float()
        alone = our_states(encoder, *padded(waves[1:], 0))[-1][0].float()
    assert (together - exact).norm() / exact.norm() < 0.05
    frames = encoder.frame_count(len(waves[1]))
    assert (together[1, :frames] - alone[:frames]).norm() / alone[:frames].norm() < 0.03


@pytest.mark.parametrize("case", ["conformer relative", "bert"])
def test_files_longer_than_a_window_have_all_frames(case: str, tmp_path: Path) -> None:
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    folder = save_artifact(encoder, tmp_path / "artifact", name="random", training={}, licence="Apache-2.0")
    file = tmp_path / "clip.flac"
    wave = sounds.noise(3.21)
    file.write_bytes(sounds.encoded(wave, kind="FLAC"))
    whole = Runtime(load_artifact(folder))
    cut = Runtime(load_artifact(folder), window_s=1.5, context_s=0.3)
    frames = whole.encode([file])[0].frames
    windows = cut.encode([file, str(file)])
    stored = np.round(wave * 2**15).astype(np.float32) / 2**15
    direct = our_states(encoder, *padded([torch.from_numpy(stored)], 0))[-1][0]
    count = encoder.frame_count(len(wave))
    assert frames.shape == windows[0].frames.shape == (count, 32)
    np.testing.assert_allclose(frames, direct.numpy()[:count], atol=1e-4)
    np.testing.assert_allclose(windows[0].frames, windows[1].frames, atol=1e-4)
    assert np.linalg.norm(windows[0].frames - frames) < 0.5 * np.linalg.norm(frames)  # each window by itself
    streamed = np.concatenate(list(cut.stream(file)))
    np.testing.assert_allclose(streamed, windows[0].frames, atol=1e-4)
    with pytest.raises(ValueError, match=f"{encoder.receptive_field} samples"):
        whole.encode([wave[: encoder.receptive_field - 1]])


@pytest.mark.parametrize("case", ["conformer rotary", "conformer relative", "bert"])
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_other_precisions_of_the_runtime_are_near(case: str, precision: Any, tmp_path: Path) -> None:
    config, model = their_model(case)
    encoder = our_encoder(config, model.state_dict())
    folder = save_artifact(encoder, tmp_path / "artifact", name="random", training={}, licence="Apache-2.0")
    wave = sounds.noise(1.0)
    exact = Runtime(load_artifact(folder)).encode([wave])[0].frames
    near = Runtime(load_artifact(folder), precision=precision).encode([wave])[0].frames
    assert np.linalg.norm(near - exact) < 0.1 * np.linalg.norm(exact)


FULL: dict[str, tuple[str, dict[str, Any]]] = {
    "w2v-BERT 2.0": ("wav2vec2-bert", {}),
    "wav2vec2-conformer LARGE": (
        "wav2vec2-conformer",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "feat_extract_norm": "layer",
            "conv_bias": True,
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FULL)
def test_full_sizes(case: str) -> None:
    family, changes = FULL[case]
    make_config, make_model = FAMILIES[family]
    torch.manual_seed(0)
    config = make_config(**changes)
    model = make_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    encoder = our_encoder(json.loads(config.to_json_string()), model.state_dict())
    assert (encoder.config.depth, encoder.config.width) == (24, 1024)
    wave = torch.from_numpy(sounds.noise(1.5))
    ours, theirs = our_states(encoder, *padded([wave], 0)), their_states(model, [wave])
    assert_same(row_of(ours, 0), row_of(theirs, 0), encoder.frame_count(len(wave)))
