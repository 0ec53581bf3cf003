"""Discrete units as targets: k-means of MFCCs or of a trained encoder's hidden states, fitted on a stream and
computed in each step; and measures of their quality (HuBERT, Hsu et al. 2021, arXiv 2106.07447)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.convolution import output_length
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.mel import STEP, WINDOW, log_mel
from speech_ssl.model.frontends.wave import Frontend, normalize_waves
from speech_ssl.objectives.teacher import instance_norm
from speech_ssl.types import Batch, Frames

MFCC_WIDTH, CEPSTRA, BINS, LIFTER = 39, 13, 23, 22
"""Kaldi's defaults, as in HuBERT; first and second differences make 39 of 13 cepstra."""
ROWS = 50
"""Frames per cluster in a sample, on which k-means makes one update."""
ROUNDS = 10
"""Lloyd iterations on the first sample."""
FORGET = 3
"""Sample n has weight n ** FORGET, so that assignments to early centroids fade."""
LEAST = 0.01
"""A cluster with less than this share of the mean count is re-seeded."""


class KMeans(nn.Module):
    """k-means fitted on a stream of frames, in samples (mini-batch k-means, Sculley 2010).

    It starts with greedy k-means++ (Arthur & Vassilvitskii 2007) and a few Lloyd iterations on the first
    sample. Then each centroid is a weighted mean of the frames assigned to it so far. Clusters that are
    hardly used are re-seeded at frames far from their centroid. Sums are matrix products: deterministic, on
    GPUs too.
    """

    def __init__(self, clusters: int, width: int) -> None:
        super().__init__()
        self.centroids_KD: Tensor
        self.counts_K: Tensor
        self.register_buffer("centroids_KD", torch.zeros(clusters, width))
        self.register_buffer("counts_K", torch.zeros(clusters))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The index of the nearest centroid: (B, T) int64; any leading shape will do."""
        with torch.autocast(x_BTD.device.type, enabled=False):
            half_K = self.centroids_KD.square().sum(1) / 2
            return (x_BTD.float() @ self.centroids_KD.T - half_K).argmax(-1)

    @torch.no_grad()
    def fit(self, stream: Iterable[Tensor], *, total: int, generator: torch.Generator) -> None:
        """Fit on about `total` frames, given in parts (N, D); on all of them if there are fewer."""
        seen = 0
        for number, x_ND in enumerate(_samples(stream, ROWS * len(self.counts_K))):
            if number == 0:
                self._start(x_ND, generator)
            self.counts_K *= (number / (number + 1)) ** FORGET
            self._learn(x_ND)
            self._reseed(x_ND, generator)
            seen += len(x_ND)
            if seen >= total:
                return

    def _start(self, x_ND: Tensor, generator: torch.Generator) -> None:
        squares_N, K = x_ND.square().sum(1), len(self.counts_K)
        apart_N = torch.full_like(squares_N, torch.inf)
        for k in range(K):  # the best of a few candidates, as in scikit-learn
            p_N = apart_N.clamp(min=1e-12, max=1e12)
            drawn_C = torch.multinomial(p_N, 2 + int(math.log(K)), replacement=True, generator=generator)
            apart_NC = squares_N[:, None] - 2 * (x_ND @ x_ND[drawn_C].T) + squares_N[drawn_C]
            apart_NC = torch.minimum(apart_N[:, None], apart_NC)
            best = apart_NC.sum(0).argmin()
            apart_N, self.centroids_KD[k] = apart_NC[:, best], x_ND[drawn_C[best]]
        for _ in range(ROUNDS):
            self.counts_K.zero_()
            self._learn(x_ND)

    def _learn(self, x_ND: Tensor) -> None:
        """Update the weighted means with new frames; with counts of 0 this is a Lloyd iteration."""
        member_NK = F.one_hot(self(x_ND), len(self.counts_K)).to(x_ND.dtype)
        new_K = member_NK.sum(0)
        self.counts_K += new_K
        change_KD = member_NK.T @ x_ND - new_K[:, None] * self.centroids_KD
        self.centroids_KD += change_KD / self.counts_K.clamp(min=1)[:, None]

    def _reseed(self, x_ND: Tensor, generator: torch.Generator) -> None:
        apart_N = (x_ND - self.centroids_KD[self(x_ND)]).square().sum(1)
        least = LEAST * self.counts_K.mean()
        few_K = self.counts_K < least
        # The largest values of log p + Gumbel noise are draws from p without replacement.
        noise_N = -torch.empty_like(apart_N).exponential_(generator=generator).log()
        ranked_K = (apart_N.clamp(min=1e-12).log() + noise_N).topk(min(len(few_K), len(x_ND))).indices
        far_KD = x_ND[ranked_K[torch.arange(len(few_K), device=x_ND.device) % len(ranked_K)]]
        self.centroids_KD.copy_(torch.where(few_K[:, None], far_KD, self.centroids_KD))
        self.counts_K.copy_(torch.where(few_K, least, self.counts_K))


def _samples(stream: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Join the parts of a stream to samples of at least `size` rows (the last may have fewer)."""
    parts: list[Tensor] = []
    for part in stream:
        parts.append(part[part.isfinite().all(1)].float())
        if sum(map(len, parts)) >= size:
            yield torch.cat(parts)
            parts = []
    if parts:
        yield torch.cat(parts)


