"""Segment order: a puzzle of a few pieces of a clip, out of order: in which order are they?

Noroozi & Favaro 2016, arXiv 1603.09246, for pieces of images; for audio Carr et al. 2021, arXiv 2103.09879,
who learn all permutations by ranking. Pieces of time are few, so that each permutation can be a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.wave import normalize_waves
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments, perplexity
from speech_ssl.types import Batch, LossSum, valid_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentOrderConfig:
    segments: int = 3
    free_share: float = 11 / 75
    """Of each of the equal parts of a clip, what its segment leaves out, before and after it: else the ends
    of neighbours would fit (Noroozi & Favaro: tiles of 64 pixels, anywhere in cells of 75)."""
    head_width: int = 512

    def __post_init__(self) -> None:
        if not 2 <= self.segments <= 5:
            raise ValueError(f"segments must be from 2 to 5, not {self.segments}")
        if not 0 <= self.free_share < 1:
            raise ValueError(f"free_share must be from 0 to less than 1, not {self.free_share}")

    def build(self, encoder: Encoder) -> SegmentOrder:
        return SegmentOrder(encoder, self)


class SegmentOrder(Objective):
    """An encoder that hears each segment by itself, and a small head on the vectors of all of them."""

    def __init__(self, encoder: Encoder, config: SegmentOrderConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        encoder.hidden_vector.requires_grad_(False)  # no frame is hidden
        orders = torch.tensor(list(permutations(range(config.segments))))
        self.orders_VN: Tensor
        self.register_buffer("orders_VN", orders, persistent=False)
        last = nn.Linear(config.head_width, len(orders))
        nn.init.normal_(last.weight, std=0.002)  # or the encoder learns first of all to say less
        self.head = nn.Sequential(
            nn.Linear(config.segments * encoder.config.width, config.head_width), nn.GELU(), last
        )

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Cross-entropy of the permutation (section 3.1); targets are rows whose segments have a frame.
        Raises ValueError if the batch is too short for one."""
        B, N, device = len(batch.wave_BS), self.config.segments, batch.wave_BS.device
        class_B = torch.randint(len(self.orders_VN), (B,), device=device, generator=generator)
        pieces_BNP, lengths_B = self.cut(batch, generator)
        order_BN1 = self.orders_VN[class_B][:, :, None]
        shuffled_BNP = pieces_BNP.gather(1, order_BN1.expand_as(pieces_BNP))
        context = self.encoder(shuffled_BNP.flatten(0, 1), lengths_B.repeat_interleave(N))
        with torch.autocast(device.type, enabled=False):
            count_R1 = context.lengths_B.clamp(min=1)[:, None]
            vector_BND = (context.x_BTD.float().sum(1) / count_R1).view(B, N, -1)
            logits_BV = self.head(vector_BND.flatten(1))
            weight_B = (context.lengths_B.view(B, N)[:, 0] > 0).float()
            total = (F.cross_entropy(logits_BV, class_B, reduction="none") * weight_B).sum()
            metrics = {
                "accuracy": ((logits_BV.argmax(-1) == class_B) * weight_B).sum(),
                "answers": weight_B @ logits_BV.softmax(-1),
                **moments(vector_BND, weight_B[:, None].expand(B, N) / N),
            }
        return LossSum(total, weight_B.sum(), {name: value.detach() for name, value in metrics.items()})

    def cut(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Segments (B, N, P) in their order, and how long a row's are (B,). Each is anywhere in its part of
        the row, and as loud as the whole row, so that neither loudness nor an offset is a sign."""
        N, (B, S) = self.config.segments, batch.wave_BS.shape
        device, kept = batch.wave_BS.device, 1 - self.config.free_share
        part_B1 = (batch.lengths_B // N)[:, None]
        length_B1 = (part_B1 * kept).long().clamp(min=1)
        draw_BN = torch.rand(B, N, device=device, generator=generator)
        first_BN = part_B1 * torch.arange(N, device=device) + (draw_BN * (part_B1 - length_B1 + 1)).long()
        at_BNP = first_BN[:, :, None] + torch.arange(max(int(S // N * kept), 1), device=device)
        piece_BP = batch.wave_BS.gather(1, at_BNP.flatten(1).clamp(max=S - 1)).view(B * N, -1)
        lengths_R = length_B1.expand(B, N).flatten()
        piece_BP = normalize_waves(piece_BP, lengths_R)
        valid_BS = valid_mask(batch.lengths_B, S)
        power_B = batch.wave_BS.square().where(valid_BS, 0.0).sum(1) / batch.lengths_B.clamp(min=1)
        loud_BNP = piece_BP.view(B, N, -1) * power_B.sqrt()[:, None, None]
        return loud_BNP, length_B1[:, 0]

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """`accuracy` (by guessing 1 / N!); `answer_perplexity` of the mean answer, at most N!;
        `effective_rank` of the segments' vectors."""
        return {
            "accuracy": float(means["accuracy"]),
            "answer_perplexity": float(perplexity(means["answers"][None])),
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"]),
        }

    def floors(self) -> Mapping[str, Floor]:
        return {
            "answer_perplexity": Floor(
                1.5,
                "nearly all clips get one answer, whatever their order. Lower the peak learning rate, or use "
                "larger batches",
            ),
            "effective_rank": Floor(
                2.0,
                "all segments have nearly the same vector. Lower the peak learning rate, lengthen the "
                "warm-up, or use longer crops: there may be nothing that tells their order",
            ),
        }
