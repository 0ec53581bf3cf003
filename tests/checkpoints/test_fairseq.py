"""fairseq's checkpoints: names as torchaudio's importer has them, options in all forms they have had."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchaudio.models.wav2vec2.utils.import_fairseq import _map_key

import speech_ssl
from speech_ssl.checkpoints.artifact import ArtifactError
from speech_ssl.checkpoints.conversion import Converted
from speech_ssl.checkpoints.fairseq import read
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from speech_ssl.checkpoints.torch_files.pickles import read_pickle
from speech_ssl.types import Batch
from tests.checkpoints.test_foreign import in_fairseq, options, small_torchaudio
from tests.checkpoints.transformers_models import LARGE, made, noise

TUNED = "w2v_encoder.w2v_model."
SIZES = {"conv_feature_layers": "[(16, 10, 5)] + [(16, 3, 2)] * 4 + [(16,2,2)] * 2"}


def drawn(*shape: int) -> Tensor:
    return 0.2 * torch.randn(shape)


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + drawn(width), f"{name}.bias": drawn(width)}


def linear(name: str, inputs: int, outputs: int) -> dict[str, Tensor]:
    return {f"{name}.weight": drawn(outputs, inputs), f"{name}.bias": drawn(outputs)}


def written(layered: bool) -> dict[str, Tensor]:
    """A pre-trained wav2vec 2.0 as fairseq names it, of the size of `small_torchaudio`."""
    state = {"mask_emb": drawn(128)}
    for i, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        state[f"feature_extractor.conv_layers.{i}.0.weight"] = drawn(16, 16 if i else 1, kernel)
        if layered:
            state[f"feature_extractor.conv_layers.{i}.0.bias"] = drawn(16)
            state |= norm(f"feature_extractor.conv_layers.{i}.2.1", 16)
    if not layered:
        state |= norm("feature_extractor.conv_layers.0.2", 16)
    state |= norm("layer_norm", 16) | linear("post_extract_proj", 16, 128) | norm("encoder.layer_norm", 128)
    state["encoder.pos_conv.0.bias"] = drawn(128)
    state["encoder.pos_conv.0.weight_g"] = 1 + drawn(1, 1, 16).abs()
    state["encoder.pos_conv.0.weight_v"] = drawn(128, 32, 16)
    for i in range(2):
        layer = f"encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= linear(f"{layer}.self_attn.{name}", 128, 128)
        state |= norm(f"{layer}.self_attn_layer_norm", 128) | norm(f"{layer}.final_layer_norm", 128)
        state |= linear(f"{layer}.fc1", 128, 48) | linear(f"{layer}.fc2", 48, 128)
    state["quantizer.vars"] = drawn(1, 2 * 5, 6)
    state |= linear("quantizer.weight_proj", 16, 2 * 5) | linear("project_q", 12, 24)
    return state | linear("final_proj", 128, 24)


ONLY_PRETRAINING = ("mask_emb", "quantizer.", "project_q.", "final_proj.")


@pytest.mark.parametrize("layered", [False, True], ids=["group", "layer"])
@pytest.mark.parametrize("tuned", [False, True])
def test_names_are_those_of_torchaudios_importer(tmp_path: Path, layered: bool, tuned: bool) -> None:
    """Written by hand, read by torchaudio's table of fairseq's names and by ours: every layer is the same,
    for a clip alone and in a padded batch."""
    torch.manual_seed(0)
    state = written(layered)
    model = small_torchaudio("layer" if layered else "group")
    for key, value in state.items():
        if not key.startswith(ONLY_PRETRAINING):
            parameter = model.get_parameter(parametrized(_map_key(key)))
            assert parameter.shape == value.shape
            parameter.data.copy_(value)
    given = {**SIZES, "layer_norm_first": layered, "encoder_attention_heads": 2}
    content: dict[str, Any] = {"model": state, "args": argparse.Namespace(**given)}
    if tuned:
        state = {TUNED + k: v for k, v in state.items() if k.startswith("mask_emb") or k in taken(state)}
        args = argparse.Namespace(w2v_path="/gone", w2v_args=argparse.Namespace(**given), normalize=False)
        content = {"model": state, "args": args}
    torch.save(content, tmp_path / "f.pt")
    converted = read(read_pickle(tmp_path / "f.pt"), str(tmp_path / "f.pt"), "f")
    waves = [torch.from_numpy(noise(seconds, seed)) for seed, seconds in enumerate((0.4, 0.9))]
    ours = hidden_states(converted, waves)
    for row, wave in enumerate(waves):
        with torch.inference_mode():
            theirs = model.extract_features(wave[None])[0]
            if layered:  # there without the norm at the end
                theirs[-1] = model.encoder.transformer.layer_norm(theirs[-1])
        for layer, expected in zip(ours[1:], theirs, strict=True):
            np.testing.assert_allclose(layer[row, : expected.shape[1]], expected[0], atol=1e-4)
    assert torch.equal(converted.encoder.hidden_vector, content["model"][f"{TUNED * tuned}mask_emb"])


def parametrized(key: str) -> str:
    """torchaudio's importer knows weight norm by its names of before torch 2.1."""
    key = key.replace("conv.weight_g", "conv.parametrizations.weight.original0")
    return key.replace("conv.weight_v", "conv.parametrizations.weight.original1")


