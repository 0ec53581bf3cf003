"""Masked auto-encoder: encode a quarter of the log-mel frames, from which a small decoder tells the others.

Audio-MAE (Huang et al. 2022, arXiv 2207.06405) and MAE-AST (Baade et al. 2022, arXiv 2203.16691), of whole
frames, which MAE-AST found better for speech than patches, and with its generative loss alone, as Audio-MAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.attention import Block
from speech_ssl.model.config import EncoderConfig, GatedDistances, LogMel, Transformer, WideConvolution
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.wave import LayerNorm
from speech_ssl.model.positions import conv_positions
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments
from speech_ssl.objectives.global_batch import all_sum, similarity
from speech_ssl.types import Batch, Frames, LossSum, valid_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class MAEConfig:
    """Defaults: those of MAE-AST, as in its authors' configuration."""

    hidden_share: float = 0.75
    """Audio-MAE hides 0.8."""
    hidden_span: int = 1
    """Frames to a chunk, which is hidden or visible as one. MAE-AST's chunks have 3 to 5."""
    frame_norm: bool = False
    """Targets have mean 0 and variance 1 over the bins of each frame, as the patches of Audio-MAE have: the
    shape of quiet frames counts as much as that of loud ones, and levels do not."""
    uniformity: float = 0.0
    """Weight of the similarity of different clips' frames, see `similarity`. 0.01 by the
    defaults of U-MAE's code (Zhang et al. 2022, arXiv 2210.08344)."""
    decoder_depth: int = 2
    decoder_width: int = 768
    decoder_heads: int = 12

    def __post_init__(self) -> None:
        if not 0 < self.hidden_share < 1:
            raise ValueError(f"hidden_share must be more than 0 and less than 1, not {self.hidden_share}")
        if self.hidden_span < 1:
            raise ValueError(f"hidden_span must be at least 1, not {self.hidden_span}")
        if self.uniformity < 0:
            raise ValueError(f"uniformity is a weight, at least 0, not {self.uniformity}")

    def build(self, encoder: Encoder) -> MAE:
        return MAE(encoder, self)


