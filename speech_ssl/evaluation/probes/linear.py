"""Linear probes of frozen representations.

The protocol is that of SUPERB (Yang et al. 2021, arXiv 2105.01051): frozen features, a softmax over one
weight per layer that mixes all L hidden states, mean pooling over time, a linear head. Three things differ.
Each layer is standardised by the statistics of the training clips, so that its weight tells its value and not
the scale of its features. SUPERB's projector to 256 values is left out, since it is linear and precedes a
linear head. And the head is fitted by L-BFGS on all clips at once, with an L2 penalty chosen on a part of the
training clips: nothing is tuned on the test clips, and nothing depends on the order of batches.
The comparison of methods gives it the deviations over time beside the means.

Arrays are (N, L, D) as in `representations`; labels are one string per clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from speech_ssl.evaluation.probes.representations import Means

WEIGHT_DECAYS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
ENOUGH_HELD_OUT, MOST_DRAWS = 60, 5
"""Clips whose errors tell penalties and layers apart: of smaller parts several are drawn."""
ITERATIONS = 200
GRADIENT, CHANGE = 1e-5, 1e-10
"""A fit ends where no part of the gradient is larger, or the loss changes less than this share of it."""


class HeldOut(NamedTuple):
    """Error rate and cross-entropy (nats), in order of precedence: the lower tuple is better.

    Errors come first because accuracy is what is reported. Cross-entropy alone prefers unsure heads: among
    223 speakers with three clips each it chose a penalty that halved the accuracy.
    """

    error: float
    loss: float


@dataclass(frozen=True)
class Probed:
    """The result of a probe on the test clips.

    accuracy: share of clips. uar: unweighted average recall, the mean over the tested classes. predictions:
    one label per test clip. layer_weights_L: the learned mix, sums to 1. weight_decay: the chosen L2 penalty.
    held_out: its result on the training clips that were held out to choose it.
    """

    accuracy: float
    uar: float
    predictions: list[str]
    layer_weights_L: NDArray[np.float32]
    weight_decay: float
    held_out: HeldOut


@dataclass(frozen=True)
class CrossValidated:
    """accuracy and uar: over all test clips together, each predicted by a probe trained without its fold.

    layer_weights_L, held_out: means over the folds. skipped: folds with a single class, not tested.
    """

    accuracy: float
    uar: float
    tested: NDArray[np.intp]
    predictions: list[str]
    layer_weights_L: NDArray[np.float32]
    held_out: HeldOut
    folds: dict[str, Probed]
    skipped: list[str]


class IndexFold(NamedTuple):
    """Indices of the clips to train on and to test."""

    name: str
    train: NDArray[np.intp]
    test: NDArray[np.intp]


class Standard(NamedTuple):
    """Mean and standard deviation of each layer's values, (L, D), over a set of clips."""

    mean_LD: Means
    std_LD: Means

    @classmethod
    def of(cls, x_NLD: Means) -> Standard:
        std_LD = x_NLD.std(0, dtype=np.float64)
        # A constant value would have its rounding errors amplified.
        least_L1 = 1e-5 * std_LD.max(1, keepdims=True) + 1e-12
        return cls(
            x_NLD.mean(0, dtype=np.float64).astype(np.float32),
            np.where(std_LD > least_L1, std_LD, np.inf).astype(np.float32),
        )

    def apply(self, x_NLD: Means) -> Means:
        return (x_NLD - self.mean_LD) / self.std_LD


class Head(NamedTuple):
    mix_L: Tensor
    weight_CD: Tensor
    bias_C: Tensor

    def logits(self, x_LND: Tensor) -> Tensor:
        return F.linear(mixed(x_LND, self.mix_L), self.weight_CD, self.bias_C)


def layers_first(x_NLD: Means) -> Tensor:
    """(L, N, D): the sum over layers becomes one product of a vector and a matrix, several times as fast."""
    return torch.from_numpy(x_NLD).transpose(0, 1).contiguous()


def mixed(x_LND: Tensor, mix_L: Tensor) -> Tensor:
    """The weighted sum of the layers (N, D); the weights are the softmax of `mix_L`."""
    return (mix_L.softmax(0) @ x_LND.flatten(1)).view(x_LND.shape[1:])


