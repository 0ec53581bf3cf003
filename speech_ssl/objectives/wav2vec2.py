"""wav2vec 2.0: tell the quantized target of a hidden frame from distractors of the same utterance.

Baevski et al. 2020, arXiv 2006.11477, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.quantizers import GumbelQuantizer
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments, perplexity
from speech_ssl.objectives.masking import hidden_positions, hide_spans, most_hidden, take
from speech_ssl.objectives.views import Mixing, mix_utterances
from speech_ssl.types import Batch, LossSum


@dataclass(frozen=True, kw_only=True, slots=True)
class Wav2Vec2Config:
    """Defaults: BASE."""

    hidden_share: float = 0.65
    hidden_span: int = 10
    distractors: int = 100
    kappa: float = 0.1
    """Temperature of the cosine similarities."""
    groups: int = 2
    entries: int = 320
    logit_std: float = 1.0
    """Standard deviation of the quantizer's initial weights, see `GumbelQuantizer`."""
    code_width: int = 256
    final_width: int = 256
    diversity_weight: float = 0.1
    feature_penalty: float = 10.0
    temperature: tuple[float, float] = (2.0, 0.5)
    """Temperature of the Gumbel softmax: first and lowest."""
    temperature_decay: float = 0.999995**400_000
    """Factor on the temperature over the whole run: BASE's factor per step, over its 400,000 steps."""
    target_dropout: float = 0.1
    mixing: Mixing | None = None
    """Utterance mixing of the encoder's input in training. Targets are of the clean wave: a second pass of
    the front end."""

    def build(self, encoder: Encoder) -> Wav2Vec2:
        return Wav2Vec2(encoder, self)


