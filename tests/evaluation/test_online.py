"""The probe of a model that is being trained: what it says, and that nothing of the training is touched."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import Ridge

from speech_ssl.data.manifest import Utterance
from speech_ssl.evaluation.probes import online
from speech_ssl.evaluation.probes.online import OnlineProbe, left_out_error, nearest_neighbours, ridge
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.presets import tiny

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def config() -> EncoderConfig:
    """Wide enough that any random weights tell the tones apart: with 8 channels one in ten does not."""
    return tiny().changed(frontend={"channels": (32,) * 7}, width=32, depth=1, heads=2, ffn_width=32)


@pytest.fixture(scope="module")
def tones(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Low and high noisy tones, which any encoder tells apart."""
    folder = tmp_path_factory.mktemp("tones")
    generator = np.random.default_rng(0)
    utterances = []
    for number in range(24):
        label, pitch = (("low", 150), ("high", 1_500))[number % 2]
        time_s = np.arange(8_000 + 400 * number) / 16_000
        wave = 0.3 * np.sin(2 * np.pi * (pitch + 5 * number) * time_s + number)
        wave += generator.normal(0, 0.01, len(wave))
        path = folder / f"{number}.wav"
        soundfile.write(path, wave, 16_000)
        utterances.append(Utterance(path, len(wave) / 16_000, path.name, label=label))
    return utterances


def encoder(config: EncoderConfig) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(config)


def test_tones_are_told_apart_and_shuffled_labels_are_not(
    config: EncoderConfig, tones: list[Utterance]
) -> None:
    probe = OnlineProbe(tones)
    assert probe.held_out_N.sum() == 6 and probe.classes == ["high", "low"]
    found = probe(encoder(config))
    assert found == {"knn": 1.0, "linear": 1.0, "guessing": 0.5}
    assert OnlineProbe(tones)(encoder(config)) == found
    lost = []
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(24)
        shuffled = [replace(u, label=tones[i].label) for u, i in zip(tones, order, strict=True)]
        lost.append(OnlineProbe(shuffled)(encoder(config)))
    assert np.mean([one["knn"] for one in lost]) < 0.8  # chance is 0.5, four standard deviations 0.29
    assert np.mean([one["linear"] for one in lost]) < 0.8


def test_parts_of_a_file_are_held_out_together(tones: list[Utterance]) -> None:
    parts = [
        replace(tone, id=f"{tone.id}#{start:g}-{start + 0.1:g}", start=start, end=start + 0.1, duration_s=0.1)
        for tone in tones[:8]
        for start in (0.0, 0.1, 0.2, 0.3)
    ]
    chosen = online._chosen(parts, "label", 320)
    fitted, tried = ({u.path for u, out in chosen if out == side} for side in (False, True))
    assert len(tried) == 2 and len(fitted) == 6 and not fitted & tried
    chosen = online._chosen([replace(u, label="ab"[i % 2]) for i, u in enumerate(parts[:4])], "label", 320)
    assert sorted(u.label for u, out in chosen if out) == ["a", "b"]  # of one file


