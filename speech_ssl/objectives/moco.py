"""MoCo: tell a clip's other view, as a slow encoder sees it, from a queue of what it saw before.

He et al. 2019, arXiv 1911.05722, section 3; the head with a hidden layer is that of its second version (Chen
et al. 2020, arXiv 2003.04297).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.global_batch import Queue, mlp
from speech_ssl.objectives.two_views import Seen, Taught, ViewsConfig, unit
from speech_ssl.types import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCoConfig:
    """Defaults: section 4.1, and 4 for the queue."""

    views: ViewsConfig = ViewsConfig()
    hidden_width: int = 2048
    width: int = 128
    queue: int = 65_536
    """Keys to compare with: fewer than the data has clips, or many are of the row's own clip."""
    tau: float = 0.07
    """Temperature of the cosine similarities; the second version has 0.2."""
    momentum: float = 0.999

    def build(self, encoder: Encoder) -> MoCo:
        return MoCo(encoder, self)


class MoCo(Taught):
    """Both views are queries, and both are keys. The head has batch norm, as the third version's (Chen et al.
    2021, arXiv 2104.02057); keys are normed by running statistics, so that there is nothing to shuffle
    (section 3.3)."""

    def __init__(self, encoder: Encoder, config: MoCoConfig) -> None:
        head = mlp(encoder.config.width, config.hidden_width, config.width)
        super().__init__(encoder, config.views, head, tau=(config.momentum, config.momentum))
        self.config, self.queue = config, Queue(config.queue, config.width)

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch], generator: torch.Generator) -> None:
        """Fills the queue: the first steps would else learn to tell clips from random vectors."""
        batches = iter(batches)
        super().prepare(batches, generator)
        filled = 0
        for batch in batches:
            keys_NE = unit(torch.cat(self.taught(self.look(batch, generator))))
            self.queue.put(keys_NE)
            filled += len(keys_NE)
            if filled >= self.config.queue:
                break

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 1, with each view in turn as q; `confidence` is the probability of the right key."""
        assert seen.taught is not None
        key_1_BE, key_2_BE = map(unit, seen.taught)
        one_B = self._info_nce(unit(seen.first_BE), key_2_BE)
        two_B = self._info_nce(unit(seen.second_BE), key_1_BE)
        if self.training:
            self.queue.note(torch.cat([key_1_BE, key_2_BE]))
        return (one_B + two_B) / 2, {"confidence": ((-one_B).exp() + (-two_B).exp()).sum() / 2}

    def _info_nce(self, query_BE: Tensor, key_BE: Tensor) -> Tensor:
        positive_B1 = (query_BE * key_BE).sum(1, keepdim=True)
        logits_BK = torch.cat([positive_B1, query_BE @ self.queue.rows_KE.T], dim=1) / self.config.tau
        return logits_BK.logsumexp(1) - logits_BK[:, 0]

    def after_step(self, progress: float) -> None:
        self.queue.settle()
        super().after_step(progress)
