"""The runtime: waves or files in, features out. All that the service and extraction know of a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from speech_ssl import audio
from speech_ssl.audio import AudioError
from speech_ssl.checkpoints.artifact import Artifact, ArtifactError, load_artifact
from speech_ssl.inference.batching import Piece, batches
from speech_ssl.inference.chunking import Chunker, Window
from speech_ssl.inference.engines import Precision, TorchEngine
from speech_ssl.inference.pooling import Pool
from speech_ssl.types import SAMPLE_RATE, Features, Pooling, Waveform

Clip: TypeAlias = Waveform | str | Path
"""A wave (S,) at 16 kHz, or the path of an audio file of any rate."""

WINDOW_S = 20.0
CONTEXT_S = 2.0
BATCH_S = {"cpu": 20.0, "cuda": 160.0}
LOOKAHEAD = 8  # batches' worth of audio that is gathered to group it by length


class Runtime:
    """A model, ready to encode. Synchronous, for one thread at a time.

    Clips longer than `window_s` are computed in overlapping windows, each normalised by itself; the
    frames next to a cut come from the window that sees more around them. They are not those of one
    pass over the whole, where each frame attends to all others: with the packaged model, on readings of
    1.5 to 4.6 minutes, 7 % off (relative L2), and the mean over time 1.6 % (benchmarks/stitching.py).

    name, sha256: of the artifact. width: D of the frames. num_layers: N; layers are 0 to N, as
    transformers' hidden_states. hop, min_samples: in samples at 16 kHz. batch_s: seconds of padded
    audio that one pass should have at most.
    """

    sample_rate = SAMPLE_RATE

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
        window_s: float = WINDOW_S,
        context_s: float = CONTEXT_S,
    ) -> None:
        encoder = artifact.encoder
        self._engine = TorchEngine(encoder, device, precision)
        self.name, self.sha256 = artifact.name, artifact.sha256
        self.device, self.precision = self._engine.device, self._engine.precision
        self.width, self.num_layers = encoder.config.width, encoder.config.depth
        self.hop, self.min_samples = encoder.hop, encoder.receptive_field
        self.chunker = Chunker.of_seconds(self.hop, self.min_samples, window_s=window_s, context_s=context_s)
        self.batch_s = max(BATCH_S[self.device.type], self.window_s)

    @property
    def window_s(self) -> float:
        """Seconds of the longest window."""
        return self.chunker.window_s

    def check_layer(self, layer: int) -> int:
        """A layer as an index from 0, negatives counted from the end. Raises ValueError out of range."""
        if not -self.num_layers - 1 <= layer <= self.num_layers:
            raise ValueError(
                f"layer {layer} is not there: {self.name} has 0 to {self.num_layers}, or -1 for the last"
            )
        return layer if layer >= 0 else layer + self.num_layers + 1

    def plan(self, num_samples: int) -> list[Window]:
        """The windows of a clip: one if it is short. Raises AudioError `too_short`."""
        return self.chunker.plan(num_samples)

    def encode_windows(self, waves: Sequence[Waveform], layers: Sequence[int]) -> list[NDArray[np.float32]]:
        """One padded forward pass: all frames (T, D) of each wave, each at its own layer."""
        if not waves:
            return []
        for wave in waves:
            self.plan(len(wave))
        return self._engine.run(waves, [self.check_layer(layer) for layer in layers])

    def encode(self, waves: Sequence[Clip], *, layer: int = -1) -> list[Features]:
        """Features of each clip, in order.

        Raises AudioError (a ValueError) that names the clip, ValueError for a layer that is not there,
        OSError for a file that cannot be opened.
        """
        layer = self.check_layer(layer)
        clips = _checked(waves)
        for index, clip in enumerate(clips):
            if not isinstance(clip, str | Path):
                with _naming(f"clip {index}"):
                    self.plan(len(clip))
        parts: list[dict[int, NDArray[np.float32]]] = [{} for _ in clips]
        ends = [0] * len(clips)
        lookahead_s = LOOKAHEAD * self.batch_s
        for batch in batches(self._pieces(clips), budget_s=self.batch_s, lookahead_s=lookahead_s):
            frames = self.encode_windows([piece.wave for piece in batch], [layer] * len(batch))
            for piece, x_TD in zip(batch, frames, strict=True):
                window = piece.window
                parts[piece.clip][piece.index] = x_TD[window.skip : window.skip + window.keep]
                ends[piece.clip] = max(ends[piece.clip], window.stop)
        return [self._stitched(part, end) for part, end in zip(parts, ends, strict=True)]

    def stream(self, source: Clip, *, layer: int = -1) -> Iterator[NDArray[np.float32]]:
        """The frames of one clip, piece by piece, in memory that does not grow with its length."""
        layer = self.check_layer(layer)
        windows = self._windows(_checked([source])[0])
        at_once = max(int(self.batch_s / self.window_s), 1)
        while group := list(islice(windows, at_once)):
            frames = self.encode_windows([wave for _, wave in group], [layer] * len(group))
            for (window, _), x_TD in zip(group, frames, strict=True):
                yield x_TD[window.skip : window.skip + window.keep]

    def pooled(self, source: Clip, how: Pooling = "mean", *, layer: int = -1) -> NDArray[np.float32]:
        """One vector (D,) for a clip, in memory that does not grow with its length."""
        pool = Pool(how)
        for frames in self.stream(source, layer=layer):
            pool.add(frames)
        return pool.result()

    def _pieces(self, clips: Iterable[Clip]) -> Iterator[Piece]:
        for number, clip in enumerate(clips):
            for index, (window, wave) in enumerate(self._windows(clip)):
                yield Piece(number, index, window, wave)

    def _windows(self, clip: Clip) -> Iterator[tuple[Window, Waveform]]:
        if isinstance(clip, str | Path):
            with _naming(str(clip)):
                yield from self.chunker.cut(audio.stream(clip))
        else:
            for window in self.plan(len(clip)):
                yield window, clip[window.start : window.stop]

    def _stitched(self, parts: dict[int, NDArray[np.float32]], samples: int) -> Features:
        frames = [parts[index] for index in sorted(parts)]
        joined = frames[0] if len(frames) == 1 else np.concatenate(frames)
        return Features(joined, samples / SAMPLE_RATE, self.hop / SAMPLE_RATE)


def load(model: str | Path = "default", device: str = "cpu", precision: Precision = "auto") -> Runtime:
    """A runtime for the artifact in a folder, or for the packaged model, "default".

    Raises ValueError (ArtifactError where the artifact is at fault).
    """
    return Runtime(load_artifact(_folder(model)), device=device, precision=precision)


def _folder(model: str | Path) -> Path:
    if model == "default":
        folder = Path(str(files("speech_ssl") / "assets" / "default"))
        if not folder.is_dir():
            raise ArtifactError("this installation has no default model: name the folder of an artifact")
        return folder
    if isinstance(model, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not Path(model).exists():
        raise ArtifactError(
            f"{model}: no such folder, and models of the Hugging Face hub cannot be loaded in this version: "
            "name the folder of an artifact"
        )
    return Path(model)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the clip's name before an error that does not say it."""
    try:
        yield
    except AudioError as error:
        if name in str(error):
            raise
        raise AudioError(error.code, f"{name}: {error}") from error


