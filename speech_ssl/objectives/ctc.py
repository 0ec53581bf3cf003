"""CTC: transcribe, from few labels, with a pre-trained encoder.

The loss: Graves et al. 2006. The fine-tuning: Baevski et al. 2020, arXiv 2006.11477, section 4.3 and
appendix B: a frozen front end, the new head alone at first, and hidden time steps and channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.heads import CTCHead
from speech_ssl.objectives.base import Floor, Objective
from speech_ssl.objectives.masking import hide_spans
from speech_ssl.types import Batch, Frames, LossSum


@dataclass(frozen=True, kw_only=True, slots=True)
class CTCConfig:
    """Defaults: the paper's for ten hours of labels (table 6)."""

    units: int
    """Of the vocabulary, the blank included, which is unit 0."""
    head_only: float = 0.5
    """Share of the run in which the encoder stays as it is."""
    hidden_share: float = 0.065
    hidden_span: int = 10
    channel_share: float = 0.004
    channel_span: int = 64
    dropout: float = 0.1

    def build(self, encoder: Encoder) -> CTC:
        return CTC(encoder, self)


class CTC(Objective):
    """Encoder and head. A batch's `targets_BU` holds units from 1 on, padded with anything."""

    def __init__(self, encoder: Encoder, config: CTCConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        encoder.frontend.requires_grad_(False)
        self.head = CTCHead(encoder.config.width, config.units, config.dropout)
        self.trains_encoder = config.head_only == 0

    def after_step(self, progress: float) -> None:
        self.trains_encoder = progress >= self.config.head_only

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """The sum of the negative log-likelihoods in nats, over as many targets as there are units.

        A row whose units do not fit into its frames has no alignment and an infinite loss: it is left
        out, and its units are counted as `impossible`. Raises ValueError if the batch has no targets.
        """
        if batch.targets_BU is None or batch.target_lengths_B is None:
            raise ValueError("CTC needs targets: the manifest has no text")
        targets_BU, target_lengths_B = batch.targets_BU, batch.target_lengths_B
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_encoder):
            frames = self._frames(batch, generator)
        log_probs_BTV = self.head(frames.x_BTD)
        total = F.ctc_loss(
            log_probs_BTV.transpose(0, 1),
            targets_BU,
            frames.lengths_B,
            target_lengths_B,
            blank=0,
            reduction="sum",
            zero_infinity=True,  # in the gradient too, which a mask on the loss would leave no number
        )
        possible_B = least_frames(targets_BU, target_lengths_B) <= frames.lengths_B
        count = (target_lengths_B * possible_B).sum().float()
        units = target_lengths_B.sum().float()
        with torch.no_grad():
            valid_BT = frames.valid_BT
            spoken = ((log_probs_BTV.argmax(-1) != 0) & valid_BT).sum() / valid_BT.sum().clamp(min=1)
        metrics = {"spoken": spoken * count, "impossible": units - count}
        return LossSum(total, count, {k: v.detach() for k, v in metrics.items()})

    def floors(self) -> Mapping[str, Floor]:
        return {
            "spoken": Floor(
                0.01,
                "nearly every frame is a blank: the plateau on which CTC may stay for ever. Raise the peak "
                "learning rate or the steps, and check that the texts belong to the audio",
            )
        }

    def _frames(self, batch: Batch, generator: torch.Generator) -> Frames:
        config = self.config
        features = self.encoder.normalized(self.encoder.convolve(batch.wave_BS, batch.lengths_B))
        if not self.training:
            return self.encoder.contextualize(features)
        B, T, C = features.x_BTD.shape
        hidden_BT = hide_spans(
            features.lengths_B,
            T,
            share=config.hidden_share,
            span=config.hidden_span,
            generator=generator,
            least=0,
        )
        channels_B = features.lengths_B.new_full((B,), C)
        hidden_BC = hide_spans(
            channels_B,
            C,
            share=config.channel_share,
            span=min(config.channel_span, C),
            generator=generator,
            least=0,
        )
        features = Frames(features.x_BTD.masked_fill(hidden_BC[:, None, :], 0.0), features.lengths_B)
        return self.encoder.contextualize(features, hidden_BT=hidden_BT)


def least_frames(targets_BU: Tensor, lengths_B: Tensor) -> Tensor:
    """The fewest frames that can say each row's units: one a unit, and a blank between equal ones."""
    within_BU = torch.arange(1, targets_BU.shape[1], device=lengths_B.device) < lengths_B[:, None]
    repeats_B = ((targets_BU[:, 1:] == targets_BU[:, :-1]) & within_BU).sum(1)
    return lengths_B + repeats_B
