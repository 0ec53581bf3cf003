"""SimSiam: predict a clip's other view as it is seen now, without a gradient through it.

Chen & He 2020, arXiv 2011.10566, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.global_batch import mlp
from speech_ssl.objectives.two_views import Seen, TwoViews, ViewsConfig, unit


@dataclass(frozen=True, kw_only=True, slots=True)
class SimSiamConfig:
    """Defaults: section 3, baseline settings."""

    views: ViewsConfig = ViewsConfig()
    width: int = 2048
    """Of all three layers of the projector, and of what is predicted."""
    bottleneck: int = 512
    """Of the predictor, whose two layers it lies between."""

    def build(self, encoder: Encoder) -> SimSiam:
        return SimSiam(encoder, self)


class SimSiam(TwoViews):
    def __init__(self, encoder: Encoder, config: SimSiamConfig) -> None:
        width = config.width
        super().__init__(
            encoder, config.views, mlp(encoder.config.width, width, width, width, last_norm=True)
        )
        self.config = config
        self.predictor = mlp(width, config.bottleneck, width)

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Equations 3 and 4: -1 where both agree."""
        predicted_1_BE, predicted_2_BE = self.predictor(seen.both_NE).chunk(2)
        one_B = negative_cosine(predicted_1_BE, seen.second_BE.detach())
        two_B = negative_cosine(predicted_2_BE, seen.first_BE.detach())
        return (one_B + two_B) / 2, {}


def negative_cosine(predicted_BE: Tensor, other_BE: Tensor) -> Tensor:
    """Equation 1's D."""
    return -(unit(predicted_BE) * unit(other_BE)).sum(1)
