"""Denoising auto-encoder: hear a damaged wave, and tell the log-mel frames of the clean one.

Vincent et al. 2008 ("Extracting and composing robust features with denoising autoencoders"), for speech as in
PASE+ (Ravanelli et al. 2020, arXiv 2001.09239), whose encoder sees distorted waves and predicts features of
the clean one. With "bandwidth" the damage is that of audio super-resolution (Kuleshov et al. 2017, arXiv
1708.00853), with "inpainting" that of context encoders (Pathak et al. 2016, arXiv 1604.07379), over time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.mel import MelFrontend
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments
from speech_ssl.objectives.masking import hide_spans
from speech_ssl.objectives.views import add_noise
from speech_ssl.types import SAMPLE_RATE, Batch, LossSum, valid_mask

Damage = Literal["noise", "bandwidth", "inpainting"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoisingConfig:
    """The published methods have other encoders and targets; numbers are ours where nothing else is said."""

    damage: Damage = "noise"
    """"noise": coloured noise, or others' speech, is added to each row. "bandwidth": each row loses what is
    above a frequency. "inpainting": spans of each row are silenced, and their frames alone are targets."""
    snr_db: tuple[float, float] = (0.0, 15.0)
    babble: float = 0.5
    """Share of the noises that are other rows of the batch."""
    cutoff_hz: tuple[float, float] = (8_000 / 6, 4_000.0)
    """The super-resolution by 2 to 6 of Kuleshov et al., section 4."""
    hidden_share: float = 0.4
    """As `hide_spans` takes it."""
    hidden_s: float = 0.1
    """Of each span."""
    bins: int = 80
    """Of the targets."""

    def __post_init__(self) -> None:
        if self.damage not in get_args(Damage):
            raise ValueError(f"damage must be one of {', '.join(get_args(Damage))}, not {self.damage!r}")
        low, high = self.cutoff_hz
        if not 0 < low <= high:
            raise ValueError(f"cutoff_hz must be (lowest, highest), above 0, not {self.cutoff_hz}")

    def build(self, encoder: Encoder) -> Denoising:
        return Denoising(encoder, self)


def low_pass(wave_BS: Tensor, lengths_B: Tensor, cutoff_hz_B: Tensor) -> Tensor:
    """Each row without anything above its frequency. `views.band_pass` only makes that quieter: an encoder
    that normalises bins by themselves, as of log-mel, would hear it as well as ever."""
    S = wave_BS.shape[1]
    size = 1 << S.bit_length()
    hertz_F = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=wave_BS.device)
    spectrum_BF = torch.fft.rfft(wave_BS, n=size).masked_fill(hertz_F > cutoff_hz_B[:, None], 0.0)
    passed_BS: Tensor = torch.fft.irfft(spectrum_BF, n=size)[:, :S]
    return passed_BS.masked_fill(~valid_mask(lengths_B, S), 0.0)


def silence_frames(wave_BS: Tensor, hidden_BT: Tensor, hop: int, field: int) -> Tensor:
    """Zeros for all samples that a hidden frame sees: frame t sees `field` of them, from t * hop on."""
    T = hidden_BT.shape[1]
    at_S = torch.arange(wave_BS.shape[1], device=wave_BS.device)
    silent_BS = torch.zeros_like(wave_BS, dtype=torch.bool)
    for back in range(-(-field // hop)):  # frames that may see a sample, from the last to begin
        frame_S = at_S // hop - back
        sees_S = (frame_S >= 0) & (frame_S < T) & (at_S - frame_S * hop < field)
        silent_BS |= hidden_BT[:, frame_S.clamp(0, T - 1)] & sees_S
    return wave_BS.masked_fill(silent_BS, 0.0)


class Denoising(Objective):
    """An encoder that is given damaged waves, and a linear layer from its frames to clean log-mel steps."""

    def __init__(self, encoder: Encoder, config: DenoisingConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        encoder.hidden_vector.requires_grad_(False)  # no frame is hidden: if anything, samples are
        self.mel = MelFrontend(config.bins, stacked=1)
        if encoder.receptive_field < self.mel.receptive_field:
            raise ValueError(
                f"frames must see at least the {self.mel.receptive_field} samples of a log-mel step, not "
                f"{encoder.receptive_field}"
            )
        self.steps = max(round(encoder.hop / self.mel.hop), 1)
        self.predict = nn.Linear(encoder.config.width, self.steps * config.bins)
        nn.init.normal_(self.predict.weight, std=0.002)  # or the encoder learns first of all to say less

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """The sum of |predicted - clean|, a mean over the bins and steps of a frame; targets are valid
        frames, of "inpainting" silenced ones. Raises ValueError if the batch is too short for a frame."""
        wave_BS = batch.wave_BS.masked_fill(~valid_mask(batch.lengths_B, batch.wave_BS.shape[1]), 0.0)
        damaged_BS, chosen_BT = self._damaged(wave_BS, batch.lengths_B, generator)
        context = self.encoder(damaged_BS, batch.lengths_B)
        B, T, _ = context.x_BTD.shape
        target_BTKC, there_BTK = self.targets(wave_BS, batch.lengths_B, T)
        with torch.autocast(wave_BS.device.type, enabled=False):
            predicted_BTKC = self.predict(context.x_BTD.float()).view(B, T, self.steps, -1)
            weight_BT, weight_BTK = chosen_BT.float(), there_BTK.float()
            weight_BTK = weight_BTK / weight_BTK.sum(-1, keepdim=True).clamp(min=1) * weight_BT[:, :, None]
            total = ((predicted_BTKC - target_BTKC).abs().mean(-1) * weight_BTK).sum()
            blind = (target_BTKC.abs().mean(-1) * weight_BTK).sum()
            count, valid_BT = weight_BT.sum(), context.valid_BT.float()
            scale = count / valid_BT.sum().clamp(min=1)
            spread = moments(context.x_BTD, valid_BT)
        metrics = {"blind": blind, **{name: value * scale for name, value in spread.items()}}
        return LossSum(total, count, {name: value.detach() for name, value in metrics.items()})

    def targets(self, wave_BS: Tensor, lengths_B: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """Log-mel steps of each frame (B, T, K, bins), of mean 0 and variance 1 in each bin over the clip,
        so that silence is zero; and which are there (B, T, K).

        Steps begin each 10 ms. Frame t, which sees the samples from t * hop on, has the last step that
        begins no later than it, and as many after that as begin within a hop: two of a hop of 20 ms.
        """
        steps = self.mel(wave_BS, lengths_B)
        first_T1 = torch.arange(frames, device=wave_BS.device)[:, None] * self.encoder.hop // self.mel.hop
        at_TK = first_T1 + torch.arange(self.steps, device=wave_BS.device)
        there_BTK = at_TK < steps.lengths_B[:, None, None]
        return steps.x_BTD[:, at_TK.clamp(max=steps.x_BTD.shape[1] - 1)], there_BTK

    def _damaged(
        self, wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The waves as the encoder is given them, and the frames that are targets (B, T)."""
        config, hop = self.config, self.encoder.hop
        frames = self.encoder.frame_count(lengths_B).clamp(min=0)
        T = self.encoder.frame_count(wave_BS.shape[1])
        valid_BT = valid_mask(frames, T)
        if config.damage == "inpainting":
            span = max(round(config.hidden_s * SAMPLE_RATE / hop), 1)
            hidden_BT = hide_spans(
                frames, T, share=config.hidden_share, span=span, generator=generator, least=1
            )
            field = max(
                self.encoder.receptive_field, self.mel.receptive_field + (self.steps - 1) * self.mel.hop
            )
            return silence_frames(wave_BS, hidden_BT, hop, field), hidden_BT
        if config.damage == "bandwidth":
            low, high = config.cutoff_hz
            draw_B = torch.rand(len(wave_BS), device=wave_BS.device, generator=generator)
            return low_pass(wave_BS, lengths_B, low + (high - low) * draw_B), valid_BT
        noisy_BS = add_noise(
            wave_BS, lengths_B, snr_db=config.snr_db, share=1.0, generator=generator, babble=config.babble
        )
        return noisy_BS, valid_BT

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """`blind`: the loss of telling each bin's mean. Adds `effective_rank` of the contexts."""
        return super().report(means) | {
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"])
        }

    def floors(self) -> Mapping[str, Floor]:
        return {
            "effective_rank": Floor(
                2.0,
                "the contexts point in one or two directions. Lower the peak learning rate, lengthen the "
                "warm-up, and look for silent or constant audio in the manifest",
            )
        }
