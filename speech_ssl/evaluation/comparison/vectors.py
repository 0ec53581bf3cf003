"""What an encoder's clip vectors are like: how many directions they use, how near two parts of a clip are,
how evenly clips are spread, and a map of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speech_ssl.evaluation.probes.representations import Means

Matrix = NDArray[np.float64]
MAPPED = 300
"""Clips of a map, at most."""


def effective_rank(x_ND: Means) -> float:
    """exp of the entropy of the covariance's normalised eigenvalues (Roy & Vetterli 2007): between 1 and D; 0
    where nothing varies."""
    centred_ND = x_ND.astype(np.float64) - x_ND.mean(0, dtype=np.float64)
    values = np.square(np.linalg.svd(centred_ND, compute_uv=False))
    if not np.isfinite(values).all() or values.sum() <= 1e-12:
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares.clip(1e-12))).sum()))


def alignment(first_ND: Means, second_ND: Means) -> float:
    """The mean squared distance of two parts of one clip (Wang & Isola 2020, arXiv 2005.10242, equation 1,
    with alpha 2), on the unit sphere around the mean of all parts: from 0 (the same) to 2 (unrelated)."""
    one, other = _on_sphere(first_ND, second_ND)
    return float(np.square(one - other).sum(1).mean())


def uniformity(x_ND: Means) -> float:
    """The logarithm of the mean Gaussian potential of two clips (Wang & Isola, equation 2, t = 2), on the
    unit sphere around their mean: from 0 (all the same) down to -4 (evenly spread over many directions)."""
    (unit_ND,) = _on_sphere(x_ND)
    similar_NN = unit_ND @ unit_ND.T
    apart_NN = 2 - 2 * similar_NN[~np.eye(len(unit_ND), dtype=bool)]
    return float(np.log(np.exp(-2 * apart_NN).mean()))


def plane(x_ND: Means) -> Matrix:
    """The two directions in which unit vectors vary most: (N, 2)."""
    (unit_ND,) = _on_sphere(x_ND)
    unit_ND = unit_ND - unit_ND.mean(0)
    _, _, directions = np.linalg.svd(unit_ND, full_matrices=False)
    found = unit_ND @ directions[:2].T
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def _on_sphere(*parts: Means) -> list[Matrix]:
    mean_D = np.concatenate(parts).mean(0, dtype=np.float64)
    centred = [part.astype(np.float64) - mean_D for part in parts]
    return [part / np.linalg.norm(part, axis=1, keepdims=True).clip(1e-12) for part in centred]