def test_nothing_of_the_training_is_touched(config: EncoderConfig, tones: list[Utterance]) -> None:
    """Bit for bit: parameters, buffers, gradients, modes, random states; and the next step's gradients."""
    config = replace(config, dropout=0.1, attention_dropout=0.1, layer_drop=0.2, feature_dropout=0.1)
    model = encoder(config).train()
    model.frontend.eval()  # as a frozen part would be
    model.norm.weight.requires_grad_(False)
    wave_BS, lengths_B = torch.randn(2, 8_000), torch.tensor([8_000, 6_000])
    model(wave_BS, lengths_B).x_BTD.square().sum().backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    random, numpy_random = torch.get_rng_state(), np.random.get_state()[1].copy()

    OnlineProbe(tones[:8])(model)

    assert torch.equal(torch.get_rng_state(), random)
    assert np.array_equal(np.random.get_state()[1], numpy_random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        before = gradients[name]
        assert (parameter.grad is None) == (before is None), name
        assert before is None or torch.equal(parameter.grad, before), name
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert torch.is_grad_enabled()


def test_training_goes_on_to_the_same_bits(config: EncoderConfig, tones: list[Utterance]) -> None:
    probe = OnlineProbe(tones[:8])

    def trained(probed: bool) -> list[torch.Tensor]:
        model = encoder(replace(config, dropout=0.1)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(1)
        for _ in range(3):
            x_BTD = model(torch.randn(2, 4_000), torch.tensor([4_000, 3_000])).x_BTD
            optimizer.zero_grad()
            x_BTD.square().sum().backward()
            optimizer.step()
            if probed:
                probe(model)
        return [parameter.detach() for parameter in model.parameters()]

    assert all(torch.equal(one, two) for one, two in zip(trained(True), trained(False), strict=True))


def test_the_mode_is_restored_after_a_failure(
    config: EncoderConfig, tones: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, model = OnlineProbe(tones[:8]), encoder(config).train()

    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "hidden_states", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        probe(model)
    assert all(module.training for module in model.modules())


def test_a_diverged_encoder_is_not_a_number(config: EncoderConfig, tones: list[Utterance]) -> None:
    model = encoder(config)
    torch.nn.init.constant_(model.norm.weight, math.nan)
    found = OnlineProbe(tones[:8])(model)
    assert math.isnan(found["knn"]) and math.isnan(found["linear"]) and found["guessing"] == 0.5


def test_clips_are_capped_and_cut(tones: list[Utterance]) -> None:
    probe = OnlineProbe(tones, clips=12, seconds=0.25)
    assert len(probe.held_out_N) == 12 and 2 <= probe.held_out_N.sum() <= 4
    assert all(wave.dtype == np.int16 and len(wave) == 4_000 for wave in probe._waves)
    whole, _ = soundfile.read(tones[3].path, dtype="int16")
    middle = OnlineProbe(tones, seconds=0.25)._waves
    assert any(np.array_equal(wave, whole[2_600:6_600]) for wave in middle)


def test_the_split_decides_where_there_is_one(config: EncoderConfig, tones: list[Utterance]) -> None:
    marked = [replace(u, split="dev_clean" if i >= 16 else "train") for i, u in enumerate(tones)]
    probe = OnlineProbe(marked)
    assert probe.held_out_N.sum() == 8 and (~probe.held_out_N).sum() == 16
    assert probe(encoder(config))["linear"] > 0.5
    by_order = OnlineProbe(marked[::-1])
    assert by_order(encoder(config)) == probe(encoder(config))


def test_other_columns_and_unreadable_clips(tones: list[Utterance], tmp_path: Path) -> None:
    speakers = [replace(u, speaker=u.label, label="") for u in tones]
    absent = replace(speakers[0], path=tmp_path / "absent.wav", id="absent.wav")
    probe = OnlineProbe([*speakers, absent], column="speaker")
    assert list(probe.failures) == ["absent.wav"] and len(probe.held_out_N) == 24
    with pytest.raises(ValueError, match="two values or more in column 'label'"):
        OnlineProbe(speakers)
    with pytest.raises(ValueError, match="no column 'colour'"):
        OnlineProbe(tones, column="colour")
    with pytest.raises(ValueError, match="four clips or more"):
        OnlineProbe(tones, clips=3)


def test_ridge_is_ridge_with_the_penalty_of_least_left_out_error() -> None:
    """Against scikit-learn, where each point is really left out in turn."""
    generator = np.random.default_rng(0)
    x_NF, y_N = generator.standard_normal((15, 8)), np.arange(15) % 3
    x_NF[:, :3] += 0.8 * np.eye(3)[y_N]
    tried_MF, onehot_NC = generator.standard_normal((200, 8)), np.eye(3)[y_N]
    centred = x_NF - x_NF.mean(0)
    values_N, vectors_NN = np.linalg.eigh(centred @ centred.T)
    penalties = online.PENALTIES * values_N.clip(0).mean()

    def left_out(penalty: float) -> float:
        model = Ridge(alpha=penalty)
        rows = [np.delete(np.arange(15), i) for i in range(15)]
        found = [model.fit(x_NF[r], onehot_NC[r]).predict(x_NF[[i]])[0] for i, r in enumerate(rows)]
        return float(np.square(np.array(found) - onehot_NC).sum())

    errors = [left_out_error(values_N.clip(0), vectors_NN, onehot_NC - 1 / 3, p) for p in penalties]
    np.testing.assert_allclose(errors, [left_out(p) for p in penalties], rtol=1e-6)
    best = penalties[int(np.argmin(errors))]
    expected = Ridge(alpha=best).fit(x_NF, onehot_NC).predict(tried_MF).argmax(1)
    others = Ridge(alpha=penalties[0]).fit(x_NF, onehot_NC).predict(tried_MF).argmax(1)
    assert (expected != others).any()  # the choice is seen
    np.testing.assert_array_equal(ridge(x_NF, onehot_NC, tried_MF), expected)


def test_neighbours_vote_by_nearness() -> None:
    """One very near outweighs two that are far; vectors count by direction."""
    x_NF = np.array([[1.0, 0.0], [0.5, 0.9], [0.4, 0.9]])
    onehot_NC = np.eye(2)[[0, 1, 1]]
    tried_MF = np.array([[30.0, 1.0], [0.1, 0.2]])
    assert nearest_neighbours(x_NF, onehot_NC, tried_MF).tolist() == [0, 1]
