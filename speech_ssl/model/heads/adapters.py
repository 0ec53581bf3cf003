"""The adapter that transformers' `add_adapter` puts between an encoder and its CTC head: each layer halves
the number of frames.

An adapter belongs to its head: the encoder's own frames do not change.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.attention import FeedForward, SelfAttention
from speech_ssl.model.frontends.wave import LayerNorm
from speech_ssl.model.heads.specs import STRIDE, AdapterKind, AdapterSpec
from speech_ssl.types import Frames

KERNEL, PADDING = 3, 1
"""With STRIDE 2, T frames become ceil(T / 2)."""


class Halving(nn.Module):
    """A gated convolution that halves the number of frames. Invalid frames are zeroed before it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * width, width, KERNEL))
        self.bias = nn.Parameter(torch.zeros(2 * width))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, frames: Frames) -> Tensor:
        """(B, T, D) to (B, ceil(T / 2), D)."""
        x_BTD = frames.x_BTD.masked_fill(~frames.valid_BT[:, :, None], 0.0)
        y_BCT = F.conv1d(x_BTD.transpose(1, 2), self.weight, self.bias, stride=STRIDE, padding=PADDING)
        return F.glu(y_BCT.transpose(1, 2), dim=-1)


class AdapterConvolution(nn.Module):
    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self.conv = Halving(spec.width)

    def forward(self, frames: Frames) -> Frames:
        return Frames(self.conv(frames), halved(frames.lengths_B))


class AdapterBlock(nn.Module):
    """Attention and feed-forward on half as many frames; a second convolution halves the residual."""

    def __init__(self, spec: AdapterSpec) -> None:
        super().__init__()
        self.residual_norm = LayerNorm(spec.width, eps=spec.eps)
        self.residual_conv = Halving(spec.width)
        self.attention_norm = LayerNorm(spec.width, eps=spec.eps)
        self.attention_conv = Halving(spec.width)
        self.attention = SelfAttention(spec.width, spec.heads, dropout=0.0)
        self.ffn_norm = LayerNorm(spec.width, eps=spec.eps)
        self.ffn = FeedForward(spec.width, spec.ffn_width, 0.0, spec.activation)

    def forward(self, frames: Frames) -> Frames:
        x_BTD, lengths_B = frames
        residual_BTD = self.residual_conv(Frames(self.residual_norm(x_BTD), lengths_B))
        x_BTD = self.attention_conv(Frames(self.attention_norm(x_BTD), lengths_B))
        valid_BT = Frames(x_BTD, halved(lengths_B)).valid_BT
        x_BTD = residual_BTD + self.attention(x_BTD, valid_BT[:, None, None, :])
        return Frames(x_BTD + self.ffn(self.ffn_norm(x_BTD)), halved(lengths_B))


LAYERS: Mapping[AdapterKind, type[AdapterConvolution] | type[AdapterBlock]] = {
    "convolutions": AdapterConvolution,
    "blocks": AdapterBlock,
}


class CTCAdapter(nn.Module):
    """The encoder's final state (B, T, D) to (B, ceil(T / stride), width). A row's frames depend on its own
    valid frames only."""

    def __init__(self, encoder_width: int, spec: AdapterSpec) -> None:
        super().__init__()
        self.stride = spec.stride
        self.ffn = FeedForward(encoder_width, spec.ffn_width, 0.0, "relu") if spec.ffn_first else None
        self.projection: nn.Module = nn.Identity()
        self.projection_norm: nn.Module = nn.Identity()
        if spec.width != encoder_width:
            self.projection = nn.Linear(encoder_width, spec.width)
            self.projection_norm = LayerNorm(spec.width, eps=spec.eps)
        self.layers = nn.ModuleList(LAYERS[spec.kind](spec) for _ in range(spec.layers))

    def forward(self, frames: Frames) -> Frames:
        x_BTD, lengths_B = frames
        if self.ffn is not None:
            x_BTD = x_BTD + 0.5 * self.ffn(x_BTD)
        frames = Frames(self.projection_norm(self.projection(x_BTD)), lengths_B)
        for layer in self.layers:
            frames = layer(frames)
        return frames


def halved(lengths_B: Tensor) -> Tensor:
    return (lengths_B + 1) // STRIDE
