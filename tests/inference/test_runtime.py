"""The runtime: shapes, layers, inputs good and bad, long clips, precisions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import speech_ssl
from speech_ssl import audio
from speech_ssl.audio import AudioError
from speech_ssl.checkpoints.artifact import ArtifactError, load_artifact
from speech_ssl.inference import Runtime
from speech_ssl.types import Features, Waveform

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def runtime(tiny_artifact: Path) -> Runtime:
    return speech_ssl.load(tiny_artifact)


@pytest.fixture(scope="module")
def speech(prompts: Path) -> Waveform:
    """40 s of real speech."""
    waves = [audio.decode(path) for path in sorted((prompts / "audio").glob("*.flac"))[:40]]
    return np.concatenate(waves)[: 40 * 16000]


def test_what_a_runtime_says_of_itself(runtime: Runtime):
    assert (runtime.name, runtime.width, runtime.num_layers) == ("tiny-random", 256, 4)
    assert (runtime.hop, runtime.min_samples, runtime.sample_rate) == (320, 400, 16000)
    assert runtime.precision == "fp32" and 19.9 < runtime.window_s < 20.1


def test_features(runtime: Runtime, speech: Waveform):
    wave = speech[:16000]
    features = runtime.encode([wave])[0]
    assert isinstance(features, Features)
    assert features.frames.shape == (49, 256) and features.frames.dtype == np.float32
    assert features.duration_s == 1.0 and features.hop_s == 0.02
    assert features.pooled().shape == features.pooled("max").shape == (256,)
    assert features.frames.flags.writeable


def test_the_frames_are_the_encoders(runtime: Runtime, tiny_artifact: Path, speech: Waveform):
    encoder = load_artifact(tiny_artifact).encoder.eval()
    wave = speech[:24000]
    with torch.no_grad():
        states = encoder.hidden_states(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    for layer in range(-5, 5):
        frames = runtime.encode([wave], layer=layer)[0].frames
        np.testing.assert_allclose(frames, states[layer][0].numpy(), atol=1e-5)


@pytest.mark.parametrize("layer", [5, -6, 99])
def test_a_layer_that_is_not_there(runtime: Runtime, layer: int):
    with pytest.raises(ValueError, match=f"layer {layer} is not there: tiny-random has 0 to 4"):
        runtime.encode([np.zeros(16000, dtype=np.float32)], layer=layer)


def test_each_window_may_have_its_own_layer(runtime: Runtime, speech: Waveform):
    waves = [speech[:9000], speech[9000:30000], speech[:9000]]
    first, second, third = runtime.encode_windows(waves, [0, 4, 2])
    for frames, wave, layer in ((first, waves[0], 0), (second, waves[1], 4), (third, waves[2], 2)):
        np.testing.assert_allclose(frames, runtime.encode([wave], layer=layer)[0].frames, atol=1e-5)
    assert runtime.encode_windows([], []) == []
    with pytest.raises(AudioError, match="too short"):
        runtime.encode_windows([speech[:9000], speech[:399]], [0, 0])


def test_order_is_kept_and_files_equal_arrays(runtime: Runtime, prompts: Path):
    paths = sorted((prompts / "audio").glob("*.flac"))[:7]
    waves = [audio.decode(path) for path in paths]
    mixed: list[Waveform | str | Path] = [paths[0], str(paths[1]), waves[2], *paths[3:6], waves[6]]
    for features, wave in zip(runtime.encode(mixed), waves, strict=True):
        alone = runtime.encode([wave])[0]
        np.testing.assert_allclose(features.frames, alone.frames, atol=1e-5)
        assert features.duration_s == alone.duration_s == len(wave) / 16000
    assert runtime.encode([]) == []


def test_floats_of_any_width_are_taken(runtime: Runtime, speech: Waveform):
    wave = speech[:8000]
    for other in (wave.astype(np.float64), np.repeat(wave, 2)[::2]):
        assert np.array_equal(runtime.encode([other])[0].frames, runtime.encode([wave])[0].frames)


BAD: dict[str, tuple[object, str, str]] = {
    "stereo": (np.zeros((16000, 2), np.float32), "bad_samples", "clip 1 must be one channel.*mean over"),
    "int16": (np.zeros(16000, np.int16), "bad_samples", "clip 1 .*not int16: divide by 32768"),
    "int64": (np.zeros(16000, np.int64), "bad_samples", "clip 1 .*not int64"),
    "NaN": (np.full(16000, np.nan, np.float32), "bad_samples", "clip 1 holds NaN"),
    "too large": (np.full(16000, 1e300), "bad_samples", "clip 1 holds NaN or infinite"),
    "empty": (np.zeros(0, np.float32), "too_short", "clip 1: 0 s is too short"),
    "short": (np.zeros(399, np.float32), "too_short", "clip 1: .*400 samples at 16 kHz"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_waves(runtime: Runtime, name: str):
    bad, code, message = BAD[name]
    with pytest.raises(AudioError, match=message) as caught:
        runtime.encode([np.zeros(16000, np.float32), bad])  # type: ignore[list-item]
    assert caught.value.code == code


def test_things_that_are_no_waves(runtime: Runtime):
    with pytest.raises(ValueError, match="clip 0 must be a path or a numpy array, not Tensor"):
        runtime.encode([torch.zeros(16000)])  # type: ignore[list-item]
    for alone in ("clip.wav", np.zeros(16000, np.float32)):
        with pytest.raises(ValueError, match=r"encode\(\[clip\]\)"):
            runtime.encode(alone)  # type: ignore[arg-type]


def test_bad_files_are_named(runtime: Runtime, tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("no audio")
    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(100), 16000)
    with pytest.raises(AudioError, match="notes.txt: not a known audio format"):
        runtime.encode([text])
    with pytest.raises(AudioError, match="short.wav: .*too short") as caught:
        runtime.encode([short])
    assert caught.value.code == "too_short"
    with pytest.raises(FileNotFoundError, match="absent.wav"):
        runtime.encode([tmp_path / "absent.wav"])


@settings(max_examples=25, deadline=None)
@given(st.integers(400, 200_000))
def test_stitched_frames_are_as_many_as_the_encoders(runtime: Runtime, length: int):
    short = Runtime.__new__(Runtime)
    short.__dict__.update(runtime.__dict__)
    short.chunker = type(runtime.chunker)(runtime.hop, runtime.min_samples, window=60, context=10)
    wave = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    frames = short.encode([wave], layer=0)[0].frames
    assert len(frames) == (length - 400) // 320 + 1
    assert np.array_equal(np.concatenate(list(short.stream(wave, layer=0))).shape, frames.shape)


def test_a_long_clip_is_near_the_whole_and_streams_the_same(
    runtime: Runtime, speech: Waveform, tmp_path: Path
):
    """Windows see 2 s past each cut, and one pass attends to all, so equality is not to be had."""
    stitched = runtime.encode([speech])[0]
    whole = runtime.encode_windows([speech], [4])[0]
    assert stitched.frames.shape == whole.shape
    distance = np.linalg.norm(stitched.frames - whole) / np.linalg.norm(whole)
    assert 0 < distance < 0.1
    pooled = np.linalg.norm(stitched.pooled() - whole.mean(0)) / np.linalg.norm(whole.mean(0))
    assert pooled < 0.05

    path = tmp_path / "long.wav"
    soundfile.write(path, speech, 16000, subtype="FLOAT")
    pieces = list(runtime.stream(path))
    assert len(pieces) == len(runtime.plan(len(speech))) == 3
    np.testing.assert_allclose(np.concatenate(pieces), stitched.frames, atol=1e-5)
    for how in ("mean", "max"):
        np.testing.assert_allclose(runtime.pooled(path, how), stitched.pooled(how), atol=1e-5)
        np.testing.assert_allclose(runtime.pooled(speech, how), stitched.pooled(how), atol=1e-5)


@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.03), ("int8", 0.05)])
def test_reduced_precision_is_near(
    runtime: Runtime, tiny_artifact: Path, speech: Waveform, precision, most: float
):
    waves = [speech[:30000], speech[30000:42000]]
    reduced = speech_ssl.load(tiny_artifact, precision=precision)
    assert reduced.precision == precision
    for features, exact in zip(reduced.encode(waves), runtime.encode(waves), strict=True):
        assert features.frames.dtype == np.float32
        distance = np.linalg.norm(features.frames - exact.frames) / np.linalg.norm(exact.frames)
        assert 1e-5 < distance < most  # not the same: it is another arithmetic indeed


def test_int8_does_not_depend_on_the_batch(tiny_artifact: Path, speech: Waveform):
    """The range of an activation is that of its batch, so a loud neighbour would coarsen a quiet clip."""
    int8 = speech_ssl.load(tiny_artifact, precision="int8")
    quiet, loud = speech[:16000], speech[16000:48000] * 20
    together = int8.encode_windows([quiet, loud], [4, 4])[0]
    assert np.array_equal(together, int8.encode_windows([quiet], [4])[0])


def test_loading_leaves_the_callers_encoder_alone(tiny_artifact: Path):
    artifact = load_artifact(tiny_artifact)
    artifact.encoder.train()
    before = {key: value.clone() for key, value in artifact.encoder.state_dict().items()}
    Runtime(artifact, precision="bf16")
    assert artifact.encoder.training and all(p.requires_grad for p in artifact.encoder.parameters())
    assert all(torch.equal(value, before[key]) for key, value in artifact.encoder.state_dict().items())


def test_load_says_what_it_cannot_find(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    with pytest.raises(ArtifactError, match="no-such-folder: no such folder"):
        speech_ssl.load("no-such-folder")
    with pytest.raises(ValueError, match="device 'tpu' is not"):
        speech_ssl.load(tiny_artifact, device="tpu")
    with pytest.raises(ValueError, match="precision must be one of auto, fp32"):
        speech_ssl.load(tiny_artifact, precision="fp8")  # type: ignore[arg-type]
    monkeypatch.setattr("speech_ssl.inference.runtime.files", lambda package: tmp_path)
    with pytest.raises(ArtifactError, match="no default model"):
        speech_ssl.load()


def test_no_cuda_is_said(tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"'cuda' is not there \(0 CUDA devices found\): use 'cpu'"):
        speech_ssl.load(tiny_artifact, device="cuda")


@pytest.mark.gpu
def test_int8_on_a_gpu_is_refused(tiny_artifact: Path):
    with pytest.raises(ValueError, match="runs on the CPU only"):
        speech_ssl.load(tiny_artifact, device="cuda", precision="int8")


@pytest.mark.gpu
def test_the_gpu_gives_what_the_cpu_gives(runtime: Runtime, tiny_artifact: Path, speech: Waveform):
    waves = [speech[:30000], speech[30000:42000], speech]
    for precision, most in (("fp32", 1e-5), ("bf16", 0.03)):
        gpu = speech_ssl.load(tiny_artifact, device="cuda", precision=precision)  # type: ignore[arg-type]
        for features, exact in zip(gpu.encode(waves), runtime.encode(waves), strict=True):
            distance = np.linalg.norm(features.frames - exact.frames) / np.linalg.norm(exact.frames)
            assert distance < most
