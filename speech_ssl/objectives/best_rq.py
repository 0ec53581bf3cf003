"""BEST-RQ: predict, at hidden frames, the code of a frozen random-projection quantizer.

Chiu et al. 2022, arXiv 2202.01855, section 3. The quantizer takes log-mel frames; nothing in it is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.mel import STEP, MelFrontend
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments, perplexity
from speech_ssl.objectives.masking import hidden_positions, hide_spans, most_hidden, take
from speech_ssl.objectives.units import at_least, on_grid, usage
from speech_ssl.objectives.views import Mixing, mix_utterances
from speech_ssl.types import Batch, Frames, LossSum


@dataclass(frozen=True, kw_only=True, slots=True)
class BestRQConfig:
    """Defaults: the paper's (section 4.1.1), for frames of 40 ms, `LogMel(stacked=4)`."""

    bins: int = 80
    """Mel bins of the quantizer's input; the steps of 10 ms that make a frame are stacked."""
    entries: int = 8192
    code_width: int = 16
    hidden_share: float = 0.4
    """As in `hide_spans`: the paper's probability that a span begins, 0.01 per 10 ms, times its 400 ms."""
    hidden_span: int = 10
    """In frames: 400 ms if they are of 40 ms."""
    noise: float = 0.1
    """Standard deviation of the Gaussian noise that replaces hidden log-mel frames."""
    mixing: Mixing | None = None
    """Utterance mixing of the encoder's input in training; targets are of the clean wave (WavLM)."""

    def build(self, encoder: Encoder) -> BestRQ:
        return BestRQ(encoder, self)


class RandomProjection(nn.Module):
    """argmin_i || norm(c_i) - norm(A x) || (equation 1): frames (B, T, D) to codes (B, T) int64."""

    def __init__(self, width: int, entries: int, code_width: int) -> None:
        super().__init__()
        self.projection_DC: Tensor
        self.codebook_VC: Tensor
        projection_DC = nn.init.xavier_uniform_(torch.empty(width, code_width))
        self.register_buffer("projection_DC", projection_DC)
        self.register_buffer("codebook_VC", F.normalize(torch.randn(entries, code_width), dim=-1))

    @torch.no_grad()
    def forward(self, x_BTD: Tensor) -> Tensor:
        """Among code vectors of length 1 the nearest has the largest product, whatever the length of A x."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            return (x_BTD.float() @ self.projection_DC @ self.codebook_VC.T).argmax(-1)


class BestRQ(Objective):
    """An encoder, a frozen quantizer, and a linear layer that predicts its codes."""

    best_by = "loss"

    def __init__(self, encoder: Encoder, config: BestRQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.mel = MelFrontend(config.bins, max(encoder.hop // STEP, 1))
        self.width = self.mel.stacked * config.bins
        self.quantizer = RandomProjection(self.width, config.entries, config.code_width)
        self.head = nn.Linear(encoder.config.width, config.entries)
        self.hears_mel = isinstance(encoder.frontend, MelFrontend)
        if self.hears_mel:
            encoder.hidden_vector.requires_grad_(False)

    def mel_frames(self, batch: Batch) -> Tensor:
        """Log-mel frames (B, T, stacked * bins) aligned with the encoder's. Each bin has mean 0 and variance
        1 over the row: without this few codes would be used (section 3.2)."""
        mel = self.mel(at_least(batch.wave_BS, self.mel.receptive_field), batch.lengths_B)
        return on_grid(mel, self.mel.hop, self.mel.receptive_field, self.encoder, batch).x_BTD

    def context(self, raw: Frames, generator: torch.Generator) -> tuple[Frames, Tensor]:
        """Context vectors (B, T, D) and the hidden frames (B, T) bool. Log-mel frames are hidden by noise, as
        in the paper; the features of a convolutional front end by the learned vector."""
        features = self.encoder.normalized(raw)
        hidden_BT = hide_spans(
            features.lengths_B,
            features.x_BTD.shape[1],
            share=self.config.hidden_share,
            span=self.config.hidden_span,
            generator=generator,
        )
        if not self.hears_mel:
            return self.encoder.contextualize(features, hidden_BT=hidden_BT), hidden_BT
        x_BTD = features.x_BTD
        noise_BTD = self.config.noise * torch.randn(x_BTD.shape, device=x_BTD.device, generator=generator)
        x_BTD = torch.where(hidden_BT[:, :, None], noise_BTD.to(x_BTD.dtype), x_BTD)
        return self.encoder.contextualize(Frames(x_BTD, features.lengths_B)), hidden_BT

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Raises ValueError if the batch is too short for a frame."""
        config = self.config
        mixing = config.mixing if self.training else None
        wave_BS = mix_utterances(batch.wave_BS, batch.lengths_B, mixing, generator)
        raw = self.encoder.convolve(wave_BS, batch.lengths_B)
        heard = self.hears_mel and mixing is None and self.encoder.config.frontend.width == self.width
        code_BT = self.quantizer(raw.x_BTD if heard else self.mel_frames(batch))
        context, hidden_BT = self.context(raw, generator)
        B, T, D = context.x_BTD.shape
        most = most_hidden(T, share=config.hidden_share, span=config.hidden_span)
        position_BM, chosen_BM = hidden_positions(hidden_BT, most)
        context_BMD = take(context.x_BTD, position_BM).float()
        code_BM = code_BT.gather(1, position_BM)
        weight_BM = chosen_BM.float()
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            logits_BMV = self.head(context_BMD)
            loss_BM = F.cross_entropy(logits_BMV.transpose(1, 2), code_BM, reduction="none")
            total, guess_BM = (loss_BM * weight_BM).sum(), logits_BMV.detach().argmax(-1)
            metrics = {
                "accuracy": ((guess_BM == code_BM) * weight_BM).sum(),
                "codes": usage(code_BM, weight_BM, config.entries),
                "guesses": usage(guess_BM, weight_BM, config.entries),
                **moments(context_BMD, weight_BM),
            }
        return LossSum(total, weight_BM.sum(), {k: v.detach() for k, v in metrics.items()})

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Adds `code_perplexity`: of the target codes; its logarithm is the loss of predicting by frequency
        alone, and `chance` the accuracy of that; `guess_perplexity`: of the predicted codes;
        `effective_rank` of the context vectors."""
        return super().report(means) | {
            "chance": float(means["codes"].max()),
            "code_perplexity": float(perplexity(means["codes"][None])),
            "guess_perplexity": float(perplexity(means["guesses"][None])),
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"]),
        }

    def floors(self) -> Mapping[str, Floor]:
        return {
            "code_perplexity": Floor(
                0.01 * self.config.entries,
                "few codes are in use, so that there is little to predict. Look for silent or constant audio "
                "in the manifest, or try another seed",
            ),
            "effective_rank": Floor(
                2.0,
                "the context vectors point in one or two directions. Lower the peak learning rate, lengthen "
                "the warm-up, and look for silent or constant audio in the manifest",
            ),
        }
