"""Moments of the whole clip, by which a front end normalises rows that are windows of it.

Normalised by itself, a quiet window would become as loud as the others; in one pass over the clip it stays
quiet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from speech_ssl.types import Levels, Moments

Given: TypeAlias = Sequence[tuple[Tensor, Tensor] | None]
"""Mean and variance for each row of a batch. None, or an empty sequence: use the row's own."""


def given(levels: Levels, moments: Callable[[Moments], tuple[Tensor, Tensor]]) -> Given:
    return [None if level is None else moments(level) for level in levels]


def given_means(own: Tensor, rows: Given) -> Tensor:
    """The given mean of each row, else its own."""
    return _replaced(own, [None if row is None else row[0] for row in rows])


def given_variances(own: Tensor, rows: Given) -> Tensor:
    """The given variance of each row, else its own."""
    return _replaced(own, [None if row is None else row[1] for row in rows])


def wave_moments(level: Moments) -> tuple[Tensor, Tensor]:
    """Mean and variance of a clip's samples, from moments of single samples or of short runs of samples."""
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
