"""The learning rate in closed form, what decays, and gradients as a mean over all targets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from speech_ssl.training.config import TrainConfig
from speech_ssl.training.optim import build_optimizer, clip_gradients, learning_rate, scale_gradients


def test_the_learning_rate_in_closed_form() -> None:
    config = TrainConfig(steps=100, peak_lr=1.0, warmup=0.2)
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:20] == pytest.approx([(n + 1) / 20 for n in range(20)])
    assert rates[20:] == pytest.approx([(80 - n) / 80 for n in range(80)])
    assert max(rates) == 1.0 and min(rates) > 0  # no step is wasted on a rate of 0


def test_the_learning_rate_ends_at_the_final_scale() -> None:
    config = TrainConfig(steps=1000, peak_lr=2.0, warmup=0.1, final_lr_scale=0.05)
    assert learning_rate(1000, config) == pytest.approx(0.1)
    assert learning_rate(99, config) == learning_rate(100, config) == 2.0


def test_tri_stage_in_closed_form() -> None:
    """Baevski et al. 2020, section 4.3: up in 10 %, level for 40 %, then an exponential fall to 5 %."""
    config = TrainConfig(
        steps=100, peak_lr=2.0, warmup=0.1, hold=0.4, decay="exponential", final_lr_scale=0.05
    )
    rates = [learning_rate(step, config) for step in range(100)]
    assert rates[:10] == pytest.approx([2 * (n + 1) / 10 for n in range(10)])
    assert rates[10:50] == [2.0] * 40
    assert rates[50:] == pytest.approx([2 * 0.05 ** (n / 50) for n in range(50)])
    linear = TrainConfig(steps=100, peak_lr=1.0, warmup=0.1, hold=0.4)
    assert learning_rate(75, linear) == pytest.approx(0.5)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (3, 0.99)])
def test_the_shortest_runs_have_a_rate(steps: int, warmup: float) -> None:
    config = TrainConfig(steps=steps, peak_lr=1.0, warmup=warmup)
    assert all(0 < learning_rate(step, config) <= 1 for step in range(steps))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"warmup": 1.0},
        {"warmup": -0.1},
        {"warmup": 0.5, "hold": 0.5},
        {"batches_per_step": 0},
        {"patience": 0},
        {"probe_every": 0},
        {"final_lr_scale": 0.0, "decay": "exponential"},
    ],
)
def test_numbers_that_make_no_run_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**{"steps": 10, **wrong})  # type: ignore[arg-type]


def test_matrices_decay_vectors_do_not_and_frozen_ones_are_left_out() -> None:
    module = nn.Sequential(nn.Conv1d(2, 3, 4), nn.LayerNorm(3), nn.Linear(3, 5))
    module[2].weight.requires_grad_(False)
    decaying, others = build_optimizer(module, TrainConfig(steps=1, weight_decay=0.3)).param_groups
    assert [tuple(p.shape) for p in decaying["params"]] == [(3, 2, 4)]
    assert {tuple(p.shape) for p in others["params"]} == {(3,), (5,)}
    assert decaying["weight_decay"] == 0.3 and others["weight_decay"] == 0.0
    assert decaying["betas"] == (0.9, 0.98) and decaying["eps"] == 1e-6


def test_gradients_are_scaled_and_clipped() -> None:
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))]
    weights[0].grad, weights[1].grad = torch.tensor([2.0, 0.0, 4.0]), torch.tensor([4.0])
    scale_gradients(weights, torch.tensor(0.5))
    assert float(clip_gradients(weights, None)) == pytest.approx(3.0)
    assert weights[0].grad.tolist() == [1.0, 0.0, 2.0] and weights[1].grad.tolist() == [2.0]
    assert float(clip_gradients(weights, 0.3)) == pytest.approx(3.0)  # the norm before
    assert math.hypot(*weights[0].grad.tolist(), *weights[1].grad.tolist()) == pytest.approx(0.3, rel=1e-4)
    assert weights[2].grad is None
