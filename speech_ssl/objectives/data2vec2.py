"""data2vec 2.0: encode only what is visible, of several hidden copies of a row for each pass of the teacher.

Baevski et al. 2022, arXiv 2212.07525, section 3. What stays visible stays in blocks, the paper's inverse
block masking; its published file for speech hides spans of as many frames instead. Its encoder for speech
also has ALiBi (a bias by distance in attention), which ours lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.convolution import conv_over_time, start_bias_
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.masking import all_but_blocks, hidden_positions, take
from speech_ssl.objectives.teacher import Regressing, Spoken, encoder_teacher, regression, told
from speech_ssl.types import Batch, Frames, LossSum, valid_mask


@dataclass(frozen=True, kw_only=True, slots=True)
class Data2Vec2Config:
    """Defaults: Base for speech, as in the published file."""

    copies: int = 8
    """M, differently hidden, of each row: one pass of the front end and of the teacher serves all."""
    hidden_share: float = 0.5
    """R"""
    block: int = 5
    """B, frames that stay visible side by side."""
    adjust: float = 0.05
    """A, see `all_but_blocks`."""
    top: int = 8
    """K, the layers whose mean is the target."""
    spoken: Spoken = "feed_forward"
    decoder_width: int = 384
    decoder_layers: int = 4
    decoder_kernel: int = 7
    decoder_groups: int = 16
    decoder_dropout: float = 0.1
    """Of its input."""
    noise: float = 0.01
    """Deviation of what the decoder is given for hidden frames."""
    ema: tuple[float, float] = (0.999, 0.99999)
    """tau: first and last."""
    ema_warmup: float = 75_000 / 400_000
    """Share of the run in which tau rises."""

    def build(self, encoder: Encoder) -> Data2Vec2:
        return Data2Vec2(encoder, self)


class ConvLayer(nn.Module):
    """A grouped convolution over time, a norm without parameters, GELU."""

    def __init__(self, incoming: int, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"decoder_kernel must be odd, not {kernel}")
        self.padding, self.groups = kernel // 2, groups
        self.weight = nn.Parameter(torch.empty(width, incoming // groups, kernel))
        self.bias = nn.Parameter(torch.empty(width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        start_bias_(self.bias, incoming // groups * kernel)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTD = conv_over_time(x_BTD, self.weight, self.bias, padding=self.padding, groups=self.groups)
        return F.gelu(F.layer_norm(y_BTD, y_BTD.shape[2:]))


class Decoder(nn.Module):
    """The convolutional decoder, with residuals, over visible frames and noise in the others' places.

    What each layer makes of invalid frames is zeroed before the next: a row's frames are its own."""

    def __init__(self, encoder_width: int, config: Data2Vec2Config) -> None:
        super().__init__()
        width = config.decoder_width
        self.noise = config.noise
        self.dropout = nn.Dropout(config.decoder_dropout)
        self.layers = nn.ModuleList(
            ConvLayer(width if i else encoder_width, width, config.decoder_kernel, config.decoder_groups)
            for i in range(config.decoder_layers)
        )
        self.project = nn.Linear(width, encoder_width)

    def forward(
        self,
        context: Frames,
        position_BK: Tensor,
        hidden_BT: Tensor,
        lengths_B: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """context: of the visible frames, with their places. Returns all frames' last layer (B, T, D)."""
        context_BKD = self.dropout(context.x_BTD)
        B, T, D = *hidden_BT.shape, context_BKD.shape[2]
        noise_BTD = self.noise * torch.randn(B, T, D, device=hidden_BT.device, generator=generator)
        x_BTD = context_BKD.new_zeros(B, T, D).scatter(
            1, position_BK[:, :, None].expand_as(context_BKD), context_BKD
        )
        x_BTD = torch.where(hidden_BT[:, :, None], noise_BTD.to(x_BTD.dtype), x_BTD)
        valid_BT1 = valid_mask(lengths_B, T)[:, :, None]
        for layer in self.layers:
            y_BTD = layer(x_BTD) * valid_BT1
            x_BTD = x_BTD + y_BTD if x_BTD.shape == y_BTD.shape else y_BTD
        return x_BTD  # type: ignore[no-any-return]


class Data2Vec2(Regressing):
    """Student and teacher share front end and projection; the teacher has its own positions."""

    def __init__(self, encoder: Encoder, config: Data2Vec2Config) -> None:
        encoder.check_visible()
        teacher = encoder_teacher(encoder, config.ema, config.ema_warmup, shares_positions=False)
        super().__init__(encoder, teacher, config.top)
        self.config, self.spoken = config, config.spoken
        self.decoder = Decoder(encoder.config.width, config)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Waits for the device: `Encoder.visible` does."""
        config, features = self.config, self.features(batch)
        target_BTD, beyond = self.targets(features)
        copies = Frames(*(each.repeat_interleave(config.copies, 0) for each in features))
        size = copies.x_BTD.shape[1]
        hidden_BT = all_but_blocks(
            copies.lengths_B,
            size,
            share=config.hidden_share,
            block=config.block,
            adjust=config.adjust,
            generator=generator,
        )
        context, position_BK = self.encoder.visible(copies, hidden_BT)
        decoded_BTD = self.decoder(context, position_BK, hidden_BT, copies.lengths_B, generator)
        position_BM, chosen_BM = hidden_positions(hidden_BT, round(config.hidden_share * size) + 1)
        predicted_BMD = self.decoder.project(take(decoded_BTD, position_BM))
        target_BMD = take(target_BTD.repeat_interleave(config.copies, 0), position_BM)
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            metrics = told(beyond, context.x_BTD, context.valid_BT, chosen_BM.sum().float())
            return regression(predicted_BMD, target_BMD, chosen_BM, metrics)
