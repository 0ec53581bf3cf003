"""DinoSR: predict, at hidden frames, the clusters into which a teacher's top layers fall as it learns.

Liu et al. 2023, arXiv 2305.10005, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.codebooks import Clustering, ClusteringConfig
from speech_ssl.objectives.masking import hidden_positions, hide_spans, most_hidden, take
from speech_ssl.objectives.teacher import encoder_teacher, told
from speech_ssl.types import Batch, LossSum


@dataclass(frozen=True, kw_only=True, slots=True)
class DinoSRConfig(ClusteringConfig):
    """Defaults: for LibriSpeech."""

    ema: tuple[float, float] = (0.999, 0.9999)
    """lambda: first and last."""
    ema_warmup: float = 30_000 / 400_000
    """Share of the run in which lambda rises."""

    def build(self, encoder: Encoder) -> DinoSR:
        return DinoSR(encoder, self)


class DinoSR(Clustering):
    """One linear head for each of the teacher's top layers, all on the student's output."""

    def __init__(self, encoder: Encoder, config: DinoSRConfig) -> None:
        teacher = encoder_teacher(encoder, config.ema, config.ema_warmup)
        super().__init__(encoder, teacher, config)
        self.config = config
        self.heads = nn.Linear(encoder.config.width, config.top * config.entries)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        config, features = self.config, self.features(batch)
        size = features.x_BTD.shape[1]
        spans = {"share": config.hidden_share, "span": config.hidden_span}
        hidden_BT = hide_spans(features.lengths_B, size, generator=generator, **spans)  # type: ignore[arg-type]
        position_BM, chosen_BM = hidden_positions(hidden_BT, most_hidden(size, **spans))  # type: ignore[arg-type]
        target_GND, beyond = self.targets(features, position_BM)

        context_BTD = self.encoder.contextualize(features, hidden_BT=hidden_BT).x_BTD
        logits_BMV = self.heads(take(context_BTD, position_BM))
        logits_GNV = logits_BMV.view(-1, config.top, config.entries).transpose(0, 1)
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            seen_BT = features.valid_BT & ~hidden_BT
            metrics = told(beyond, context_BTD, seen_BT, chosen_BM.sum().float())
            return self.compared(logits_GNV, target_GND, chosen_BM, metrics)
