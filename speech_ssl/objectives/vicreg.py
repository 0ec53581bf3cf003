"""VICReg: views of a clip have the same vector, whose numbers vary over a batch and do not go together.

Bardes et al. 2021, arXiv 2105.04906, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.global_batch import mlp
from speech_ssl.objectives.two_views import Seen, TwoViews, ViewsConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class VICRegConfig:
    """Defaults: section 4.2."""

    views: ViewsConfig = ViewsConfig()
    width: int = 8192
    """Of all three layers of the projector, which the paper calls expander."""
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    """lambda, mu and nu of equation 6."""

    def build(self, encoder: Encoder) -> VICReg:
        return VICReg(encoder, self)


class VICReg(TwoViews):
    def __init__(self, encoder: Encoder, config: VICRegConfig) -> None:
        width = config.width
        super().__init__(encoder, config.views, mlp(encoder.config.width, width, width, width))
        self.config = config

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 6: its first part is each row's own, the others are the same for every row."""
        config = self.config
        first_NE, _ = self.of_all(seen.first_BE)
        second_NE, _ = self.of_all(seen.second_BE)
        invariance_B = (seen.first_BE - seen.second_BE).square().mean(1)
        variance = too_narrow(first_NE) + too_narrow(second_NE)
        covariance = redundant(first_NE) + redundant(second_NE)
        loss_B = (
            config.invariance * invariance_B + config.variance * variance + config.covariance * covariance
        )
        rows = len(loss_B)
        metrics = {
            "invariance": invariance_B.sum(),
            "variance": variance * rows,
            "covariance": covariance * rows,
        }
        return loss_B, metrics


def too_narrow(x_NE: Tensor, gamma: float = 1.0, epsilon: float = 1e-4) -> Tensor:
    """Equation 1: by how much standard deviations are below gamma, on average."""
    variance_E = (x_NE - x_NE.mean(0)).square().sum(0) / max(len(x_NE) - 1, 1)
    return (gamma - (variance_E + epsilon).sqrt()).relu().mean()


def redundant(x_NE: Tensor) -> Tensor:
    """Equation 4: the squared covariances of different numbers, summed and divided by the width."""
    centred_NE = x_NE - x_NE.mean(0)
    covariance_EE = centred_NE.T @ centred_NE / max(len(x_NE) - 1, 1)  # equation 3
    return (covariance_EE.square().sum() - covariance_EE.diagonal().square().sum()) / x_NE.shape[1]
