"""Autoregressive predictive coding: predict the log-mel frame some steps ahead from those so far.

Chung et al. 2019, arXiv 1904.03240, section 2. The context is a causal encoder in place of the paper's
recurrent one, as in Chung & Glass 2020, arXiv 1910.12607.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speech_ssl.model.config import LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments
from speech_ssl.types import Batch, LossSum, valid_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class APCConfig:
    """ahead: n of equation 1, in the paper's best cases 2 to 5 of its 10 ms steps; here in frames."""

    ahead: int = 3

    def build(self, encoder: Encoder) -> APC:
        return APC(encoder, self)


class APC(Objective):
    """A causal encoder of log-mel frames, and a linear layer back to such a frame."""

    def __init__(self, encoder: Encoder, config: APCConfig) -> None:
        super().__init__()
        if not encoder.config.causal or not isinstance(encoder.config.frontend, LogMel):
            raise ValueError("APC needs an encoder with a LogMel front end and a block with causal=True")
        if config.ahead < 1:
            raise ValueError(f"ahead must be at least 1, not {config.ahead}")
        self.encoder, self.config = encoder, config
        encoder.hidden_vector.requires_grad_(False)  # no frame is hidden
        self.predict = nn.Linear(encoder.config.width, encoder.config.frontend.width)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Equation 1: sum over t of |x_(t + n) - y_t|, a mean over the bins; targets are frames. Raises
        ValueError if the batch is too short for a frame."""
        ahead = self.config.ahead
        raw = self.encoder.convolve(batch.wave_BS, batch.lengths_B)
        context_BTD = self.encoder.contextualize(self.encoder.normalized(raw)).x_BTD.float()
        target_BTC = raw.x_BTD[:, ahead:].float()
        weight_BT = valid_mask(raw.lengths_B - ahead, target_BTC.shape[1]).float()
        with torch.autocast(target_BTC.device.type, enabled=False):
            predicted_BTC = self.predict(context_BTD[:, : target_BTC.shape[1]])
            loss_BT = (predicted_BTC - target_BTC).abs().mean(-1)
            still_BT = (raw.x_BTD[:, : target_BTC.shape[1]].float() - target_BTC).abs().mean(-1)
            spread = moments(context_BTD[:, : target_BTC.shape[1]], weight_BT)
        metrics = {"copied": (still_BT * weight_BT).sum(), **spread}
        total = (loss_BT * weight_BT).sum()
        return LossSum(total, weight_BT.sum(), {name: value.detach() for name, value in metrics.items()})

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """`copied`: the loss of taking each frame for the later one. Adds `effective_rank` of contexts."""
        return super().report(means) | {
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"])
        }

    def floors(self) -> Mapping[str, Floor]:
        return {
            "effective_rank": Floor(
                2.0,
                "the contexts point in one or two directions. Lower the peak learning rate and lengthen the "
                "warm-up",
            )
        }
