"""Representations to probe: one vector per clip and layer, from an encoder's hidden states or from spectra.

Mean pooling over time, the mix of layers and the linear head of a probe are all linear, so a probe needs only
each layer's mean over time, or that and its standard deviation, which spectra are described by. Arrays are
(N, L, D) float32: N clips, L layers (an encoder of depth L has L + 1 states; spectra have one layer), D
values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from speech_ssl import audio
from speech_ssl.data.manifest import Utterance
from speech_ssl.evaluation.extras import eval_extra
from speech_ssl.inference.chunking import Chunker
from speech_ssl.inference.engines.torch import TorchEngine
from speech_ssl.inference.windows import BATCH_S, WindowedPass, pieces
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.types import SAMPLE_RATE, Waveform

Means: TypeAlias = NDArray[np.float32]
"""Shape (N, L, D)."""

Representation: TypeAlias = Callable[[Sequence[Waveform]], Means]
"""Each wave is computed by itself, whatever else is in the list."""

GATHERED_S = 160.0  # seconds of audio decoded before computing, to batch it by length
LIMITS = audio.Limits(max_seconds=1_800.0)
MIN_SAMPLES = 512  # for the FFT of the spectra; published encoders need 400
SPECTRUM = {"sr": SAMPLE_RATE, "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80}


@dataclass(frozen=True)
class Cached:
    """Representations of the clips that could be read.

    means: name of the representation -> (N, L, D), N = len(clips). failures: id -> reason, for the others.
    """

    clips: list[Utterance]
    means: dict[str, Means]
    failures: dict[str, str]


def cached(
    clips: Sequence[Utterance],
    representations: Mapping[str, Representation],
    *,
    min_samples: int = MIN_SAMPLES,
    tick: Callable[[float], object] | None = None,
) -> Cached:
    """Decode each clip once and compute all its representations.

    Clips that cannot be read, or that have fewer than `min_samples` at 16 kHz, are left out and named. Memory
    holds the result, about GATHERED_S seconds of audio, and the longest clip. `tick` is called with each
    clip's seconds. Raises ValueError if no clip can be read.
    """
    kept: list[Utterance] = []
    failures: dict[str, str] = {}
    parts: dict[str, list[Means]] = {name: [] for name in representations}
    for group in _gathered(clips, min_samples, failures, tick):
        kept += [clip for clip, _ in group]
        for name, represent in representations.items():
            parts[name].append(represent([wave for _, wave in group]))
    if not kept:
        example = next(iter(failures.values()), "there are no clips")
        raise ValueError(f"none of the {len(clips)} clips can be used: {example}")
    return Cached(kept, {name: np.concatenate(found) for name, found in parts.items()}, failures)


def _gathered(
    clips: Sequence[Utterance],
    min_samples: int,
    failures: dict[str, str],
    tick: Callable[[float], object] | None,
) -> Iterator[list[tuple[Utterance, Waveform]]]:
    group: list[tuple[Utterance, Waveform]] = []
    seconds = 0.0
    for clip in clips:
        try:
            group.append((clip, load_wave(clip, min_samples)))
            seconds += len(group[-1][1]) / SAMPLE_RATE
        except (ValueError, OSError) as error:
            failures[clip.id] = str(error)
        if tick is not None:
            tick(clip.duration_s)
        if seconds >= GATHERED_S:
            yield group
            group, seconds = [], 0.0
    if group:
        yield group


def load_wave(clip: Utterance, min_samples: int = MIN_SAMPLES) -> Waveform:
    """A whole clip (S,). Raises ValueError (AudioError) or OSError if it cannot be used."""
    wave = audio.decode(clip.path, limits=LIMITS, start_s=clip.start or 0.0, stop_s=clip.end)
    if len(wave) < min_samples:
        raise audio.AudioError("too_short", f"{clip.id}: {len(wave)} samples, {min_samples} are needed")
    return wave


def random_encoder(config: EncoderConfig, seed: int) -> Encoder:
    """An untrained encoder: what the architecture alone is worth. Restores torch's global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(config)


def encoder_states(encoder: Encoder, device: str = "auto", *, deviations: bool = False) -> Representation:
    """The mean over time of all hidden states of an encoder, (N, L + 1, D), in fp32; with `deviations` the
    standard deviations after it, (N, L + 1, 2 D). The encoder is not changed."""
    engine = TorchEngine(encoder, device, "fp32")
    return lambda waves: _hidden_moments(engine, waves, deviations)


