"""Our encoder and wav2vec 2.0 objective beside fairseq2's Wav2Vec2Model; and as models of its hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.assets import AssetStore
from fairseq2.assets.metadata_provider import FileAssetMetadataLoader
from fairseq2.assets.store import StandardAssetStore
from fairseq2.models.family import ModelFamily
from fairseq2.models.hub import load_model
from fairseq2.models.transformer import TransformerNormOrder
from fairseq2.models.wav2vec2.config import Wav2Vec2Config as TheirConfig
from fairseq2.models.wav2vec2.config import Wav2Vec2EncoderConfig as TheirEncoderConfig
from fairseq2.models.wav2vec2.factory import create_wav2vec2_model
from fairseq2.nn import BatchLayout
from torch import Tensor, nn

from speech_ssl.checkpoints.artifact import load_artifact, save_artifact
from speech_ssl.checkpoints.fairseq2.export import model_config, write, write_fairseq2
from speech_ssl.checkpoints.fairseq2.extension import DEFAULT, FAMILY, VARIABLE
from speech_ssl.checkpoints.fairseq2.reading import read_folder
from speech_ssl.model.config import (
    Convolutions,
    EncoderConfig,
    GatedDistances,
    StackedConvolutions,
    WideConvolution,
)
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.wav2vec2 import Wav2Vec2, Wav2Vec2Config
from speech_ssl.training.fairseq2.state import started
from speech_ssl.types import Batch

BASE = EncoderConfig(
    frontend=Convolutions(channels=(32,) * 4, kernels=(10, 3, 3, 2), strides=(5, 2, 2, 2)),
    positions=WideConvolution(kernel=16, groups=4),
    **{"width": 48, "depth": 3, "heads": 4, "ffn_width": 80},
    **{"dropout": 0.0, "attention_dropout": 0.0, "feature_dropout": 0.0, "layer_drop": 0.0},
)
CONFIGS = {
    "base": BASE,
    "large": BASE.changed(frontend={"norm": "layer", "bias": True}, block={"pre_norm": True}),
    "mixed": BASE.changed(frontend={"norm": "layer"}, positions={"kernel": 17}, feature_grad_scale=1.0),
}
OBJECTIVE = Wav2Vec2Config(distractors=7, entries=6, code_width=20, final_width=24, target_dropout=0.0)
OBJECTIVE_LOSS = {
    "diversity_weight": OBJECTIVE.diversity_weight,
    "features_penalty_weight": OBJECTIVE.feature_penalty,
}
B, S, M = 3, 4000, 12


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> EncoderConfig:
    return CONFIGS[request.param]


@pytest.fixture
def ours(config: EncoderConfig) -> Wav2Vec2:
    """Every parameter random, also those that start at 0 or 1."""
    torch.manual_seed(3)
    objective = Wav2Vec2(Encoder(config), OBJECTIVE)
    with torch.no_grad():
        for name, parameter in objective.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) + 0.05 * name.endswith("bias"))
    return objective.eval()


@pytest.fixture
def theirs(ours: Wav2Vec2, config: EncoderConfig, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """fairseq2's model of this size, with these weights."""
    monkeypatch.setattr(torch, "compile", lambda **_: lambda function: function)  # slow, and used for one sum
    numbers = model_config(ours.state_dict(), config)
    encoder = numbers.pop("encoder_config")
    encoder |= {"norm_order": TransformerNormOrder[encoder["norm_order"]], "layer_drop_p": 0.0}
    encoder |= {"dropout_p": 0.0, "attn_dropout_p": 0.0, "feature_grad_scale": config.feature_grad_scale}
    their_config = TheirConfig(encoder_config=TheirEncoderConfig(**encoder), num_distractors=7, **numbers)
    model = create_wav2vec2_model(their_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.load_state_dict(write_fairseq2(ours.state_dict(), config), strict=True)
    return model.eval()


@pytest.fixture
def wave_BS() -> Tensor:
    return torch.randn(B, S, generator=torch.Generator().manual_seed(5))


def full(wave_BS: Tensor) -> Batch:
    return Batch(wave_BS, torch.full((len(wave_BS),), wave_BS.shape[1]))


@torch.no_grad()
def test_every_output_is_theirs(ours, theirs, wave_BS):
    seen: list[Tensor] = []
    for layer in theirs.encoder.layers:
        layer.register_forward_hook(lambda _, __, out: seen.append(out))
    features, layout, raw = theirs.encoder_frontend.extract_features(wave_BS, BatchLayout.of(wave_BS))
    first, _ = theirs.encoder_frontend.process_features(features.clone(), layout)
    last = theirs.encoder(first, layout)
    batch = full(wave_BS)
    convolved = ours.encoder.convolve(batch.wave_BS, batch.lengths_B)
    states = ours.encoder.hidden_states(batch.wave_BS, batch.lengths_B)
    expected = [raw, features, first, *seen[:-1], last]
    mine = [convolved.x_BTD, ours.encoder.normalized(convolved).x_BTD, *states]
    assert len(mine) == len(expected) == 3 + ours.encoder.config.depth
    for a, b in zip(mine, expected, strict=True):
        assert b.std() > 0.05
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)