def _checked(clips: Sequence[Clip]) -> list[Clip]:
    if isinstance(clips, str | Path | np.ndarray):
        raise ValueError("encode takes a list of clips: encode([clip])")
    return [clip if isinstance(clip, str | Path) else _checked_wave(clip, i) for i, clip in enumerate(clips)]


def _checked_wave(wave: object, index: int) -> Waveform:
    """float32, whatever floats came; every other mistake is named with its remedy."""
    if not isinstance(wave, np.ndarray):
        raise ValueError(f"clip {index} must be a path or a numpy array, not {type(wave).__name__}")
    if not np.issubdtype(wave.dtype, np.floating):
        remedy = ": divide by 32768 for floats" if wave.dtype == np.int16 else ""
        raise AudioError("bad_samples", f"clip {index} must hold floats in [-1, 1], not {wave.dtype}{remedy}")
    if wave.ndim != 1:
        raise AudioError(
            "bad_samples",
            f"clip {index} must be one channel, of shape (samples,), not {wave.shape}: take the mean over "
            "the channels",
        )
    with np.errstate(over="ignore"):
        wave = np.ascontiguousarray(wave, dtype=np.float32)
    if not np.isfinite(wave).all():
        raise AudioError("bad_samples", f"clip {index} holds NaN or infinite samples")
    return wave