def hidden_means(encoder: Encoder, waves: Sequence[Waveform]) -> Means:
    """The mean over valid frames of each hidden state, (N, L + 1, D), as in `Encoder.hidden_states`, on the
    encoder's device.

    Long waves are computed in windows, as in the runtime, and each frame counts once. Other waves change a
    wave's means by at most 1e-4.
    """
    return encoder_states(encoder, str(next(encoder.parameters()).device))(waves)


def _hidden_moments(engine: TorchEngine, waves: Sequence[Waveform], deviations: bool) -> Means:
    chunker = Chunker.of(engine.encoder)
    layers = tuple(range(engine.encoder.config.depth + 1))
    batch_s = BATCH_S[engine.device.type]
    windowed = WindowedPass(engine.run, layers, batch_s=batch_s, lookahead_s=GATHERED_S)
    described = [MeanAndDeviation() for _ in waves]
    for piece, passed in windowed.over(pieces([chunker.cut_wave(wave) for wave in waves])):
        described[piece.clip].add(passed.kept(piece.window.skip, piece.window.keep).frames)
    return np.stack([one.described(deviations) for one in described])


class MeanAndDeviation:
    """Over frames that come in parts, in float64, as `types.Moments` adds them up (Chan et al. 1979); without
    its products of pairs, which for all values of all layers would fill the memory."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] | float = 0.0
        self.squares: NDArray[np.float64] | float = 0.0
        """The sum of squared distances from the mean."""

    def add(self, frames: NDArray[np.float32]) -> None:
        """Frames (T, ...), in any order; T may be 0."""
        if not len(frames):
            return
        frames64 = frames.astype(np.float64)
        mean = frames64.mean(0)
        apart, total = mean - self.mean, self.count + len(frames)
        self.squares += np.square(frames64 - mean).sum(0) + apart**2 * (self.count * len(frames) / total)
        self.mean += apart * (len(frames) / total)
        self.count = total

    def described(self, deviations: bool) -> NDArray[np.float32]:
        """The mean, then the standard deviation if asked. Raises ValueError if there is no frame."""
        if not self.count:
            raise ValueError("nothing to describe: there is no frame")
        parts = [self.mean, np.sqrt(self.squares / self.count)] if deviations else [self.mean]
        return np.concatenate(parts, axis=-1).astype(np.float32)


def log_mel(waves: Sequence[Waveform]) -> Means:
    """Mean and standard deviation over time of 80 log-mel bands (windows of 25 ms every 10 ms, natural
    logarithm of the power): (N, 1, 160). Unlike the encoder's features, they depend on a clip's loudness."""
    librosa = _librosa()

    def bands(wave: Waveform) -> NDArray[np.float32]:
        power = librosa.feature.melspectrogram(y=wave, power=2.0, **SPECTRUM)
        return np.asarray(np.log(np.maximum(power, 1e-10)), dtype=np.float32)

    return _moments(waves, bands)


def mfcc(waves: Sequence[Waveform]) -> Means:
    """Mean and standard deviation over time of 13 MFCCs and their two differences: (N, 1, 78)."""
    librosa = _librosa()

    def coefficients(wave: Waveform) -> NDArray[np.float32]:
        static = librosa.feature.mfcc(y=wave, n_mfcc=13, **SPECTRUM)
        # the default mode refuses clips of fewer than 9 frames
        deltas = [librosa.feature.delta(static, order=order, mode="nearest") for order in (1, 2)]
        return np.concatenate([static, *deltas])

    return _moments(waves, coefficients)


def _moments(waves: Sequence[Waveform], spectrum: Callable[[Waveform], NDArray[np.float32]]) -> Means:
    rows = []
    for wave in waves:
        x_DT = spectrum(wave)
        rows.append(np.concatenate([x_DT.mean(1, dtype=np.float64), x_DT.std(1, dtype=np.float64)]))
    return np.stack(rows).astype(np.float32)[:, None, :]


def _librosa() -> Any:
    with eval_extra("log-mel and MFCC"):
        import librosa  # takes a second, which the encoder's own features can do without

    return librosa
