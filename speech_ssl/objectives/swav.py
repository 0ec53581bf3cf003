"""SwAV: predict from one view of a clip which prototypes the other is assigned to, all being used equally.

Caron et al. 2020, arXiv 2006.09882, section 3. Two views, without the smaller ones of multi-crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Floor, perplexity
from speech_ssl.objectives.global_batch import Queue, mlp
from speech_ssl.objectives.two_views import Seen, TwoViews, ViewsConfig, unit


@dataclass(frozen=True, kw_only=True, slots=True)
class SwAVConfig:
    """Defaults: section 4 and appendix A.1."""

    views: ViewsConfig = ViewsConfig()
    hidden_width: int = 2048
    width: int = 128
    prototypes: int = 3000
    tau: float = 0.1
    epsilon: float = 0.05
    """How soft the assignments are."""
    iterations: int = 3
    queue: int = 0
    """Earlier vectors that are assigned along with the batch's, for batches smaller than the prototypes are
    many; the paper takes 3840 with batches of 256."""
    queue_from: float = 0.075
    """Share of the run after which they are: 15 of the paper's 200 epochs."""
    still: float = 0.0025
    """Share of the run in which the prototypes stay as they are: one epoch of 400."""

    def build(self, encoder: Encoder) -> SwAV:
        return SwAV(encoder, self)


class SwAV(TwoViews):
    def __init__(self, encoder: Encoder, config: SwAVConfig) -> None:
        super().__init__(encoder, config.views, mlp(encoder.config.width, config.hidden_width, config.width))
        self.config = config
        self.prototypes = nn.Linear(config.width, config.prototypes, bias=False)
        self.queue = Queue(config.queue, config.width) if config.queue else None
        self.queued, self.still = False, False

    def set_progress(self, progress: float) -> None:
        self.queued = self.queue is not None and progress >= self.config.queue_from
        self.still = progress < self.config.still

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 1, with equation 2's cross-entropies; prototypes have length 1."""
        tau = self.config.tau
        weight_VE = self.prototypes.weight.detach() if self.still else self.prototypes.weight
        weight_VE = nn.functional.normalize(weight_VE, dim=1)
        first_BE, second_BE = unit(seen.first_BE), unit(seen.second_BE)
        score_1_BV, score_2_BV = first_BE @ weight_VE.T, second_BE @ weight_VE.T
        code_1_BV, code_2_BV = self._codes(score_1_BV, weight_VE), self._codes(score_2_BV, weight_VE)
        log_p_1_BV, log_p_2_BV = (score_1_BV / tau).log_softmax(1), (score_2_BV / tau).log_softmax(1)
        if self.training and self.queue is not None:
            self.queue.note(torch.cat([first_BE, second_BE]))
        loss_B = -(code_2_BV * log_p_1_BV).sum(1) - (code_1_BV * log_p_2_BV).sum(1)
        agreed_B = code_1_BV.argmax(1) == code_2_BV.argmax(1)
        probs_V = (log_p_1_BV.exp() + log_p_2_BV.exp()).sum(0) / 2
        return loss_B, {"agreement": agreed_B.sum(), "probs": probs_V}

    @torch.no_grad()
    def _codes(self, score_BV: Tensor, weight_VE: Tensor) -> Tensor:
        """Of this rank's rows, among those of all ranks and the queue's."""
        score_NV, begin = self.of_all(score_BV)
        if self.queued and self.queue is not None:
            score_NV = torch.cat([score_NV, self.queue.rows_KE @ weight_VE.T])
        codes_NV = sinkhorn(score_NV, self.config.epsilon, self.config.iterations)
        return codes_NV[begin : begin + len(score_BV)]

    def after_step(self, progress: float) -> None:
        if self.queue is not None:
            self.queue.settle()
        super().after_step(progress)

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Adds `prototype_perplexity`, of the mean prediction: of at most the number of prototypes."""
        return super().report(means) | {"prototype_perplexity": float(perplexity(means["probs"][None]))}

    def floors(self) -> Mapping[str, Floor]:
        few = Floor(
            0.04 * self.config.prototypes,
            "a few prototypes get all clips. Lower the peak learning rate, keep the prototypes still longer, "
            "lower epsilon, or take a queue or larger batches",
        )
        return {**super().floors(), "prototype_perplexity": few}


def sinkhorn(score_NV: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assignments whose rows sum to 1 and whose columns to about N / V: equations 3 to 5, by Cuturi's steps
    (2013), of which the last is the rows'."""
    log_q_NV = score_NV / epsilon
    for _ in range(iterations):
        log_q_NV = log_q_NV - log_q_NV.logsumexp(0)
        log_q_NV = log_q_NV - log_q_NV.logsumexp(1, keepdim=True)
    return log_q_NV.exp()
