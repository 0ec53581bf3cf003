"""HuBERT: predict the k-means unit of each hidden frame.

Hsu et al. 2021, arXiv 2106.07447, section II. Units are computed in each step from the same crop that the
encoder gets, where the paper labels whole recordings in advance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments, perplexity
from speech_ssl.objectives.masking import hidden_positions, hide_spans, most_hidden, take
from speech_ssl.objectives.units import Units, usage
from speech_ssl.objectives.views import Mixing, mix_utterances
from speech_ssl.types import Batch, LossSum


@dataclass(frozen=True, kw_only=True, slots=True)
class HuBERTConfig:
    """Defaults: the first iteration of BASE (section IV)."""

    units: Literal["mfcc"] | int = "mfcc"
    """Features to cluster: MFCCs, or the layer of the teacher, counted as in `Encoder.hidden_states`."""
    clusters: int = 100
    by_clip: bool = False
    """Features have mean 0 and variance 1 over the clip before they are clustered, which takes away most of
    what they say of voice and room (cepstral mean and variance normalisation, if they are MFCCs)."""
    fit_frames: int = 1_000_000
    """Frames on which the clusters are fitted before the first step."""
    hidden_share: float = 0.8
    """As in `hide_spans`: the paper's probability that a span begins, 0.08, times the span."""
    hidden_span: int = 10
    alpha: float = 1.0
    """Weight of the hidden frames' loss; the visible ones have 1 - alpha (equation 2)."""
    tau: float = 0.1
    """Temperature of the cosine similarities (equation 3)."""
    final_width: int = 256
    feature_penalty: float = 10.0
    """Weight of the mean square of the features: from fairseq's configuration, not in the paper."""
    mixing: Mixing | None = None
    """Utterance mixing of the encoder's input in training; units are of the clean wave (WavLM)."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is a weight within 0 and 1, not {self.alpha}")

    def build(self, encoder: Encoder) -> HuBERT:
        return HuBERT(encoder, self)


class CosineHead(nn.Module):
    """sim(A o_t, e_c) / tau for each unit c (equation 3): context vectors (..., D) to logits (..., V)."""

    def __init__(self, width: int, final_width: int, clusters: int, tau: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, final_width)
        self.codes_VD = nn.Parameter(torch.randn(clusters, final_width))
        self.tau = tau

    def forward(self, x_BMD: Tensor) -> Tensor:
        x_BMD = F.normalize(self.project(x_BMD), dim=-1)
        return x_BMD @ F.normalize(self.codes_VD, dim=-1).T / self.tau


class HuBERT(Objective):
    """An encoder, k-means units, and a head that predicts them."""

    best_by = "cross_entropy"

    def __init__(self, encoder: Encoder, config: HuBERTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.teachers = 0 if config.units == "mfcc" else 1
        self.units = Units(config.clusters, config.units, by_clip=config.by_clip)
        self.head = CosineHead(encoder.config.width, config.final_width, config.clusters, config.tau)

    def learn_from(self, teachers: Sequence[Encoder]) -> None:
        super().learn_from(teachers)
        for teacher in teachers:
            config = self.config
            self.units = Units(config.clusters, config.units, teacher, by_clip=config.by_clip)

    def prepare(self, batches: Iterable[Batch], generator: torch.Generator) -> None:
        self.units.fit(batches, self.encoder, total=self.config.fit_frames, generator=generator)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Raises ValueError if the batch is too short for a frame. The feature penalty is a mean over this
        batch, weighted by its count."""
        config = self.config
        mixing = config.mixing if self.training else None
        wave_BS = mix_utterances(batch.wave_BS, batch.lengths_B, mixing, generator)
        raw = self.encoder.convolve(wave_BS, batch.lengths_B)
        features = self.encoder.normalized(raw)
        size = features.x_BTD.shape[1]
        spans = {"share": config.hidden_share, "span": config.hidden_span}
        hidden_BT = hide_spans(features.lengths_B, size, generator=generator, **spans)  # type: ignore[arg-type]
        context = self.encoder.contextualize(features, hidden_BT=hidden_BT)

        alone = config.alpha == 1
        predicted_BT, most = (
            (hidden_BT, most_hidden(size, **spans)) if alone else (features.valid_BT, size)  # type: ignore[arg-type]
        )
        position_BM, chosen_BM = hidden_positions(predicted_BT, most)
        context_BMD = take(context.x_BTD, position_BM).float()
        unit_BM = self.units(batch, self.encoder).gather(1, position_BM)
        weight_BM = torch.where(hidden_BT.gather(1, position_BM), config.alpha, 1 - config.alpha) * chosen_BM
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            logits_BMV = self.head(context_BMD)
            loss_BM = F.cross_entropy(logits_BMV.transpose(1, 2), unit_BM, reduction="none")
            entropy = (loss_BM * weight_BM).sum()
            target_BM = (weight_BM > 0).float()
            count = target_BM.sum()
            valid_BT1 = raw.valid_BT[:, :, None]
            energy = (raw.x_BTD.float().square() * valid_BT1).sum() / (valid_BT1.sum() * raw.x_BTD.shape[2])
            guess_BM = logits_BMV.detach().argmax(-1)
            metrics = {
                "cross_entropy": entropy,
                "accuracy": ((guess_BM == unit_BM) * target_BM).sum(),
                "feature_energy": energy * count,
                "units": usage(unit_BM, target_BM, config.clusters),
                "guesses": usage(guess_BM, target_BM, config.clusters),
                **moments(context_BMD, target_BM),
            }
        total = entropy + config.feature_penalty * energy * count
        return LossSum(total, count, {k: v.detach() for k, v in metrics.items()})

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Adds `unit_perplexity`: of the target units; its logarithm is the loss of predicting by frequency
        alone, and `chance` the accuracy of that; `guess_perplexity`: of the predicted units;
        `effective_rank` of the context vectors."""
        return super().report(means) | {
            "chance": float(means["units"].max()),
            "unit_perplexity": float(perplexity(means["units"][None])),
            "guess_perplexity": float(perplexity(means["guesses"][None])),
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"]),
        }

    def floors(self) -> Mapping[str, Floor]:
        return {
            "unit_perplexity": Floor(
                0.1 * self.config.clusters,
                "a few units cover nearly all frames, so that there is little to predict. Look for silent or "
                "constant audio in the manifest, use another layer of the teacher, or fewer clusters",
            ),
            "guess_perplexity": Floor(
                1.2,
                "nearly all frames get the same prediction. Lower the peak learning rate or lengthen the "
                "warm-up",
            ),
            "effective_rank": Floor(
                2.0,
                "the context vectors point in one or two directions. Lower the peak learning rate, lengthen "
                "the warm-up, and look for silent or constant audio in the manifest",
            ),
        }
