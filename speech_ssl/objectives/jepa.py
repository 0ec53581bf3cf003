"""JEPA on waveforms (WavJEPA): from what is visible, predict a teacher's view of several hidden parts.

Yuksel et al. 2025, arXiv 2509.23238, after I-JEPA (Assran et al. 2023, arXiv 2301.08243). The numbers are
those of the published code. Theirs adds sines to the encoder's input as positions; ours has the encoder's
convolution, and sines in the predictor alone. Where theirs draws again until a tenth of a row is visible,
ours fills up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from speech_ssl.model.attention import Block
from speech_ssl.model.config import Transformer
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.wave import LayerNorm
from speech_ssl.objectives.masking import hidden_positions, hide_spans, highest, most_hidden, take
from speech_ssl.objectives.teacher import Regressing, Spoken, encoder_teacher, regression, told
from speech_ssl.types import Batch, Frames, LossSum


@dataclass(frozen=True, kw_only=True, slots=True)
class JEPAConfig:
    """Defaults: base, for audio of any kind; theirs has 100 frames a second."""

    context_share: float = 0.65
    """Of the frames that may be visible, in spans that overlap, before targets are taken out."""
    context_span: int = 10
    targets: int = 4
    """Parts that are predicted apart from each other, from the same context."""
    target_share: float = 0.25
    """Of each part, in spans that overlap."""
    target_span: int = 10
    least_context: float = 0.1
    top: int = 8
    """K, the layers whose mean is the target."""
    spoken: Spoken = "block"
    predictor_width: int = 384
    predictor_layers: int = 12
    predictor_heads: int = 12
    ema: tuple[float, float] = (0.999, 0.99999)
    """tau: first and last."""
    ema_warmup: float = 100_000 / 400_000
    """Share of the run in which tau rises."""

    def build(self, encoder: Encoder) -> JEPA:
        return JEPA(encoder, self)


def draw_parts(
    lengths_B: Tensor, size: int, config: JEPAConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What is visible (B, T) and what each of the G parts is to predict (B, G, T): bool, never both, never
    true on padding. Each row has something visible."""
    B, G = len(lengths_B), config.targets
    maybe_BT = hide_spans(
        lengths_B, size, share=config.context_share, span=config.context_span, generator=generator, least=1
    )
    target_BGT = hide_spans(
        lengths_B.repeat_interleave(G),
        size,
        share=config.target_share,
        span=config.target_span,
        generator=generator,
        least=1,
    ).view(B, G, size)
    free_BT = ~target_BGT.any(1)
    wanted_BT = maybe_BT & free_BT
    least_B = (config.least_context * lengths_B).ceil().long().clamp(min=1)
    count_B = wanted_BT.sum(1).maximum(least_B)
    context_BT = highest(wanted_BT.float() + free_BT.float(), count_B, lengths_B, generator)
    return context_BT, target_BGT & ~context_BT[:, None]


def sines(position_BM: Tensor, width: int) -> Tensor:
    """The sines and cosines of positions (Vaswani et al. 2017, section 3.5): (B, M, width)."""
    rates = 10_000 ** (-torch.arange(0, width, 2, device=position_BM.device) / width)
    angles_BMR = position_BM[:, :, None] * rates
    return torch.cat([angles_BMR.sin(), angles_BMR.cos()], dim=-1)[:, :, :width]


class Predictor(nn.Module):
    """A narrow transformer over the context and, in the places of what it is asked for, a learned vector."""

    def __init__(self, encoder: Encoder, config: JEPAConfig) -> None:
        super().__init__()
        block = encoder.config.block
        assert isinstance(block, Transformer)
        P, D = config.predictor_width, encoder.config.width
        sizes = encoder.config.changed(
            width=P,
            heads=config.predictor_heads,
            ffn_width=4 * P,
            positions={"groups": 1},
            block=replace(block, adapter_width=0),
        )
        self.narrow = nn.Linear(D, P)
        self.asked = nn.Parameter(0.02 * torch.randn(P))
        self.blocks = nn.ModuleList(Block(sizes, sizes.block) for _ in range(config.predictor_layers))  # type: ignore[arg-type]
        self.norm = LayerNorm(P, eps=sizes.norm_eps)
        self.widen = nn.Linear(P, D)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)
        for layer in self.blocks:  # sines are most alike where places are near: each looks there first
            assert isinstance(layer, Block)
            query, key, _ = layer.attention.qkv.weight.detach().chunk(3)
            key.copy_(query)

    def forward(self, context: Frames, place_BK: Tensor, asked_BGM: Tensor, real_BGM: Tensor) -> Tensor:
        """context: of the visible frames, with their places; asked: the places of each part, of which some
        are real. Returns the teacher's vectors there: (B * G, M, D)."""
        B, G, M = asked_BGM.shape
        known_BKP = self.narrow(context.x_BTD)
        known_BKP = known_BKP + sines(place_BK, known_BKP.shape[2]).to(known_BKP.dtype)
        asked_NMP = (self.asked + sines(asked_BGM.flatten(0, 1), len(self.asked))).to(known_BKP.dtype)
        x_NTP = torch.cat([known_BKP.repeat_interleave(G, 0), asked_NMP], dim=1)
        seen_NT = torch.cat([context.valid_BT.repeat_interleave(G, 0), real_BGM.flatten(0, 1)], dim=1)
        for block in self.blocks:
            x_NTP = block(x_NTP, seen_NT[:, None, None, :])
        return self.widen(self.norm(x_NTP[:, -M:]))  # type: ignore[no-any-return]


class JEPA(Regressing):
    """Context encoder (the student), target encoder (the teacher) and predictor. Front end, projection and
    positions are shared."""

    def __init__(self, encoder: Encoder, config: JEPAConfig) -> None:
        encoder.check_visible()
        teacher = encoder_teacher(encoder, config.ema, config.ema_warmup)
        super().__init__(encoder, teacher, config.top)
        self.config, self.spoken = config, config.spoken
        self.predictor = Predictor(encoder, config)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Waits for the device: `Encoder.visible` does."""
        config, features = self.config, self.features(batch)
        target_BTD, beyond = self.targets(features)
        B, size, G = *features.x_BTD.shape[:2], config.targets
        context_BT, asked_BGT = draw_parts(features.lengths_B, size, config, generator)
        context, place_BK = self.encoder.visible(features, ~context_BT)
        most = most_hidden(size, share=config.target_share, span=config.target_span, least=1)
        asked_NM, real_NM = hidden_positions(asked_BGT.flatten(0, 1), most)
        asked_BGM, real_BGM = asked_NM.view(B, G, most), real_NM.view(B, G, most)
        predicted_NMD = self.predictor(context, place_BK, asked_BGM, real_BGM)
        target_NMD = take(target_BTD, asked_BGM.flatten(1)).view(predicted_NMD.shape)
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            metrics = told(beyond, context.x_BTD, context.valid_BT, real_NM.sum().float())
            return regression(predicted_NMD, target_NMD, real_NM, metrics)
