"""Checkpoints of fairseq, torchaudio and fairseq2: the same outputs, what comes along, and refusals."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

import speech_ssl
from speech_ssl.checkpoints.artifact import ArtifactError, load_artifact, load_extra
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from tests.checkpoints.transformers_models import LARGE, answer_of, made, noise

pytest.importorskip("transformers")
Renaming = list[tuple[str, str]]
IN_BLOCK: Renaming = [
    (r"\.attention\.", ".self_attn."),
    (r"(encoder\.layers\.\d+)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
]
FAIRSEQ: Renaming = [
    *IN_BLOCK,
    ("masked_spec_embed", "mask_emb"),
    (r"(conv_layers\.\d+)\.conv", r"\1.0"),
    ("feature_projection.layer_norm", "layer_norm"),
    ("feature_projection.projection", "post_extract_proj"),
    ("pos_conv_embed.conv", "pos_conv.0"),
    (r"pos_conv_embed\.layers\.(\d+)\.conv", r"pos_conv.\1.0"),
    ("parametrizations.weight.original0", "weight_g"),
    ("parametrizations.weight.original1", "weight_v"),
    ("gru_rel_pos_linear", "grep_linear"),
    ("gru_rel_pos_const", "grep_a"),
    ("rel_attn_embed", "relative_attention_bias"),
    ("quantizer.codevectors", "quantizer.vars"),
    ("project_hid", "final_proj"),
    ("lm_head", "proj"),
]
"""transformers' names in fairseq's, as transformers' own conversion has them the other way round."""


def in_fairseq(model: Any, prefix: str = "") -> dict[str, Tensor]:
    layered = model.config.feat_extract_norm == "layer"
    found = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"^(wav2vec2|hubert|wavlm|data2vec_audio)\.", prefix, key)
        norm = ".2.1." if layered else ".2."
        key = re.sub(r"(conv_layers\.\d+)\.layer_norm\.", rf"\1{norm}", key)
        for theirs, fairseqs in FAIRSEQ:
            key = re.sub(theirs, fairseqs, key)
        found[key] = value
    return found


def options(model: Any) -> dict[str, Any]:
    config = model.config
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    first, *others = list(layers)
    return {
        "conv_feature_layers": f"[{first}] + [{others[0]}] * 4 + {others[4:]}",
        "layer_norm_first": bool(getattr(config, "do_stable_layer_norm", False)),
        "encoder_attention_heads": config.num_attention_heads,
        "relative_position_embedding": config.model_type == "wavlm",
        "max_distance": 800,
        "latent_groups": 2,
    }


