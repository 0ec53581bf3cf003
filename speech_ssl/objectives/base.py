"""The base of all objectives, and statistics that reveal a collapse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.types import Batch, LossSum


class Floor(NamedTuple):
    """A reported number below `minimum` means collapse; `advice` says what to change."""

    minimum: float
    advice: str


class Objective(nn.Module):
    """An encoder with a loss. DDP, checkpoints and the loop see it as one module.

    All randomness but dropout's comes from the `generator` given to `forward`, which lives on the
    batch's device; dropout uses torch's global state, which the loop seeds from the same numbers.
    """

    encoder: Encoder
    best_by = "loss"
    """The reported number that chooses the best checkpoint; of equal ones, the lowest loss wins."""
    higher_is_better = False
    adds = True
    """Whether the loss of two batches is the sum of theirs. False: rows are compared across the batch of a
    step, over all ranks (see `global_batch`)."""
    teachers = 0
    """How many trained encoders `learn_from` is to be given."""

    def learn_from(self, teachers: Sequence[Encoder]) -> None:
        """Takes the encoders to learn from, before anything else is called. They are no part of the state
        dict: a resumed run is given them again. Raises ValueError for ones that do not fit."""
        if len(teachers) != self.teachers:
            raise ValueError(
                f"{type(self).__name__} learns from {self.teachers} encoders, not {len(teachers)}"
            )

    def prepare(self, batches: Iterable[Batch], generator: torch.Generator) -> None:
        """Called once before the first step of a new run, with endless batches of its training audio: fit
        what the targets need, such as units. Every rank is given the same batches and generator. Whatever it
        sets must be in the state dict."""

    def forward(self, batch: Batch, *, generator: torch.Generator) -> LossSum:
        raise NotImplementedError

    def set_progress(self, progress: float) -> None:
        """Called before the first step of a run, new or resumed, and after each step, with the share of the
        run done in [0, 1]. Whatever it sets depends on `progress` alone."""

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step. Whatever it changes must be in the state dict: teachers, queues,
        codebooks. It is also called after a step that was skipped because its loss was not finite: what
        `forward` saw then must not be kept. Calls `set_progress`."""
        self.set_progress(progress)

    def report(self, means: Mapping[str, Tensor]) -> dict[str, float]:
        """Readable numbers from the metrics' means over all targets. Default: the scalars."""
        return {name: float(mean) for name, mean in means.items() if mean.ndim == 0}

    def floors(self) -> Mapping[str, Floor]:
        """Reported numbers that the collapse watch follows."""
        return {}


def perplexity(p_GV: Tensor) -> Tensor:
    """exp of the entropy of each distribution, summed over groups: between G and G * V."""
    entropy_G = -(p_GV * p_GV.clamp(min=1e-12).log()).sum(-1)
    return entropy_G.exp().sum()


def moments(x_BMD: Tensor, weight_BM: Tensor) -> dict[str, Tensor]:
    """First and second moments as weighted sums over the rows, for `effective_rank`."""
    x_ND = x_BMD.detach().float().flatten(0, 1)
    weighted_ND = x_ND * weight_BM.flatten()[:, None]
    return {"moment_1": weighted_ND.sum(0), "moment_2": weighted_ND.T @ x_ND}


def effective_rank(mean_D: Tensor, second_DD: Tensor) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues (Roy & Vetterli 2007): the number of
    directions that the vectors really use, from 1 to D. 0 if they do not vary at all."""
    covariance_DD = second_DD.double().cpu() - torch.outer(mean_D, mean_D).double().cpu()
    eigenvalues_D = torch.linalg.eigvalsh(covariance_DD).clamp(min=0)
    total = eigenvalues_D.sum()
    if not torch.isfinite(total) or total <= 1e-12:
        return 0.0
    p_D = eigenvalues_D / total
    return float((-(p_D * p_D.clamp(min=1e-12).log()).sum()).exp())
