"""data2vec: predict, at hidden frames, what a teacher that hears everything makes of them.

Baevski et al. 2022, arXiv 2202.03555, section 3 and, for speech, 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.masking import hidden_positions, hide_spans, most_hidden, take
from speech_ssl.objectives.teacher import Regressing, Spoken, encoder_teacher, regression, told
from speech_ssl.types import Batch, LossSum


@dataclass(frozen=True, kw_only=True, slots=True)
class Data2VecConfig:
    """Defaults: Base for speech (sections 4.2 and 3.3; the ranges of tau and K are the published file's)."""

    hidden_share: float = 0.65
    hidden_span: int = 10
    top: int = 8
    """K, the layers whose mean is the target."""
    spoken: Spoken = "feed_forward"
    beta: float = 0.0
    """Of the smooth L1 loss; 0 is the squared error, as for speech."""
    ema: tuple[float, float] = (0.999, 0.9999)
    """tau: first and last."""
    ema_warmup: float = 30_000 / 400_000
    """Share of the run in which tau rises."""

    def build(self, encoder: Encoder) -> Data2Vec:
        return Data2Vec(encoder, self)


class Data2Vec(Regressing):
    """Student and teacher share front end, projection and positions (section 3.3); a linear layer on the
    student's output meets the target."""

    def __init__(self, encoder: Encoder, config: Data2VecConfig) -> None:
        teacher = encoder_teacher(encoder, config.ema, config.ema_warmup)
        super().__init__(encoder, teacher, config.top)
        self.config, self.spoken = config, config.spoken
        self.predict = nn.Linear(encoder.config.width, encoder.config.width)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        config, features = self.config, self.features(batch)
        size = features.x_BTD.shape[1]
        spans = {"share": config.hidden_share, "span": config.hidden_span}
        hidden_BT = hide_spans(features.lengths_B, size, generator=generator, **spans)  # type: ignore[arg-type]
        position_BM, chosen_BM = hidden_positions(hidden_BT, most_hidden(size, **spans))  # type: ignore[arg-type]
        target_BTD, beyond = self.targets(features)

        context_BTD = self.encoder.contextualize(features, hidden_BT=hidden_BT).x_BTD
        predicted_BMD = self.predict(take(context_BTD, position_BM))
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            seen_BT = features.valid_BT & ~hidden_BT
            metrics = told(beyond, context_BTD, seen_BT, chosen_BM.sum().float())
            target_BMD = take(target_BTD, position_BM)
            return regression(predicted_BMD, target_BMD, chosen_BM, metrics, config.beta)
