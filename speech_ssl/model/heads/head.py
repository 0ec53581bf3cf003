"""Heads: hidden states to outputs for each frame. Answers for a clip are made of them later, so that long
files can be computed in windows.

A head takes all hidden states of the encoder, as `Encoder.hidden_states` returns them: L + 1 tensors (B, T,
D).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.heads.adapters import CTCAdapter
from speech_ssl.model.heads.specs import AdapterSpec, EventsSpec
from speech_ssl.types import Frames


class CTCHead(nn.Module):
    """The final state to log-probabilities of units (B, T, V), in fp32. Unit 0 is the blank.

    With an adapter there are fewer frames. Each is repeated, so that every frame of the encoder has outputs:
    windows are joined and cut by frames, and only decoding reads one frame in `CTCSpec.stride`.
    """

    def __init__(
        self, width: int, units: int, dropout: float = 0.0, adapter: AdapterSpec | None = None
    ) -> None:
        super().__init__()
        self.adapter = None if adapter is None else CTCAdapter(width, adapter)
        width = width if adapter is None else adapter.width
        self.dropout = nn.Dropout(dropout)
        self.logits = nn.Linear(width, units)
        nn.init.normal_(self.logits.weight, std=width**-0.5)
        nn.init.zeros_(self.logits.bias)

    def forward(self, states: Sequence[Tensor], lengths_B: Tensor | None = None) -> Tensor:
        """lengths_B: valid frames of each row, which adapters need; None: all frames are valid."""
        x_BTD = states[-1]
        with torch.autocast(x_BTD.device.type, enabled=False):
            if self.adapter is None:
                return self._log_probs(x_BTD.float())
            if lengths_B is None:
                lengths_B = torch.full(x_BTD.shape[:1], x_BTD.shape[1], device=x_BTD.device)
            fewer_BTD, _ = self.adapter(Frames(x_BTD.float(), lengths_B))
            log_probs_BTV = self._log_probs(fewer_BTD).repeat_interleave(self.adapter.stride, dim=1)
            return log_probs_BTV[:, : x_BTD.shape[1]]

    def _log_probs(self, x_BTD: Tensor) -> Tensor:
        return self.logits(self.dropout(x_BTD)).log_softmax(-1)  # type: ignore[no-any-return]


class LayerMix(nn.Module):
    """A learned convex combination of all hidden states (SUPERB: Yang et al. 2021, arXiv 2105.01051).

    Each state is normalised first, since their scales differ by orders of magnitude, then standardised per
    channel by mean and deviation over training clips, if they were measured. Pre-trained states vary little
    around large means, and a head that must first learn those means learns slowly (LOG.md).
    """

    def __init__(self, states: int, width: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(states))
        self.mean_LD: Tensor
        self.deviation_LD: Tensor
        self.register_buffer("mean_LD", torch.zeros(states, width))
        self.register_buffer("deviation_LD", torch.ones(states, width))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        return torch.einsum("l,lbtd->btd", self.scores.softmax(0), self.standardised(states))

    def standardised(self, states: Sequence[Tensor]) -> Tensor:
        """The standardised states, before mixing: (L, B, T, D)."""
        x_LBTD = torch.stack([self.normalized(x_BTD) for x_BTD in states])
        return (x_LBTD - self.mean_LD[:, None, None]) / self.deviation_LD[:, None, None]

    @staticmethod
    def normalized(x_BTD: Tensor) -> Tensor:
        return F.layer_norm(x_BTD.float(), x_BTD.shape[-1:])

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Sequence[Tensor], Tensor]]) -> None:
        """Measure mean and deviation from batches of states and their valid frames (B, T)."""
        count, total_LD, squares_LD = 0, torch.zeros(1), torch.zeros(1)
        for states, valid_BT in batches:
            x_LND = torch.stack([self.normalized(x_BTD)[valid_BT] for x_BTD in states]).double()
            count += x_LND.shape[1]
            total_LD = total_LD.to(x_LND) + x_LND.sum(1)
            squares_LD = squares_LD.to(x_LND) + x_LND.square().sum(1)
        if count:
            mean_LD = total_LD / count
            self.mean_LD.copy_(mean_LD)
            self.deviation_LD.copy_((squares_LD / count - mean_LD.square()).clamp(min=0).sqrt() + 1e-3)


class PlainMix(nn.Module):
    """A convex combination of all hidden states, not normalised: `use_weighted_layer_sum` of transformers."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(states))

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        return torch.einsum("l,lbtd->btd", self.scores.softmax(0), torch.stack([s.float() for s in states]))


class LastState(nn.Module):
    """The final state alone."""

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        return states[-1].float()


class EventsHead(nn.Module):
    """All states to the outputs of labels (B, T, O), in fp32: K logits, and for attentive pooling K attention
    logits (Kong et al. 2019, arXiv 1903.00765)."""

    def __init__(self, encoder: EncoderConfig, spec: EventsSpec, dropout: float = 0.0) -> None:
        super().__init__()
        outputs = len(spec.labels) * (2 if spec.pooling == "attentive" else 1)
        self.mix: LayerMix | PlainMix | LastState
        if spec.mixing == "normalized":
            self.mix = LayerMix(encoder.depth + 1, encoder.width)
        else:
            self.mix = PlainMix(encoder.depth + 1) if spec.mixing == "plain" else LastState()
        self.gelu = spec.gelu
        self.hidden = nn.Linear(encoder.width, spec.hidden) if spec.hidden else None
        self.dropout = nn.Dropout(dropout)
        self.outputs = nn.Linear(spec.hidden or encoder.width, outputs)
        for linear in filter(None, (self.hidden, self.outputs)):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    @property
    def layers(self) -> LayerMix:
        """The mix of normalised states, which every head trained here has."""
        assert isinstance(self.mix, LayerMix)
        return self.mix

    def forward(self, states: Sequence[Tensor], lengths_B: Tensor | None = None) -> Tensor:
        """lengths_B: not used; the head judges each frame by itself."""
        with torch.autocast(states[-1].device.type, enabled=False):
            x_BTD = self.dropout(self.mix(states))
            if self.hidden is not None:
                x_BTD = self.hidden(x_BTD)
                x_BTD = self.dropout(F.gelu(x_BTD) if self.gelu else x_BTD)
            return self.outputs(x_BTD)  # type: ignore[no-any-return]

    @torch.no_grad()
    def scale_logits(self, scale: float, spec: EventsSpec) -> None:
        """Multiply the logits of all labels; attention stays."""
        self.outputs.weight[: len(spec.labels)] *= scale
        self.outputs.bias[: len(spec.labels)] *= scale


def frame_logits(outputs_BTO: Tensor, spec: EventsSpec) -> Tensor:
    """Logits of each label in each frame: (B, T, K)."""
    return outputs_BTO[..., : len(spec.labels)]


def clip_logits(outputs_BTO: Tensor, valid_BT: Tensor, spec: EventsSpec) -> Tensor:
    """Logits of each label for the whole clip, over its valid frames: (B, K)."""
    logits_BTK, valid_BT1 = frame_logits(outputs_BTO, spec), valid_BT[:, :, None]
    if spec.pooling == "max":
        return logits_BTK.masked_fill(~valid_BT1, -torch.inf).amax(1)
    attention_BTK = torch.zeros_like(logits_BTK)
    if spec.pooling == "attentive":
        attention_BTK = outputs_BTO[..., len(spec.labels) :]
    share_BTK = attention_BTK.masked_fill(~valid_BT1, -torch.inf).softmax(1)
    return (logits_BTK.masked_fill(~valid_BT1, 0.0) * share_BTK).sum(1)
