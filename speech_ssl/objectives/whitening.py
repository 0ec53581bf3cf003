"""W-MSE: views of a clip have the same vector once those of a batch are whitened, which cannot collapse.

Ermolov et al. 2020, arXiv 2007.06346, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.global_batch import all_sum, mlp
from speech_ssl.objectives.two_views import Seen, TwoViews, ViewsConfig, unit


@dataclass(frozen=True, kw_only=True, slots=True)
class WhiteningConfig:
    """Defaults: section 4, but for the shrinkage, which the paper does without."""

    views: ViewsConfig = ViewsConfig()
    hidden_width: int = 1024
    width: int = 64
    slice_rows: int = 128
    """A batch is whitened in random slices of so many rows or more: twice the width (section 3.1). Smaller
    batches are one slice; take a width of at most half their rows."""
    iterations: int = 1
    """Over how many random divisions into slices the loss is averaged."""
    shrinkage: float = 1e-3
    """Of the covariance towards the identity, so that it can be inverted whatever the batch is."""

    def build(self, encoder: Encoder) -> Whitening:
        return Whitening(encoder, self)


class Whitening(TwoViews):
    def __init__(self, encoder: Encoder, config: WhiteningConfig) -> None:
        super().__init__(encoder, config.views, mlp(encoder.config.width, config.hidden_width, config.width))
        self.config = config

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 6, of this rank's rows, with the distance of directions (section 3.2). Both views are
        whitened apart, in the same slices."""
        firsts_NE, begin = self.of_all(seen.first_BE)
        seconds_NE, _ = self.of_all(seen.second_BE)
        own = slice(begin, begin + len(seen.first_BE))
        loss_B = torch.zeros_like(seen.first_BE[:, 0])
        for _ in range(self.config.iterations):
            order_N = self._order(len(firsts_NE), begin, seen.generator)
            one_NE, two_NE = (self._whitened(x_NE, order_N) for x_NE in (firsts_NE, seconds_NE))
            loss_B = loss_B + (2 - 2 * (unit(one_NE[own]) * unit(two_NE[own])).sum(1))
        return loss_B / self.config.iterations, {}

    def _order(self, rows: int, begin: int, generator: torch.Generator) -> Tensor:
        """A permutation, the first rank's on all of them."""
        if not self.training or self.views.fixed:
            return torch.arange(rows, device=generator.device)
        drawn_N = torch.randperm(rows, device=generator.device, generator=generator)
        return all_sum(drawn_N * int(begin == 0))

    def _whitened(self, x_NE: Tensor, order_N: Tensor) -> Tensor:
        slices = order_N.tensor_split(max(len(order_N) // self.config.slice_rows, 1))
        parts = [whitened(x_NE[at], self.config.shrinkage) for at in slices]
        return torch.cat(parts)[order_N.argsort()]


def whitened(x_NE: Tensor, shrinkage: float) -> Tensor:
    """W (v - mu), equation 5: uncorrelated, of variance 1, by Cholesky's decomposition of the covariance. In
    float64: what does not vary much is divided by little. What cannot be decomposed is no number."""
    centred_NE = x_NE.double() - x_NE.double().mean(0)
    covariance_EE = centred_NE.T @ centred_NE / max(len(x_NE) - 1, 1)
    identity_EE = torch.eye(x_NE.shape[1], dtype=x_NE.dtype, device=x_NE.device).double()
    lower_EE, failed = torch.linalg.cholesky_ex((1 - shrinkage) * covariance_EE + shrinkage * identity_EE)
    white_EN = torch.linalg.solve_triangular(lower_EE, centred_NE.T, upper=False)
    return torch.where(failed == 0, white_EN.T, torch.nan).to(x_NE.dtype)
