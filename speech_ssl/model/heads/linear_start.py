"""The initial weights of a linear head: the best linear classifier on the encoder as it is.

Fine-tuning from a random head first spoils what pre-training learned, and a short run has no time for what a
linear fit gives at once (Kumar et al. 2022, arXiv 2202.10054: a linear probe, then fine-tuning). With mean
pooling, a linear head needs of a clip only the mean of each layer's frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from speech_ssl.model.heads.head import EventsHead

WEIGHT_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
STRONG = WEIGHT_DECAYS[3:]
"""For an encoder that will be trained: with large weights, its first steps change the outputs too much."""
ITERATIONS = 60


class Pooled(NamedTuple):
    """Standardised means over the frames of each clip, by layer, and the clips' targets."""

    means_NLD: Tensor
    targets_NK: Tensor


Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits (N, K) and targets (N, K) to the sum of the clips' losses."""


def fit_linear(
    head: EventsHead,
    training: Pooled,
    valid: Pooled,
    loss: Loss,
    decays: Sequence[float] = WEIGHT_DECAYS,
) -> float:
    """Fit the mix of layers and the linear outputs of `head` to the training clips. The L2 penalty is the
    best one on the held-out clips; without those, the middle one. Returns the mean loss of the held-out clips
    (NaN without any)."""
    if not len(valid.means_NLD):
        decays = [sorted(decays)[len(decays) // 2]]
    fitted = [_fit(training, loss, decay) for decay in decays]
    losses = [float(loss(_logits(valid, *one), valid.targets_NK)) / max(len(valid[0]), 1) for one in fitted]
    best = min(range(len(fitted)), key=losses.__getitem__)
    mix_L, weight_KD, bias_K = fitted[best]
    with torch.no_grad():
        head.layers.scores.copy_(mix_L)
        head.outputs.weight.copy_(weight_KD)
        head.outputs.bias.copy_(bias_K)
    return losses[best] if len(valid.means_NLD) else float("nan")


def _fit(clips: Pooled, loss: Loss, weight_decay: float) -> tuple[Tensor, Tensor, Tensor]:
    (N, L, D), K = clips.means_NLD.shape, clips.targets_NK.shape[1]
    learned = tuple(
        torch.zeros(shape, device=clips.means_NLD.device, requires_grad=True)
        for shape in ((L,), (K, D), (K,))
    )
    optimizer = torch.optim.LBFGS(learned, max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = weight_decay / 2 * learned[1].square().sum()
        total = loss(_logits(clips, *learned), clips.targets_NK) / N + penalty
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    mix_L, weight_KD, bias_K = (parameter.detach() for parameter in learned)
    return mix_L, weight_KD, bias_K


def _logits(clips: Pooled, mix_L: Tensor, weight_KD: Tensor, bias_K: Tensor) -> Tensor:
    return torch.einsum("l,nld->nd", mix_L.softmax(0), clips.means_NLD) @ weight_KD.T + bias_K
