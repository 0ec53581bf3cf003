"""Several layers from one pass are those of separate calls; the encoder alone is a module to build on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speech_ssl
from speech_ssl import audio
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.inference import Runtime
from speech_ssl.inference.engines import torch as engines
from speech_ssl.types import Waveform
from tests.narrow import PROMPT

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def runtime(tiny_artifact: Path) -> Runtime:
    return Runtime(load_artifact(tiny_artifact), precision="fp32", window_s=3.0, context_s=0.5)


@pytest.fixture(scope="module")
def waves(prompts: Path) -> list[Waveform]:
    """Of one window each, and one of several."""
    waves = [audio.decode(path) for path in sorted((prompts / "audio").glob("*.flac"))[:5]]
    return [*waves[:2], np.concatenate(waves)]


def test_several_layers_are_those_of_separate_calls(runtime: Runtime, waves: list[Waveform]) -> None:
    """In any batch: alone, together, and backwards."""
    layers = [0, 2, -1]
    together = runtime.encode(waves, layers=layers)
    backwards = runtime.encode(waves[::-1], layers=layers[::-1])[::-1]
    for wave, one, other in zip(waves, together, backwards, strict=True):
        assert list(one.layers) == layers and one.frames is one.layers[-1]
        for layer in layers:
            (alone,) = runtime.encode([wave], layer=layer)
            assert alone.layers == {layer: alone.frames}
            for found in (one.layers[layer], other.layers[layer]):
                assert found.dtype == np.float32 and found.flags.c_contiguous
                np.testing.assert_allclose(found, alone.frames, rtol=0, atol=1e-4)
            for how in ("mean", "max"):
                pooled = one.pooled(how, layer=layer)
                np.testing.assert_allclose(pooled, alone.pooled(how), rtol=0, atol=1e-4)


def test_one_layer_in_a_list_is_that_layer(runtime: Runtime, waves: list[Waveform]) -> None:
    (listed,), (alone,) = runtime.encode(waves[:1], layers=[1]), runtime.encode(waves[:1], layer=1)
    assert np.array_equal(listed.frames, alone.frames) and np.array_equal(listed.layers[1], alone.frames)


def test_layers_that_are_not_there_are_refused(runtime: Runtime, waves: list[Waveform]) -> None:
    with pytest.raises(ValueError, match="layer 9 is not there"):
        runtime.encode(waves, layers=[0, 9])
    with pytest.raises(ValueError, match="no layer was asked for"):
        runtime.encode(waves, layers=[])
    (features,) = runtime.encode(waves[:1], layers=[0, -1])
    with pytest.raises(ValueError, match="layer 4 was not asked for: there are the frames of 0, -1"):
        features.pooled(layer=4)


def test_a_gradient_flows_through_the_encoder_alone(tiny_artifact: Path, waves: list[Waveform]) -> None:
    """Its frames are the runtime's, on the device and of the type that were asked for."""
    encoder = speech_ssl.load_encoder(tiny_artifact, device="cpu")
    assert isinstance(encoder, torch.nn.Module) and not encoder.training
    wave = torch.from_numpy(waves[0])[None]
    x_BTD, lengths_B = encoder(wave, torch.tensor([wave.shape[1]]))
    (features,) = speech_ssl.load(tiny_artifact, precision="fp32", device="cpu").encode([waves[0]])
    np.testing.assert_allclose(x_BTD[0].detach().numpy(), features.frames, rtol=0, atol=1e-4)
    x_BTD[0, : lengths_B[0]].square().mean().backward()
    assert float(encoder.feature_projection.weight.grad.abs().sum()) > 0
    grads = [parameter.grad for parameter in encoder.blocks.parameters()]
    assert grads and all(grad is not None and grad.isfinite().all() for grad in grads)
    assert speech_ssl.load_encoder(tiny_artifact, dtype=torch.bfloat16).norm.weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="no such folder"):
        speech_ssl.load_encoder("no-such-folder")


def test_every_device_is_auto_by_default(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "automatic", lambda: "cuda:99")
    for load in (speech_ssl.load, speech_ssl.load_encoder, lambda path: Runtime(load_artifact(path))):
        with pytest.raises(ValueError, match="'cuda:99' is not there"):
            load(tiny_artifact)


def test_what_the_page_on_python_shows_runs() -> None:
    """With its shapes."""
    page = Path(speech_ssl.__file__).parents[1] / "docs" / "python.md"
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    found: dict[str, Any] = {}
    exec(code.replace('"clip.wav"', repr(str(PROMPT))), found)
    features, encoder = found["features"], found["encoder"]
    assert list(features.layers) == [0, 2, -1] and features.frames.shape[1] == encoder.config.width
    assert (
        found["x_BTD"].shape == found["states"][-1].shape and len(found["states"]) == encoder.config.depth + 1
    )
    assert encoder.feature_projection.weight.grad.abs().sum() > 0