@torch.no_grad()
def test_a_padded_row_is_theirs_where_they_ignore_padding(ours, theirs, wave_BS, config):
    """With a group norm theirs takes its statistics over the padding too."""
    if config.frontend.norm == "group":
        return
    lengths = [S, S - 900, S - 2000]
    padded_BS = wave_BS * (torch.arange(S) < torch.tensor(lengths)[:, None])
    seqs, layout = theirs.encoder_frontend(padded_BS, BatchLayout.of(padded_BS, lengths))
    expected = theirs.encoder(seqs, layout)
    frames = ours.encoder(padded_BS, torch.tensor(lengths))
    assert frames.lengths_B.tolist() == list(layout.seq_lens)
    for row, length in enumerate(layout.seq_lens):
        torch.testing.assert_close(frames.x_BTD[row, :length], expected[row, :length], atol=5e-5, rtol=0)


@pytest.fixture
def same_draws(ours: Wav2Vec2, theirs: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both hide the same frames, draw the same distractors and, in training, the same Gumbel noise."""
    generator = torch.Generator().manual_seed(11)
    T = int(ours.encoder.frame_count(S))
    hidden_BT = torch.zeros(B, T, dtype=torch.bool)
    for row in hidden_BT:
        row[torch.randperm(T, generator=generator)[:M]] = True
    shifts_BMK = torch.randint(1, M, (B, M, OBJECTIVE.distractors), generator=generator)
    j_BMK = (torch.arange(M)[:, None] + shifts_BMK) % M  # never the frame itself

    def counted(chosen_BM: Tensor, number: int, _: torch.Generator) -> Tensor:
        assert chosen_BM.all() and number == OBJECTIVE.distractors
        ones_BMK = torch.ones_like(j_BMK, dtype=torch.float32)
        return torch.zeros(B, M, M).scatter_add_(2, j_BMK, ones_BMK)

    def gathered(targets_BMD: Tensor) -> Tensor:
        return torch.stack([row_MD[j_MK] for row_MD, j_MK in zip(targets_BMD, j_BMK, strict=True)])

    def noisy(logits: Tensor, tau: float, hard: bool) -> Tensor:
        """torch's gumbel_softmax with the noise that our quantizer draws for these frames."""
        drawn = torch.empty_like(logits).exponential_(generator=torch.Generator().manual_seed(1))
        soft = ((logits - drawn.log()) / tau).softmax(-1)
        chosen = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return chosen - soft.detach() + soft

    where = "speech_ssl.objectives.wav2vec2"
    monkeypatch.setattr(f"{where}.hide_spans", lambda *_, **__: hidden_BT)
    monkeypatch.setattr(f"{where}.most_hidden", lambda *_, **__: M)
    monkeypatch.setattr(f"{where}.draw_distractors", counted)
    monkeypatch.setattr("fairseq2.models.wav2vec2.vector_quantizer.gumbel_softmax", noisy)
    theirs.masker.mask_factory = lambda **_: hidden_BT
    monkeypatch.setattr(type(theirs), "_sample_distractors", lambda self, targets: gathered(targets))


def both_losses(ours: Wav2Vec2, theirs: nn.Module, wave_BS: Tensor) -> tuple[Any, Any]:
    mine = ours(full(wave_BS), generator=torch.Generator().manual_seed(1))
    loss, output = theirs(wave_BS, BatchLayout.of(wave_BS), **OBJECTIVE_LOSS)
    assert mine.count == output.num_targets == B * M
    assert output.logits.isinf().any(), "a distractor that is the target's code was drawn"
    for name, value in (
        ("contrastive", loss.contrastive),
        ("diversity", loss.diversity),
        ("feature_energy", loss.features_penalty),
    ):
        torch.testing.assert_close(mine.metrics[name], value.detach(), rtol=1e-5, atol=1e-4, msg=name)
    torch.testing.assert_close(mine.total, loss.aggregate, rtol=1e-5, atol=0)
    return mine.total, loss.aggregate


@torch.no_grad()
def test_the_loss_is_theirs_in_evaluation(ours, theirs, wave_BS, same_draws):
    both_losses(ours, theirs, wave_BS)


def test_loss_and_gradients_are_theirs_in_training(ours, theirs, wave_BS, config, same_draws):
    mine, loss = both_losses(ours.train(), theirs.train(), wave_BS)
    mine.backward()
    loss.backward()
    gradients = write_fairseq2({name: p.grad for name, p in ours.named_parameters()}, config)
    for name, parameter in theirs.named_parameters():
        expected, scale = parameter.grad, parameter.grad.abs().max()
        if name.endswith("k_proj.bias"):  # attention does not depend on it: what comes is rounding
            assert max(scale, gradients[name].abs().max()) < 1e-3 * loss
            continue
        assert scale > 1e-3, name
        torch.testing.assert_close(gradients[name] / scale, expected / scale, atol=1e-4, rtol=0, msg=name)


@pytest.fixture
def artifact(ours: Wav2Vec2, tmp_path: Path) -> Path:
    extra = {k: v for k, v in ours.state_dict().items() if not k.startswith("encoder.")}
    return save_artifact(ours.encoder, tmp_path / "a", name="narrow", training={}, licence="MIT", extra=extra)


@torch.no_grad()
def test_an_export_loads_by_its_asset_card(ours, theirs, artifact, tmp_path, wave_BS):
    folder = write(load_artifact(artifact), tmp_path / "for-fairseq2")
    resolver = started()
    store = StandardAssetStore([resolver.resolve(FileAssetMetadataLoader).load(folder)])
    model = load_model(store.retrieve_card("narrow"))
    assert type(model) is type(theirs)
    expected = theirs.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    output = model.eval().encoder(*model.encoder_frontend(wave_BS, BatchLayout.of(wave_BS)))
    batch = full(wave_BS)
    torch.testing.assert_close(ours.encoder(batch.wave_BS, batch.lengths_B).x_BTD, output, atol=5e-5, rtol=0)


def test_an_export_reads_back(ours, artifact, tmp_path, config):
    back = read_folder(write(load_artifact(artifact), tmp_path / "for-fairseq2"))
    mine, theirs = config.architecture(), back.encoder.config.architecture()
    assert {k: v for k, v in theirs.items() if v != mine[k]}.keys() <= {"frontend.normalize_wave"}
    state = {f"encoder.{name}": value for name, value in back.encoder.state_dict().items()} | dict(back.extra)
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in state.items())