def taken(state: Mapping[str, Tensor]) -> set[str]:
    return {key for key in state if not key.startswith(ONLY_PRETRAINING)}


def hidden_states(converted: Converted, waves: list[Tensor]) -> list[Tensor]:
    lengths = torch.tensor([len(wave) for wave in waves])
    batch = Batch(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths)
    with torch.inference_mode():
        return converted.encoder.hidden_states(batch.wave_BS, batch.lengths_B)


def test_pretraining_comes_along(tmp_path: Path) -> None:
    """Its tensors are copies: what happens to the file later is nothing to them."""
    torch.manual_seed(0)
    state = written(False)
    content = {"model": state, "cfg": {"model": {**SIZES, "encoder_attention_heads": 2, "latent_groups": 2}}}
    torch.save(content, tmp_path / "f.pt")
    extra = read(read_pickle(tmp_path / "f.pt"), "f.pt", "f").extra
    (tmp_path / "f.pt").write_bytes(bytes((tmp_path / "f.pt").stat().st_size))
    assert torch.equal(extra["quantizer.codebook_GVD"], state["quantizer.vars"].view(2, 5, 6))
    for ours, theirs in (
        ("quantizer.logits", "quantizer.weight_proj"),
        ("project_target", "project_q"),
        ("project_context", "final_proj"),
    ):
        for kind in ("weight", "bias"):
            assert torch.equal(extra[f"{ours}.{kind}"], state[f"{theirs}.{kind}"])


@pytest.mark.parametrize(
    "change, said",
    [
        ({"quantizer.vars": drawn(10, 6)}, "quantizer"),
        ({"quantizer.vars": drawn(1, 5, 6)}, "do not fit|groups"),
        ({"project_q.weight": drawn(24, 11)}, "do not fit"),
        ({"quantizer.weight_proj.weight": drawn(9, 16)}, "do not fit"),
    ],
)
def test_quantizers_that_do_not_fit(change: Mapping[str, Tensor], said: str) -> None:
    given = {**SIZES, "encoder_attention_heads": 2, "latent_groups": 2}
    with pytest.raises(ArtifactError, match=said):
        read({"model": {**written(False), **change}, "cfg": {"model": given}}, "f.pt", "f")


def test_what_is_left_out_has_its_own_names(tmp_path: Path) -> None:
    hubert = in_fairseq(made("Hubert", "Model"))
    hubert |= {"label_embs_concat": drawn(8, 4), **linear("final_proj", 32, 4)}
    given = {**SIZES, "encoder_attention_heads": 2}
    model = made("Hubert", "Model")
    found = read({"model": hubert, "cfg": {"model": options(model)}}, "f.pt", "f")
    assert found.training["left_out"] == ["final_proj.bias", "final_proj.weight", "label_embs_concat"]
    assert not found.extra
    data2vec = {**written(True), "_ema": {"encoder.layers": torch.ones(2)}}
    data2vec = {k: v for k, v in data2vec.items() if not k.startswith(("quantizer.", "project_q."))}
    data2vec |= linear("regression_head.0", 128, 128)
    found = read({"model": data2vec, "cfg": {"model": given}}, "f.pt", "f")
    assert found.training["left_out"] == [
        *("final_proj.bias", "final_proj.weight", "regression_head.0.bias", "regression_head.0.weight")
    ]


