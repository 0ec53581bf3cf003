"""The encoder: front end, projection, positions, transformer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from speech_ssl.model.attention import Block
from speech_ssl.model.config import Conformer, EncoderConfig, GatedDistances, LogMel
from speech_ssl.model.conformer import ConformerBlock
from speech_ssl.model.convolution import Lengths, start_bias_
from speech_ssl.model.frontends.mel import MelFrontend
from speech_ssl.model.frontends.stem import MelStem
from speech_ssl.model.frontends.wave import Frontend, LayerNorm
from speech_ssl.model.positions import conv_positions
from speech_ssl.model.relative import RelativeBias
from speech_ssl.types import Frames, Levels


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a factor (fairseq's GradMultiply)."""

    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return grad * ctx.factor, None


class Encoder(nn.Module):
    """wav2vec 2.0 encoder (Baevski et al. 2020, section 2).

    A row's frames do not depend on the other rows of its batch or on their padding: every statistic is taken
    over valid samples, and invalid frames are zeroed before they can leak through the positional convolution
    or attention.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        if isinstance(frontend := config.frontend, LogMel):
            mel = MelFrontend(frontend.bins, frontend.stacked, frontend.norm)
            self.frontend: MelFrontend | Frontend = mel
        else:
            self.frontend = Frontend(frontend, config.conv_activation, config.init)
        self.feature_norm: nn.Module = nn.Identity()
        if config.feature_norm:
            self.feature_norm = LayerNorm(config.frontend.width, eps=config.norm_eps)
        if isinstance(frontend, LogMel) and frontend.channels:
            stem = MelStem(frontend.bins, frontend.channels, config.width)
            self.feature_projection: nn.Linear | MelStem = stem
        else:
            self.feature_projection = nn.Linear(frontend.width, config.width)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.hidden_vector = nn.Parameter(torch.empty(config.width).uniform_())
        self.positions = conv_positions(config)
        self.relative: RelativeBias | None = None
        if isinstance(gated := config.positions, GatedDistances):
            self.relative = RelativeBias(config.heads, gated.buckets, gated.furthest)
        self.norm: nn.Module = nn.Identity()
        if not isinstance(block := config.block, Conformer) or block.norm == "batch":
            self.norm = LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            ConformerBlock(config, block) if isinstance(block, Conformer) else Block(config, block)
            for _ in range(config.depth)
        )
        published = config.init == "published"
        for module in (self.blocks if published else self).modules():
            if isinstance(module, nn.Linear):  # 0.02 as BERT and fairseq, made for wide layers
                nn.init.normal_(module.weight, std=0.02 if published else module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(config.frontend, LogMel):  # its frames of silence are zero, as no norm's input may be
            projection = self.feature_projection
            last = projection if isinstance(projection, nn.Linear) else projection.linear
            start_bias_(last.bias, last.in_features)

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.frontend.hop

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees, and so the length of the shortest clip with a frame."""
        return self.frontend.receptive_field

    def frame_count(self, lengths: Lengths) -> Lengths:
        """Exact number of frames of waves of `lengths` samples."""
        return self.frontend.frame_count(lengths)

    def fold_weight_norm_(self) -> None:
        """Compute the positional convolution's weight once, for inference."""
        if self.positions is not None:
            self.positions.fold_()

    def convolve(self, wave_BS: Tensor, lengths_B: Tensor, levels: Levels = ()) -> Frames:
        """The front end's output (B, T, C), before `feature_norm`; gradients are scaled as the config says.
        levels: for rows that are windows of longer clips, the clips' moments (see `frontends.levels`)."""
        scale = self.config.feature_grad_scale
        if scale == 0:
            with torch.no_grad():
                return self.frontend(wave_BS, lengths_B, levels)  # type: ignore[no-any-return]
        frames: Frames = self.frontend(wave_BS, lengths_B, levels)
        if scale == 1 or not torch.is_grad_enabled():
            return frames
        return Frames(ScaleGradient.apply(frames.x_BTD, scale), frames.lengths_B)  # type: ignore[no-untyped-call]

    def contextualize(self, features: Frames, *, hidden_BT: Tensor | None = None) -> Frames:
        """From features (B, T, C), after `feature_norm`, to context vectors (B, T, D). `hidden` frames are
        first replaced by the learned vector."""
        *_, x_BTD = self.blockwise(features, hidden_BT)
        return Frames(x_BTD, features.lengths_B)

    def blockwise(
        self, features: Frames, hidden_BT: Tensor | None = None, hidden_BD: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Yield the first block's input, then each block's output; the last one is final: (B, T, D).

        Invalid frames are zero in the first and the last state. hidden_BT: frames to replace by the learned
        vector before positions are added. hidden_BD: channels to zero throughout a row.
        """
        yield from self.blockwise_from(self.entering(features, hidden_BT, hidden_BD))

    def entering(
        self, features: Frames, hidden_BT: Tensor | None = None, hidden_BD: Tensor | None = None
    ) -> Frames:
        """What enters the first block (B, T, D), positions included; parameters as of `blockwise`."""
        valid_BT, x_BTC = features.valid_BT, features.x_BTD
        if hidden_BT is not None and isinstance(self.feature_projection, MelStem):
            x_BTC = x_BTC.masked_fill(hidden_BT[:, :, None], 0.0)  # which the next frame would see
        x_BTD = self.feature_dropout(self.feature_projection(x_BTC))
        if hidden_BT is not None:
            x_BTD = torch.where(hidden_BT[:, :, None], self.hidden_vector.to(x_BTD.dtype), x_BTD)
        if hidden_BD is not None:
            x_BTD = x_BTD.masked_fill(hidden_BD[:, None, :], 0.0)
        x_BTD = x_BTD * valid_BT[:, :, None]
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(Frames(x_BTD, features.lengths_B))
        if not self.config.block.pre_norm:
            x_BTD = self.norm(x_BTD)
        return Frames(self.dropout(x_BTD) * valid_BT[:, :, None], features.lengths_B)

    def blockwise_from(self, entering: Frames) -> Iterator[Tensor]:
        """As `blockwise`, of what enters the first block."""
        valid_BT, x_BTD = entering.valid_BT, entering.x_BTD
        seen = valid_BT[:, None, None, :]
        if self.config.causal:
            size = x_BTD.shape[1]
            seen = seen & torch.ones(size, size, dtype=torch.bool, device=x_BTD.device).tril()
        shared = () if self.relative is None else (self.relative(x_BTD.shape[1]),)
        yield x_BTD
        for i, (block, dropped) in enumerate(zip(self.blocks, self._dropped_layers(), strict=True)):
            if not dropped:
                x_BTD = block(x_BTD, seen, *shared)
            if i < len(self.blocks) - 1:
                yield x_BTD
        if self.config.block.pre_norm:
            x_BTD = self.norm(x_BTD)
        yield x_BTD * valid_BT[:, :, None]

    def visible(self, features: Frames, hidden_BT: Tensor) -> tuple[Frames, Tensor]:
        """Context vectors of the frames that are not hidden, without computing the others: frames (B, K, D),
        K the most that a row has, and the place of each in its row (B, K) int64. Positions are added before
        the hidden frames are taken out (data2vec 2.0, Baevski et al. 2022, arXiv 2212.07525, section 3.1).

        Raises ValueError for an encoder whose blocks need each frame's neighbours or place. Waits for the
        device: K is a number.
        """
        self.check_visible()
        x_BTD = self.entering(features, hidden_BT).x_BTD
        visible_BT = features.valid_BT & ~hidden_BT
        lengths_B = visible_BT.sum(1)
        position_BK = (~visible_BT).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(lengths_B.max())]
        x_BKD = x_BTD.gather(1, position_BK[:, :, None].expand(-1, -1, x_BTD.shape[2]))
        *_, x_BKD = self.blockwise_from(Frames(x_BKD, lengths_B))
        return Frames(x_BKD, lengths_B), position_BK

    def check_visible(self) -> None:
        """Raises ValueError where `visible` would."""
        if isinstance(self.config.block, Conformer) or self.relative is not None:
            raise ValueError(
                "only a transformer with convolutional positions can encode visible frames alone"
            )

    def _dropped_layers(self) -> list[bool]:
        """LayerDrop (Fan et al. 2019): the blocks to skip. Drawn on the CPU, so that a GPU need not wait."""
        if not self.training or self.config.layer_drop == 0:
            return [False] * len(self.blocks)
        draws = torch.rand(len(self.blocks), device="cpu")
        return [draw < self.config.layer_drop for draw in draws.tolist()]

    def normalized(self, features: Frames) -> Frames:
        return Frames(self.feature_norm(features.x_BTD), features.lengths_B)

    def forward(self, wave_BS: Tensor, lengths_B: Tensor, *, hidden_BT: Tensor | None = None) -> Frames:
        """From waves (B, S) and their true lengths (B,) in samples to context vectors (B, T, D)."""
        return self.contextualize(self.normalized(self.convolve(wave_BS, lengths_B)), hidden_BT=hidden_BT)

    def hidden_states(
        self, wave_BS: Tensor, lengths_B: Tensor, *, last: int | None = None, levels: Levels = ()
    ) -> list[Tensor]:
        """All L + 1 states (B, T, D): 0 enters the first block, -1 is final. `last`: stop after this
        state."""
        states = []
        for i, state in enumerate(self.blockwise(self.normalized(self.convolve(wave_BS, lengths_B, levels)))):
            states.append(state)
            if i == last:
                break
        return states