def hide_chunks(
    lengths_B: Tensor, size: int, *, share: float, span: int, generator: torch.Generator
) -> Tensor:
    """Hide a share of each row's chunks of `span` frames: (B, size) bool, never true on padding.

    The number of chunks is rounded, but at least one is hidden and one visible, if a row has two.
    """
    chunks_B = (lengths_B + span - 1) // span
    hidden_B = (share * chunks_B).round().long().clamp(min=1).minimum(chunks_B - 1)
    most = -(-size // span)
    draws_BN = torch.rand(len(lengths_B), most, device=lengths_B.device, generator=generator)
    draws_BN = draws_BN.masked_fill(~valid_mask(chunks_B, most), 2.0)
    hidden_BN = draws_BN.argsort(dim=1).argsort(dim=1) < hidden_B[:, None]
    return hidden_BN.repeat_interleave(span, dim=1)[:, :size] & valid_mask(lengths_B, size)


class Decoder(nn.Module):
    """Transformer blocks over whole rows: what the encoder made of visible frames, each at its place, and a
    learned vector at all others. Positions are convolutions, as the encoder's are, where both papers have
    sinusoids: what is near a hidden frame is heard from the first step on. So that it is, the first
    reconstructions are nearly the mean: of larger ones the encoder learns first of all to say less."""

    def __init__(self, width: int, config: EncoderConfig, outputs: int) -> None:
        super().__init__()
        assert isinstance(config.block, Transformer)
        self.enter = nn.Linear(width, config.width)
        self.hidden_vector = nn.Parameter(torch.empty(config.width).normal_(std=0.02))
        self.positions = conv_positions(config)
        self.blocks = nn.ModuleList(Block(config, config.block) for _ in range(config.depth))
        self.norm = LayerNorm(config.width)
        self.leave = nn.Linear(config.width, outputs)
        nn.init.normal_(self.leave.weight, std=0.002)

    def forward(self, visible: Frames, position_BK: Tensor, lengths_B: Tensor, size: int) -> Tensor:
        """`visible` and their places are as of `Encoder.visible`; frames (B, size, outputs)."""
        x_BKD = self.enter(visible.x_BTD)
        B, _, D = x_BKD.shape
        place_BK = position_BK.masked_fill(~visible.valid_BT, size)  # one place more than there are
        x_BTD = self.hidden_vector.to(x_BKD.dtype).expand(B, size + 1, D)
        x_BTD = x_BTD.scatter(1, place_BK[:, :, None].expand_as(x_BKD), x_BKD)[:, :size]
        valid_BT = valid_mask(lengths_B, size)
        x_BTD = x_BTD * valid_BT[:, :, None]
        assert self.positions is not None
        x_BTD = x_BTD + self.positions(Frames(x_BTD, lengths_B))
        for block in self.blocks:
            x_BTD = block(x_BTD, valid_BT[:, None, None, :])
        return self.leave(self.norm(x_BTD))  # type: ignore[no-any-return]


class MAE(Objective):
    """An encoder of the log-mel frames that are visible, and a decoder that reconstructs the hidden ones."""

    def __init__(self, encoder: Encoder, config: MAEConfig) -> None:
        super().__init__()
        mine = encoder.config
        if (
            not isinstance(mine.frontend, LogMel)
            or not isinstance(mine.block, Transformer)
            or isinstance(mine.positions, GatedDistances)
        ):
            raise ValueError(
                "a masked auto-encoder needs an encoder with a LogMel front end and a Transformer block with "
                "convolutional positions"
            )
        self.encoder, self.config = encoder, config
        self.adds = config.uniformity == 0  # otherwise it is of pairs of rows
        shape = EncoderConfig(
            width=config.decoder_width,
            positions=WideConvolution(kernel=31),
            depth=config.decoder_depth,
            heads=config.decoder_heads,
            ffn_width=4 * config.decoder_width,
            block=Transformer(pre_norm=True),
            dropout=mine.dropout,
            attention_dropout=mine.attention_dropout,
        )
        self.decoder = Decoder(mine.width, shape, mine.frontend.width)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """The generative loss of MAE-AST, section 2.3: (reconstructed - true)^2, a mean over the bins;
        targets are hidden frames, normalised as the front end leaves them and `frame_norm` says. Waits for
        the device, as `Encoder.visible` does. Raises ValueError if the batch is too short for a frame."""
        raw = self.encoder.convolve(batch.wave_BS, batch.lengths_B)
        size = raw.x_BTD.shape[1]
        spans = {"share": self.config.hidden_share, "span": self.config.hidden_span}
        hidden_BT = hide_chunks(raw.lengths_B, size, generator=generator, **spans)  # type: ignore[arg-type]
        visible, position_BK = self.encoder.visible(self.encoder.normalized(raw), hidden_BT)
        decoded_BTC = self.decoder(visible, position_BK, raw.lengths_B, size)
        with torch.autocast(decoded_BTC.device.type, enabled=False):
            target_BTC, weight_BT = self.target(raw.x_BTD.float()), hidden_BT.float()
            loss_BT = (decoded_BTC.float() - target_BTC).square().mean(-1)
            count, seen_BK = weight_BT.sum(), visible.valid_BT.float()
            scale = count / seen_BK.sum().clamp(min=1)
            spread = moments(visible.x_BTD, seen_BK)
            metrics = {"blind": (target_BTC.square().mean(-1) * weight_BT).sum()}
            metrics |= {name: value * scale for name, value in spread.items()}
            total = (loss_BT * weight_BT).sum()
            if self.config.uniformity > 0:
                summed = all_sum if self.training else Tensor.clone
                metrics |= {
                    "reconstruction": total,
                    "similarity": similarity(visible, summed) * summed(count),
                }
                total = total + self.config.uniformity * metrics["similarity"]
        return LossSum(total, count, {name: value.detach() for name, value in metrics.items()})

    def target(self, x_BTC: Tensor) -> Tensor:
        return F.layer_norm(x_BTC, x_BTC.shape[-1:]) if self.config.frame_norm else x_BTC

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """`blind`: the loss of reconstructing the mean; `reconstruction` and `similarity`: the parts of the
        loss where it has two. Adds `effective_rank` of visible frames' contexts."""
        return super().report(means) | {
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"])
        }

    def floors(self) -> Mapping[str, Floor]:
        return {
            "effective_rank": Floor(
                2.0,
                "the contexts point in one or two directions. Lower the peak learning rate and lengthen the "
                "warm-up",
            )
        }
