"""Files that fairseq 0.12.2 made, one of them in training, and what its models heard: golden values.

`golden/fairseq` is made again by an interpreter that has fairseq, with `benchmarks/fairseq_models.py` and its
`request.json`; `trained.pt` before by `fairseq-hydra-train` with `trained.yaml`, on noise.
The second clip is so quiet that what is added to the variance of waves is heard.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import speech_ssl
from speech_ssl.checkpoints.artifact import ArtifactError, load_artifact, load_extra
from speech_ssl.checkpoints.fairseq import read
from speech_ssl.checkpoints.opening import convert
from speech_ssl.checkpoints.torch_files.pickles import read_pickle
from speech_ssl.objectives.wav2vec2 import Wav2Vec2Config
from tests.checkpoints.transformers_models import noise

pytestmark = pytest.mark.numerical

FOLDER = Path(__file__).parent / "golden" / "fairseq"
PRETRAINED = ["pretrained", "trained", "conformer", "conformer_rope"]


def waves() -> list[torch.Tensor]:
    clips = np.load(FOLDER / "clips.npz")
    return [torch.from_numpy(clips[name]) for name in clips.files]


def answers(name: str) -> Mapping[str, NDArray[np.float32]]:
    return dict(np.load(FOLDER / f"{name}.npz"))


@pytest.mark.parametrize("name", [*PRETRAINED, "hubert", "data2vec"])
def test_every_layer_is_fairseqs(tmp_path: Path, name: str) -> None:
    convert(FOLDER / f"{name}.pt", tmp_path / "a")
    encoder, expected = load_artifact(tmp_path / "a").encoder.eval(), answers(name)
    lengths_B = torch.tensor([len(wave) for wave in waves()])
    with torch.inference_mode():
        states = encoder.hidden_states(torch.nn.utils.rnn.pad_sequence(waves(), batch_first=True), lengths_B)
    for row in range(len(lengths_B)):
        for number, state in enumerate(states[1:]):
            layer = expected[f"clip{row}.{number}"]
            assert layer.std() > 0.5
            np.testing.assert_allclose(state[row, : len(layer)], layer, atol=1e-4)


@pytest.mark.parametrize("name", PRETRAINED)
def test_targets_are_fairseqs(tmp_path: Path, name: str) -> None:
    """The quantizer chooses the same codes, and its entries are in the same order."""
    convert(FOLDER / f"{name}.pt", tmp_path / "a")
    encoder = load_artifact(tmp_path / "a").encoder
    objective = Wav2Vec2Config(entries=4, code_width=8, final_width=8).build(encoder).eval()
    missing, unexpected = objective.load_state_dict(load_extra(tmp_path / "a"), strict=False)
    assert not unexpected and all(key.startswith("encoder.") for key in missing)
    for row, wave in enumerate(waves()):
        with torch.inference_mode():
            features = encoder.normalized(encoder.convolve(wave[None], torch.tensor([len(wave)])))
            chosen = objective.quantizer(features.x_BTD, temperature=1.0, generator=torch.Generator())
            targets = objective.project_target(chosen.vectors_ND)[0]
        np.testing.assert_allclose(targets, answers(name)[f"targets.clip{row}"], atol=1e-5)
    assert len(np.unique(np.concatenate([answers(name)[f"targets.clip{row}"] for row in (0, 1)]), axis=0)) > 2


def test_the_head_is_fairseqs(tmp_path: Path) -> None:
    convert(FOLDER / "tuned.pt", tmp_path / "a")
    artifact = load_artifact(tmp_path / "a")
    artifact.encoder.eval()
    artifact.heads["ctc"].module.eval()
    assert artifact.heads["ctc"].spec.vocabulary == (
        *("<blank>", "<pad>", "</s>", "<unk>", " ", "E", "T", "A", "O", "I", "N", "'"),
    )
    for row, wave in enumerate(waves()):
        with torch.inference_mode():
            states = artifact.encoder.hidden_states(wave[None], torch.tensor([len(wave)]))
            found = artifact.heads["ctc"].module(states)[0]
        np.testing.assert_allclose(found, answers("tuned")[f"clip{row}.0"], atol=1e-4)
    assert speech_ssl.load(tmp_path / "a").transcribe([noise(0.5)])[0].text is not None


def test_what_its_trainer_wrote_besides_is_told(tmp_path: Path) -> None:
    """Optimizer and progress are in the file, and are not of use here."""
    convert(FOLDER / "trained.pt", tmp_path / "a")
    artifact = load_artifact(tmp_path / "a")
    assert artifact.config["training"] == {"source": "fairseq", "task": "audio_pretraining"}
    config = artifact.encoder.config
    assert (config.layer_drop, config.feature_grad_scale, config.frontend.wave_eps) == (0.05, 0.1, 1e-5)
    assert config.frontend.normalize_wave and config.block.pre_norm and config.frontend.bias
    convert(FOLDER / "hubert.pt", tmp_path / "h")
    left = load_artifact(tmp_path / "h").config["training"]["left_out"]
    assert left == ["final_proj.bias", "final_proj.weight", "label_embs_concat"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"pos_enc_type": "abs"}, "'pos_enc_type' is 'abs'; Conformers have rel_pos or rope"),
        ({"layer_norm_first": False}, "pre_norm"),
        ({"pos_enc_type": "rope"}, "linear_pos"),
    ],
)
def test_conformers_of_other_kinds(change: Mapping[str, Any], said: str) -> None:
    content = read_pickle(FOLDER / "conformer.pt")
    content["cfg"]["model"].update(change)
    with pytest.raises(ArtifactError, match=said):
        read(content, "f.pt", "f")