def probe(
    train_NLD: Means,
    train_labels: Sequence[str],
    test_NLD: Means,
    test_labels: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Probed:
    """Fit a probe to the training clips and test it.

    groups: of each training clip, e.g. its speaker. The penalty is then chosen on held-out groups, as suits a
    test on other speakers. seed: for that choice; nothing else is random.

    A test label that does not occur in training counts as an error. Raises ValueError for arrays and labels
    that do not fit, and for fewer than two classes.
    """
    check_features(train_NLD, train_labels)
    check_features(test_NLD, test_labels)
    classes = sorted(set(train_labels))
    if len(classes) < 2:
        raise ValueError(f"a probe needs at least two classes to train on, not only {classes}")
    y_N = np.array([classes.index(label) for label in train_labels])
    drawn = held_out_parts(train_labels, groups, seed)
    tried = [_held_out_results(train_NLD, y_N, held_out_N, len(classes)) for held_out_N in drawn]
    results = [HeldOut(*np.mean(of_one, axis=0).tolist()) for of_one in zip(*tried, strict=True)]
    chosen = min(range(len(results)), key=results.__getitem__)
    standard = Standard.of(train_NLD)
    head = fit(standard.apply(train_NLD), y_N, len(classes), WEIGHT_DECAYS[chosen])
    logits_NC = head.logits(layers_first(standard.apply(test_NLD)))
    predictions = [classes[i] for i in logits_NC.argmax(1).tolist()]
    accuracy, uar = scores(predictions, test_labels)
    weights_L = head.mix_L.softmax(0).numpy()
    return Probed(accuracy, uar, predictions, weights_L, WEIGHT_DECAYS[chosen], results[chosen])


def per_layer(
    train_NLD: Means,
    train_labels: Sequence[str],
    test_NLD: Means,
    test_labels: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Probed]:
    """A probe of each layer alone. Choose the best layer by the lowest `held_out`; choosing by accuracy would
    be choosing on the test clips."""
    return [
        probe(
            train_NLD[:, [layer]],
            train_labels,
            test_NLD[:, [layer]],
            test_labels,
            groups=groups,
            seed=seed,
        )
        for layer in range(train_NLD.shape[1])
    ]


def cross_validate(
    x_NLD: Means, labels: Sequence[str], keys: Sequence[str], *, grouped: bool = False, seed: int = 0
) -> CrossValidated:
    """Test each fold with a probe trained on the others. keys: each clip's fold, from any column of a
    manifest, such as `split`, or `speaker` to leave one speaker out. grouped: the penalty is chosen on
    held-out folds too, as for other speakers.

    Raises ValueError as `probe` does, and if no fold can be tested.
    """
    check_features(x_NLD, labels)
    parts, skipped = folds(keys, labels)
    if not parts:
        raise ValueError(
            f"no fold to test: {len(set(keys))} folds, {len(skipped)} of them with a single class"
        )
    found = {}
    for name, train, test in parts:
        found[name] = probe(
            x_NLD[train],
            [labels[i] for i in train],
            x_NLD[test],
            [labels[i] for i in test],
            groups=[keys[i] for i in train] if grouped else None,
            seed=seed,
        )
    tested = np.concatenate([part.test for part in parts])
    predictions = [label for one in found.values() for label in one.predictions]
    accuracy, uar = scores(predictions, [labels[i] for i in tested])
    return CrossValidated(
        accuracy,
        uar,
        tested,
        predictions,
        np.mean([one.layer_weights_L for one in found.values()], axis=0),
        HeldOut(*np.mean([one.held_out for one in found.values()], axis=0).tolist()),
        found,
        skipped,
    )


def folds(keys: Sequence[str], labels: Sequence[str]) -> tuple[list[IndexFold], list[str]]:
    """Each key's clips against all others, and the keys that are skipped: those whose clips have a single
    class, for which a constant answer may be right. Skipped clips are still trained on."""
    if len(keys) != len(labels):
        raise ValueError(f"{len(keys)} keys for {len(labels)} labels: one of each per clip is needed")
    every, parts, skipped = np.array(keys, dtype=object), [], []
    for key in sorted(set(keys)):
        test = np.flatnonzero(every == key)
        if len({labels[int(i)] for i in test}) < 2:
            skipped.append(key)
        elif len(test) < len(keys):
            parts.append(IndexFold(key, np.flatnonzero(every != key), test))
    return parts, skipped


def scores(predictions: Sequence[str], labels: Sequence[str]) -> tuple[float, float]:
    """Accuracy, and unweighted average recall over the classes of `labels`."""
    right = np.array([one == other for one, other in zip(predictions, labels, strict=True)])
    truth = np.array(labels, dtype=object)
    recalls = [right[truth == label].mean() for label in sorted(set(labels))]
    return float(right.mean()), float(np.mean(recalls))


def held_out_parts(labels: Sequence[str], groups: Sequence[str] | None, seed: int) -> list[NDArray[np.bool_]]:
    """The training clips on which the penalty is chosen: about HELD_OUT of every class, or of the groups. As
    many parts, each drawn anew, as have ENOUGH_HELD_OUT clips together, at most MOST_DRAWS.

    A class or group of one stays in training.
    """
    generator = np.random.default_rng(seed)
    parts = [_held_out_part(labels, groups, generator)]
    wanted = min(MOST_DRAWS, ENOUGH_HELD_OUT / max(parts[0].sum(), 1))
    while len(parts) < wanted:
        parts.append(_held_out_part(labels, groups, generator))
    return parts


def _held_out_part(
    labels: Sequence[str], groups: Sequence[str] | None, generator: np.random.Generator
) -> NDArray[np.bool_]:
    if groups is not None and len(names := sorted(set(groups))) > 1:
        chosen = generator.choice(len(names), max(1, round(HELD_OUT * len(names))), replace=False)
        return np.isin(np.array(groups), np.array(names)[chosen])
    held_out_N = np.zeros(len(labels), dtype=bool)
    every = np.array(labels, dtype=object)
    for label in sorted(set(labels)):
        own = np.flatnonzero(every == label)
        if len(own) > 1:
            held_out_N[generator.choice(own, max(1, round(HELD_OUT * len(own))), replace=False)] = True
    return held_out_N


def _held_out_results(
    x_NLD: Means, y_N: NDArray[np.intp], held_out_N: NDArray[np.bool_], classes: int
) -> list[HeldOut]:
    """Results on the held-out clips for each penalty; zeros if none are held out."""
    if not held_out_N.any():
        return [HeldOut(0.0, 0.0)] * len(WEIGHT_DECAYS)
    standard = Standard.of(x_NLD[~held_out_N])
    fitted, other = standard.apply(x_NLD[~held_out_N]), layers_first(standard.apply(x_NLD[held_out_N]))
    target = torch.from_numpy(y_N[held_out_N])
    heads = (fit(fitted, y_N[~held_out_N], classes, decay) for decay in WEIGHT_DECAYS)
    logits = (head.logits(other) for head in heads)
    return [
        HeldOut(float((x_NC.argmax(1) != target).double().mean()), float(F.cross_entropy(x_NC, target)))
        for x_NC in logits
    ]


def fit(x_NLD: Means, y_N: NDArray[np.intp], classes: int, weight_decay: float) -> Head:
    """Minimises cross-entropy plus weight_decay / 2 * ||weight||^2, from a uniform mix and a zero head.

    The gradient is written out: with autograd, most fits took several times as long. Products are laid out so
    that the classes, which are few, come first: the other way they take three to five times as long.
    """
    (N, L, D), x_LND, target_N = x_NLD.shape, layers_first(x_NLD), torch.from_numpy(y_N)
    answer_NC = F.one_hot(target_N, classes).float()
    learned = L if L > 1 else 0  # a single layer has nothing to mix

    def head_of(values: NDArray[np.float64]) -> Head:
        flat = torch.from_numpy(values.astype(np.float32))
        mix_L = flat[:learned] if learned else torch.zeros(1)
        return Head(mix_L, flat[learned:-classes].view(classes, D), flat[-classes:])

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mix_L, weight_CD, bias_C = head_of(values)
        x_ND = mixed(x_LND, mix_L)
        logits_NC = F.linear(x_ND, weight_CD, bias_C)
        total = F.cross_entropy(logits_NC, target_N) + weight_decay / 2 * weight_CD.square().sum()
        wrong_NC = (logits_NC.softmax(1) - answer_NC) / N
        slopes = [(wrong_NC.T @ x_ND + weight_decay * weight_CD).flatten(), wrong_NC.sum(0)]
        if learned:  # through the softmax of the mix
            slope_L = x_LND.flatten(1) @ (wrong_NC @ weight_CD).flatten()
            share_L = mix_L.softmax(0)
            slopes.insert(0, share_L * (slope_L - share_L @ slope_L))
        return float(total), torch.cat(slopes).double().numpy()

    options = {"maxiter": ITERATIONS, "maxcor": 20, "gtol": GRADIENT, "ftol": CHANGE}
    start = np.zeros(learned + (D + 1) * classes)
    with torch.inference_mode():
        found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return head_of(found.x)


def check_features(x_NLD: Means, labels: Sequence[str]) -> None:
    if x_NLD.ndim != 3 or len(x_NLD) != len(labels) or not len(labels):
        raise ValueError(
            f"features must be (clips, layers, width) with one label per clip, not {x_NLD.shape} with "
            f"{len(labels)} labels"
        )
    if not np.isfinite(x_NLD).all():
        raise ValueError("features hold NaN or infinite values: the encoder has diverged")
