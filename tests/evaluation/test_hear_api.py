"""HEAR's API: what hear-validator checks of a module, and what the functions say of themselves."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import speech_ssl
from speech_ssl.evaluation import hear
from speech_ssl.model.config import LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.presets import tiny
from tests.narrow import NARROW, save_narrow

RATES = (16_000, 22_050, 32_000, 44_100, 48_000)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_narrow(tmp_path_factory.mktemp("artifacts") / "narrow"))


@pytest.fixture(scope="module", params=["waves", "mel"])
def model(request: pytest.FixtureRequest) -> hear.HearModel:
    config = tiny().changed(**NARROW | {"depth": 2})
    mel = tiny().changed(**NARROW | {"depth": 2, "frontend": LogMel(bins=16)})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hear.HearModel(Encoder(config if request.param == "waves" else mel))


def noise(sounds: int, samples: int) -> Tensor:
    return torch.rand(sounds, samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_module_is_what_heareval_imports(path: str) -> None:
    module: ModuleType = importlib.import_module("speech_ssl.evaluation.hear")
    model = module.load_model(path)
    assert isinstance(model, nn.Module) and model.to("cpu") is model
    assert model.sample_rate in RATES
    assert type(model.scene_embedding_size) is type(model.timestamp_embedding_size) is int
    assert model.scene_embedding_size == model.timestamp_embedding_size == 2 * 16
    assert not any(p.requires_grad for p in model.parameters()) and not model.encoder.training


@pytest.mark.parametrize("samples", [17_120, 31_680, 64_000, 64_319])  # the validator's, and the worst end
def test_timestamp_embeddings_as_the_validator_wants_them(model: hear.HearModel, samples: int) -> None:
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(2, samples), model)
    assert embeddings.dtype == timestamps.dtype == torch.float32
    assert embeddings.ndim == 3 and embeddings.shape[:2] == timestamps.shape == (2, timestamps.shape[1])
    assert embeddings.shape[2] == model.timestamp_embedding_size
    steps = timestamps.diff()
    assert steps.min() > 0 and steps.max() <= 50 and (steps - steps.mean()).abs().max() <= 1
    hop, length = float(steps.mean()), samples / 16
    assert 0 < timestamps.min() <= hop
    assert length - 2 * hop <= timestamps.max() <= length
    assert torch.equal(timestamps[0], timestamps[1])


def test_scene_embeddings_as_the_validator_wants_them(model: hear.HearModel) -> None:
    embeddings = hear.get_scene_embeddings(noise(4, 43_840), model)
    assert embeddings.dtype == torch.float32 and embeddings.shape == (4, model.scene_embedding_size)
    assert embeddings.isfinite().all() and not embeddings.requires_grad


def test_a_scene_is_the_mean_over_time_of_the_layers_in_order(model: hear.HearModel) -> None:
    audio = noise(2, 20_000)
    with torch.no_grad():
        states = model.encoder.hidden_states(audio, torch.tensor([20_000, 20_000]))
    frames, _ = hear.get_timestamp_embeddings(audio, model)
    torch.testing.assert_close(frames, torch.cat(states, dim=-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), frames.mean(1), atol=1e-5, rtol=0)


def test_times_are_the_middles_of_what_frames_see() -> None:
    """A click changes those frames of the front end around whose middles half a receptive field reaches it,
    and no others, where waves are not normalised."""
    config = tiny().changed(**NARROW).changed(frontend={"normalize_wave": False})
    model = hear.HearModel(Encoder(config))
    base, lengths = 0.1 * noise(1, 32_000), torch.tensor([32_000])
    click = base.clone()
    click[0, 16_000:16_032] += 0.5  # from 1000 to 1002 ms
    with torch.no_grad():
        ones, others = (model.encoder.convolve(audio, lengths).x_BTD[0] for audio in (base, click))
    _, timestamps = hear.get_timestamp_embeddings(base, model)
    reach = model.encoder.receptive_field / 2 / 16
    reached_T = (timestamps[0] - reach < 1_002) & (timestamps[0] + reach > 1_000)
    assert reached_T.sum() == 2
    torch.testing.assert_close((ones - others).abs().amax(-1) > 1e-5, reached_T)


def test_sounds_do_not_depend_on_each_other_and_twice_is_the_same(model: hear.HearModel) -> None:
    audio = noise(3, 24_000)
    torch.manual_seed(1)
    together = hear.get_scene_embeddings(audio, model)
    torch.manual_seed(2)
    assert torch.equal(hear.get_scene_embeddings(audio, model), together)
    alone = torch.cat([hear.get_scene_embeddings(row[None], model) for row in audio])
    torch.testing.assert_close(alone, together, atol=1e-4, rtol=0)


def test_long_audio_is_computed_in_windows_with_all_its_frames(model: hear.HearModel) -> None:
    samples = 50 * 16_000
    embeddings, timestamps = hear.get_timestamp_embeddings(0.1 * noise(1, samples), model)
    assert embeddings.shape[1] == model.encoder.frame_count(samples)
    assert samples / 16 - 40 <= float(timestamps[0, -1]) <= samples / 16


def test_a_path_may_name_a_layer(path: str) -> None:
    whole, audio = hear.load_model(path), noise(1, 8_000)
    both = hear.get_scene_embeddings(audio, whole)
    for layer in (0, 1, -1, -2):
        one = hear.load_model(f"{path}:layer={layer}")
        assert one.scene_embedding_size == one.timestamp_embedding_size == 16
        start = 16 * (layer % 2)
        torch.testing.assert_close(
            hear.get_scene_embeddings(audio, one), both[:, start : start + 16], atol=1e-5, rtol=0
        )


def test_the_default_is_the_packaged_model(prompts: Path) -> None:
    for name in ("default", ""):
        assert hear.load_model(name).scene_embedding_size == 5 * 256
    model = hear.load_model(":layer=-1")
    clip = next((prompts / "audio").glob("*.flac"))
    wave = speech_ssl.audio.decode(clip)
    wanted = speech_ssl.load(device="cpu", precision="fp32").encode([wave])[0].pooled()
    found = hear.get_scene_embeddings(torch.from_numpy(wave)[None], model)[0]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)


def test_what_cannot_be_done_is_refused(path: str) -> None:
    for wrong in (":layer=2", ":layer=-3", ":layer=last"):
        with pytest.raises(ValueError, match="layer"):
            hear.load_model(path + wrong)
    model = hear.load_model(path)
    for audio in (torch.zeros(16_000), torch.zeros(1, 16_000, dtype=torch.int16), torch.zeros(0, 16_000)):
        with pytest.raises(ValueError, match="n_sounds, n_samples"):
            hear.get_scene_embeddings(audio, model)
    with pytest.raises(ValueError, match="samples"):
        hear.get_timestamp_embeddings(torch.zeros(1, 100), model)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_may_be_moved(path: str) -> None:
    audio = noise(2, 16_000)
    here = hear.get_scene_embeddings(audio, hear.load_model(path))
    there = hear.get_scene_embeddings(audio.cuda(), hear.load_model(path).cuda())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=0)
