"""A probe of speaker verification: a linear embedding, trained on some speakers and tested on others.

As in SUPERB (Yang et al. 2021, arXiv 2105.01051), the layers are mixed by learned softmax weights, an
embedding is trained to tell the training speakers apart, and trials are pairs of clips of unseen speakers,
scored by cosine. SUPERB trains an x-vector network; here the embedding is linear in the clip's mean, as in
the other probes: it is the head's logits for the training speakers. A smaller embedding behind a softmax over
cosines was tried: weight decay has no effect on it, since cosines have no scale, and it memorised the noise
of the training clips (EER 0.48 instead of 0.25 on planted features).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speech_ssl.evaluation.metrics.verification import equal_error_rate, min_dcf
from speech_ssl.evaluation.probes.linear import (
    HELD_OUT,
    WEIGHT_DECAYS,
    Head,
    Standard,
    check_features,
    fit,
    layers_first,
    mixed,
)
from speech_ssl.evaluation.probes.representations import Means

P_TARGET = 0.05  # as with VoxCeleb
MIN_SPEAKERS = 5


@dataclass(frozen=True)
class Verified:
    """eer, min_dcf (at P_TARGET): of the trials' `scores`; `same` is True if both clips are of one speaker.

    weight_decay, held_out_eer: as chosen on held-out training speakers.
    """

    eer: float
    min_dcf: float
    scores: NDArray[np.float64]
    same: NDArray[np.bool_]
    layer_weights_L: NDArray[np.float32]
    weight_decay: float
    held_out_eer: float


def probe_verification(
    train_NLD: Means,
    train_speakers: Sequence[str],
    test_NLD: Means,
    test_speakers: Sequence[str],
    *,
    sessions: tuple[Sequence[str], Sequence[str]] | None = None,
    seed: int = 0,
) -> Verified:
    """Learn an embedding from the training speakers and verify the test speakers on every pair of their
    clips, except pairs of one session, see `trials`. sessions: of the training and of the test clips. seed:
    for the speakers held out to choose the penalty; nothing else is random.

    Raises ValueError if a speaker is in both parts, if there are fewer than MIN_SPEAKERS in training, and if
    the test clips have no pair of the same speaker or none of different speakers.
    """
    check_features(train_NLD, train_speakers)
    check_features(test_NLD, test_speakers)
    if both := set(train_speakers) & set(test_speakers):
        raise ValueError(f"speaker {min(both)} is trained on and tested: verification needs unseen speakers")
    if (found := len(set(train_speakers))) < MIN_SPEAKERS:
        raise ValueError(f"verification needs {MIN_SPEAKERS} speakers or more to train on, not {found}")
    train_sessions, test_sessions = sessions or (None, None)
    rates = _held_out_rates(train_NLD, train_speakers, train_sessions, seed)
    chosen = int(np.argmin(rates))
    standard, head = _fitted(train_NLD, train_speakers, WEIGHT_DECAYS[chosen])
    scores, same = trials(_embedded(head, standard.apply(test_NLD)), test_speakers, test_sessions)
    if same.all() or not same.any():
        raise ValueError("the test clips need pairs of one speaker and pairs of two")
    return Verified(
        equal_error_rate(scores, same).rate,
        min_dcf(scores, same, P_TARGET),
        scores,
        same,
        head.mix_L.softmax(0).numpy(),
        WEIGHT_DECAYS[chosen],
        rates[chosen],
    )


def trials(
    embedded_NE: NDArray[np.float32], speakers: Sequence[str], sessions: Sequence[str] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The cosine of every pair of clips, N * (N - 1) / 2 of them, and whether both are of one speaker.

    Pairs of one session are left out, since room and microphone would give them away. If no speaker has two
    sessions, they are kept: there are no others.
    """
    x_NE = embedded_NE.astype(np.float64)
    unit_NE = x_NE / np.linalg.norm(x_NE, axis=1, keepdims=True).clip(1e-12)
    first, second = np.triu_indices(len(speakers), 1)
    scores, same = (unit_NE @ unit_NE.T)[first, second], _alike(speakers, first, second)
    across = ~_alike(sessions, first, second) if sessions is not None else np.ones_like(same)
    if not (same & across).any():
        return scores, same
    return scores[across], same[across]


def _alike(names: Sequence[str], first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.bool_]:
    number_N = np.unique(np.array(names), return_inverse=True)[1]
    return np.asarray(number_N[first] == number_N[second])


def _held_out_rates(
    x_NLD: Means, speakers: Sequence[str], sessions: Sequence[str] | None, seed: int
) -> list[float]:
    """The equal error rate among held-out training speakers for each penalty; the same for all if they have
    no pair of one speaker."""
    names = np.unique(np.array(speakers))
    most = max(2, round(HELD_OUT * len(names)))
    held_out_N = np.isin(np.array(speakers), np.random.default_rng(seed).choice(names, most, replace=False))
    ours = [speaker for speaker, out in zip(speakers, held_out_N, strict=True) if not out]
    others = [speaker for speaker, out in zip(speakers, held_out_N, strict=True) if out]
    if len(set(others)) == len(others):
        return [0.5] * len(WEIGHT_DECAYS)
    their_sessions = None if sessions is None else [sessions[int(i)] for i in np.flatnonzero(held_out_N)]
    rates = []
    for decay in WEIGHT_DECAYS:
        standard, head = _fitted(x_NLD[~held_out_N], ours, decay)
        scores, same = trials(_embedded(head, standard.apply(x_NLD[held_out_N])), others, their_sessions)
        rates.append(equal_error_rate(scores, same).rate)
    return rates


def _fitted(x_NLD: Means, speakers: Sequence[str], weight_decay: float) -> tuple[Standard, Head]:
    standard = Standard.of(x_NLD)
    names, y_N = np.unique(np.array(speakers), return_inverse=True)
    return standard, fit(standard.apply(x_NLD), y_N, len(names), weight_decay)


def _embedded(head: Head, x_NLD: Means) -> NDArray[np.float32]:
    embedded: NDArray[np.float32] = (mixed(layers_first(x_NLD), head.mix_L) @ head.weight_CD.T).numpy()
    return embedded
