"""Contrastive predictive coding: tell the features of each of the next frames from those of other frames.

van den Oord et al. 2018, arXiv 1807.03748, section 2; for speech as in section 3.1, and Riviere et al. 2020,
arXiv 2002.02848. The context is a causal encoder in place of the paper's recurrent one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments
from speech_ssl.types import Batch, Frames, LossSum, valid_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class CPCConfig:
    """Defaults: section 3.1 (12 steps ahead), with 128 negatives as Riviere et al. have them."""

    steps: int = 12
    """Future frames that each frame predicts."""
    negatives: int = 128
    """Of each predicted frame: frames of the same row, drawn with replacement. The paper found those of the
    same speaker best."""

    def build(self, encoder: Encoder) -> CPC:
        return CPC(encoder, self)


def info_nce(positive: Tensor, negative: Tensor) -> Tensor:
    """Equation 4 for every prediction: -log f(positive) / (f(positive) + sum of f(negatives)), of scores
    log f (...) and (..., K)."""
    return torch.logsumexp(torch.cat([positive[..., None], negative], -1), -1) - positive


class CPC(Objective):
    """A causal encoder, and one matrix a step that maps contexts to predicted features."""

    best_by = "loss"

    def __init__(self, encoder: Encoder, config: CPCConfig) -> None:
        super().__init__()
        if not encoder.config.causal:
            raise ValueError("CPC predicts what comes later: the encoder's block needs causal=True")
        self.encoder, self.config = encoder, config
        encoder.hidden_vector.requires_grad_(False)  # no frame is hidden
        width, feature_width = encoder.config.width, encoder.config.frontend.width
        self.predictors = nn.ModuleList(
            nn.Linear(width, feature_width, bias=False) for _ in range(config.steps)
        )

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Targets are pairs of a frame and one of the next `steps` frames. Raises ValueError if the batch is
        too short for a frame."""
        features = self.encoder.normalized(self.encoder.convolve(batch.wave_BS, batch.lengths_B))
        context = self.encoder.contextualize(features)
        z_BTC, c_BTD = features.x_BTD.float(), context.x_BTD.float()
        negative_BTK = self._drawn(features, generator)
        total = count = won = z_BTC.new_zeros(())
        with torch.autocast(z_BTC.device.type, enabled=False):
            for k, predictor in enumerate(self.predictors, 1):
                if k >= z_BTC.shape[1]:
                    break
                loss_BT, won_BT = self._step(predictor(c_BTD[:, :-k]), z_BTC, negative_BTK, k)
                weight_BT = valid_mask(features.lengths_B - k, z_BTC.shape[1] - k).float()
                total = total + (loss_BT * weight_BT).sum()
                won = won + (won_BT * weight_BT).sum()
                count = count + weight_BT.sum()
            spread = moments(c_BTD, features.valid_BT.float())
            scale = count / features.valid_BT.sum().clamp(min=1)
        metrics = {"accuracy": won, **{name: value * scale for name, value in spread.items()}}
        return LossSum(total, count, {name: value.detach() for name, value in metrics.items()})

    def _drawn(self, features: Frames, generator: torch.Generator) -> Tensor:
        """For each frame the places of its negatives in the row: (B, T, K)."""
        B, T, _ = features.x_BTD.shape
        device = features.x_BTD.device
        draws_BTK = torch.rand(B, T, self.config.negatives, device=device, generator=generator)
        return (draws_BTK * features.lengths_B[:, None, None]).long().clamp(max=T - 1)

    @staticmethod
    def _step(predicted_BTC: Tensor, z_BTC: Tensor, negative_BTK: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Loss and whether the true frame won, of predictions `k` frames ahead (B, T - k)."""
        T = predicted_BTC.shape[1]
        score_BTT = predicted_BTC @ z_BTC.transpose(1, 2) * z_BTC.shape[2] ** -0.5
        positive_BT = score_BTT.diagonal(offset=k, dim1=1, dim2=2)
        place_BTK = negative_BTK[:, k:]
        true_1T1 = torch.arange(k, k + T, device=z_BTC.device)[None, :, None]
        scores_BTK = score_BTT.gather(2, place_BTK).masked_fill(place_BTK == true_1T1, -torch.inf)
        won_BT = (positive_BT > scores_BTK.amax(-1)).float()
        return info_nce(positive_BT, scores_BTK), won_BT

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Adds `effective_rank` of the contexts."""
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
