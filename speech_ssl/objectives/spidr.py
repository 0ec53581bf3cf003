"""SpidR: each top layer of the student predicts, at hidden frames, the clusters of the teacher's same layer.

Poli et al. 2025, arXiv 2512.20308. DinoSR's student predicts all codebooks from its last layer. Also new is
the teacher's rate, which falls exponentially. As in the published code, targets are the teacher's
feed-forward outputs, instance-normalised. Our choice: a head of the student reads what the layer gives to
whoever uses it, the output of the block, of the last one after the final norm; theirs reads the output of the
feed-forward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.codebooks import Clustering, ClusteringConfig
from speech_ssl.objectives.masking import hidden_positions, hide_spans, most_hidden, take
from speech_ssl.objectives.teacher import SHARED, EMATeacher, told
from speech_ssl.types import Batch, LossSum


@dataclass(frozen=True, kw_only=True, slots=True)
class SpidRConfig(ClusteringConfig):
    """Defaults: those of the published code, whose run has 400,000 steps."""

    first_tau: float = 0.999
    """Of the teacher; 1 - tau falls exponentially."""
    timescale: float = 20_000 / 400_000
    """Share of the run in which 1 - tau falls to 1 / e."""

    def build(self, encoder: Encoder) -> SpidR:
        return SpidR(encoder, self)


class ExponentialTeacher(EMATeacher[Encoder]):
    """1 - tau = (1 - first) exp(-progress / timescale)."""

    def __init__(self, student: Encoder, *, first: float, timescale: float) -> None:
        if not timescale > 0:
            raise ValueError(f"timescale must be a share of the run above 0, not {timescale}")
        shared = (*SHARED, "positions")
        super().__init__(student, first=first, last=1.0, without=("frontend",), shared=shared)
        self.timescale = timescale

    def tau(self, progress: float) -> float:
        return 1 - (1 - self.first) * math.exp(-progress / self.timescale)


class SpidR(Clustering):
    """A linear head on each of the student's top layers."""

    def __init__(self, encoder: Encoder, config: SpidRConfig) -> None:
        teacher = ExponentialTeacher(encoder, first=config.first_tau, timescale=config.timescale)
        super().__init__(encoder, teacher, config)
        self.config = config
        self.heads = nn.ModuleList(nn.Linear(encoder.config.width, config.entries) for _ in range(config.top))

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        config, features = self.config, self.features(batch)
        size = features.x_BTD.shape[1]
        spans = {"share": config.hidden_share, "span": config.hidden_span}
        hidden_BT = hide_spans(features.lengths_B, size, generator=generator, **spans)  # type: ignore[arg-type]
        position_BM, chosen_BM = hidden_positions(hidden_BT, most_hidden(size, **spans))  # type: ignore[arg-type]
        target_GND, beyond = self.targets(features, position_BM)

        _, *states = self.encoder.blockwise(features, hidden_BT)
        layers = [take(state_BTD, position_BM).flatten(0, 1) for state_BTD in states[-config.top :]]
        logits_GNV = torch.stack([head(x_ND) for head, x_ND in zip(self.heads, layers, strict=True)])
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            seen_BT = features.valid_BT & ~hidden_BT
            metrics = told(beyond, states[-1], seen_BT, chosen_BM.sum().float())
            return self.compared(logits_GNV, target_GND, chosen_BM, metrics)
