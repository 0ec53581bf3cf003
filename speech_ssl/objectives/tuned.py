"""The base of objectives that are trained on labels: an encoder with a head."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Objective
from speech_ssl.objectives.masking import hide_spans
from speech_ssl.objectives.rooms import reverberate
from speech_ssl.objectives.views import add_noise, change_speed, random_gain, uniform
from speech_ssl.types import Batch, Frames

FASTEST = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class FineTuneConfig:
    """How an encoder is fine-tuned with labels (wav2vec 2.0, section 4.3 and appendix B).

    Defaults: the paper's for ten hours of transcribed speech (table 6).
    """

    head_only: float = 0.5
    """Share of the run in which only the head is trained; 1 keeps the encoder frozen for good."""
    train_frontend: bool = False
    """Train the front end too: for an encoder that was not pre-trained."""
    hidden_share: float = 0.65
    """As in `hide_spans`: the paper's probability that a span begins, 0.065, times the span."""
    hidden_span: int = 10
    channel_share: float = 0.256
    channel_span: int = 64
    """Channels per hidden span, limited to a quarter of a narrow encoder's channels: with all of them hidden
    no input would be left, and a norm cannot scale a row of zeros."""
    dropout: float = 0.1
    """Dropout in the head."""

    speed: float = 0.0
    """Rows are played faster or slower by up to this share, pitch included (Ko et al. 2015, "Audio
    augmentation for speech recognition": 0.1)."""
    rooms: float = 0.0
    """Share of the rows that are heard in a room, see `reverberate`."""
    noise: float = 0.0
    """Share of the rows that get noise."""
    noise_snr_db: tuple[float, float] = (5.0, 30.0)
    gain_db: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.head_only <= 1:
            raise ValueError(f"head_only is a share of the steps in [0, 1], not {self.head_only}")
        if not 0 <= self.speed <= FASTEST:
            raise ValueError(f"speed is a share in [0, {FASTEST}], not {self.speed}")


class Tuned(Objective):
    """An encoder and a head trained on labels."""

    def __init__(self, encoder: Encoder, head: nn.Module, tuning: FineTuneConfig) -> None:
        super().__init__()
        self.encoder, self.head, self.tuning = encoder, head, tuning
        if not tuning.train_frontend:
            encoder.frontend.requires_grad_(False)
        if self.frozen:
            encoder.requires_grad_(False)
        self.trains_encoder = tuning.head_only == 0

    @property
    def frozen(self) -> bool:
        """Whether the run leaves the encoder unchanged."""
        return self.tuning.head_only == 1

    def train(self, mode: bool = True) -> Tuned:
        """A frozen encoder stays in eval mode, without dropout, as it will be used."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def set_progress(self, progress: float) -> None:
        self.trains_encoder = not self.frozen and progress >= self.tuning.head_only

    def augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        """In training: the waves as `tuning` changes them. Rows are padded so that none loses its end."""
        tuning, wave_BS, lengths_B = self.tuning, batch.wave_BS, batch.lengths_B
        if not self.training:
            return batch
        if tuning.speed:
            factor_B = 1 + tuning.speed * (2 * uniform(len(wave_BS), generator) - 1)
            longest = math.ceil(wave_BS.shape[1] / (1 - tuning.speed))
            wave_BS = F.pad(wave_BS, (0, longest - wave_BS.shape[1]))
            wave_BS, lengths_B = change_speed(wave_BS, lengths_B, factor_B)
        if tuning.rooms:
            wave_BS = reverberate(wave_BS, lengths_B, share=tuning.rooms, generator=generator)
        if tuning.noise:
            wave_BS = add_noise(
                wave_BS, lengths_B, snr_db=tuning.noise_snr_db, share=tuning.noise, generator=generator
            )
        if tuning.gain_db:
            wave_BS = random_gain(wave_BS, most_db=tuning.gain_db, generator=generator)
        return replace(batch, wave_BS=wave_BS, lengths_B=lengths_B)

    def outputs(self, batch: Batch, generator: torch.Generator) -> Frames:
        """The head's outputs (B, T, O); in training with time spans and channels hidden."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_encoder):
            features = self.encoder.normalized(self.encoder.convolve(batch.wave_BS, batch.lengths_B))
            hidden = self._hidden(features, generator) if self.training else ()
            states = list(self.encoder.blockwise(features, *hidden))
        return Frames(self.head(states), features.lengths_B)

    def _hidden(self, features: Frames, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames (B, T) and channels (B, D) to hide, bool."""
        tuning, (B, T, _) = self.tuning, features.x_BTD.shape
        D = self.encoder.config.width
        hidden_BT = hide_spans(
            features.lengths_B,
            T,
            share=tuning.hidden_share,
            span=tuning.hidden_span,
            generator=generator,
            least=0,
        )
        hidden_BD = hide_spans(
            features.lengths_B.new_full((B,), D),
            D,
            share=tuning.channel_share,
            span=min(tuning.channel_span, max(D // 4, 1)),
            generator=generator,
            least=0,
        )
        return hidden_BT, hidden_BD
