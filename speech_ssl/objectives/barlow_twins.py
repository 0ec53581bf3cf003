"""Barlow Twins: over a batch, each number of one view's vector correlates with the same of the other's alone.

Zbontar et al. 2021, arXiv 2103.03230, section 2.1; on audio: Anton et al. 2022, arXiv 2209.14345.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.global_batch import GlobalBatchNorm, all_sum, mlp
from speech_ssl.objectives.two_views import Seen, TwoViews, ViewsConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class BarlowTwinsConfig:
    """Defaults: section 2.2. Fewer rows than numbers in a vector make some correlate by chance: for small
    batches take it narrower (the paper's figure 4 goes down to 16)."""

    views: ViewsConfig = ViewsConfig()
    width: int = 8192
    """Of all three layers of the projector."""
    redundancy: float = 0.005
    """lambda, the weight of the correlations that should not be."""

    def build(self, encoder: Encoder) -> BarlowTwins:
        return BarlowTwins(encoder, self)


class BarlowTwins(TwoViews):
    def __init__(self, encoder: Encoder, config: BarlowTwinsConfig) -> None:
        width = config.width
        super().__init__(encoder, config.views, mlp(encoder.config.width, width, width, width))
        self.config, self.norm = config, GlobalBatchNorm(width, affine=False)

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 1, the same for every row; `invariance` and `redundancy` are its two sums."""
        product_EE = self.norm(seen.first_BE).T @ self.norm(seen.second_BE)
        rows = count = product_EE.new_tensor(float(len(seen.first_BE)))
        if self.training:
            product_EE, count = all_sum(product_EE), all_sum(rows)
        correlation_EE = product_EE / count  # equation 2
        invariance = (1 - correlation_EE.diagonal()).square().sum()
        redundancy = correlation_EE.square().sum() - correlation_EE.diagonal().square().sum()
        loss = invariance + self.config.redundancy * redundancy
        return loss.expand(len(seen.first_BE)), {
            "invariance": invariance * rows,
            "redundancy": redundancy * rows,
        }
