"""Transform prediction: tell from a clip which of six things was done to it.

The counterpart, in sound, of predicting rotations of images (Gidaris et al. 2018, arXiv 1803.07728). Clips
are as they were, reversed in time, faster or slower (and higher or lower with it), or lack what is above or
below a frequency. It needs an encoder that hears the spectrum: front ends of log-mel bins, each of which is
normalised over the clip, hardly notice the last two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments, perplexity
from speech_ssl.objectives.views import band_pass, change_speed
from speech_ssl.types import SAMPLE_RATE, Batch, LossSum, valid_mask

CLASSES = ("plain", "reversed", "faster", "slower", "low_passed", "high_passed")
_, REVERSED, FASTER, SLOWER, LOW_PASSED, HIGH_PASSED = range(len(CLASSES))


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformPredictionConfig:
    """Ours: transforms that are heard at once, in ranges, so that there is no one sign of each."""

    speed: tuple[float, float] = (1.15, 1.35)
    """Least and most that a faster clip is faster by, and a slower one slower."""
    jitter: float = 0.03
    """All others are faster or slower by up to this share, so that to have been interpolated is no sign."""
    low_pass_hz: tuple[float, float] = (1_000.0, 2_500.0)
    high_pass_hz: tuple[float, float] = (500.0, 1_500.0)

    def __post_init__(self) -> None:
        least, most = self.speed
        if not 0 <= self.jitter < least - 1 <= most - 1:
            raise ValueError(
                f"wanted a speed of (least, most), above 1 + jitter, not {self.speed} and {self.jitter}"
            )

    def build(self, encoder: Encoder) -> TransformPrediction:
        return TransformPrediction(encoder, self)


class TransformPrediction(Objective):
    """An encoder, the mean of its frames, and a linear layer to the classes."""

    def __init__(self, encoder: Encoder, config: TransformPredictionConfig) -> None:
        super().__init__()
        self.encoder, self.config = encoder, config
        encoder.hidden_vector.requires_grad_(False)  # no frame is hidden
        self.answer = nn.Linear(encoder.config.width, len(CLASSES))

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Equation 3, of one transform a row in place of all: -log of the probability of the one that was
        applied. Targets are rows that have a frame. Raises ValueError if the batch is too short for one."""
        B, device = len(batch.wave_BS), batch.wave_BS.device
        class_B = torch.randint(len(CLASSES), (B,), device=device, generator=generator)
        context = self.encoder(*self.transformed(batch, class_B, generator))
        with torch.autocast(device.type, enabled=False):
            x_BTD, valid_BT = context.x_BTD.float(), context.valid_BT.float()
            logits_BK = self.answer(x_BTD.sum(1) / valid_BT.sum(1).clamp(min=1)[:, None])
            weight_B = (context.lengths_B > 0).float()
            total = (F.cross_entropy(logits_BK, class_B, reduction="none") * weight_B).sum()
            drawn_BK = F.one_hot(class_B, len(CLASSES)) * weight_B[:, None]
            right_B1 = (logits_BK.argmax(-1) == class_B).float()[:, None]
            count = weight_B.sum()
            scale = count / valid_BT.sum().clamp(min=1)
            spread = {name: value * scale for name, value in moments(x_BTD, valid_BT).items()}
        metrics = {
            "drawn": drawn_BK.sum(0),
            "right": (drawn_BK * right_B1).sum(0),
            "answers": weight_B @ logits_BK.softmax(-1),
            **spread,
        }
        return LossSum(total, count, {name: value.detach() for name, value in metrics.items()})

    def transformed(self, batch: Batch, class_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Waves (B, S) as their classes say, and their lengths. Of each row a part is kept, anywhere in it
        and as long as the fastest could have left: neither a length nor a clip's edge is a sign."""
        config, lengths_B = self.config, batch.lengths_B
        S, device = batch.wave_BS.shape[1], batch.wave_BS.device
        factor_B = self._uniform(config.speed, len(class_B), generator)
        nearly_B = self._uniform((1 - config.jitter, 1 + config.jitter), len(class_B), generator)
        upper_B = self._uniform(config.low_pass_hz, len(class_B), generator)
        lower_B = self._uniform(config.high_pass_hz, len(class_B), generator)
        place_B = self._uniform((0.0, 1.0), len(class_B), generator)

        speed_B = torch.where(class_B == FASTER, factor_B, nearly_B)
        speed_B = torch.where(class_B == SLOWER, 1 / factor_B, speed_B)
        wave_BS, now_B = change_speed(batch.wave_BS, lengths_B, speed_B)
        upper_B = upper_B.where(class_B == LOW_PASSED, SAMPLE_RATE / 2)
        wave_BS = band_pass(wave_BS, now_B, lower_B.where(class_B == HIGH_PASSED, 0.0), upper_B)

        kept_B = (lengths_B / config.speed[1]).floor().long().minimum(now_B)
        first_B1 = (place_B * (now_B - kept_B + 1)).long().minimum(now_B - kept_B)[:, None]
        at_P = torch.arange(int(S / config.speed[1]), device=device)
        back_BP = (kept_B[:, None] - 1 - at_P).clamp(min=0)
        at_BP = first_B1 + torch.where((class_B == REVERSED)[:, None], back_BP, at_P)
        part_BP = wave_BS.gather(1, at_BP.clamp(max=S - 1))
        return part_BP.masked_fill(~valid_mask(kept_B, part_BP.shape[1]), 0.0), kept_B

    @staticmethod
    def _uniform(ends: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
        low, high = ends
        return low + (high - low) * torch.rand(count, device=generator.device, generator=generator)

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """`accuracy` (by guessing 1 / 6), and that of each class, 0 where none was drawn;
        `answer_perplexity` of the mean answer, at most 6; `effective_rank` of the frames."""
        each_K = means["right"] / means["drawn"].clamp(min=1e-12)
        return {
            "accuracy": float(means["right"].sum()),
            **{f"accuracy_{name}": float(right) for name, right in zip(CLASSES, each_K, strict=True)},
            "answer_perplexity": float(perplexity(means["answers"][None])),
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"]),
        }

    def floors(self) -> Mapping[str, Floor]:
        return {
            "answer_perplexity": Floor(
                1.5,
                "nearly all clips get one answer, whatever was done to them. Lower the peak learning rate, "
                "or use larger batches",
            ),
            "effective_rank": Floor(
                2.0,
                "the frames point in one or two directions, which is enough for the answer and useless "
                "otherwise. Lower the peak learning rate, or train for fewer steps",
            ),
        }
