"""The Conformer block: attention and a convolution between two halves of a feed-forward (Gulati et al. 2020,
arXiv 2005.08100), with the positions of wav2vec2-conformer and of w2v-BERT 2.0."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.attention import FeedForward
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.convolution import conv_over_time
from speech_ssl.model.frontend import ACTIVATIONS, LayerNorm

PUBLISHED_EPS = 1e-5
"""Of norms in the blocks with a batch norm, whatever the config says of the others."""


class RotaryAttention(nn.Module):
    """Frames are turned by their positions before they ask and are asked (Su et al. 2021, arXiv 2104.09864).

    Here the input of the projections is turned, head by head, not their output: as in wav2vec2-conformer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.base, self.dropout = config.heads, config.rotary_base, config.attention_dropout
        self.qk = nn.Linear(config.width, 2 * config.width)
        self.v = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, valid_B11T: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        turned_BTD = self._turned(x_BTD.view(B, T, self.heads, D // self.heads)).view(B, T, D)
        q, k = self.qk(turned_BTD).view(B, T, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        v = self.v(x_BTD).view(B, T, self.heads, -1).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        y_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=valid_B11T, dropout_p=dropout)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]

    def _turned(self, x_BTHD: Tensor) -> Tensor:
        T, D = x_BTHD.shape[1], x_BTHD.shape[3]
        rates = self.base ** (-torch.arange(0, D, 2, device=x_BTHD.device).float() / D)
        angles_TD = torch.arange(T, device=x_BTHD.device)[:, None] * torch.cat([rates, rates])
        first, second = x_BTHD.chunk(2, dim=-1)
        across_BTHD = torch.cat([-second, first], dim=-1)
        cos_T1D, sin_T1D = (f[:, None].to(x_BTHD.dtype) for f in (angles_TD.cos(), angles_TD.sin()))
        return x_BTHD * cos_T1D + across_BTHD * sin_T1D


class BiasedAttention(nn.Module):
    """Self-attention to whose scores something is added that depends on the distance of two frames."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.head_width = config.width // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, valid_B11T: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        q, seen = self.positioned(q, valid_B11T)
        dropout = self.dropout if self.training else 0.0
        y_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]

    def positioned(self, q_BHTD: Tensor, valid_B11T: Tensor) -> tuple[Tensor, Tensor]:
        """The queries, and what is added to the scores. Here: that invalid frames are not seen."""
        return q_BHTD, valid_B11T

    def biased(self, scores_BHTR: Tensor, index_TT: Tensor, valid_B11T: Tensor) -> Tensor:
        """Scores by distance, R of them, to what is added to those of pairs."""
        index = index_TT.expand(*scores_BHTR.shape[:2], *index_TT.shape)
        return (scores_BHTR.gather(-1, index) * self.head_width**-0.5).masked_fill(~valid_B11T, -torch.inf)


class SinusoidalAttention(BiasedAttention):
    """Distances as sines and cosines of many rates, projected (Transformer-XL: Dai et al. 2019, arXiv
    1901.02860, section 3.3)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.of_distance = nn.Linear(config.width, config.width, bias=False)
        self.content_bias_HD = nn.Parameter(torch.zeros(config.heads, self.head_width))
        self.distance_bias_HD = nn.Parameter(torch.zeros(config.heads, self.head_width))

    def positioned(self, q_BHTD: Tensor, valid_B11T: Tensor) -> tuple[Tensor, Tensor]:
        T = q_BHTD.shape[2]
        waves_RD = distance_waves(T, self.of_distance.in_features, q_BHTD.device).to(q_BHTD.dtype)
        keys_HDR = self.of_distance(waves_RD).view(2 * T - 1, self.heads, -1).permute(1, 2, 0)
        scores_BHTR = (q_BHTD + self.distance_bias_HD[:, None].to(q_BHTD.dtype)) @ keys_HDR
        places = torch.arange(T, device=q_BHTD.device)
        index_TT = places - places[:, None] + T - 1
        queries = q_BHTD + self.content_bias_HD[:, None].to(q_BHTD.dtype)
        return queries, self.biased(scores_BHTR, index_TT, valid_B11T)


class ClippedAttention(BiasedAttention):
    """A learned vector for each distance, up to a limit on either side (Shaw et al. 2018, arXiv
    1803.02155)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.left, self.right = config.relative_left, config.relative_right
        self.table_RD = nn.Parameter(torch.randn(self.left + self.right + 1, self.head_width))

    def positioned(self, q_BHTD: Tensor, valid_B11T: Tensor) -> tuple[Tensor, Tensor]:
        scores_BHTR = q_BHTD @ self.table_RD.to(q_BHTD.dtype).T
        places = torch.arange(q_BHTD.shape[2], device=q_BHTD.device)
        index_TT = (places - places[:, None]).clamp(-self.left, self.right) + self.left
        return q_BHTD, self.biased(scores_BHTR, index_TT, valid_B11T)


ATTENTIONS = {
    "none": BiasedAttention,
    "rotary": RotaryAttention,
    "sinusoidal": SinusoidalAttention,
    "clipped": ClippedAttention,
}


def distance_waves(frames: int, width: int, device: torch.device) -> Tensor:
    """Sines in even channels and cosines in odd ones, of distances from frames - 1 to 1 - frames: (R, D)."""
    distances_R1 = torch.arange(frames - 1, -frames, -1, device=device)[:, None].float()
    rates = torch.exp(torch.arange(0, width, 2, device=device).float() * (-math.log(10000.0) / width))
    angles = distances_R1 * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class FixedBatchNorm(nn.Module):
    """A batch norm that keeps the statistics it was pre-trained with, in training too: those of a few padded
    clips would make each depend on the others."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x_BTC: Tensor) -> Tensor:
        scale = self.weight.float() * (self.variance.float() + PUBLISHED_EPS).rsqrt()
        offset = self.bias.float() - self.mean.float() * scale
        return x_BTC * scale.to(x_BTC.dtype) + offset.to(x_BTC.dtype)


class ConvModule(nn.Module):
    """A gate, a convolution of each channel over time, a norm, an activation, and a mixture of channels."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.causal = config.conformer_norm == "layer"
        eps = config.norm_eps if self.causal else PUBLISHED_EPS
        self.gated = nn.Linear(config.width, 2 * config.width, bias=False)
        self.depthwise = nn.Parameter(torch.empty(config.width, 1, config.conformer_kernel))
        self.norm = LayerNorm(config.width, eps=eps) if self.causal else FixedBatchNorm(config.width)
        self.activation = ACTIVATIONS[config.activation]
        self.mixed = nn.Linear(config.width, config.width, bias=False)
        nn.init.kaiming_normal_(self.depthwise)

    def forward(self, x_BTD: Tensor, valid_BT1: Tensor) -> Tensor:
        reach = self.depthwise.shape[2] - 1
        x_BTD = F.glu(self.gated(x_BTD * valid_BT1), dim=-1)
        if self.causal:
            x_BTD = F.pad(x_BTD, (0, 0, reach, 0))
        padding = 0 if self.causal else reach // 2
        kernel = self.depthwise.to(x_BTD.dtype)
        x_BTD = conv_over_time(x_BTD, kernel, None, padding=padding, groups=x_BTD.shape[2])
        return self.mixed(self.activation(self.norm(x_BTD)))  # type: ignore[no-any-return]


class ConformerBlock(nn.Module):
    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        eps = config.norm_eps if config.conformer_norm == "layer" else PUBLISHED_EPS
        ffn = (config.width, config.ffn_width, config.activation_dropout, config.activation)
        self.ffn_before_norm = LayerNorm(config.width, eps=eps)
        self.ffn_before = FeedForward(*ffn)
        self.attention_norm = LayerNorm(config.width, eps=eps)
        self.attention = ATTENTIONS[config.relative](config)
        self.conv_norm = LayerNorm(config.width, eps=eps)
        self.conv = ConvModule(config)
        self.ffn_after_norm = LayerNorm(config.width, eps=eps)
        self.ffn_after = FeedForward(*ffn)
        self.norm = LayerNorm(config.width, eps=eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, valid_B11T: Tensor) -> Tensor:
        x_BTD = x_BTD + 0.5 * self.dropout(self.ffn_before(self.ffn_before_norm(x_BTD)))
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), valid_B11T))
        x_BTD = x_BTD + self.dropout(self.conv(self.conv_norm(x_BTD), valid_B11T[:, 0, 0, :, None]))
        x_BTD = x_BTD + 0.5 * self.dropout(self.ffn_after(self.ffn_after_norm(x_BTD)))
        return self.norm(x_BTD)  # type: ignore[no-any-return]
