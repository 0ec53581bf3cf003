"""What methods share that compare two views of a clip: the views, one vector for each, and how these spread.

A method is a subclass with a `compare`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.model.config import LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.base import Floor, Objective, effective_rank, moments
from speech_ssl.objectives.global_batch import GlobalBatchNorm, all_rows
from speech_ssl.objectives.mel_views import log_mixup_exp, resized_crop
from speech_ssl.objectives.teacher import EMATeacher
from speech_ssl.objectives.views import (
    add_noise,
    band_pass,
    change_speed,
    cut,
    mix_in,
    random_crop,
    random_gain,
)
from speech_ssl.types import Batch, Frames, LossSum, valid_mask

LEAST_NORM = 0.1
"""Shorter vectors are divided by this instead: nothing is learnt from the direction of a zero. Those that a
network projects are ten or more."""

SETTLING = 4
"""Batches whose statistics a teacher begins with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewsConfig:
    """How a view of a row differs from the row. Defaults: crops that overlap, mild noise and filters."""

    crop: tuple[float, float] = (0.6, 1.0)
    """Shortest and longest part of a row, as shares of it."""
    speed: tuple[float, float] = (1.0, 1.0)
    """Slowest and fastest, pitch included, uniform in between."""
    band_pass: float = 0.3
    """Share of the views that lose what is below 50 to 400 Hz and above 2 to 7 kHz."""
    noise: float = 0.5
    """Share of the views with noise, half of it of other rows where others are heard."""
    snr_db: tuple[float, float] = (5.0, 30.0)
    mixup: float = 0.0
    """The largest weight of another row, added to a view: BYOL-A's alpha. Of energies where the front end is
    log-mel, as there; else of waves."""
    gain_db: float = 6.0
    """Has no effect on encoders that normalise their waves or bins."""
    resized: tuple[float, float] | None = None
    """Smallest and largest sides of `resized_crop`, for a log-mel front end."""
    fixed: bool = False
    """Instead of all this, the beginning and the end of the row, of length `crop[0]`: for tests."""

    def __post_init__(self) -> None:
        if not 0 < self.speed[0] <= self.speed[1]:
            raise ValueError(f"speed must be (slowest, fastest) above 0, not {self.speed}")


class Inputs(NamedTuple):
    """Both views: the first of all rows (B), then the second of all (N = 2B)."""

    wave_NS: Tensor
    lengths_N: Tensor
    mel: Frames | None
    """Instead of the waves, where the front end is log-mel: it learns nothing, so one result is for all."""


class Seen(NamedTuple):
    """What `compare` is given: a vector (B, E) of each view."""

    first_BE: Tensor
    second_BE: Tensor
    taught: tuple[Tensor, Tensor] | None
    """The teacher's of the same two, where there is one."""
    names: tuple[str, ...]
    generator: torch.Generator

    @property
    def both_NE(self) -> Tensor:
        return torch.cat([self.first_BE, self.second_BE])


