"""The contract no peer keeps: a clip's frames are the same alone, in any batch, order and padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.checkpoints.artifact import Artifact
from speech_ssl.inference import Runtime
from speech_ssl.model import presets
from speech_ssl.model.encoder import Encoder

pytestmark = pytest.mark.numerical

SMALL = {"frontend": {"channels": (16,) * 7}, "width": 32, "depth": 3, "heads": 4, "ffn_width": 64}
CONFIGS = {
    "tiny": presets.tiny(),
    "base": presets.base().changed(**SMALL),  # group norm over time, post-norm, waves as they are
    "large": presets.large().changed(**SMALL),  # layer norm, pre-norm, normalised waves
}
TOLERANCE = 1e-4


def make(name: str) -> Runtime:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = Encoder(CONFIGS[name])
        with torch.no_grad():  # untrained norms and biases are ones and zeros, which could hide a fault
            for parameter in encoder.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    artifact = Artifact(Path(name), {"name": name}, encoder, "0")
    return Runtime(artifact, precision="fp32", window_s=1.5, context_s=0.2)


runtimes = {name: make(name) for name in CONFIGS}

waves = st.builds(
    lambda length, seed, scale, offset: (
        np.random.default_rng(seed).standard_normal(length) * scale + offset
    ).astype(np.float32),
    length=st.one_of(st.integers(400, 1500), st.integers(400, 40_000)),
    seed=st.integers(0, 9999),
    scale=st.sampled_from([0.003, 0.1, 1.0]),
    offset=st.sampled_from([0.0, 0.02]),
)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=25, deadline=None)
@given(st.lists(waves, min_size=2, max_size=7), st.data())
def test_a_clip_is_the_same_in_any_company(name: str, clips: list[np.ndarray], data: st.DataObject):
    runtime = runtimes[name]
    layer = data.draw(st.integers(0, runtime.num_layers))
    order = data.draw(st.permutations(range(len(clips))))
    alone = [runtime.encode([clip], layer=layer)[0].frames for clip in clips]
    for budget_s in (1.5, 4.0, 60.0):  # other batches, other paddings
        runtime.batch_s = budget_s
        together = runtime.encode([clips[index] for index in order], layer=layer)
        for index, features in zip(order, together, strict=True):
            assert features.frames.shape == alone[index].shape
            assert np.abs(features.frames - alone[index]).max() <= TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_all_in_one_padded_pass(name: str):
    """One row of 10 s beside clips down to a single frame."""
    runtime = runtimes[name]
    rng = np.random.default_rng(0)
    lengths = (160_000, 400, 719, 720, 16_000, 33_333)
    clips = [rng.standard_normal(length).astype(np.float32) for length in lengths]
    last = [runtime.num_layers] * len(clips)
    for clip, frames in zip(clips, runtime.encode_windows(clips, last), strict=True):
        assert np.abs(frames - runtime.encode_windows([clip], last[:1])[0]).max() <= TOLERANCE
