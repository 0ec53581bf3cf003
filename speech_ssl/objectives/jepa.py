"""JEPA on waveforms (WavJEPA): from what is visible, predict a teacher's view of several hidden parts.

Yuksel et al. 2025, arXiv 2509.23238, after I-JEPA (Assran et al. 2023, arXiv 2301.08243). The numbers are
those of the published code. Theirs adds sines as positions; ours has convolutions of the encoder's kind, in
the encoder and in the predictor. Where theirs draws again until a tenth of a row is visible, ours fills up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from speech_ssl.model.attention import Block
from speech_ssl.model.config import Transformer
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.wave import LayerNorm
from speech_ssl.model.positions import conv_positions
from speech_ssl.objectives.masking import hidden_positions, hide_spans, highest, most_hidden, take
from speech_ssl.objectives.teacher import Regressing, Spoken, encoder_teacher, regression, told
from speech_ssl.types import Batch, Frames, LossSum, valid_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class JEPAConfig:
    """Defaults: base, for audio of any kind; theirs has 100 frames a second."""

    context_share: float | None = 0.65
    """Of the frames that may be visible, in spans that overlap, before targets are taken out. None: all are,
    as in theirs for speech."""
    context_span: int = 10
    targets: int = 4
    """Parts that are predicted apart from each other, from the same context."""
    target_share: float = 0.25
    """Of each part, in spans that overlap."""
    target_span: int = 10
    least_context: float = 0.1
    """Share of a row that is visible at least, at the cost of the targets."""
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
    maybe_BT = valid_mask(lengths_B, size)
    if (share := config.context_share) is not None:
        maybe_BT = hide_spans(
            lengths_B, size, share=share, span=config.context_span, generator=generator, least=1
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


class Predictor(nn.Module):
    """A narrow transformer over the context and, in the places of what it is asked for, a learned vector.
    Positions are of the encoder's kind."""

    def __init__(self, encoder: Encoder, config: JEPAConfig) -> None:
        super().__init__()
        block = encoder.config.block
        assert isinstance(block, Transformer)
        P, D = config.predictor_width, encoder.config.width
        sizes = replace(
            encoder.config,
            width=P,
            heads=config.predictor_heads,
            ffn_width=4 * P,
            block=replace(block, adapter_width=0),
        )
        self.narrow = nn.Linear(D, P)
        self.asked = nn.Parameter(0.02 * torch.randn(P))
        self.positions = conv_positions(sizes)
        self.blocks = nn.ModuleList(Block(sizes, sizes.block) for _ in range(config.predictor_layers))  # type: ignore[arg-type]
        self.norm = LayerNorm(P, eps=sizes.norm_eps)
        self.widen = nn.Linear(P, D)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        context: Frames,
        place_BK: Tensor,
        asked_BGT: Tensor,
        asked_NM: Tensor,
        real_NM: Tensor,
        lengths_B: Tensor,
    ) -> Tensor:
        """context: of the visible frames, with their places. asked: which frames each part is to predict; for
        N = B * G parts also their places, of which some are real. The teacher's vectors there: (N, M, D)."""
        B, G, T = asked_BGT.shape
        known_BKP = self.narrow(context.x_BTD) * context.valid_BT[:, :, None]
        known_BTP = known_BKP.new_zeros(B, T, known_BKP.shape[2])
        known_BTP = known_BTP.scatter(1, place_BK[:, :, None].expand_as(known_BKP), known_BKP)
        asked_NT1 = asked_BGT.flatten(0, 1)[:, :, None]
        x_NTP = torch.where(asked_NT1, self.asked.to(known_BTP.dtype), known_BTP.repeat_interleave(G, 0))
        if self.positions is not None:
            x_NTP = x_NTP + self.positions(Frames(x_NTP, lengths_B.repeat_interleave(G)))
        seen_NS = torch.cat([context.valid_BT.repeat_interleave(G, 0), real_NM], dim=1)
        x_NSP = take(x_NTP, torch.cat([place_BK.repeat_interleave(G, 0), asked_NM], dim=1))
        for block in self.blocks:
            x_NSP = block(x_NSP, seen_NS[:, None, None, :])
        return self.widen(self.norm(x_NSP[:, -asked_NM.shape[1] :]))  # type: ignore[no-any-return]


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
        predicted_NMD = self.predictor(context, place_BK, asked_BGT, asked_NM, real_NM, features.lengths_B)
        target_NMD = take(target_BTD, asked_NM.reshape(B, G * most)).view(predicted_NMD.shape)
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            metrics = told(beyond, context.x_BTD, context.valid_BT, real_NM.sum().float())
            return regression(predicted_NMD, target_NMD, real_NM, metrics)
