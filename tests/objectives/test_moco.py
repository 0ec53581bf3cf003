"""MoCo: InfoNCE over the queue in loops, the queue's life, and closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from speech_ssl.objectives.moco import MoCo, MoCoConfig
from tests.objectives.two_views import build, cosine, seeded, seen, vectors
from tests.test_objective_contract import tones

pytestmark = pytest.mark.numerical


def moco(queue: int = 20, tau: float = 0.2, momentum: float = 0.9) -> MoCo:
    config = MoCoConfig(hidden_width=16, width=8, queue=queue, tau=tau, momentum=momentum)
    return build(config, MoCo)


def test_the_loss_is_equation_1_of_each_view() -> None:
    query_1, query_2, key_1, key_2 = vectors(views=4)
    model, tau = moco(), 0.2

    def loss(q: torch.Tensor, k: torch.Tensor) -> float:
        positive = math.exp(cosine(q, k) / tau)
        return -math.log(
            positive / (positive + sum(math.exp(cosine(q, n) / tau) for n in model.queue.rows_KE))
        )

    expected = [(loss(query_1[i], key_2[i]) + loss(query_2[i], key_1[i])) / 2 for i in range(7)]
    loss_B, metrics = model.compare(seen(query_1, query_2, (key_1, key_2)))
    torch.testing.assert_close(loss_B.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)
    chances = [
        (math.exp(-loss(query_1[i], key_2[i])) + math.exp(-loss(query_2[i], key_1[i]))) / 2 for i in range(7)
    ]
    assert float(metrics["confidence"]) == pytest.approx(sum(chances), rel=1e-5)


def test_a_collapsed_model_guesses() -> None:
    same = torch.ones(3, 8)
    model = moco(queue=20)
    model.queue.put(F.normalize(torch.ones(20, 8), dim=1))
    loss_B, _ = model.compare(seen(same, same, (same, same)))
    torch.testing.assert_close(loss_B, torch.full((3,), math.log(21)))


def test_both_keys_of_a_step_are_queued_after_it_and_in_training_alone() -> None:
    model = moco()
    before_KE = model.queue.rows_KE.clone()
    model.eval()(tones(0), generator=seeded())
    model.after_step(0.1)
    assert torch.equal(model.queue.rows_KE, before_KE)
    batch = tones(0)
    keys_NE = torch.cat(model.taught(model.look(batch, seeded())))
    model.train()(batch, generator=seeded())
    assert torch.equal(model.queue.rows_KE, before_KE)
    model.after_step(0.1)
    torch.testing.assert_close(model.queue.rows_KE[:6], F.normalize(keys_NE, dim=1))
    assert torch.equal(model.queue.rows_KE[6:], before_KE[6:])


def test_it_is_prepared_with_keys_of_the_data() -> None:
    model = moco(queue=10)
    model.prepare((tones(number) for number in range(9)), generator := seeded())
    again = seeded()
    for number in range(4):  # for the statistics
        model.look(tones(number), again)
    expected_NE = torch.cat(model.taught(model.look(tones(4), again)))
    model.look(tones(5), again)
    assert torch.equal(again.get_state(), generator.get_state())
    torch.testing.assert_close(model.queue.rows_KE[2:6], F.normalize(expected_NE[2:], dim=1))
    assert int(model.queue.place) == 2  # twelve keys in ten places
    norms_K = model.queue.rows_KE.norm(dim=1)
    torch.testing.assert_close(norms_K, torch.ones(10))