class Units(nn.Module):
    """k-means units at an encoder's frames, of MFCCs or of a teacher's hidden states.

    source: "mfcc", or the teacher's layer as in `Encoder.hidden_states`; ValueError if it has no such layer.
    The teacher is frozen and not in the state dict; it computes in the precision around. by_clip: each
    feature has mean 0 and variance 1 over its row before it is clustered."""

    def __init__(
        self,
        clusters: int,
        source: Literal["mfcc"] | int,
        teacher: Encoder | None = None,
        *,
        by_clip: bool = False,
    ) -> None:
        super().__init__()
        if source != "mfcc" and teacher is not None and not 0 <= source <= teacher.config.depth:
            raise ValueError(f"the teacher has layers 0 to {teacher.config.depth}, not {source}")
        self.source, self.by_clip = source, by_clip
        self.teacher: tuple[Encoder, ...] = ()
        if teacher is not None:
            self.teacher = (teacher.eval().requires_grad_(False),)
        width = MFCC_WIDTH if teacher is None else teacher.config.width
        self.kmeans = KMeans(clusters, width)

    def fit(
        self, batches: Iterable[Batch], encoder: Encoder, *, total: int, generator: torch.Generator
    ) -> None:
        """Fit on about `total` frames. Clusters of MFCCs loaded with the weights to start from are kept."""
        if self.source != "mfcc" or not self.kmeans.counts_K.any():
            described = (self.describe(batch, encoder) for batch in batches)
            rows = (frames.x_BTD[frames.valid_BT] for frames in described)
            self.kmeans.fit(rows, total=total, generator=generator)

    def forward(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Units (B, T) int64 at the frames of `encoder`; arbitrary on padding."""
        units_BT: Tensor = self.kmeans(self.describe(batch, encoder).x_BTD)
        return units_BT

    @torch.no_grad()
    def describe(self, batch: Batch, encoder: Encoder) -> Frames:
        """The features that are clustered, at the encoder's frames (B, T, D)."""
        x_BTD, lengths_B = frames = self._features(batch, encoder)
        return Frames(instance_norm(x_BTD, frames.valid_BT), lengths_B) if self.by_clip else frames

    def _features(self, batch: Batch, encoder: Encoder) -> Frames:
        if self.source == "mfcc":
            return mfcc_frames(batch.wave_BS, batch.lengths_B, encoder)
        (teacher,) = self.teacher
        if teacher.hidden_vector.device != batch.wave_BS.device:
            teacher.to(batch.wave_BS.device)
        wave_BS = at_least(batch.wave_BS, teacher.receptive_field)
        x_BTD = teacher.hidden_states(wave_BS, batch.lengths_B, last=self.source)[self.source]
        states = Frames(x_BTD, teacher.frame_count(batch.lengths_B))
        return on_grid(states, teacher.hop, teacher.receptive_field, encoder, batch)


def on_grid(steps: Frames, hop: int, field: int, encoder: Encoder, batch: Batch) -> Frames:
    """Align steps of `field` samples, `hop` samples apart, with the encoder's frames: each frame takes the
    step with the nearest centre, the later of two. With the published convolutions (hop 320, receptive field
    400) frame t takes MFCC step 2 t, which covers the same 400 samples."""
    size = encoder.frame_count(batch.wave_BS.shape[1])
    t_T = torch.arange(size, device=steps.x_BTD.device)
    at_T = (2 * encoder.hop * t_T + encoder.receptive_field - field + hop) // (2 * hop)
    at_BT = at_T.clamp(min=0).minimum((steps.lengths_B - 1).clamp(min=0)[:, None])
    x_BTD = steps.x_BTD.gather(1, at_BT[:, :, None].expand(-1, -1, steps.x_BTD.shape[2]))
    return Frames(x_BTD, encoder.frame_count(batch.lengths_B))


def mfcc_frames(wave_BS: Tensor, lengths_B: Tensor, encoder: Encoder) -> Frames:
    """MFCCs at the encoder's frames (B, T, 39). They are of the normalised wave if the encoder normalises its
    input, since it cannot know the level then."""
    front = encoder.frontend
    if not isinstance(front, Frontend) or front.normalize_wave:
        wave_BS = normalize_waves(wave_BS, lengths_B)
    batch = Batch(wave_BS, lengths_B)
    return on_grid(mfcc(at_least(wave_BS, WINDOW), lengths_B), STEP, WINDOW, encoder, batch)


def mfcc(wave_BS: Tensor, lengths_B: Tensor) -> Frames:
    """Kaldi's 13 MFCCs with first and second differences over 5 steps: (B, steps, 39), 100 a second. A row's
    first and last step are repeated at its ends, as in torchaudio's `compute_deltas`."""
    with torch.autocast(wave_BS.device.type, enabled=False):
        lengths_B = output_length(lengths_B, WINDOW, STEP)
        k_K = torch.arange(CEPSTRA, device=wave_BS.device)
        m_M = torch.arange(BINS, device=wave_BS.device) + 0.5
        dct_MK = torch.cos(math.pi / BINS * m_M[:, None] * k_K) * math.sqrt(2 / BINS)
        dct_MK[:, 0] = math.sqrt(1 / BINS)
        lifted_MK = dct_MK * (1 + LIFTER / 2 * torch.sin(math.pi * k_K / LIFTER))
        x_BTK = log_mel(wave_BS.float(), BINS) @ lifted_MK
        first_BTK = _differences(Frames(x_BTK, lengths_B))
        second_BTK = _differences(Frames(first_BTK, lengths_B))
        return Frames(torch.cat([x_BTK, first_BTK, second_BTK], dim=2), lengths_B)


def _differences(steps: Frames) -> Tensor:
    x_BTK, last_B1 = steps.x_BTD, (steps.lengths_B - 1).clamp(min=0)[:, None]
    at_T = torch.arange(x_BTK.shape[1], device=x_BTK.device)

    def moved(n: int) -> Tensor:
        at_BT = (at_T + n).clamp(min=0).minimum(last_B1)
        return x_BTK.gather(1, at_BT[:, :, None].expand_as(x_BTK))

    return (moved(1) - moved(-1) + 2 * (moved(2) - moved(-2))) / 10


def at_least(wave_BS: Tensor, samples: int) -> Tensor:
    """Waves (B, S) zero-padded to so many samples at least."""
    return F.pad(wave_BS, (0, max(samples - wave_BS.shape[1], 0)))


def usage(unit_BM: Tensor, weight_BM: Tensor, clusters: int) -> Tensor:
    """Histogram of the units over the weighted frames: (V,). Divide by the weights' sum for `perplexity`."""
    used_V = torch.zeros(clusters, device=unit_BM.device)
    return used_V.scatter_add_(0, unit_BM.flatten(), weight_BM.flatten().float())


def pnmi(unit_N: Tensor, phone_N: Tensor) -> float:
    """Phone-normalised mutual information I(phone; unit) / H(phone): the share of the uncertainty about a
    frame's phone that its unit removes, from 0 to 1. Both (N,) int64, of frames that have a phone label. 0 if
    there is only one phone."""
    joint_PV = _joint(unit_N, phone_N)
    phone_P, unit_V = joint_PV.sum(1), joint_PV.sum(0)
    phones = _entropy(phone_P)
    shared = phones + _entropy(unit_V) - _entropy(joint_PV.flatten())
    return shared / phones if phones > 0 else 0.0


def phone_purity(unit_N: Tensor, phone_N: Tensor) -> float:
    """The share of frames whose phone is the commonest one of their unit."""
    return float(_joint(unit_N, phone_N).amax(0).sum())


def cluster_purity(unit_N: Tensor, phone_N: Tensor) -> float:
    """The share of frames whose unit is the commonest one of their phone. It falls with more units."""
    return float(_joint(unit_N, phone_N).amax(1).sum())


def _joint(unit_N: Tensor, phone_N: Tensor) -> Tensor:
    """p(phone, unit): (P, V) float64. Raises ValueError if the shapes differ or are empty."""
    if unit_N.shape != phone_N.shape or unit_N.ndim != 1 or not len(unit_N):
        raise ValueError(f"wanted as many phones as units, not {tuple(phone_N.shape)}, {tuple(unit_N.shape)}")
    units = int(unit_N.max()) + 1
    cells_C = torch.bincount(phone_N * units + unit_N, minlength=(int(phone_N.max()) + 1) * units)
    return cells_C.reshape(-1, units).double() / len(unit_N)


def _entropy(p: Tensor) -> float:
    return float(-torch.special.xlogy(p, p).sum())