class Node:
    """As OmegaConf's are: what it holds is below `_content` or `_val`."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state, _metadata=None, _parent=None)


def nodes(value: Any) -> Node:
    if isinstance(value, dict):
        return Node(_content={key: nodes(each) for key, each in value.items()})
    return Node(_val=value)


@pytest.mark.parametrize(
    "task, model, normalizes",
    [
        ({"normalize": True}, {"normalize": "${task.normalize}"}, True),
        ({"normalize": False}, {"normalize": "${task.normalize}"}, False),
        ({}, {"normalize": "${task.normalize}"}, False),
        ({}, {"normalize": True}, True),
    ],
)
def test_options_as_nodes_of_omegaconf(
    tmp_path: Path, task: Mapping[str, Any], model: Mapping[str, Any], normalizes: bool
) -> None:
    """`cfg` goes before `args`, as in fairseq; the task says whether waves are normalised."""
    transformer = made("Wav2Vec2", "ForPreTraining", **LARGE)
    cfg = nodes({"model": {**options(transformer), **model}, "task": {"_name": "audio_pretraining", **task}})
    old = argparse.Namespace(**{**options(transformer), "encoder_attention_heads": 4})
    torch.save({"model": in_fairseq(transformer), "cfg": cfg, "args": old}, tmp_path / "f.pt")
    found = open_checkpoint(tmp_path / "f.pt", pickles=True)
    assert (found.encoder.config.heads, found.encoder.config.block.pre_norm) == (2, True)
    assert found.encoder.config.frontend.normalize_wave == normalizes
    assert found.config["training"]["task"] == "audio_pretraining"


HOLDS_ITSELF = argparse.Namespace()
HOLDS_ITSELF.model = HOLDS_ITSELF


@pytest.mark.parametrize(
    "given, said",
    [
        ({"cfg": [1]}, "does not hold options by name"),
        ({"args": "text"}, "does not hold options by name"),
        ({"cfg": {"model": {"dropout": "much"}}}, "'dropout' is 'much'"),
        ({"cfg": {"model": {"layer_norm_first": 1}}}, "'layer_norm_first' is 1"),
        ({"cfg": {"model": {"conv_feature_layers": [1]}}}, "'conv_feature_layers' is"),
        ({"cfg": {"model": {"conv_feature_layers": "[(16, 10, 5)] * 50 * 50 * 50"}}}, "not a list of layers"),
        (
            {"cfg": {"model": {"conv_feature_layers": "+".join(["[(1, 1, 1)]"] * 5000)}}},
            "not a list of layers",
        ),
        ({"cfg": {"model": {"conv_feature_layers": "(" * 300}}}, "not a list of layers"),
        ({"cfg": {"model": {"conv_feature_layers": "[(16, '10', 5)]"}}}, "not a list of layers"),
        ({"cfg": {"model": {"w2v_path": "/gone", "w2v_args": None}}}, "'w2v_args' is missing"),
        ({"args": HOLDS_ITSELF}, "is missing|known"),
    ],
)
def test_options_of_other_kinds(tmp_path: Path, given: Mapping[str, Any], said: str) -> None:
    torch.save({"model": {"mask_emb": torch.ones(4)}, **given}, tmp_path / "f.pt")
    with pytest.raises(ArtifactError, match=said) as refused:
        convert(tmp_path / "f.pt", tmp_path / "out")
    assert "\n" not in str(refused.value) and "f.pt" in str(refused.value)


def test_a_dictionary_in_another_encoding(tmp_path: Path) -> None:
    model = made("Wav2Vec2", "ForCTC", **LARGE)
    state = {f"w2v_encoder.{k}": v for k, v in in_fairseq(model, "w2v_model.").items()}
    torch.save({"model": state, "cfg": {"model": {"w2v_args": {"model": options(model)}}}}, tmp_path / "f.pt")
    (tmp_path / "dict.ltr.txt").write_bytes("Ä 1".encode("latin-1"))
    artifact = convert(tmp_path / "f.pt", tmp_path / "out")
    assert not artifact.heads and artifact.heads_left_out["ctc"] == "dict.ltr.txt: not UTF-8 text"


def test_nothing_is_said_in_between(tmp_path: Path) -> None:
    """A converted file of the old format gives the same frames as one of the new."""
    torch.manual_seed(0)
    content = {"model": written(True), "args": argparse.Namespace(**SIZES, encoder_attention_heads=2)}
    frames = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for zipped in (True, False):
            torch.save(content, tmp_path / "f.pt", _use_new_zipfile_serialization=zipped)
            convert(tmp_path / "f.pt", tmp_path / f"out{zipped}")
            frames.append(speech_ssl.load(tmp_path / f"out{zipped}").encode([noise(0.4)])[0].frames)
    np.testing.assert_array_equal(*frames)


@pytest.mark.parametrize("bare", [True, False])
@pytest.mark.parametrize("layered", [False, True], ids=["group", "layer"])
def test_weights_without_options(tmp_path: Path, layered: bool, bare: bool) -> None:
    """As the published models are, and the artifact keeps what was assumed."""
    torch.manual_seed(0)
    state = written(layered)
    torch.save(state if bare else {"model": state}, tmp_path / "f.pt")
    found = open_checkpoint(tmp_path / "f.pt", pickles=True)
    given = {**SIZES, "layer_norm_first": layered, "encoder_attention_heads": 2}
    content = {"model": state, "cfg": {"model": given, "task": {"normalize": layered}}}
    expected = read(content, "f.pt", "f")
    assert found.encoder.config.architecture() == expected.encoder.config.architecture()
    theirs = expected.encoder.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in found.encoder.state_dict().items())
    assert found.extra is not None and found.extra.keys() == expected.extra.keys()
    assumed = found.config["training"]["assumed"]
    assert assumed[0] == "attention has 2 heads" and len(assumed) == 2 + layered
    assert "assumed" not in expected.training


def test_a_conformer_without_options() -> None:
    state = {"encoder.layers.0.conv_module.depthwise_conv.weight": drawn(4, 1, 3)}
    with pytest.raises(ArtifactError, match="field 'cfg' is missing, which gives the positions"):
        read({"model": state}, "f.pt", "f")