def draw_distractors(chosen_BM: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """How often hidden frame j serves as a distractor of hidden frame i: (B, M, M) float.

    `number` draws per frame, uniform with replacement over the other hidden frames of the row.
    """
    B, M = chosen_BM.shape
    others_B11 = (chosen_BM.sum(1) - 1).clamp(min=1)[:, None, None]
    draws_BMK = torch.rand(B, M, number, device=chosen_BM.device, generator=generator)
    j_BMK = (draws_BMK * others_B11).long().clamp(max=M - 1)
    own_1M1 = torch.arange(M, device=chosen_BM.device)[None, :, None]
    j_BMK = (j_BMK + (j_BMK >= own_1M1)).clamp(max=M - 1)
    times_BMM = torch.zeros(B, M, M, device=chosen_BM.device)
    return times_BMM.scatter_add_(2, j_BMK, torch.ones_like(draws_BMK))


class Contrast(NamedTuple):
    """The result for each hidden frame."""

    loss_BM: Tensor
    won_BM: Tensor
    """Whether the target was more similar than every distractor."""
    chance_BM: Tensor
    """The probability of winning by guessing; short rows have fewer distinct distractors than were drawn."""


def contrastive_loss(
    context_BMD: Tensor, target_BMD: Tensor, times_BMM: Tensor, code_BM: Tensor, kappa: float
) -> Contrast:
    """Equation 3 for every frame.

    The distractors are frames of the same row, so all similarities are one matrix product per row, and a
    distractor drawn n times is one term with weight n. Nothing of size M x K x D is created, and unlike that
    of a gather, the backward pass adds in a fixed order. A distractor with the target's own code has weight
    0.
    """
    context_BMD = F.normalize(context_BMD.float(), dim=-1)
    target_BMD = F.normalize(target_BMD.float(), dim=-1)
    logits_BMM = context_BMD @ target_BMD.transpose(1, 2) / kappa
    weight_BMM = times_BMM * (code_BM[:, :, None] != code_BM[:, None, :])
    positive_BM = logits_BMM.diagonal(dim1=1, dim2=2)
    with torch.no_grad():  # a frame without distractors never wins: otherwise a collapse would look perfect
        best_BM = logits_BMM.masked_fill(weight_BMM == 0, -torch.inf).amax(-1)
        won_BM = (positive_BM > best_BM) & best_BM.isfinite()
        chance_BM = 1 / (1 + (weight_BMM > 0).sum(-1))
    weight_BMM = weight_BMM + torch.eye(code_BM.shape[1], device=code_BM.device)
    loss_BM = torch.logsumexp(logits_BMM + weight_BMM.log(), -1) - positive_BM
    return Contrast(loss_BM, won_BM, chance_BM)


class Wav2Vec2(Objective):
    """Encoder, quantizer and the two projections whose outputs the contrastive loss compares."""

    best_by = "contrastive"  # section 4.2: the checkpoint is chosen by the contrastive loss alone

    def __init__(self, encoder: Encoder, config: Wav2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.quantizer = GumbelQuantizer(
            encoder.config.frontend.width,
            groups=config.groups,
            entries=config.entries,
            width=config.code_width,
            logit_std=config.logit_std,
        )
        self.target_dropout = nn.Dropout(config.target_dropout)
        self.project_target = nn.Linear(config.code_width, config.final_width)
        self.project_context = nn.Linear(encoder.config.width, config.final_width)
        self.temperature: Tensor
        self.register_buffer("temperature", torch.tensor(config.temperature[0]), persistent=False)

    def set_progress(self, progress: float) -> None:
        first, lowest = self.config.temperature
        self.temperature.fill_(max(first * self.config.temperature_decay**progress, lowest))

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Raises ValueError if the batch is too short for a frame. The diversity loss and the feature penalty
        are means over this batch, weighted by its count, so that they add up like the contrastive loss."""
        config = self.config
        mixing = config.mixing if self.training else None
        wave_BS = mix_utterances(batch.wave_BS, batch.lengths_B, mixing, generator)
        raw = self.encoder.convolve(wave_BS, batch.lengths_B)
        features = clean = self.encoder.normalized(raw)
        if mixing is not None:
            clean = self.encoder.normalized(self.encoder.convolve(batch.wave_BS, batch.lengths_B))
        size = features.x_BTD.shape[1]
        spans = {"share": config.hidden_share, "span": config.hidden_span}
        hidden_BT = hide_spans(features.lengths_B, size, generator=generator, **spans)  # type: ignore[arg-type]
        position_BM, chosen_BM = hidden_positions(hidden_BT, most_hidden(size, **spans))  # type: ignore[arg-type]
        chosen_BM = chosen_BM & (chosen_BM.sum(1, keepdim=True) > 1)  # a single frame has no distractor

        context = self.encoder.contextualize(features, hidden_BT=hidden_BT)
        context_BMD = take(context.x_BTD, position_BM)
        quantized = self.quantizer(
            self.target_dropout(take(clean.x_BTD, position_BM)),
            temperature=self.temperature,
            generator=generator,
        )
        times_BMM = draw_distractors(chosen_BM, config.distractors, generator)
        code_BM = _single_index(quantized.codes_NG, config.entries)
        with torch.autocast(batch.wave_BS.device.type, enabled=False):
            contrast = contrastive_loss(
                self.project_context(context_BMD.float()),
                self.project_target(quantized.vectors_ND),
                times_BMM,
                code_BM,
                config.kappa,
            )
            weight_BM = chosen_BM.float()
            count = weight_BM.sum()
            probs_GV = torch.einsum("bm,bmgv->gv", weight_BM, quantized.probs_NGV)
            diversity = 1 - perplexity(probs_GV / count.clamp(min=1)) / (config.groups * config.entries)
            valid_BT1 = raw.valid_BT[:, :, None]
            energy = (raw.x_BTD.float().square() * valid_BT1).sum() / (valid_BT1.sum() * raw.x_BTD.shape[2])
            contrastive = (contrast.loss_BM * weight_BM).sum()
            extra = config.diversity_weight * diversity + config.feature_penalty * energy
            onehot_BMGV = F.one_hot(quantized.codes_NG, config.entries).float()
            metrics = {
                "contrastive": contrastive,
                "accuracy": (contrast.won_BM * weight_BM).sum(),
                "chance": (contrast.chance_BM * weight_BM).sum(),
                "diversity": diversity * count,
                "feature_energy": energy * count,
                "codes": torch.einsum("bm,bmgv->gv", weight_BM, onehot_BMGV),
                "probs": probs_GV,
                **moments(context_BMD, weight_BM),
            }
        return LossSum(contrastive + extra * count, count, {k: v.detach() for k, v in metrics.items()})

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Adds `code_perplexity`: of the chosen codes, summed over the codebooks, at most G * V;
        `worst_codebook`: the lowest perplexity of one codebook, at most V; `prob_perplexity`: of the mean
        softmax; `effective_rank` of the context vectors."""
        return super().report(means) | {
            "code_perplexity": float(perplexity(means["codes"])),
            "worst_codebook": min(float(perplexity(p_V[None])) for p_V in means["codes"]),
            "prob_perplexity": float(perplexity(means["probs"])),
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"]),
            "temperature": float(self.temperature),
        }

    def floors(self) -> Mapping[str, Floor]:
        config = self.config
        return {
            "code_perplexity": Floor(
                0.04 * config.groups * config.entries,
                "few codes are in use, so that most distractors equal the target: the loss and the accuracy "
                "mean nothing. Lower the peak learning rate or lengthen the warm-up, raise "
                "diversity_weight, keep the temperature high for longer, or use more varied audio per batch",
            ),
            "worst_codebook": Floor(
                0.02 * config.entries,
                "one codebook nearly always chooses the same entries, so the other carries everything. Raise "
                "diversity_weight, or lower the peak learning rate",
            ),
            "effective_rank": Floor(
                2.0,
                "the context vectors point in one or two directions. Lower the peak learning rate, lengthen "
                "the warm-up, and look for silent or constant audio in the manifest",
            ),
        }


def _single_index(codes_BMG: Tensor, entries: int) -> Tensor:
    """The codes of all groups as one number: equal only if all are equal."""
    index_BM = codes_BMG[..., 0]
    for group in range(1, codes_BMG.shape[-1]):
        index_BM = index_BM * entries + codes_BMG[..., group]
    return index_BM