def layer_norm(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """As fairseq, torchaudio and fairseq2 normalise waves."""
    return (wave - wave.mean()) / np.sqrt(wave.var() + np.float32(1e-5))


def check(folder: Path, model: Any, wave: NDArray[np.float32], heard: Any = None) -> None:
    """heard: what the model gets in place of the wave that ours gets."""
    ours = speech_ssl.load(folder).encode([wave])[0].frames
    theirs = answer_of(model.base_model, wave if heard is None else heard).last_hidden_state[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(
    "family, head, config",
    [
        ("Wav2Vec2", "ForPreTraining", {}),
        ("Wav2Vec2", "ForPreTraining", LARGE),
        ("Hubert", "Model", {}),
        ("WavLM", "Model", LARGE),
        ("Data2VecAudio", "Model", {"num_conv_pos_embeddings": 5, "conv_pos_kernel_size": 19}),
    ],
)
@pytest.mark.parametrize("old", [True, False], ids=["args", "cfg"])
def test_fairseq(tmp_path: Path, family: str, head: str, config: Mapping[str, Any], old: bool) -> None:
    model = made(family, head, **config)
    given = options(model)
    if family == "Data2VecAudio":
        model.config.feat_extract_norm = "layer"
    content: dict[str, Any] = {"model": in_fairseq(model)}
    if old:
        content |= {"args": argparse.Namespace(arch="wav2vec2", normalize=False, **given), "cfg": None}
    else:
        content |= {"args": None, "cfg": {"model": {"_name": "x", **given}, "task": {"normalize": False}}}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(ArtifactError, match="speech-ssl convert"):
        speech_ssl.load(tmp_path / "old.pt")
    convert(tmp_path / "old.pt", tmp_path / "artifact")
    check(tmp_path / "artifact", model, noise(0.8))
    extra = load_extra(tmp_path / "artifact")
    assert bool(extra) == (head == "ForPreTraining")
    if extra:
        codes = model.quantizer.codevectors.detach().view(2, 8, 16)
        assert torch.equal(extra["quantizer.codebook_GVD"], codes)
        assert torch.equal(extra["project_context.weight"], model.project_hid.weight)
        assert torch.equal(extra["project_target.weight"], model.project_q.weight)


def test_fairseq_tuned_for_ctc(tmp_path: Path) -> None:
    """The dictionary is beside the file, or there is no head; waves are normalised as the task says."""
    model = made("Wav2Vec2", "ForCTC", **{**LARGE, "pad_token_id": 0})
    given = {"_name": "wav2vec_ctc", "w2v_args": {"model": options(model), "task": {"normalize": False}}}
    content = {
        "model": {f"w2v_encoder.{k}": v for k, v in in_fairseq(model, "w2v_model.").items()},
        "cfg": {"model": given, "task": {"_name": "audio_finetuning", "normalize": True}},
    }
    torch.save(content, tmp_path / "ctc.pt")
    alone = open_checkpoint(tmp_path / "ctc.pt", pickles=True)
    assert not alone.heads and "lm_head.bias" in alone.config["training"]["left_out"]
    assert alone.encoder.config.frontend.normalize_wave
    (tmp_path / "dict.ltr.txt").write_text("| 94802\nE 51860\nT 38431\nA 33152\n' 21\n")
    convert(tmp_path / "ctc.pt", tmp_path / "artifact")
    runtime = speech_ssl.load(tmp_path / "artifact")
    outputs = runtime.run_windows([wave := noise(0.8)], [None], ["ctc"])[0].heads["ctc"]
    np.testing.assert_allclose(
        outputs, answer_of(model, layer_norm(wave)).logits[0].log_softmax(-1).numpy(), atol=1e-4
    )
    spec = runtime.heads["ctc"]
    assert spec.vocabulary == ("<blank>", "<pad>", "</s>", "<unk>", " ", "E", "T", "A", "'")  # type: ignore[attr-defined]


def small_torchaudio(kind: str) -> Any:
    layers = [(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2]
    layered = kind != "group"
    values: dict[str, Any] = {
        "extractor_mode": "layer_norm" if layered else "group_norm",
        "extractor_conv_layer_config": layers,
        "extractor_conv_bias": layered,
        "encoder_embed_dim": 128,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 16,
        "encoder_pos_conv_groups": 4,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": 48,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": layered,
        "encoder_layer_drop": 0.0,
        "aux_num_out": 5 if kind == "group" else None,
    }
    if kind == "wavlm":
        values |= {"encoder_num_buckets": 32, "encoder_max_distance": 800}
        model = torchaudio.models.wavlm_model(**values)
    else:
        model = torchaudio.models.wav2vec2_model(**values)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("kind", ["group", "layer", "wavlm"])
def test_torchaudio(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = small_torchaudio(kind)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    convert(tmp_path / "model.pth", tmp_path / "artifact")
    wave = noise(0.8)
    heard = wave if kind == "group" else layer_norm(wave)
    with torch.inference_mode():
        layers = model.extract_features(torch.from_numpy(heard)[None])[0]
        if kind != "group":  # there without the norm at the end
            layers[-1] = model.encoder.transformer.layer_norm(layers[-1])
    runtime = speech_ssl.load(tmp_path / "artifact")
    for number, theirs in enumerate(layers, 1):
        ours = runtime.encode([wave], layer=number)[0].frames
        np.testing.assert_allclose(ours, theirs[0].detach().numpy(), atol=1e-4)
    training = load_artifact(tmp_path / "artifact").config["training"]
    assert training.get("left_out") == (["aux.bias", "aux.weight"] if kind == "group" else None)


def wav2vec2(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    model = made("Wav2Vec2", "ForPreTraining")
    return in_fairseq(model), options(model)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"conv_feature_layers": "__import__('os').mkdir('made')"}, "'conv_feature_layers'"),
        ({"conv_feature_layers": "[(16, 10, 5)] * 100000000"}, "'conv_feature_layers'"),
        ({"encoder_attention_heads": "two"}, "'encoder_attention_heads'"),
        ({"encoder_attention_heads": 5}, "multiple of heads 5"),
        ({"activation_fn": "swish"}, "'activation_fn' is 'swish'"),
    ],
)
def test_options_that_make_no_model(tmp_path: Path, change: Mapping[str, Any], said: str) -> None:
    state, given = wav2vec2(tmp_path)
    torch.save({"model": state, "cfg": {"model": {**given, **change}}}, tmp_path / "f.pt")
    with pytest.raises(ArtifactError) as refused:
        convert(tmp_path / "f.pt", tmp_path / "out")
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_keys_that_are_missing_or_unknown(tmp_path: Path) -> None:
    state, given = wav2vec2(tmp_path)
    for changed, said in (
        (
            {k: v for k, v in state.items() if k != "post_extract_proj.bias"},
            "feature_projection.projection.bias",
        ),
        ({k: v for k, v in state.items() if "pos_conv" not in k}, "pos_conv_embed"),
        ({**state, "surprise.weight": torch.ones(2)}, "key 'surprise.weight' is not known"),
        ({"surprise": torch.ones(2)}, "is missing"),
    ):
        torch.save({"model": changed, "cfg": {"model": given}}, tmp_path / "f.pt")
        with pytest.raises(ArtifactError, match=re.escape(said)):
            convert(tmp_path / "f.pt", tmp_path / "out")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pt")
    (tmp_path / "empty").mkdir()
    shards = tmp_path / "shards" / "model"
    shards.mkdir(parents=True)
    for rank in range(2):
        torch.save({}, shards / f"sdp_0{rank}.pt")
    for source, said in (
        ("list.pt", "not a checkpoint of fairseq, fairseq2 or torchaudio"),
        ("other.pt", "not a checkpoint of fairseq, fairseq2 or torchaudio"),
        ("empty", "no known checkpoint"),
        ("shards", "the model is in 2 files"),
    ):
        with pytest.raises(ArtifactError, match=said):
            convert(tmp_path / source, tmp_path / "out")
