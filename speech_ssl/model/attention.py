"""The transformer block: self-attention and feed-forward, with the norms before or after them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.config import Activation, EncoderConfig, GatedDistances, Transformer
from speech_ssl.model.frontends.wave import ACTIVATIONS, LayerNorm
from speech_ssl.model.relative import GatedBias, PositionGate

SCORES_BYTES = 1 << 21
"""Bytes of attention scores that are computed at a time in bf16 on the CPU: they fit in a core's cache."""


class SelfAttention(nn.Module):
    """gated: as in WavLM; `forward` then needs the bias."""

    def __init__(self, width: int, heads: int, dropout: float, *, gated: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.gate = PositionGate(heads, width // heads) if gated else None

    def forward(self, x_BTD: Tensor, seen: Tensor, bias_HTT: Tensor | None = None) -> Tensor:
        """seen: which frames (B, 1, 1, T) all see, or (B, 1, T, T) each sees."""
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        positions: GatedBias | None = None
        if self.gate is not None:
            assert bias_HTT is not None
            positions = GatedBias(self.gate(x_BTD).to(q.dtype), bias_HTT.to(q.dtype))
        if x_BTD.dtype == torch.bfloat16 and x_BTD.device.type == "cpu" and not torch.is_grad_enabled():
            y_BHTD = attend_in_parts(q, k, v, seen, positions)
        else:
            weighed = seen
            if positions is not None:
                weighed = positions.whole().masked_fill(~seen, float("-inf"))
            y_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=weighed, dropout_p=dropout)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, D))  # type: ignore[no-any-return]


def attend_in_parts(
    q_BHTD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    seen: Tensor,
    positions: GatedBias | None = None,
) -> Tensor:
    """The same result as `scaled_dot_product_attention`, without gradients, a few heads at a time. In bf16 on
    the CPU this takes less than half the time, since oneDNN computes the products. Scores are rounded to
    bf16, which doubles the error of this step, to 0.4 %."""
    B, H, T, D = q_BHTD.shape
    q, k, v = (x.reshape(B * H, T, D) for x in (q_BHTD * D**-0.5, k_BHTD, v_BHTD))
    bias = q.new_zeros(seen[:, 0].shape).masked_fill_(~seen[:, 0], float("-inf")).repeat_interleave(H, dim=0)
    y = torch.empty_like(q)
    at_once = max(1, SCORES_BYTES // (T * T * q.element_size()))
    for first in range(0, B * H, at_once):
        part = slice(first, first + at_once)
        offset = bias[part]
        if positions is not None:
            heads = torch.arange(first, first + len(offset)) % H
            offset = torch.addcmul(
                offset, positions.gate_BHT1.view(B * H, T, 1)[part], positions.bias_HTT[heads]
            )
        scores = torch.baddbmm(offset, q[part], k[part].transpose(1, 2))
        torch.bmm(scores.softmax(-1), v[part], out=y[part])
    return y.view(B, H, T, D)


class FeedForward(nn.Module):
    def __init__(self, width: int, ffn_width: int, dropout: float, activation: Activation = "gelu") -> None:
        super().__init__()
        self.up = nn.Linear(width, ffn_width)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(ffn_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.dropout(self.activation(self.up(x_BTD))))  # type: ignore[no-any-return]


class Adapter(nn.Module):
    """A bottleneck with few weights, trained for one language while the encoder stays frozen (MMS: Pratap et
    al. 2023, arXiv 2305.13516). The caller adds the residual."""

    def __init__(self, width: int, adapter_width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.down = nn.Linear(width, adapter_width)
        self.up = nn.Linear(adapter_width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.up(F.relu(self.down(self.norm(x_BTD))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each with a residual. Post-norm (BASE) or pre-norm (LARGE LV-60k)."""

    def __init__(self, config: EncoderConfig, spec: Transformer) -> None:
        super().__init__()
        self.pre_norm = spec.pre_norm
        gated = isinstance(config.positions, GatedDistances)
        self.attention = SelfAttention(config.width, config.heads, config.attention_dropout, gated=gated)
        self.attention_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.ffn = FeedForward(config.width, config.ffn_width, config.activation_dropout, config.activation)
        self.ffn_norm = LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.adapter = Adapter(config.width, spec.adapter_width) if spec.adapter_width else None

    def forward(self, x_BTD: Tensor, seen: Tensor, bias_HTT: Tensor | None = None) -> Tensor:
        """seen: as for `SelfAttention`. bias_HTT: from `RelativeBias`, if the encoder has one."""
        if self.pre_norm:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), seen, bias_HTT))
            x_BTD = x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD)))
        else:
            x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, seen, bias_HTT)))
            x_BTD = self.ffn_norm(x_BTD + self.dropout(self.ffn(x_BTD)))
        return x_BTD if self.adapter is None else x_BTD + self.adapter(x_BTD)
