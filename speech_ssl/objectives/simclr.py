"""SimCLR: two views of a clip are more similar than those of different clips. And COLA, the same for audio.

Chen et al. 2020, arXiv 2002.05709, section 2.1. COLA: Saeed et al. 2020, arXiv 2010.10915, section 2: the
views are two crops of a clip, and nothing else; how similar they are is a bilinear form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.global_batch import mlp
from speech_ssl.objectives.two_views import Seen, TwoViews, ViewsConfig, unit


@dataclass(frozen=True, kw_only=True, slots=True)
class SimCLRConfig:
    """Defaults: SimCLR's, sections 2.1 and 5.1 (tau: table 5). A batch is all there is to compare with: the
    paper's has 4096 rows."""

    views: ViewsConfig = ViewsConfig()
    hidden_width: int = 2048
    width: int = 128
    tau: float = 0.1

    def build(self, encoder: Encoder) -> SimCLR:
        return SimCLR(encoder, self)


@dataclass(frozen=True, kw_only=True, slots=True)
class COLAConfig:
    """Defaults: the paper's, section 3.1."""

    views: ViewsConfig = ViewsConfig(crop=(0.5, 0.5), band_pass=0.0, noise=0.0, gain_db=0.0)
    width: int = 512
    similarity: Literal["bilinear", "cosine"] = "bilinear"
    """Cosine is the paper's other choice, of temperature 0.2 (section 4.2)."""
    tau: float = 0.2

    def build(self, encoder: Encoder) -> COLA:
        return COLA(encoder, self)


class SimCLR(TwoViews):
    def __init__(self, encoder: Encoder, config: SimCLRConfig) -> None:
        width = encoder.config.width
        super().__init__(encoder, config.views, mlp(width, config.hidden_width, config.width))
        self.config = config

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        first_BE, second_BE = unit(seen.first_BE), unit(seen.second_BE)
        (firsts_NE, begin), (seconds_NE, _) = self.of_all(first_BE), self.of_all(second_BE)
        one_B, one_won_B = nt_xent(first_BE, second_BE, firsts_NE, seconds_NE, begin, self.config.tau)
        two_B, two_won_B = nt_xent(second_BE, first_BE, seconds_NE, firsts_NE, begin, self.config.tau)
        return (one_B + two_B) / 2, {"accuracy": (one_won_B.float() + two_won_B.float()).sum() / 2}


class COLA(TwoViews):
    def __init__(self, encoder: Encoder, config: COLAConfig) -> None:
        projector = nn.Sequential(
            nn.Linear(encoder.config.width, config.width), nn.LayerNorm(config.width), nn.Tanh()
        )
        super().__init__(encoder, config.views, projector)
        self.config = config
        self.bilinear: nn.Linear | None = None
        if config.similarity == "bilinear":
            self.bilinear = nn.Linear(config.width, config.width, bias=False)

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """The paper's L: cross-entropy over the second crops of all clips."""
        seconds_NE, begin = self.of_all(seen.second_BE)
        if self.bilinear is None:
            logits_BN = unit(seen.first_BE) @ unit(seconds_NE).T / self.config.tau
        else:
            logits_BN = self.bilinear(seen.first_BE) @ seconds_NE.T
        own_B = begin + torch.arange(len(logits_BN), device=logits_BN.device)
        won_B = logits_BN.argmax(1) == own_B
        return nn.functional.cross_entropy(logits_BN, own_B, reduction="none"), {"accuracy": won_B.sum()}


def nt_xent(
    one_BE: Tensor, other_BE: Tensor, ones_NE: Tensor, others_NE: Tensor, begin: int, tau: float
) -> tuple[Tensor, Tensor]:
    """Equation 1 for one view of each row, and whether its other view is the most similar of all. ones_NE,
    others_NE: both views of all ranks' rows, of which this rank's begin at `begin`."""
    own_B = begin + torch.arange(len(one_BE), device=one_BE.device)
    itself_BN = own_B[:, None] == torch.arange(len(ones_NE), device=one_BE.device)
    alike_BN = (one_BE @ ones_NE.T / tau).masked_fill(itself_BN, -torch.inf)
    logits_BN = torch.cat([one_BE @ others_NE.T / tau, alike_BN], dim=1)
    loss_B = logits_BN.logsumexp(1) - (one_BE * other_BE).sum(1) / tau
    return loss_B, logits_BN.argmax(1) == own_B
