"""BYOL-A: predict what a teacher that follows says of the other view; nothing is told apart.

Niizumi et al. 2021, arXiv 2103.06695, and with its final views 2204.07402; BYOL: Grill et al. 2020, arXiv
2006.07733. On speech alone it is BYOL-S (Elbanna et al. 2022, arXiv 2206.12038).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.global_batch import mlp
from speech_ssl.objectives.two_views import Seen, Taught, ViewsConfig, unit

BYOL_A_VIEWS = ViewsConfig(
    crop=(1.0, 1.0), band_pass=0.0, noise=0.0, gain_db=0.0, mixup=0.4, resized=(0.6, 1.5)
)
"""Both views are of the same second: mixup, then a resized crop. For a log-mel front end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BYOLConfig:
    """Defaults: BYOL-A's, section IV-A."""

    views: ViewsConfig = BYOL_A_VIEWS
    hidden_width: int = 4096
    width: int = 256
    momentum: tuple[float, float] = (0.99, 0.99)
    """The teacher's tau at the start and at the end. BYOL's rises from 0.996 to 1."""

    def build(self, encoder: Encoder) -> BYOL:
        return BYOL(encoder, self)


class BYOL(Taught):
    def __init__(self, encoder: Encoder, config: BYOLConfig) -> None:
        projector = mlp(encoder.config.width, config.hidden_width, config.width)
        super().__init__(encoder, config.views, projector, tau=config.momentum)
        self.config = config
        self.predictor = mlp(config.width, config.hidden_width, config.width)

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        assert seen.taught is not None
        predicted_1_BE, predicted_2_BE = self.predictor(seen.both_NE).chunk(2)
        taught_1_BE, taught_2_BE = seen.taught
        return distance(predicted_1_BE, taught_2_BE) + distance(predicted_2_BE, taught_1_BE), {}


def distance(predicted_BE: Tensor, taught_BE: Tensor) -> Tensor:
    """Squared, of the directions: BYOL's equation 2, between 0 and 4."""
    return 2 - 2 * (unit(predicted_BE) * unit(taught_BE)).sum(1)
