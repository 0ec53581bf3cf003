"""fairseq2's checkpoints read without it: the same outputs, what comes along, and refusals. Beside its own
models they are in tests/fairseq2."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import speech_ssl
from speech_ssl.checkpoints.artifact import load_artifact, load_extra
from speech_ssl.checkpoints.fairseq2 import export as fairseq2_export
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from tests.checkpoints.test_foreign import IN_BLOCK, Renaming, check, layer_norm
from tests.checkpoints.transformers_models import LARGE, answer_of, made, noise

pytest.importorskip("transformers")

FAIRSEQ2: Renaming = [
    *IN_BLOCK[:2],
    ("masked_spec_embed", "masker.temporal_mask_embed"),
    (r"feature_extractor\.conv_layers", "encoder_frontend.feature_extractor.layers"),
    (r"feature_projection\.layer_norm", "encoder_frontend.post_extract_layer_norm"),
    (r"feature_projection\.projection", "encoder_frontend.model_dim_proj"),
    (r"encoder\.pos_conv_embed", "encoder_frontend.pos_encoder"),
    ("parametrizations.weight.original0", "weight_g"),
    ("parametrizations.weight.original1", "weight_v"),
    ("out_proj", "output_proj"),
    (r"(encoder\.layers\.\d+)\.final_layer_norm", r"\1.ffn_layer_norm"),
    (r"feed_forward\.intermediate_dense", "ffn.inner_proj"),
    (r"feed_forward\.output_dense", "ffn.output_proj"),
    (r"quantizer\.weight_proj", "quantizer.entry_proj"),
    (r"quantizer\.codevectors", "quantizer.entries"),
    ("project_q", "final_target_proj"),
    ("project_hid", "final_proj"),
    ("lm_head", "final_proj"),
]


def in_fairseq2(model: Any, pre_norm: bool) -> dict[str, Tensor]:
    found = {}
    for key, value in model.state_dict().items():
        key = key.removeprefix("wav2vec2.")
        if not pre_norm:
            key = re.sub(r"^encoder\.layer_norm", "encoder_frontend.layer_norm", key)
            key = re.sub(r"(conv_layers\.0)\.layer_norm", r"\1.group_norm", key)
        for theirs, fairseq2s in FAIRSEQ2:
            key = re.sub(theirs, fairseq2s, key)
        found[key] = value
    return found


@pytest.mark.parametrize("config", [{}, LARGE], ids=["post", "pre"])
@pytest.mark.parametrize("head", ["ForPreTraining", "ForCTC"])
def test_fairseq2(tmp_path: Path, head: str, config: Mapping[str, Any]) -> None:
    wide = {"hidden_size": 128, "intermediate_size": 48}
    model = made("Wav2Vec2", head, **{**config, **wide})
    content = {"model": in_fairseq2(model, bool(config)), "fs2": True}
    step = tmp_path / "step_5" / "model" / "pp_00" / "tp_00"
    step.mkdir(parents=True)
    torch.save(content, step / "sdp_00.pt")
    torch.save(content["model"], tmp_path / "plain.pt")
    wave = noise(0.8)
    for number, source in enumerate((tmp_path / "step_5", tmp_path / "plain.pt")):
        convert(source, tmp_path / f"artifact{number}")
        check(tmp_path / f"artifact{number}", model, wave, layer_norm(wave) if config else wave)
        assert bool(load_extra(tmp_path / f"artifact{number}")) == (head == "ForPreTraining")
    if head == "ForPreTraining":
        theirs = load_artifact(tmp_path / "artifact0")
        fairseq2_export.write(theirs, tmp_path / "back")
        again = open_checkpoint(tmp_path / "back", pickles=True)
        one, other = theirs.encoder.state_dict(), again.encoder.state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert again.extra and all(
            torch.equal(value, again.extra[key]) for key, value in load_extra(theirs.folder).items()
        )


CHARACTERS = Path(__file__).parent / "golden" / "characters.model"


def omnilingual(folder: Path, units: int) -> Any:
    """A model tuned for CTC as Omnilingual ASR's are: fairseq2's names, and a tokenizer beside the file."""
    model = made(
        "Wav2Vec2", "ForCTC", **{**LARGE, "hidden_size": 128, "vocab_size": units, "pad_token_id": 0}
    )
    torch.save({"model": in_fairseq2(model, pre_norm=True)}, folder / "omni.pt")
    shutil.copy(CHARACTERS, folder / "tokenizer.model")
    return model


def test_fairseq2_tuned_for_ctc(tmp_path: Path) -> None:
    """The tokenizer's first piece is the blank; without it the head has no meaning."""
    model = omnilingual(tmp_path, 40)
    convert(tmp_path / "omni.pt", tmp_path / "artifact")
    runtime = speech_ssl.load(tmp_path / "artifact")
    outputs = runtime.run_windows([wave := noise(0.8)], [None], ["ctc"])[0].heads["ctc"]
    expected = answer_of(model, layer_norm(wave)).logits[0].log_softmax(-1).numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-4)
    assert runtime.heads["ctc"].vocabulary[:6] == ("<blank>", "<pad>", "</s>", "<unk>", " ", "o")  # type: ignore[union-attr]
    training = load_artifact(tmp_path / "artifact").config["training"]
    assert "left_out" not in training and training["assumed"][0] == "attention has 2 heads"
    (tmp_path / "tokenizer.model").unlink()
    alone = open_checkpoint(tmp_path / "omni.pt", pickles=True)
    assert not alone.heads and "no SentencePiece model" in alone.heads_left_out["ctc"]
    assert alone.config["training"]["left_out"] == ["final_proj.bias", "final_proj.weight"]


def test_tokenizers_of_other_models(tmp_path: Path) -> None:
    omnilingual(tmp_path, 41)
    artifact = open_checkpoint(tmp_path / "omni.pt", pickles=True)
    assert not artifact.heads and "its vocabulary has 40 units" in artifact.heads_left_out["ctc"]
    shutil.copy(CHARACTERS, tmp_path / "another.model")
    artifact = open_checkpoint(tmp_path / "omni.pt", pickles=True)
    assert "2 SentencePiece models, such as another.model and tokeni" in artifact.heads_left_out["ctc"]
    assert "final_proj.weight" in artifact.config["training"]["left_out"]
