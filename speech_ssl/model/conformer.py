"""The Conformer block: attention and a convolution between two half-step feed-forward layers (Gulati et al.
2020, arXiv 2005.08100), with the relative positions of wav2vec2-conformer and w2v-BERT 2.0."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.attention import FeedForward, attend_in_parts
from speech_ssl.model.config import ClippedDistances, Conformer, EncoderConfig, Rotary, Sinusoidal
from speech_ssl.model.convolution import conv_over_time
from speech_ssl.model.frontends.wave import ACTIVATIONS, LayerNorm
from speech_ssl.model.relative import GatedBias

PUBLISHED_EPS = 1e-5
"""Epsilon of the norms in blocks with a batch norm, whatever the config says about the other norms."""


class ConformerAttention(nn.Module):
    """Self-attention without positions; subclasses add a positional bias to the scores.

    Takes (B, T, D) and the valid frames (B, 1, 1, T), returns (B, T, D).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.head_width = config.width // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, valid_B11T: Tensor) -> Tensor:
        B, T, _ = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        q, bias_BHTT = self.positioned(q)
        y_BHTD = attend(q, k, v, valid_B11T, bias_BHTT, self.dropout if self.training else 0.0)
        return self.out(y_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def positioned(self, q_BHTD: Tensor) -> tuple[Tensor, Tensor | None]:
        """The queries to compare with the keys, and the bias to add to the scores: (B, H, T, T) or None."""
        return q_BHTD, None


def attend(
    q_BHTD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    valid_B11T: Tensor,
    bias_BHTT: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Scaled dot-product attention: (B, H, T, D). In bf16 on the CPU without gradients by
    `attend_in_parts`."""
    if q_BHTD.dtype == torch.bfloat16 and q_BHTD.device.type == "cpu" and not torch.is_grad_enabled():
        return _attend_in_parts(q_BHTD, k_BHTD, v_BHTD, valid_B11T, bias_BHTT)
    seen = valid_B11T if bias_BHTT is None else bias_BHTT.masked_fill(~valid_B11T, -torch.inf)
    return F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, attn_mask=seen, dropout_p=dropout)


def _attend_in_parts(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, valid_B11T: Tensor, bias_BHTT: Tensor | None
) -> Tensor:
    """Row by row if there is a bias: `attend_in_parts` takes one bias for all rows."""
    if bias_BHTT is None:
        return attend_in_parts(q_BHTD, k_BHTD, v_BHTD, valid_B11T)
    open_1HT1 = q_BHTD.new_ones(1, *q_BHTD.shape[1:3], 1)
    rows = []
    for i, bias_HTT in enumerate(bias_BHTT):
        q, k, v, valid = (x[i : i + 1] for x in (q_BHTD, k_BHTD, v_BHTD, valid_B11T))
        rows.append(attend_in_parts(q, k, v, valid, GatedBias(open_1HT1, bias_HTT)))
    return torch.cat(rows)


class RotaryAttention(nn.Module):
    """Attention with rotary position embeddings (RoFormer: Su et al. 2021, arXiv 2104.09864).

    As in wav2vec2-conformer, the input of the query and key projections is rotated, head by head, not their
    output.
    """

    def __init__(self, config: EncoderConfig, base: int) -> None:
        super().__init__()
        self.heads, self.base, self.dropout = config.heads, base, config.attention_dropout
        self.head_width = config.width // config.heads
        self.qk = nn.Linear(config.width, 2 * config.width)
        self.v = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, valid_B11T: Tensor) -> Tensor:
        B, T, _ = x_BTD.shape
        turned_BTD = self._turned(x_BTD.view(B, T, self.heads, self.head_width)).flatten(2)
        q, k = self.qk(turned_BTD).view(B, T, 2, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        v = self.v(x_BTD).view(B, T, self.heads, self.head_width).transpose(1, 2)
        y_BHTD = attend(q, k, v, valid_B11T, dropout=self.dropout if self.training else 0.0)
        return self.out(y_BHTD.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _turned(self, x_BTHD: Tensor) -> Tensor:
        """Rotate channel i of a head's first half with channel i of its second half; angles in fp32."""
        rates = rotary_rates(self.head_width, self.base, x_BTHD.device)
        places_T1 = torch.arange(x_BTHD.shape[1], device=x_BTHD.device)[:, None]
        angles_T1D = (places_T1 * torch.cat([rates, rates]))[:, None]
        first, second = x_BTHD.chunk(2, dim=-1)
        across_BTHD = torch.cat([-second, first], dim=-1)
        return (x_BTHD * angles_T1D.cos() + across_BTHD * angles_T1D.sin()).to(x_BTHD.dtype)


def rotary_rates(head_width: int, base: int, device: torch.device | None = None) -> Tensor:
    """Radians per frame of each pair of channels: (head_width / 2,)."""
    return 1.0 / base ** (torch.arange(0, head_width, 2, device=device).float() / head_width)


class SinusoidalAttention(ConformerAttention):
    """Attention with projected sinusoidal embeddings of distances (Transformer-XL: Dai et al. 2019, arXiv
    1901.02860, section 3.3)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.of_distance = nn.Linear(config.width, config.width, bias=False)
        self.content_bias_HD = nn.Parameter(torch.zeros(config.heads, self.head_width))
        self.distance_bias_HD = nn.Parameter(torch.zeros(config.heads, self.head_width))

    def positioned(self, q_BHTD: Tensor) -> tuple[Tensor, Tensor | None]:
        content_H1D, distance_H1D = (
            bias_HD[:, None].to(q_BHTD.dtype) for bias_HD in (self.content_bias_HD, self.distance_bias_HD)
        )
        waves_RD = distance_waves(q_BHTD.shape[2], self.heads * self.head_width, q_BHTD.device)
        keys_RD = self.of_distance(waves_RD.to(q_BHTD.dtype))
        keys_HDR = keys_RD.view(-1, self.heads, self.head_width).permute(1, 2, 0)
        scores_BHTR = ((q_BHTD + distance_H1D) * self.head_width**-0.5) @ keys_HDR
        return q_BHTD + content_H1D, by_pair(scores_BHTR)


class ClippedAttention(ConformerAttention):
    """Attention with a learned vector for each distance, clipped on either side (Shaw et al. 2018, arXiv
    1803.02155)."""

    def __init__(self, config: EncoderConfig, left: int, right: int) -> None:
        super().__init__(config)
        self.left, self.right = left, right
        self.table_KD = nn.Parameter(torch.empty(self.left + self.right + 1, self.head_width))
        nn.init.normal_(self.table_KD, std=0.02)

    def positioned(self, q_BHTD: Tensor) -> tuple[Tensor, Tensor | None]:
        scores_BHTK = (q_BHTD * self.head_width**-0.5) @ self.table_KD.to(q_BHTD.dtype).T
        return q_BHTD, by_pair(unclipped(scores_BHTK, self.left, self.right))


def attention_of(config: EncoderConfig) -> ConformerAttention | RotaryAttention:
    """The attention for the config's positions."""
    match config.positions:
        case Rotary(base=base):
            return RotaryAttention(config, base)
        case Sinusoidal():
            return SinusoidalAttention(config)
        case ClippedDistances(left=left, right=right):
            return ClippedAttention(config, left, right)
    return ConformerAttention(config)


def distance_waves(frames: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal embeddings of the distance from key to query, from `frames` down to 1 - frames: (R, D).
    Sines in even channels, cosines in odd ones."""
    distances_R1 = torch.arange(frames, -frames, -1, device=device)[:, None].float()
    rates = torch.exp(torch.arange(0, width, 2, device=device).float() * (-math.log(10000.0) / width))
    angles = distances_R1 * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def unclipped(scores_BHTK: Tensor, left: int, right: int) -> Tensor:
    """Scores for distances from -left to right, extended to distances from -T to T - 1 by repeating the
    outermost: (B, H, T, 2 T).

    Copies, not an index: the gradient of an index would add up hundreds of bf16 numbers in any order.
    """
    B, H, T, K = scores_BHTK.shape
    before, after = T - left, T - 1 - right
    near = scores_BHTK[..., max(-before, 0) : K - max(-after, 0)]
    furthest = scores_BHTK[..., :1].expand(B, H, T, max(before, 0))
    latest = scores_BHTK[..., -1:].expand(B, H, T, max(after, 0))
    return torch.cat([furthest, near, latest], dim=-1)


def by_pair(scores_BHTR: Tensor) -> Tensor:
    """Scores by distance from query to key (-T to T - 1), turned into scores by key: (B, H, T, T), a view.

    In memory each query's row is 2 T long, and its first key stands one place earlier than in the row before.
    """
    B, H, T, _ = scores_BHTR.shape
    return scores_BHTR.flatten(2)[..., T:].view(B, H, T, 2 * T - 1)[..., :T]


class FixedBatchNorm(nn.Module):
    """A batch norm that keeps its pre-trained statistics in training too: statistics of a few padded clips
    would make each clip depend on the others. Without pre-trained statistics it only scales and shifts."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x_BTC: Tensor) -> Tensor:
        scale_C = self.weight.float() * (self.variance.float() + PUBLISHED_EPS).rsqrt()
        y_BTC = (x_BTC.float() - self.mean.float()) * scale_C + self.bias.float()
        return y_BTC.to(x_BTC.dtype)


class ConvModule(nn.Module):
    """Gated linear unit, depthwise convolution over time, norm, activation, pointwise projection."""

    def __init__(self, config: EncoderConfig, spec: Conformer) -> None:
        super().__init__()
        self.causal = spec.norm == "layer"
        self.gated = nn.Linear(config.width, 2 * config.width, bias=False)
        self.depthwise = nn.Parameter(torch.empty(config.width, 1, spec.kernel))
        self.norm: nn.Module = FixedBatchNorm(config.width)
        if self.causal:
            self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.activation = ACTIVATIONS[config.activation]
        self.mixed = nn.Linear(config.width, config.width, bias=False)
        nn.init.kaiming_normal_(self.depthwise)

    def forward(self, x_BTD: Tensor, valid_BT1: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D). Invalid frames are zeroed before the convolution."""
        reach = self.depthwise.shape[2] - 1
        x_BTD = F.glu(self.gated(x_BTD * valid_BT1), dim=-1)
        if self.causal:
            x_BTD = F.pad(x_BTD, (0, 0, reach, 0))
        padding = 0 if self.causal else reach // 2
        kernel = self.depthwise.to(x_BTD.dtype)
        x_BTD = conv_over_time(x_BTD, kernel, None, padding=padding, groups=x_BTD.shape[2])
        return self.mixed(self.activation(self.norm(x_BTD)))  # type: ignore[no-any-return]


class ConformerBlock(nn.Module):
    """Half-step feed-forward, attention, convolution, half-step feed-forward: each pre-norm with a residual
    connection. A final norm."""

    def __init__(self, config: EncoderConfig, spec: Conformer) -> None:
        super().__init__()
        eps = config.norm_eps if spec.norm == "layer" else PUBLISHED_EPS
        ffn = (config.width, config.ffn_width, config.activation_dropout, config.activation)
        self.ffn_before_norm = LayerNorm(config.width, eps=eps)
        self.ffn_before = FeedForward(*ffn)
        self.attention_norm = LayerNorm(config.width, eps=eps)
        self.attention = attention_of(config)
        self.conv_norm = LayerNorm(config.width, eps=eps)
        self.conv = ConvModule(config, spec)
        self.ffn_after_norm = LayerNorm(config.width, eps=eps)
        self.ffn_after = FeedForward(*ffn)
        self.norm = LayerNorm(config.width, eps=eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_dropout = nn.Dropout(spec.dropout)

    def forward(self, x_BTD: Tensor, valid_B11T: Tensor) -> Tensor:
        x_BTD = x_BTD + 0.5 * self.dropout(self.ffn_before(self.ffn_before_norm(x_BTD)))
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), valid_B11T))
        x_BTD = x_BTD + self.conv_dropout(self.conv(self.conv_norm(x_BTD), valid_B11T[:, 0, 0, :, None]))
        x_BTD = x_BTD + 0.5 * self.dropout(self.ffn_after(self.ffn_after_norm(x_BTD)))
        return self.norm(x_BTD)  # type: ignore[no-any-return]
