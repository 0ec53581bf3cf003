"""Configs and tensors of Transformer-type families: read, written, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from speech_ssl.checkpoints.conversion import ConversionError, Tensors
from speech_ssl.checkpoints.transformers.transformer import (
    MODEL_TYPES,
    model_type_of,
    read_config,
    read_encoder,
    write_config,
    write_encoder,
)
from speech_ssl.model import presets
from speech_ssl.model.config import Conformer, EncoderConfig, GatedDistances, LogMel, StackedConvolutions
from tests.checkpoints.transformer_families import (
    CASES,
    FAMILIES,
    assert_same,
    our_encoder,
    our_states,
    their_model,
    their_states,
)


@pytest.mark.parametrize("case", CASES)
def test_what_is_exported_loads_in_transformers_and_comes_back(case: str) -> None:
    config, model = their_model(case)
    encoder, family = our_encoder(config, model.state_dict()), config["model_type"]
    written = json.loads(json.dumps(write_config(encoder.config, family)))
    assert read_config(written, "config.json") == encoder.config
    make_config, make_model = FAMILIES[family]
    twin = make_model(make_config(**written)).eval()
    tensors = write_encoder(encoder.state_dict(), encoder.config, family)
    assert tensors.keys() == twin.state_dict().keys()
    twin.load_state_dict(tensors, strict=True)
    wave_BS = torch.randn(2, 999)
    assert_same(their_states(twin, wave_BS), their_states(model, wave_BS), atol=0)
    original, exported = model.state_dict(), twin.state_dict()
    assert original.keys() <= exported.keys() <= original.keys() | {"masked_spec_embed"}
    assert all(torch.equal(exported[key], tensor) for key, tensor in original.items())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == len(tensors)
    again = read_encoder(Tensors(tensors, "exported"), encoder.config)
    assert again.keys() == encoder.state_dict().keys()
    assert all(torch.equal(again[key], tensor) for key, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_the_family_of_a_config_can_express_it(case: str) -> None:
    config, _ = their_model(case)
    read = read_config(config, "config.json")
    family = model_type_of(read)
    if config["model_type"] not in ("wavlm", "data2vec-audio"):
        assert family == ("hubert" if "norm" in case and config["model_type"] == "hubert" else "wav2vec2")
    else:
        assert family == config["model_type"]
    assert read_config(write_config(read, family), "config.json") == read


def test_both_spellings_of_weight_norm_are_read() -> None:
    config, model = their_model("hubert base")
    old = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for key, tensor in model.state_dict().items()
    }
    wave_BS = torch.randn(1, 800)
    assert_same(our_states(our_encoder(config, old), wave_BS), their_states(model, wave_BS))
    del old["encoder.pos_conv_embed.conv.weight_g"]
    missing = r"'encoder\.pos_conv_embed\.conv\.parametrizations\.weight\.original0' is missing"
    with pytest.raises(ConversionError, match=missing):
        our_encoder(config, old)


def test_dropouts_and_what_older_configs_lack() -> None:
    config, _ = their_model("hubert base")
    later = ("feat_proj_layer_norm", "conv_pos_batch_norm", "feat_proj_dropout")
    older = {key: value for key, value in config.items() if key not in later}
    older |= {"hidden_dropout": 0.25, "attention_dropout": 0, "activation_dropout": 0.75, "layerdrop": 0.5}
    read = read_config(older, "config.json")
    assert (read.dropout, read.attention_dropout, read.activation_dropout) == (0.25, 0.0, 0.75)
    assert (read.layer_drop, read.feature_dropout, read.feature_norm) == (0.5, 0.0, True)
    assert (read.feature_grad_scale, read.init, read.frontend.normalize_wave) == (1.0, "published", False)


def test_without_a_hidden_vector_it_is_zero() -> None:
    config, model = their_model("wavlm base")
    tensors = model.state_dict()
    assert torch.equal(our_encoder(config, tensors).hidden_vector, tensors.pop("masked_spec_embed"))
    assert not our_encoder(config, tensors).hidden_vector.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "'hidden_size' is None, not of type int"),
        ({"conv_dim": [12, 16, 1.5]}, "'conv_dim' .* whole numbers"),
        ({"conv_kernel": [10, 3]}, "channels, kernels and strides"),
        ({"hidden_act": "quick_gelu"}, "'hidden_act' is 'quick_gelu'"),
        ({"feat_extract_activation": "mish"}, "'feat_extract_activation' is 'mish'"),
        ({"feat_extract_norm": "batch"}, "norm .*'batch'"),
        ({"model_type": "whisper"}, "'model_type' is 'whisper'"),
        ({"model_type": "hubert", "conv_pos_batch_norm": "yes"}, "'conv_pos_batch_norm' is 'yes'"),
        ({"model_type": "hubert", "feat_proj_layer_norm": 1}, "'feat_proj_layer_norm' is 1"),
        ({"model_type": "wavlm"}, "'num_buckets' is missing"),
        ({"model_type": "wavlm", "num_buckets": 3, "max_bucket_distance": 9}, "buckets"),
        ({"model_type": "wavlm", "num_buckets": 320, "max_bucket_distance": 80}, "furthest"),
        ({"model_type": "data2vec-audio"}, "'conv_pos_kernel_size' is missing"),
        (
            {"model_type": "data2vec-audio", "num_conv_pos_embeddings": -1, "conv_pos_kernel_size": 3},
            "num_conv_pos_embeddings",
        ),
        ({"do_stable_layer_norm": True, "adapter_attn_dim": -3}, "adapter_width"),
        ({"do_stable_layer_norm": True, "adapter_attn_dim": "6"}, "'adapter_attn_dim' is '6'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    config, _ = their_model("wav2vec2 base")
    with pytest.raises(ConversionError, match=message) as refusal:
        read_config({**config, **changes}, "a/config.json")
    assert str(refusal.value).startswith("a/config.json: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("field", ["hidden_size", "conv_stride", "hidden_act", "conv_bias", "model_type"])
def test_a_missing_field_is_named(field: str) -> None:
    config, _ = their_model("wav2vec2 base")
    del config[field]
    with pytest.raises(ConversionError, match=f"field '{field}' is missing"):
        read_config(config, "config.json")


def test_tensors_that_do_not_fit_are_refused_by_name() -> None:
    config, model = their_model("wav2vec2 base")
    key = "encoder.layers.1.attention.k_proj.weight"
    good = model.state_dict()
    with pytest.raises(ConversionError, match=f"key '{key}' is missing"):
        our_encoder(config, {name: tensor for name, tensor in good.items() if name != key})
    with pytest.raises(ConversionError, match=f"key '{key}' has shape"):
        our_encoder(config, {**good, key: torch.zeros(32, 31)})
    with pytest.raises(ConversionError, match="'encoder.layers.3.more' is not known"):
        our_encoder(config, {**good, "encoder.layers.3.more": torch.zeros(1)})
    with pytest.raises(ConversionError, match="'norm.weight' has shape"):
        our_encoder(config, {**good, "encoder.layer_norm.weight": torch.zeros(31)})
    scale = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"
    with pytest.raises(ConversionError, match="has shape"):
        our_encoder(config, {**good, scale: torch.zeros(8)})


@pytest.mark.parametrize(
    ("config", "family", "field"),
    [
        (replace(presets.base(), positions=None, block=Conformer()), None, "block is Conformer"),
        (replace(presets.base(), frontend=LogMel()), None, "frontend is LogMel"),
        (replace(presets.base(), positions=StackedConvolutions()), None, "frontend .*norm='group'"),
        (replace(presets.large(), positions=StackedConvolutions()), None, "block .*pre_norm=True"),
        (presets.base().changed(block={"adapter_width": 16}), None, "block .*adapter_width=16"),
        (replace(presets.base(), feature_norm=False, positions=GatedDistances()), None, "feature_norm"),
        (replace(presets.base(), feature_norm=False), "unispeech", "feature_norm"),
        (presets.base().changed(positions={"norm": "batch"}), "wav2vec2", "positions .*norm='batch'"),
        (presets.base(), "wavlm", "positions"),
        (presets.base(), "data2vec-audio", "frontend"),
        (presets.base().changed(frontend={"norm": "layer"}), "data2vec-audio", "positions"),
        (presets.base(), "whisper", "'whisper'"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(
    config: EncoderConfig, family: str | None, field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        write_config(config, family or model_type_of(config))
    with pytest.raises(ValueError, match=field):
        write_encoder({}, config, family or model_type_of(config))


def test_our_own_models_export() -> None:
    for config in (presets.tiny(), presets.base(), presets.large()):
        assert model_type_of(config) == "wav2vec2"
        read = read_config(write_config(config, "wav2vec2"), "config.json")
        waves = {"normalize_wave": config.frontend.normalize_wave}
        scale = config.feature_grad_scale
        assert read.changed(frontend=waves, init=config.init, feature_grad_scale=scale) == config
    assert FAMILIES.keys() == MODEL_TYPES
