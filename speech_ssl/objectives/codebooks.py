"""What methods share that predict a teacher's codes: codebooks that follow its vectors as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Floor, effective_rank, perplexity
from speech_ssl.objectives.global_batch import all_sum
from speech_ssl.objectives.teacher import PLACES, EMATeacher, Spoken, Taught, beyond_place, top_layers
from speech_ssl.types import Batch, Frames, LossSum

CHOICE = 8
"""Frames to choose each first entry from."""


class OnlineCodebooks(nn.Module):
    """G codebooks of V entries, each the mean of the vectors that were nearest to it, with a decay (DinoSR,
    Liu et al. 2023, arXiv 2305.10005, section 3, online clustering).

    s_v <- decay s_v + (1 - decay) sum of its vectors, n_v <- decay n_v + (1 - decay) their number, entry
    e_v = s_v / n_v. An entry that no vector was nearest to stays as it is: of the random ones it begins with,
    those that the first step does not reach are rarely reached later. Theirs sees an hour of audio in a step;
    for smaller ones `begin` chooses entries from the vectors themselves.
    """

    def __init__(self, codebooks: int, entries: int, width: int, decay: float) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"codebook_decay must be from 0 to 1, not {decay}")
        self.entries, self.decay = entries, decay
        drawn_GVD = torch.randn(codebooks, entries, width)
        drawn_GVD = (drawn_GVD - drawn_GVD.mean(1, keepdim=True)) / drawn_GVD.std(1, keepdim=True)
        self.sums_GVD: Tensor
        self.counts_GV: Tensor
        self.register_buffer("sums_GVD", drawn_GVD)  # as instance-normalised targets are distributed
        self.register_buffer("counts_GV", torch.ones(codebooks, entries))
        self._pending: tuple[Tensor, Tensor, Tensor] | None = None

    @torch.no_grad()
    def forward(self, x_GND: Tensor) -> Tensor:
        """The nearest entry of each vector: (G, N) int64."""
        entry_GVD = self.sums_GVD / self.counts_GV[:, :, None]
        nearness_GNV = 2 * x_GND @ entry_GVD.transpose(1, 2) - entry_GVD.square().sum(-1)[:, None]
        return nearness_GNV.argmax(-1)

    @torch.no_grad()
    def begin(self, x_GND: Tensor, generator: torch.Generator) -> None:
        """With entries that are some of these vectors, the same places for all codebooks."""
        chosen_V = torch.randperm(x_GND.shape[1], device=x_GND.device, generator=generator)[: self.entries]
        self.sums_GVD.copy_(x_GND[:, chosen_V])
        self.counts_GV.fill_(1.0)

    @torch.no_grad()
    def note(self, x_GND: Tensor, onehot_GNV: Tensor, finite: Tensor) -> None:
        """Keep for `step` what vectors each entry was nearest to. finite: whether the batch counts."""
        mine = (onehot_GNV.transpose(1, 2) @ x_GND, onehot_GNV.sum(1), (~finite).float())
        before = self._pending
        self._pending = (
            mine if before is None else (before[0] + mine[0], before[1] + mine[1], before[2] + mine[2])
        )

    @torch.no_grad()
    def step(self) -> None:
        """Follow what was noted on all ranks since the last step, if all its batches count."""
        if self._pending is None:
            return
        sums_GVD, counts_GV, bad = (all_sum(each) for each in self._pending)
        self._pending = None
        moved_GV = (counts_GV > 0) & (bad == 0) & sums_GVD.isfinite().all(-1)
        for mine, new in ((self.sums_GVD, sums_GVD), (self.counts_GV, counts_GV)):
            where = moved_GV[:, :, None] if new.ndim == 3 else moved_GV
            mine.copy_(torch.where(where, self.decay * mine + (1 - self.decay) * new, mine))


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusteringConfig:
    """Defaults: those of DinoSR's published file for LibriSpeech, which SpidR's code keeps."""

    hidden_share: float = 0.8
    hidden_span: int = 10
    top: int = 8
    """The last layers, each of which has a codebook."""
    spoken: Spoken = "feed_forward"
    entries: int = 256
    codebook_decay: float = 0.9
    freeze: float | None = 0.5
    """Share of the run after which teacher and front end stay as they are; the codebooks go on."""


class Clustering(Taught):
    """Methods whose targets are codes of the teacher's top layers."""

    def __init__(self, encoder: Encoder, teacher: EMATeacher[Encoder], config: ClusteringConfig) -> None:
        super().__init__(encoder, teacher, config.top, config.freeze)
        self.entries, self.spoken = config.entries, config.spoken
        self.codebooks = OnlineCodebooks(
            config.top, config.entries, encoder.config.width, config.codebook_decay
        )

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch], generator: torch.Generator) -> None:
        super().prepare(batches, generator)
        heard: list[Tensor] = []
        for batch in batches:
            features = self.features(batch)
            layers = top_layers(self.teacher.model, features, self.top, self.spoken)
            heard.append(torch.stack([x_BTD[features.valid_BT] for x_BTD in layers]))
            if sum(x_GND.shape[1] for x_GND in heard) >= CHOICE * self.entries:
                break
        self.codebooks.begin(torch.cat(heard, dim=1), generator)

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.codebooks.step()

    @torch.no_grad()
    def targets(self, features: Frames, position_BM: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of each of the top layers at these positions: (G, B * M, D), float32; and what
        `beyond_place` says of them, the least of a layer."""
        layers = top_layers(self.teacher.model, features, self.top, self.spoken)
        index_BMD = position_BM[:, :, None].expand(-1, -1, layers[0].shape[2])
        beyond = torch.stack([beyond_place(x_BTD, features.valid_BT) for x_BTD in layers]).min()
        return torch.stack([x_BTD.gather(1, index_BMD).flatten(0, 1) for x_BTD in layers]), beyond

    def compared(
        self, logits_GNV: Tensor, target_GND: Tensor, chosen_BM: Tensor, metrics: Mapping[str, Tensor]
    ) -> LossSum:
        """The cross entropy of the codes, its mean over codebooks. In training the vectors are kept for the
        codebooks' next step. metrics: further ones. Call it without autocast."""
        chosen_N = chosen_BM.flatten().float()
        code_GN = self.codebooks(target_GND)
        onehot_GNV = F.one_hot(code_GN, self.entries).float() * chosen_N[:, None]
        log_p_GNV = logits_GNV.float().log_softmax(-1)
        total = -(log_p_GNV * onehot_GNV).sum() / self.top
        if self.training:
            self.codebooks.note(target_GND, onehot_GNV, total.detach().isfinite())
        with torch.no_grad():
            hit_GN = (logits_GNV.argmax(-1) == code_GN).float()
            mine = {
                "cross_entropy": total.detach(),
                "accuracy": (hit_GN * chosen_N).sum() / self.top,
                "codes": onehot_GNV.sum(1),
                "probs": torch.einsum("gnv,n->gv", log_p_GNV.exp(), chosen_N),
            }
        return LossSum(total, chosen_N.sum(), {**mine, **metrics})

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """`beyond_place` is what that function says of the layer's vectors of which it says least. Adds, as
        means over the codebooks: `code_perplexity` of the codes and `prob_perplexity` of the mean
        prediction, of at most V; `chance`, the accuracy of always saying the commonest code; `information`,
        by how many nats the loss is below the codes' entropy, which is 0 for a model that knows nothing. And
        `worst_codebook`, the least perplexity of one; `effective_rank` of the context vectors of
        visible frames."""
        codes = [float(perplexity(p_V[None])) for p_V in means["codes"]]
        probs = [float(perplexity(p_V[None])) for p_V in means["probs"]]
        entropy = -(means["codes"] * means["codes"].clamp(min=1e-12).log()).sum() / self.top
        return super().report(means) | {
            "code_perplexity": sum(codes) / self.top,
            "prob_perplexity": sum(probs) / self.top,
            "worst_codebook": min(codes),
            "chance": float(means["codes"].amax(-1).mean()),
            "information": float(entropy - means["cross_entropy"]),
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"]),
        }

    def floors(self) -> Mapping[str, Floor]:
        cure = (
            "Raise the teacher's tau (ema) so that it follows more slowly, lower the peak learning rate or "
            "lengthen the warm-up, use fewer entries, or more varied audio per batch"
        )
        return {
            "code_perplexity": Floor(0.04 * self.entries, f"few codes are in use. {cure}"),
            "worst_codebook": Floor(0.02 * self.entries, f"a layer's codebook has few codes in use. {cure}"),
            "beyond_place": PLACES,
            "effective_rank": Floor(1.1, f"the context vectors point in one direction. {cure}"),
        }
