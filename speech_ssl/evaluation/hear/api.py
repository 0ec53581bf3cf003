"""The three functions of HEAR's common API, and the model that they pass around."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speech_ssl.inference.chunking import Chunker
from speech_ssl.inference.engines.torch import TorchEngine
from speech_ssl.inference.outputs import PoolingOrNone, Stitcher
from speech_ssl.inference.runtime import named_artifact
from speech_ssl.inference.windows import BATCH_S, WindowedPass
from speech_ssl.model.encoder import Encoder
from speech_ssl.types import SAMPLE_RATE, Waveform

LAYER = ":layer="


class HearModel(nn.Module):
    """A frozen copy of an encoder, in fp32, that may be moved between devices as any module.

    An embedding is all hidden states side by side: which of them knows something depends on the task, and
    HEAR's heads are given one vector. They can choose among layers, but of few clips they do so less well
    than a learned mix of layers does (docs/labels.md has figures). layer: one state alone, as
    `Encoder.hidden_states` numbers them; negative numbers count from the end.

    Long audio is computed in windows, as a runtime does. Raises ValueError for a layer that is not there.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, encoder: Encoder, layer: int | None = None) -> None:
        super().__init__()
        count = encoder.config.depth + 1
        if layer is not None and not -count <= layer < count:
            raise ValueError(f"layer must be from 0 to {count - 1}, or from -{count} to -1, not {layer}")
        self.layers = tuple(range(count)) if layer is None else (layer % count,)
        self._engine = TorchEngine(encoder, "cpu", "fp32")
        self.encoder = self._engine.encoder
        self._chunker = Chunker.of(self.encoder)
        self.scene_embedding_size = self.timestamp_embedding_size = len(self.layers) * encoder.config.width

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def scenes(self, waves: Sequence[Waveform]) -> NDArray[np.float32]:
        """The mean over time of waves of any lengths: (N, scene_embedding_size). Raises AudioError
        (a ValueError) for one that is too short for a frame."""
        return np.stack([clip.pooled.ravel() for clip in self._stitched(waves, "mean")])

    def frames(self, waves: Sequence[Waveform]) -> list[NDArray[np.float32]]:
        """Each wave's (T, timestamp_embedding_size). Raises as `scenes`."""
        return [(x := clip.vectors).reshape(len(x), -1) for clip in self._stitched(waves, "none")]

    def timestamps_ms(self, frames: int) -> Tensor:
        """The middles of what the first so many frames see, (T,) float32."""
        samples_T = torch.arange(frames, dtype=torch.float64) * self.encoder.hop
        milliseconds_T = (samples_T + self.encoder.receptive_field / 2) * 1_000 / SAMPLE_RATE
        return milliseconds_T.float()

    def _stitched(self, waves: Sequence[Waveform], pooling: PoolingOrNone) -> list[Stitcher]:
        self._engine.device = self.device  # it may have been moved since
        windowed = WindowedPass(self._engine.run, self.layers, batch_s=BATCH_S[self.device.type])
        return windowed.stitched([self._chunker.cut_wave(wave) for wave in waves], pooling)


def load_model(model_file_path: str = "default") -> HearModel:
    """What `speech_ssl.load` opens: a folder, an id of the Hugging Face hub, or "default", as is an empty
    path: the packaged model. "NAME:layer=3" takes that hidden state alone.

    Raises ValueError (ArtifactError where the model is at fault).
    """
    name, chosen, layer = model_file_path.rpartition(LAYER)
    if not chosen:
        return HearModel(named_artifact(model_file_path or "default").encoder)
    try:
        number = int(layer)
    except ValueError:
        raise ValueError(f"{model_file_path}: after {LAYER} comes a number, not {layer!r}") from None
    return HearModel(named_artifact(name or "default").encoder, number)


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """audio: (n_sounds, n_samples) in [-1, 1] at `model.sample_rate`. Returns (n_sounds,
    scene_embedding_size) float32 on the model's device. Raises ValueError for other shapes and types, and
    for sounds that are too short for a frame."""
    return torch.from_numpy(model.scenes(_waves(audio))).to(model.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Returns embeddings (n_sounds, T, timestamp_embedding_size) and the middle of each in milliseconds
    (n_sounds, T), both float32 on the model's device. audio, and what is raised: as of
    `get_scene_embeddings`."""
    found_BTD = torch.from_numpy(np.stack(model.frames(_waves(audio)))).to(model.device)
    times_T = model.timestamps_ms(found_BTD.shape[1]).to(model.device)
    return found_BTD, times_T.repeat(len(found_BTD), 1)


def _waves(audio: Tensor) -> list[Waveform]:
    if audio.ndim != 2 or not audio.is_floating_point() or not len(audio):
        raise ValueError(
            f"audio must be floats of shape (n_sounds, n_samples), not {audio.dtype} of {tuple(audio.shape)}"
        )
    return list(audio.detach().float().cpu().numpy())