def refusal(config: EncoderConfig, drop: str = "") -> str:
    state = Wav2Vec2(Encoder(config), OBJECTIVE).state_dict()
    with pytest.raises(ValueError) as caught:
        write_fairseq2({k: v for k, v in state.items() if not (drop and k.startswith(drop))}, config)
    return str(caught.value)


def test_what_fairseq2_has_no_place_for_is_named():
    gated = GatedDistances(convolution=WideConvolution(kernel=16, groups=4))
    assert "no positions like this model's: GatedDistances" in refusal(BASE.changed(positions=gated))
    stacked = StackedConvolutions(layers=2, groups=4)
    assert "no positions like this model's: Stacked" in refusal(BASE.changed(positions=stacked))
    assert "as wide as the model, 32" in refusal(BASE.changed(width=32))
    assert "no quantizer" in refusal(CONFIGS["base"], drop="quantizer.")


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


LOADED = """
import fairseq2, torch
fairseq2.init_fairseq2(no_progress=True)
from fairseq2.models.hub import load_model
wave = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
for name in {names}:
    model = load_model(name).eval()
    with torch.no_grad():
        print(type(model).__module__, float(model(wave, torch.tensor([8000])).x_BTD.sum()))
"""


@pytest.mark.parametrize("config", ["base"], indirect=True)
def test_our_artifacts_are_models_of_its_hub(ours, artifact, tmp_path):
    """In a fresh process, as a user of fairseq2 starts it: by the entry point of the installed package."""
    names, missing = [DEFAULT, "narrow"], str(tmp_path / "nowhere")
    said = run_python(LOADED.format(names=names), **{VARIABLE: f"{missing}{os.pathsep}{artifact}"})
    assert f"{missing} is not an artifact, look at {VARIABLE}" in said
    lines = [line.split() for line in said.splitlines() if line.startswith("speech_ssl.model.encoder ")]
    assert len(lines) == 2
    wave = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = float(ours.encoder(wave, torch.tensor([8000])).x_BTD.sum())
    assert float(lines[1][1]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("config", ["base"], indirect=True)
def test_a_card_of_the_user_loads_our_encoder(ours, artifact, tmp_path):
    stored = json.loads((artifact / "config.json").read_text())["encoder"]
    card = {"name": "mine", "model_family": FAMILY, "model_config": {"encoder": stored}}
    card["checkpoint"] = os.path.relpath(artifact / "encoder.safetensors", tmp_path / "cards")
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "mine.yaml").write_text(json.dumps(card))
    store = StandardAssetStore([started().resolve(FileAssetMetadataLoader).load(tmp_path / "cards")])
    model = load_model(store.retrieve_card("mine"))
    assert isinstance(model, Encoder)
    assert all(torch.equal(v, ours.encoder.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_family_is_known():
    resolver = started()
    assert resolver.resolve(ModelFamily, key=FAMILY).kls is Encoder
    assert f"{DEFAULT}" in {name.removesuffix("@") for name in resolver.resolve(AssetStore).asset_names}
