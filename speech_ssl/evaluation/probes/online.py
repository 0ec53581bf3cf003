"""Probes during pre-training: does the model learn useful features, long before the run is over?

The loss of a pre-training method says little about that, and falls when the features collapse. k nearest
neighbours and a linear classifier on labelled clips, as in instance discrimination (Wu et al. 2018, arXiv
1805.01978, section 3.4), take seconds and answer it. The training is not disturbed: parameters, buffers,
gradients and random state stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from speech_ssl.data.manifest import TEXTS, Utterance
from speech_ssl.data.split_names import split_kind
from speech_ssl.data.splits import id_hash
from speech_ssl.evaluation.probes.held_out import by_hash
from speech_ssl.evaluation.probes.representations import hidden_means, load_wave
from speech_ssl.model.encoder import Encoder
from speech_ssl.types import SAMPLE_RATE, Waveform

Matrix = NDArray[np.float64]

CLIPS, SECONDS = 320, 2.0
HELD_OUT = 0.25
NEIGHBOURS, TEMPERATURE = 10, 0.07
PENALTIES = 10.0 ** np.arange(-4, 3)


class OnlineProbe:
    """Labelled clips, decoded once, on which an encoder is probed.

    column: of the manifest; its values are the classes. Rows without a value and classes with a single clip
    are left out. At most `clips` clips are used, chosen by the hash of their id, and the middle `seconds` of
    each. Held out are the rows that `split` marks for validation or test, if there are any; otherwise a
    quarter of every class, in whole files where a class has several. failures: id -> reason, for clips that
    cannot be read.

    Raises ValueError if fewer than two classes are left.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        *,
        column: str = "label",
        clips: int = CLIPS,
        seconds: float = SECONDS,
    ) -> None:
        if column not in TEXTS:
            raise ValueError(f"there is no column {column!r} to probe: use one of {', '.join(TEXTS)}")
        if clips < 4 or seconds <= 0:
            raise ValueError(f"a probe needs four clips or more of some length, not {clips} of {seconds:g} s")
        self.failures: dict[str, str] = {}
        self._waves: list[NDArray[np.int16]] = []
        labels: list[str] = []
        held_out: list[bool] = []
        for utterance, is_held_out in _chosen(utterances, column, clips):
            try:
                self._waves.append(_middle(load_wave(utterance), seconds))
            except (ValueError, OSError) as error:
                self.failures[utterance.id] = str(error)
                continue
            labels.append(getattr(utterance, column))
            held_out.append(is_held_out)
        self.held_out_N = np.array(held_out, dtype=bool)
        self.classes = sorted({one for one, out in zip(labels, held_out, strict=True) if not out})
        if len(self.classes) < 2 or not self.held_out_N.any():
            raise ValueError(
                f"a probe needs two values or more in column {column!r}, each with two readable clips; it "
                f"has {len(labels)} clips of {len(set(labels))}"
            )
        index = {label: number for number, label in enumerate(self.classes)}
        self._y_N = np.array([index.get(label, -1) for label in labels])  # -1: only held out, always wrong

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Held-out accuracy of "knn" and "linear", on the means over time of all hidden states, and of
        "guessing" the most frequent class of the held-out clips.

        "knn" and "linear" are NaN if the encoder's outputs are not finite.
        """
        waves = [np.divide(wave, 32_768, dtype=np.float32) for wave in self._waves]
        with _undisturbed(encoder):
            x_NLD = hidden_means(encoder, waves)
        counts = np.unique(self._y_N[self.held_out_N], return_counts=True)[1]
        guessing = float(counts.max() / counts.sum())
        if not np.isfinite(x_NLD).all():
            return {"knn": float("nan"), "linear": float("nan"), "guessing": guessing}
        fitted, tried = _standardised(x_NLD.reshape(len(x_NLD), -1), self.held_out_N)
        y_N, truth = self._y_N[~self.held_out_N], self._y_N[self.held_out_N]
        onehot_NC = np.eye(len(self.classes))[y_N]
        return {
            "knn": float((nearest_neighbours(fitted, onehot_NC, tried) == truth).mean()),
            "linear": float((ridge(fitted, onehot_NC, tried) == truth).mean()),
            "guessing": guessing,
        }


def nearest_neighbours(x_NF: Matrix, onehot_NC: Matrix, tried_MF: Matrix) -> NDArray[np.intp]:
    """The class (M,) with the most weight among the nearest neighbours by cosine (Wu et al. 2018)."""
    cosine_MN = _unit(tried_MF) @ _unit(x_NF).T
    nearest = np.argsort(-cosine_MN, axis=1, kind="stable")[:, :NEIGHBOURS]
    weight_MK = np.exp(np.take_along_axis(cosine_MN, nearest, axis=1) / TEMPERATURE)
    votes_MC = np.einsum("mk,mkc->mc", weight_MK, onehot_NC[nearest])
    return np.asarray(votes_MC.argmax(axis=1))


def ridge(x_NF: Matrix, onehot_NC: Matrix, tried_MF: Matrix) -> NDArray[np.intp]:
    """The class (M,) that a ridge regression to one-hot targets ranks first.

    Closed form, by the eigenvectors of the Gram matrix; the intercept is not penalised. The penalty minimises
    the leave-one-out squared error over the N vectors.
    """
    mean_F, mean_C = x_NF.mean(axis=0), onehot_NC.mean(axis=0)
    x_NF, y_NC = x_NF - mean_F, onehot_NC - mean_C
    values_N, vectors_NN = np.linalg.eigh(x_NF @ x_NF.T)
    values_N = values_N.clip(0)
    penalties = PENALTIES * max(values_N.mean(), 1e-12)
    penalty = min(penalties, key=lambda one: left_out_error(values_N, vectors_NN, y_NC, one))
    dual_NC = vectors_NN @ ((vectors_NN.T @ y_NC) / (values_N + penalty)[:, None])
    return np.asarray(((tried_MF - mean_F) @ (x_NF.T @ dual_NC) + mean_C).argmax(axis=1))


def left_out_error(values_N: Matrix, vectors_NN: Matrix, y_NC: Matrix, penalty: float) -> float:
    """The leave-one-out squared error of a ridge regression, summed, without fitting it N times (Allen 1974,
    PRESS): residual / (1 - leverage). Takes the eigenvalues and eigenvectors of the centred Gram matrix, and
    centred targets."""
    shrink_N = values_N / (values_N + penalty)
    residual_NC = y_NC - vectors_NN @ (shrink_N[:, None] * (vectors_NN.T @ y_NC))
    leverage_N = np.square(vectors_NN) @ shrink_N + 1 / len(y_NC)  # including that of the mean
    return float(np.square(residual_NC / (1 - leverage_N).clip(1e-9)[:, None]).sum())


@contextmanager
def _undisturbed(encoder: Encoder) -> Iterator[None]:
    """Eval mode inside; restores every module's mode and the random states afterwards."""
    modes = [(module, module.training) for module in encoder.modules()]
    cuda = [p.device.index for p in [next(encoder.parameters())] if p.device.type == "cuda"]
    with torch.random.fork_rng(devices=cuda):
        encoder.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _chosen(utterances: Sequence[Utterance], column: str, clips: int) -> list[tuple[Utterance, bool]]:
    """The clips to use, and whether each is held out; always the same."""
    labelled = sorted((u for u in utterances if getattr(u, column)), key=lambda u: id_hash(u.id))
    counts = Counter(getattr(u, column) for u in labelled)
    labelled = [u for u in labelled if counts[getattr(u, column)] > 1]
    if any(marked := [split_kind(u.split) != "train" for u in labelled]):
        fitted = [u for u, out in zip(labelled, marked, strict=True) if not out]
        tried = [u for u, out in zip(labelled, marked, strict=True) if out]
        most = max(round(HELD_OUT * clips), 1)
        return [(u, False) for u in fitted[: clips - most]] + [(u, True) for u in tried[:most]]
    kept = labelled[:clips]
    labels = [getattr(u, column) for u in kept]
    wanted = {label: max(round(HELD_OUT * count), 1) for label, count in Counter(labels).items()}
    held_out_N = by_hash(labels, [u.file_id for u in kept], wanted)
    if not held_out_N.any():
        held_out_N = by_hash(labels, [u.id for u in kept], wanted)
    return list(zip(kept, held_out_N.tolist(), strict=True))


def _middle(wave: Waveform, seconds: float) -> NDArray[np.int16]:
    samples = max(round(seconds * SAMPLE_RATE), 1)
    first = max(len(wave) - samples, 0) // 2
    return (wave[first : first + samples] * 32_768).round().clip(-32_768, 32_767).astype(np.int16)


def _standardised(x_NF: NDArray[np.float32], held_out_N: NDArray[np.bool_]) -> tuple[Matrix, Matrix]:
    """Training and held-out vectors, standardised by the training vectors' mean and standard deviation."""
    x = x_NF.astype(np.float64)
    mean_F, std_F = x[~held_out_N].mean(axis=0), x[~held_out_N].std(axis=0)
    x = (x - mean_F) / np.where(std_F > 1e-5 * std_F.max() + 1e-12, std_F, np.inf)
    return x[~held_out_N], x[held_out_N]


def _unit(x_NF: Matrix) -> Matrix:
    return np.asarray(x_NF / np.linalg.norm(x_NF, axis=1, keepdims=True).clip(1e-12))
