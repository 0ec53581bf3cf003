"""What a front end normalises rows by that are windows of longer clips: the moments of the whole clip.

Normalised by itself, a quiet window would be as loud as all others, as it never is in one pass over the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from speech_ssl.types import Levels, Moments

Given: TypeAlias = Sequence[tuple[Tensor, Tensor] | None]
"""Mean and variance for each row of a batch. None, or an empty sequence: the row's own."""


def given(levels: Levels, moments: Callable[[Moments], tuple[Tensor, Tensor]]) -> Given:
    return [None if level is None else moments(level) for level in levels]


def given_means(own: Tensor, rows: Given) -> Tensor:
    """Of each row of the batch what is given for it, else its own."""
    return _replaced(own, [None if row is None else row[0] for row in rows])


def given_variances(own: Tensor, rows: Given) -> Tensor:
    """Of each row of the batch what is given for it, else its own."""
    return _replaced(own, [None if row is None else row[1] for row in rows])


def wave_moments(level: Moments) -> tuple[Tensor, Tensor]:
    """Of samples: those by themselves, or all that windows hold."""
    mean = level.mean_N.mean()
    variance = level.covariance_NN.diagonal().mean() + np.square(level.mean_N - mean).mean()
    return torch.tensor(float(mean)), torch.tensor(float(variance))


def _replaced(own: Tensor, values: Sequence[Tensor | None]) -> Tensor:
    if all(value is None for value in values):
        return own
    own = own.clone()
    for row, value in enumerate(values):
        if value is not None:
            own[row] = value.to(own)
    return own
