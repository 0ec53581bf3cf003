"""SwAV: Sinkhorn's iterations and the swapped cross-entropies in loops, and where assignments must end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from speech_ssl.objectives.swav import SwAV, SwAVConfig, sinkhorn
from tests.objectives.two_views import build, cosine, seeded, seen, vectors
from tests.test_objective_contract import tones

pytestmark = pytest.mark.numerical


def swav(**options: float) -> SwAV:
    config = SwAVConfig(hidden_width=16, width=8, prototypes=5, tau=0.2, epsilon=0.1, **options)  # type: ignore[arg-type]
    return build(config, SwAV)


def assigned(scores: Sequence[Sequence[float]], epsilon: float, iterations: int) -> list[list[float]]:
    """The paper's listing in appendix A.1, in loops: Q is prototypes by rows."""
    B, K = len(scores), len(scores[0])
    Q = [[math.exp(scores[b][k] / epsilon) for b in range(B)] for k in range(K)]
    total = sum(map(sum, Q))
    Q = [[q / total for q in row] for row in Q]
    for _ in range(iterations):
        Q = [[q / (sum(row) * K) for q in row] for row in Q]
        columns = [sum(Q[k][b] for k in range(K)) for b in range(B)]
        Q = [[Q[k][b] / (columns[b] * B) for b in range(B)] for k in range(K)]
    return [[Q[k][b] * B for k in range(K)] for b in range(B)]


def scores(model: SwAV, view_BE: Tensor) -> list[list[float]]:
    return [[cosine(z, c) for c in model.prototypes.weight] for z in view_BE]


def expected(model: SwAV, first_BE: Tensor, second_BE: Tensor) -> list[float]:
    """Equations 1 and 2."""
    score_s, score_t = scores(model, first_BE), scores(model, second_BE)
    queue = scores(model, model.queue.rows_KE) if model.queued and model.queue is not None else []
    q_s, q_t = (assigned(own + queue, 0.1, 3) for own in (score_s, score_t))

    def cross_entropy(q: list[float], score: list[float]) -> float:
        total = sum(math.exp(s / 0.2) for s in score)
        return -sum(q[k] * math.log(math.exp(score[k] / 0.2) / total) for k in range(5))

    return [
        cross_entropy(q_s[i], score_t[i]) + cross_entropy(q_t[i], score_s[i]) for i in range(len(score_s))
    ]


@pytest.mark.parametrize("progress", [0.0, 0.5])
def test_the_loss_is_equation_2_with_and_without_the_queue(progress: float) -> None:
    model = swav(queue=12, queue_from=0.5)
    model.set_progress(progress)
    assert model.queued == (progress == 0.5)
    first_BE, second_BE = vectors()
    loss_B, _ = model.compare(seen(first_BE, second_BE))
    wanted_B = torch.tensor(expected(model, first_BE, second_BE))
    torch.testing.assert_close(loss_B.double(), wanted_B.double(), rtol=1e-5, atol=1e-6)


def test_rows_are_assigned_whole_and_prototypes_equally() -> None:
    """After many iterations exactly; after three, what any row is assigned to still sums to 1."""
    score_NV = torch.randn(40, 6, generator=seeded()) + torch.tensor([2.0, 0, 0, 0, 0, 0])
    many_NV = sinkhorn(score_NV, 0.5, 300)
    torch.testing.assert_close(many_NV.sum(1), torch.ones(40))
    torch.testing.assert_close(many_NV.sum(0), torch.full((6,), 40 / 6), rtol=1e-3, atol=0)
    torch.testing.assert_close(sinkhorn(score_NV, 0.5, 3).sum(1), torch.ones(40))
    shifted_NV = score_NV + 3 * torch.randn(40, 1, generator=seeded())
    torch.testing.assert_close(sinkhorn(shifted_NV, 0.5, 300), many_NV, atol=1e-5, rtol=1e-4)
    clear_NV = torch.eye(6).repeat(2, 1)
    torch.testing.assert_close(sinkhorn(clear_NV, 0.05, 3), clear_NV, atol=1e-6, rtol=0)


def test_a_collapsed_model_is_told_nothing() -> None:
    same_BE = torch.ones(9, 8)
    model = swav()
    loss_B, metrics = model.compare(seen(same_BE, same_BE))
    found = (torch.nn.functional.normalize(model.prototypes.weight, dim=1) @ (torch.ones(8) / 8**0.5)) / 0.2
    torch.testing.assert_close(loss_B, (2 * (found.logsumexp(0) - found.mean())).expand(9))
    assert metrics["probs"].shape == (5,)


def test_prototypes_stay_still_at_first_and_assignments_take_no_gradient() -> None:
    model = swav(still=0.1)
    for progress, moves in ((0.0, False), (0.2, True)):
        model.set_progress(progress)
        model(tones(0), generator=seeded()).total.backward()
        assert (model.prototypes.weight.grad is not None) == moves
    score_NV = torch.randn(4, 5, requires_grad=True)
    assert not model._codes(score_NV, model.prototypes.weight).requires_grad
