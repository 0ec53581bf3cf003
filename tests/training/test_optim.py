"""The learning rate in closed form, what decays, and gradients as a mean over all targets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from recipes.finetune_ctc import full, one_hour, ten_hours, ten_minutes
from recipes.pretrain_wav2vec2 import base, large, tiny
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.optim import (
    build_optimizer,
    clip_gradients,
    learning_rate,
    scale_gradients,
    set_learning_rate,
    take_step,
)


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
        {"max_bad_steps": 0},
        {"watch_patience": 0},
        {"peak_lr": 0.0},
        {"peak_lr": math.inf},
        {"eps": math.nan},
        {"clip_norm": -1.0},
        {"weight_decay": -0.1},
        {"final_lr_scale": -1.0},
        {"precision": "int8"},
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


def test_vectors_decay_where_the_config_says_so() -> None:
    config = TrainConfig(steps=1, weight_decay=0.3, decay_vectors=True)
    groups = build_optimizer(nn.Linear(3, 5), config).param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(5, 3)], [(5,)]]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.3]


def test_a_state_that_is_loaded_brings_no_numbers_of_its_own() -> None:
    """What `--set` changed holds under each engine: fairseq2's checkpoints have the groups' numbers too."""
    before, after = (
        build_optimizer(nn.Linear(3, 5), TrainConfig(steps=1, weight_decay=decay, eps=eps))
        for decay, eps in ((0.3, 1e-6), (0.1, 1e-8))
    )
    after.load_state_dict(before.state_dict())
    assert [(group["weight_decay"], group["eps"]) for group in after.param_groups] == [(0.1, 1e-8), (0, 1e-8)]


def test_the_published_variants_decay_all_as_fairseq_does() -> None:
    """Its optimizer has one group of all parameters."""
    decay = {run.name: (run.train.weight_decay, run.train.decay_vectors) for run in (base(), large(), tiny())}
    assert decay["wav2vec2-base"] == decay["wav2vec2-large"] == (0.01, True)
    assert decay["wav2vec2-tiny"] == (0.01, False)
    assert all(tuning().train.weight_decay == 0 for tuning in (ten_minutes, one_hour, ten_hours, full))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_that_is_skipped_changes_nothing(device: str) -> None:
    def trained(bad_at: int | None) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5)).to(device)
        optimizer = build_optimizer(module, TrainConfig(steps=1, weight_decay=0.3))
        for step in range(4):
            set_learning_rate(optimizer, 0, TrainConfig(steps=1, peak_lr=0.1))
            if step == bad_at:
                for parameter in module.parameters():
                    parameter.grad = torch.full_like(parameter, math.nan)
                take_step(optimizer, torch.tensor(True, device=device))
                assert all(parameter.grad is None for parameter in module.parameters())
            generator = torch.Generator().manual_seed(step)
            module(torch.randn(4, 3, generator=generator).to(device)).pow(3).sum().backward()
            take_step(optimizer, torch.tensor(False, device=device))
        return module, optimizer

    module, optimizer = trained(None)
    for bad_at in (0, 2):
        other, its_optimizer = trained(bad_at)
        torch.testing.assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=0)
        torch.testing.assert_close(
            its_optimizer.state_dict()["state"], optimizer.state_dict()["state"], rtol=0, atol=0
        )


def test_gradients_are_scaled_and_clipped() -> None:
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))]
    weights[0].grad, weights[1].grad = torch.tensor([2.0, 0.0, 4.0]), torch.tensor([4.0])
    scale_gradients(weights, torch.tensor(0.5))
    assert float(clip_gradients(weights, None)) == pytest.approx(3.0)
    assert weights[0].grad.tolist() == [1.0, 0.0, 2.0] and weights[1].grad.tolist() == [2.0]
    assert float(clip_gradients(weights, 0.3)) == pytest.approx(3.0)  # the norm before
    assert math.hypot(*weights[0].grad.tolist(), *weights[1].grad.tolist()) == pytest.approx(0.3, rel=1e-4)
    assert weights[2].grad is None
