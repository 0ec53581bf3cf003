"""Instance discrimination: every clip is a class, whose weights are what the encoder last said of it.

Wu et al. 2018, arXiv 1805.01978, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.global_batch import GlobalBatchNorm, all_rows
from speech_ssl.objectives.two_views import Seen, TwoViews, ViewsConfig, unit

PLACE = re.compile(r" [\d.]+-[\d.]+ s$")
"""Where in its file a row is: another one in each epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceDiscriminationConfig:
    """Defaults: section 4.1, but for the softmax, which is exact: over some ten thousand slots it costs less
    than the encoder, and needs no estimate of its normaliser as the paper's NCE (equations 4 to 7) does."""

    views: ViewsConfig = ViewsConfig()
    width: int = 128
    slots: int = 16_384
    """Vectors in the memory bank. A file's slot is a hash of its path: of n files, about a share of n / slots
    has to share one with another file, and is taken for the same clip as that. Take ten times the files."""
    tau: float = 0.07
    momentum: float = 0.5
    """What is kept of a slot's vector when its clip is seen again."""
    proximal: float = 0.0
    """lambda of equation 9, for small data; the paper tries up to 50."""

    def build(self, encoder: Encoder) -> InstanceDiscrimination:
        return InstanceDiscrimination(encoder, self)


class InstanceDiscrimination(TwoViews):
    """Both views of a row are learnt from, and their mean goes into the bank. Batch norm centres the clip
    vectors first: what all of them share would else hide what tells them apart."""

    def __init__(self, encoder: Encoder, config: InstanceDiscriminationConfig) -> None:
        width = encoder.config.width
        projector = nn.Sequential(GlobalBatchNorm(width, affine=False), nn.Linear(width, config.width))
        super().__init__(encoder, config.views, projector)
        self.config = config
        self.bank_KE: Tensor
        self.register_buffer("bank_KE", F.normalize(torch.randn(config.slots, config.width), dim=1))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """Equation 3, the mean of both views, and how far from its slot each is. `confidence` is equation 2's
        probability. Raises ValueError for rows without names."""
        first_BE, second_BE = unit(seen.first_BE), unit(seen.second_BE)
        if len(seen.names) != len(first_BE):
            raise ValueError("a row's slot follows from its name: Batch.names must name every row")
        slot_B = torch.tensor(slots_of(seen.names, self.config.slots), device=first_BE.device)
        own_BE = self.bank_KE[slot_B]
        surprise_B, change_B = torch.zeros_like(first_BE[:, 0]), torch.zeros_like(first_BE[:, 0])
        confidence_B = torch.zeros_like(surprise_B)
        for view_BE in (first_BE, second_BE):
            logits_BK = view_BE @ self.bank_KE.T / self.config.tau
            log_p_B = -F.cross_entropy(logits_BK, slot_B, reduction="none")
            surprise_B = surprise_B - log_p_B / 2
            change_B = change_B + (view_BE - own_BE).square().sum(1) / 2
            confidence_B = confidence_B + log_p_B.exp() / 2
        if self.training:
            self._pending.append((slot_B, ((first_BE + second_BE) / 2).detach()))
        loss_B = surprise_B + self.config.proximal * change_B
        return loss_B, {"confidence": confidence_B.sum(), "change": change_B.sum()}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        noted = [(all_rows(slot_B)[0], all_rows(x_BE)[0]) for slot_B, x_BE in self._pending]
        self._pending.clear()
        if noted:
            slot_N, x_NE = (torch.cat(part) for part in zip(*noted, strict=True))
            same_NN = (slot_N[:, None] == slot_N).to(x_NE.dtype)  # crops of one clip write their mean
            mean_NE = same_NN @ x_NE / same_NN.sum(1, keepdim=True)
            old_NE = self.bank_KE[slot_N]
            new_NE = F.normalize(torch.lerp(mean_NE, old_NE, self.config.momentum), dim=1)
            self.bank_KE[slot_N] = torch.where(x_NE.isfinite().all(), new_NE, old_NE)
        super().after_step(progress)


def slots_of(names: Sequence[str], slots: int) -> list[int]:
    """Of rows by the files that they are from: the same in every epoch, run and process, while paths stay."""
    return [crc32(PLACE.sub("", name).encode()) % slots for name in names]