class TwoViews(Objective):
    """An encoder and a projector of its clip vectors (Chen et al. 2020, arXiv 2002.05709, section 2.1).

    A clip's vector is the sum of the mean and the maximum of its frames (BYOL-A, arXiv 2204.07402, section
    III-C): the mean tells what lasts, the maximum what happens once. Both views go through encoder and
    projector as one batch, batch norms included, so that small batches have better statistics; papers whose
    views are images of a large batch pass them one after the other.
    """

    adds = False
    best_by = "matched"  # losses against teachers, queues and banks do not compare from step to step
    higher_is_better = True

    def __init__(self, encoder: Encoder, views: ViewsConfig, projector: nn.Module) -> None:
        super().__init__()
        if views.resized is not None and not isinstance(encoder.config.frontend, LogMel):
            raise ValueError("resized crops are for a log-mel front end: set resized=None")
        self.encoder, self.views, self.projector = encoder, views, projector
        encoder.hidden_vector.requires_grad_(False)  # nothing is hidden

    def compare(self, seen: Seen) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each row (B,), and sums over rows to log. In fp32."""
        raise NotImplementedError

    def taught(self, inputs: Inputs) -> tuple[Tensor, Tensor] | None:
        return None

    def of_all(self, x_BE: Tensor) -> tuple[Tensor, int]:
        """As `all_rows`; in evaluation this rank's alone."""
        return all_rows(x_BE) if self.training else (x_BE, 0)

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        """Raises ValueError if the batch is too short for a frame."""
        inputs = self.look(batch, generator)
        clips_ND = clip_vectors(self.encoder, inputs)
        taught = self.taught(inputs)
        with torch.autocast(clips_ND.device.type, enabled=False):
            first_BE, second_BE = self.projector(clips_ND).chunk(2)
            loss_B, metrics = self.compare(Seen(first_BE, second_BE, taught, batch.names, generator))
            metrics |= spread(clips_ND, first_BE, second_BE)
        count = loss_B.new_tensor(float(len(loss_B)))
        return LossSum(loss_B.sum(), count, {name: value.detach() for name, value in metrics.items()})

    @torch.no_grad()
    def look(self, batch: Batch, generator: torch.Generator) -> Inputs:
        wave_BS = batch.wave_BS.masked_fill(~valid_mask(batch.lengths_B, batch.wave_BS.shape[1]), 0.0)
        if self.views.fixed:
            seen = [_part(wave_BS, batch.lengths_B, self.views.crop[0], last) for last in (False, True)]
        else:
            seen = [self._view(wave_BS, batch.lengths_B, generator) for _ in range(2)]
        wave_NS, lengths_N = (torch.cat(part) for part in zip(*seen, strict=True))
        if not isinstance(self.encoder.config.frontend, LogMel):
            return Inputs(wave_NS, lengths_N, None)
        stacked = self.encoder.convolve(wave_NS, lengths_N)
        if self.views.fixed:
            return Inputs(wave_NS, lengths_N, stacked)
        bins = self.encoder.config.frontend.bins
        halves = [self._mel_view(x, n, bins, generator) for x, n in zip(*map(_halves, stacked), strict=True)]
        return Inputs(wave_NS, lengths_N, Frames(torch.cat(halves), stacked.lengths_B))

    def _view(self, wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Another one at each call; no longer than the longest crop of the longest row."""
        views, on_mels = self.views, isinstance(self.encoder.config.frontend, LogMel)

        def uniform(low: float, high: float) -> Tensor:
            draws_B = torch.rand(len(wave_BS), device=wave_BS.device, generator=generator)
            return low + (high - low) * draws_B

        if views.speed != (1.0, 1.0):
            wave_BS, lengths_B = change_speed(wave_BS, lengths_B, uniform(*views.speed))
        wave_BS, lengths_B = random_crop(wave_BS, lengths_B, share=views.crop, generator=generator)
        wave_BS = wave_BS[:, : int(views.crop[1] * wave_BS.shape[1]) + 1]
        if views.band_pass > 0:
            passed_BS = band_pass(wave_BS, lengths_B, uniform(50.0, 400.0), uniform(2_000.0, 7_000.0))
            wave_BS = torch.where((uniform(0, 1) < views.band_pass)[:, None], passed_BS, wave_BS)
        if views.mixup > 0 and not on_mels:
            wave_BS = mix_in(wave_BS, lengths_B, most=views.mixup, generator=generator)
        if views.noise > 0:
            wave_BS = add_noise(
                wave_BS, lengths_B, snr_db=views.snr_db, share=views.noise, generator=generator
            )
        if views.gain_db > 0:
            wave_BS = random_gain(wave_BS, most_db=views.gain_db, generator=generator)
        return wave_BS, lengths_B

    def _mel_view(self, x_BTC: Tensor, lengths_B: Tensor, bins: int, generator: torch.Generator) -> Tensor:
        """Of frames of several steps each."""
        steps = x_BTC.shape[2] // bins
        x_BTM, lengths_B = x_BTC.reshape(len(x_BTC), -1, bins), lengths_B * steps
        if self.views.mixup > 0:
            x_BTM = log_mixup_exp(x_BTM, lengths_B, most=self.views.mixup, generator=generator)
        if self.views.resized is not None:
            x_BTM = resized_crop(x_BTM, lengths_B, share=self.views.resized, generator=generator)
        return x_BTM.reshape(x_BTC.shape)

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Adds `effective_rank` of the clip vectors; and of the projected ones, brought to length 1: `std`,
        1 where they fill the sphere, 0 where all are the same (VICReg's, arXiv 2105.04906, times sqrt(E));
        `matched`, the share of rows whose other view is the most similar one in the batch; and
        `alignment` and `uniformity` (Wang & Isola 2020, arXiv 2005.10242), both better when lower."""
        hidden = ("unit_1", "unit_2", "potential", "paired")
        shown = {name: mean for name, mean in means.items() if name not in hidden}
        variance_E = (means["unit_2"] - means["unit_1"].square()).clamp(min=0)
        paired = float(means["paired"])
        return super().report(shown) | {
            "effective_rank": effective_rank(means["moment_1"], means["moment_2"]),
            "std": float(variance_E.sqrt().mean() * len(variance_E) ** 0.5),
            "uniformity": float((means["potential"] / paired).log()) if paired else 0.0,
        }

    def floors(self) -> Mapping[str, Floor]:
        return {
            "effective_rank": Floor(
                2.0,
                "the clip vectors lie along one or two directions. Lower the peak learning rate, lengthen "
                "the warm-up, or use more rows per batch and views that differ more",
            ),
            "std": Floor(
                0.05,
                "all clips are projected to nearly the same vector. Lower the peak learning rate, use more "
                "rows per batch, and see that the views of a row differ more than noise",
            ),
        }


class Taught(TwoViews):
    """With a teacher, encoder and projector, that follows by a moving average.

    Its batch norms use the average of the student's running statistics (Cai et al. 2021, arXiv 2101.08482),
    so that what it says of a row does not depend on the batch. The projector is an `mlp`.
    """

    def __init__(
        self, encoder: Encoder, views: ViewsConfig, projector: nn.Module, *, tau: tuple[float, float]
    ) -> None:
        super().__init__(encoder, views, projector)
        self.teacher = EMATeacher(self._student(), first=tau[0], last=tau[1], warmup=float(tau[0] < tau[1]))

    def _student(self) -> nn.ModuleList:
        return nn.ModuleList([self.encoder, self.projector])

    @torch.no_grad()
    def prepare(self, batches: Iterable[Batch], generator: torch.Generator) -> None:
        """Sets the projector's running statistics: by those it is made with, the teacher would say nearly the
        same of all rows for its first hundred steps."""
        assert isinstance(self.projector, nn.Sequential)
        self.eval()
        seen = [
            clip_vectors(self.encoder, self.look(batch, generator)) for batch in islice(batches, SETTLING)
        ]
        x_NE = torch.cat(seen)
        for layer in self.projector:
            if isinstance(layer, GlobalBatchNorm):
                layer.running_mean.copy_(x_NE.mean(0))
                layer.running_var.copy_(x_NE.var(0))
            x_NE = layer(x_NE)
        self.teacher.model.load_state_dict(self._student().state_dict())
        self.train()

    @torch.no_grad()
    def taught(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        encoder, projector = self.teacher.model
        assert isinstance(encoder, Encoder)
        first_BE, second_BE = projector(clip_vectors(encoder, inputs)).float().chunk(2)
        return first_BE, second_BE

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self._student(), progress)
        super().after_step(progress)


def clip_vectors(encoder: Encoder, inputs: Inputs) -> Tensor:
    """Mean and maximum over the valid frames of each view, added: (N, D) fp32. Zero where there is none."""
    features = encoder.convolve(inputs.wave_NS, inputs.lengths_N) if inputs.mel is None else inputs.mel
    frames = encoder.contextualize(encoder.normalized(features))
    x_NTD, valid_NT1 = frames.x_BTD.float(), frames.valid_BT[:, :, None]
    mean_ND = (x_NTD * valid_NT1).sum(1) / frames.lengths_B.clamp(min=1)[:, None]
    most_ND = x_NTD.masked_fill(~valid_NT1, -torch.inf).amax(1)
    return mean_ND + torch.where(valid_NT1.any(1), most_ND, 0.0)


def unit(x_ND: Tensor) -> Tensor:
    """Brought to length 1."""
    return F.normalize(x_ND, dim=-1, eps=LEAST_NORM)


@torch.no_grad()
def spread(clips_ND: Tensor, first_BE: Tensor, second_BE: Tensor) -> dict[str, Tensor]:
    """Sums over rows for `TwoViews.report`. Pairs are those of the batch's first views."""
    rows = len(first_BE)
    halves_1N = clips_ND.new_full((1, len(clips_ND)), 0.5)  # two views, one row
    first_BE, second_BE = F.normalize(first_BE, dim=1), F.normalize(second_BE, dim=1)
    both_NE = torch.cat([first_BE, second_BE])
    matched_B = (first_BE @ second_BE.T).argmax(1) == torch.arange(rows, device=clips_ND.device)
    potential_BB = (-2 * torch.cdist(first_BE, first_BE).square()).exp().fill_diagonal_(0.0)
    return {
        **moments(clips_ND[None], halves_1N),
        "unit_1": both_NE.sum(0) / 2,
        "unit_2": both_NE.square().sum(0) / 2,
        "matched": matched_B.sum(),
        "alignment": (first_BE - second_BE).square().sum(),
        "potential": potential_BB.sum() / max(rows - 1, 1),
        "paired": first_BE.new_tensor(float(rows if rows > 1 else 0)),
    }


def _halves(x: Tensor) -> tuple[Tensor, ...]:
    return x.chunk(2)


def _part(wave_BS: Tensor, lengths_B: Tensor, share: float, last: bool) -> tuple[Tensor, Tensor]:
    """The first or last share of each row."""
    kept_B = (share * lengths_B).ceil().long()
    return cut(wave_BS, (lengths_B - kept_B) * last, kept_B), kept_B
