"""CTC against a sum over all paths, torch in float64, and what the fine-tuning promises."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.presets import tiny
from speech_ssl.objectives.ctc import CTC, CTCConfig
from speech_ssl.types import Batch, least_frames

pytestmark = pytest.mark.numerical

ENCODER = tiny().changed(frontend={"channels": (16,) * 7}, depth=2, width=32, heads=2, ffn_width=64)
FRAMES = 5
SAMPLES = 400 + 320 * (FRAMES - 1)


def objective(**numbers: float) -> CTC:
    torch.manual_seed(0)
    config = CTCConfig(vocabulary=("<blank>", "a", "b", " "), **{"head_only": 0.0, **numbers})  # type: ignore[arg-type]
    return config.build(Encoder(ENCODER))


def batch(targets: list[list[int]], samples: int = SAMPLES) -> Batch:
    wave_BS = torch.randn(len(targets), samples, generator=torch.Generator().manual_seed(1))
    lengths_B = torch.tensor([len(row) for row in targets])
    targets_BU = torch.tensor([row + [3] * (max(map(len, targets)) - len(row)) for row in targets])
    return Batch(wave_BS, torch.full((len(targets),), samples), targets_BU, lengths_B)


def loss_of(ctc: CTC, given: Batch, seed: int = 0):  # type: ignore[no-untyped-def]
    return ctc(given, generator=torch.Generator().manual_seed(seed))


def likelihood_of_all_paths(log_probs_TV: torch.Tensor, target: list[int]) -> float:
    """By the definition: the sum over every path that collapses to the target."""
    total = 0.0
    for path in itertools.product(range(log_probs_TV.shape[1]), repeat=len(log_probs_TV)):
        collapsed = [unit for unit, _ in itertools.groupby(path) if unit != 0]
        if collapsed == target:
            total += math.exp(sum(float(row[unit]) for row, unit in zip(log_probs_TV, path, strict=True)))
    return -math.log(total)


def test_the_loss_is_the_sum_over_all_paths() -> None:
    ctc = objective().eval()
    targets = [[1, 2], [3, 3], [1, 2, 1, 2, 1], [2]]
    with torch.no_grad():
        given = batch(targets)
        loss = loss_of(ctc, given)
        log_probs_BTV = ctc.head([ctc.encoder(given.wave_BS, given.lengths_B).x_BTD]).double()
    assert log_probs_BTV.shape[1] == FRAMES
    pairs = list(zip(log_probs_BTV, targets, strict=True))
    assert float(loss.total) == pytest.approx(sum(likelihood_of_all_paths(*p) for p in pairs), rel=1e-4)
    assert float(loss.count) == sum(map(len, targets))
    padded_BU, lengths_B = given.targets_BU, given.target_lengths_B
    in_float64 = F.ctc_loss(
        log_probs_BTV.transpose(0, 1), padded_BU, torch.full((4,), FRAMES), lengths_B, reduction="sum"
    )
    assert float(loss.total) == pytest.approx(float(in_float64), rel=1e-5)


def test_impossible_targets_are_left_out_counted_and_spoil_no_gradient() -> None:
    ctc = objective()
    ctc.eval()
    alone, both = loss_of(ctc, batch([[1, 2]])), loss_of(ctc, batch([[1, 2], [1] * FRAMES]))
    assert float(both.count) == 2 and float(both.metrics["impossible"]) == FRAMES
    assert float(both.total.detach()) == pytest.approx(float(alone.total.detach()), rel=1e-5)
    both.total.backward()
    for name, parameter in ctc.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    assert float(alone.metrics["impossible"]) == 0
    none = loss_of(ctc, batch([[1] * FRAMES]))
    assert float(none.count) == 0 == float(none.total.detach())


@settings(deadline=None, max_examples=50)
@given(target=st.lists(st.integers(1, 3), min_size=1, max_size=5), frames=st.integers(1, 9))
def test_least_frames_is_where_the_loss_becomes_finite(target: list[int], frames: int) -> None:
    log_probs_TBV = torch.zeros(frames, 1, 4).log_softmax(-1)
    targets_BU, lengths_B = torch.tensor([target]), torch.tensor([len(target)])
    loss = F.ctc_loss(log_probs_TBV, targets_BU, torch.tensor([frames]), lengths_B, reduction="sum")
    assert bool(least_frames(targets_BU) <= frames) == bool(loss.isfinite())


def test_the_head_learns_alone_at_first_and_the_front_end_never() -> None:
    ctc = objective(head_only=0.5)
    ctc.after_step(0.0)
    loss_of(ctc, batch([[1, 2]])).total.backward()
    assert all(p.grad is None for p in ctc.encoder.parameters())
    assert all(p.grad is not None for p in ctc.head.parameters())
    ctc.after_step(0.5)
    loss_of(ctc, batch([[1, 2]])).total.backward()
    assert all(p.grad is not None for p in ctc.encoder.blocks.parameters())
    assert all(p.grad is None for p in ctc.encoder.frontend.parameters())


def say(ctc: CTC, units: list[int]) -> None:
    """Make each frame of every clip say the unit given for it."""
    posteriors_TV = torch.full((len(units), 4), -20.0)
    posteriors_TV[torch.arange(len(units)), torch.tensor(units)] = 20.0
    ctc.head = Fixed(posteriors_TV.log_softmax(-1))


class Fixed(torch.nn.Module):
    def __init__(self, log_probs_TV: torch.Tensor) -> None:
        super().__init__()
        self.log_probs_TV = log_probs_TV

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        return self.log_probs_TV.expand(len(states[-1]), -1, -1)


def test_held_out_errors_are_those_of_the_best_path() -> None:
    ctc = objective().eval()
    say(ctc, [1, 1, 3, 2, 0])  # "a b"
    loss = loss_of(ctc, batch([[1, 3, 2], [1, 2], [2]]))  # "a b", "ab", "b"
    reported = ctc.report({k: v / loss.count for k, v in loss.metrics.items()})
    assert reported["cer"] == pytest.approx((0 + 1 + 2) / 6)
    assert reported["wer"] == pytest.approx((0 + 2 + 1) / 4)
    assert ctc.best_by in reported and not ctc.higher_is_better


def test_all_blanks_are_below_the_floor() -> None:
    ctc = objective()
    with torch.no_grad():
        ctc.head.logits.bias[0] = 100.0
    loss = loss_of(ctc, batch([[1, 2]]))
    reported = ctc.report({k: v / loss.count for k, v in loss.metrics.items()})
    assert reported["spoken"] == 0 < ctc.floors()["spoken"].minimum


def test_time_and_channels_are_hidden_in_training_alone() -> None:
    ctc = objective(hidden_share=0.5, hidden_span=2, channel_share=0.5, channel_span=4)
    given = batch([[1, 2]], samples=16_000)
    trained = {float(loss_of(ctc, given, seed).total.detach()) for seed in range(3)}
    tested = {float(loss_of(ctc.eval(), given, seed).total.detach()) for seed in range(3)}
    assert len(trained) == 3 and len(tested) == 1


def test_a_narrow_encoder_keeps_some_of_its_channels() -> None:
    """With the published span of 64, all 32 would be hidden: a row of zeros, and a gradient of 1e12."""
    ctc, norms = objective(channel_share=0.256, channel_span=64), []
    for seed in range(12):
        ctc.zero_grad()
        loss_of(ctc, batch([[1, 2]], samples=4_000), seed).total.backward()
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in ctc.parameters() if p.grad is not None]))
    assert max(norms) < 100 * min(norms)


def test_without_targets_it_says_so() -> None:
    with pytest.raises(ValueError, match="needs targets"):
        loss_of(objective(), replace(batch([[1]]), targets_BU=None))


def test_waves_are_changed_in_training_alone_and_the_text_stays() -> None:
    ctc = objective(speed=0.1, rooms=0.5, noise=0.5, gain_db=6.0, hidden_share=0.0, channel_share=0.0)
    given = batch([[1, 2], [2, 1]], samples=8_000)
    generator = torch.Generator().manual_seed(0)
    changed = ctc.train().augmented(given, generator)
    assert changed.targets_BU is given.targets_BU and not torch.equal(
        changed.wave_BS[:, :8_000], given.wave_BS
    )
    assert ctc.eval().augmented(given, generator) is given
    assert loss_of(ctc.train(), given).count == loss_of(ctc.eval(), given).count == 4


def test_the_slowest_row_keeps_its_end() -> None:
    """A click on the last sample of the longest row is heard at every speed, near the changed row's end."""
    ctc = objective(speed=0.25).train()
    given = batch([[1]] * 64, samples=4_000)
    wave_BS = torch.zeros(64, 4_000)
    wave_BS[:, -4:] = 1.0
    given = replace(given, wave_BS=wave_BS)
    changed = ctc.augmented(given, torch.Generator().manual_seed(0))
    lengths_B = changed.lengths_B
    assert lengths_B.min() < 3_400 and lengths_B.max() > 5_000
    assert lengths_B.max() <= changed.wave_BS.shape[1]
    last_B = changed.wave_BS[torch.arange(64), lengths_B - 1]
    assert (last_B > 0.99).all()


@pytest.mark.parametrize("speed", [-0.1, 0.3, float("nan")])
def test_speeds_that_cannot_be(speed: float) -> None:
    with pytest.raises(ValueError, match="speed is a share"):
        objective(speed=speed)
