"""Sound events: losses and metrics against closed forms, and what is augmented and frozen."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss

from speech_ssl.model.encoder import Encoder
from speech_ssl.model.heads.head import LayerMix, clip_logits
from speech_ssl.model.heads.linear_start import WEIGHT_DECAYS, Pooled, fit_linear
from speech_ssl.model.heads.specs import EventsSpec
from speech_ssl.model.presets import tiny
from speech_ssl.objectives.events import Events, EventsConfig, mean_average_precision
from speech_ssl.types import Batch, LossSum

pytestmark = pytest.mark.numerical

ENCODER = tiny().changed(frontend={"channels": (16,) * 7}, depth=2, width=32, heads=2, ffn_width=64)
LABELS = ("dog", "rain", "siren")
FRAMES = 8
SAMPLES = 400 + 320 * (FRAMES - 1)


def objective(**numbers: object) -> Events:
    torch.manual_seed(0)
    config = EventsConfig(labels=LABELS, **{"head_only": 0.0, "pooling": "mean", **numbers})  # type: ignore[arg-type]
    return config.build(Encoder(ENCODER))


class Fixed(torch.nn.Module):
    """Says the same in each frame of a row."""

    def __init__(self, logits_BK: list[list[float]]) -> None:
        super().__init__()
        self.logits_BK = torch.tensor(logits_BK)

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        return self.logits_BK[:, None].expand(-1, states[-1].shape[1], -1)


def batch(targets: list[list[int]], samples: int = SAMPLES) -> Batch:
    wave_BS = torch.randn(len(targets), samples, generator=torch.Generator().manual_seed(1))
    lengths_B = torch.tensor([len(row) for row in targets])
    rows = [row + [2] * (max(map(len, targets)) - len(row)) for row in targets]
    targets_BU = torch.tensor(rows, dtype=torch.int64)
    return Batch(wave_BS, torch.full((len(targets),), samples), targets_BU, lengths_B)


def loss_of(events: Events, given: Batch, seed: int = 0) -> LossSum:
    return events(given, generator=torch.Generator().manual_seed(seed))


def reported(events: Events, loss: LossSum) -> dict[str, float]:
    return events.report({k: v / loss.count for k, v in loss.metrics.items()})


LOGITS = [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.5]]


def test_exclusive_labels_have_a_weighted_cross_entropy() -> None:
    events = objective(class_weights=(1.0, 3.0, 0.5)).eval()
    events.head = Fixed(LOGITS)
    loss = loss_of(events, batch([[0], [1], [0], [2]]))
    expected = F.cross_entropy(
        torch.tensor(LOGITS), torch.tensor([0, 1, 0, 2]), torch.tensor([1.0, 3.0, 0.5]), reduction="sum"
    )
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss.count) == 4
    said = reported(events, loss)
    assert said["accuracy"] == pytest.approx(0.75)
    assert said["balanced_accuracy"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert events.best_by in said and events.higher_is_better


def test_labels_that_were_not_shown_do_not_count_in_the_balance() -> None:
    events = objective().eval()
    events.head = Fixed(LOGITS[:2])
    assert reported(events, loss_of(events, batch([[0], [1]])))["balanced_accuracy"] == 1


def test_smoothing_is_torchs_in_training_alone() -> None:
    events = objective(label_smoothing=0.1)
    events.head = Fixed(LOGITS)
    given = batch([[0], [1], [0], [2]])
    expected = F.cross_entropy(
        torch.tensor(LOGITS), torch.tensor([0, 1, 0, 2]), label_smoothing=0.1, reduction="sum"
    )
    assert float(loss_of(events, given).total) == pytest.approx(float(expected), rel=1e-5)
    assert float(loss_of(events.eval(), given).total) != pytest.approx(float(expected), rel=1e-3)


def test_tags_have_a_binary_cross_entropy_each() -> None:
    events = objective(exclusive=False).eval()
    events.head = Fixed(LOGITS)
    loss = loss_of(events, batch([[0, 1], [], [2], [0, 1, 2]]))
    truth = torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 1, 1]])
    expected = F.binary_cross_entropy_with_logits(torch.tensor(LOGITS), truth, reduction="sum") / 3
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-5)
    assert set(reported(events, loss)) == {"mean_ap"} and events.best_by == "mean_ap"


def test_a_batch_without_any_label_has_a_loss() -> None:
    events = objective(exclusive=False).eval()
    events.head = Fixed([[0.0] * 3])
    loss = loss_of(events, batch([[], []]))
    assert float(loss.total.detach()) == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize(("shift", "spread"), [(-2, 1), (5, 2), (12, 2), (-12, 2), (0, 0.5)])
def test_average_precision_of_binned_scores_is_nearly_the_exact_one(shift: float, spread: float) -> None:
    """Sure of everything, sure of nothing, or hardly decided: as good as the order of the scores says."""
    generator = np.random.default_rng(0)
    truth_NK = generator.random((400, 3)) < [0.5, 0.1, 0.02]
    logits_NK = spread * (generator.normal(size=(400, 3)) + 1.5 * truth_NK) + shift
    events = objective(exclusive=False).eval()
    events.head = Fixed(logits_NK.astype(np.float32).tolist())
    loss = loss_of(events, batch([np.flatnonzero(row).tolist() for row in truth_NK]))
    exact = np.mean([average_precision_score(truth_NK[:, k], logits_NK[:, k]) for k in range(3)])
    assert reported(events, loss)["mean_ap"] == pytest.approx(exact, abs=0.02)


def test_average_precision_closed_forms() -> None:
    present, absent = torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert mean_average_precision(present, absent) == pytest.approx((1 + 0.25) / 2)
    assert math.isnan(mean_average_precision(torch.zeros(2, 2), absent))  # and so never the best


def test_a_frame_has_an_event_when_its_middle_is_within() -> None:
    """Middles are at 12.5 ms, 32.5 ms, and so on, 20 ms apart."""
    events = objective(timed=True, exclusive=False, pooling="max").eval()
    events.head = Fixed([[20.0, -20.0, -20.0]])
    right, late = batch([[0, 0, 10_000]]), batch([[0, 30, 60]])  # all frames; those at 32.5 and 52.5 ms
    assert float(loss_of(events, right).total) == pytest.approx(0, abs=1e-5)
    loss = loss_of(events, late)
    assert float(loss.count) == FRAMES
    assert float(loss.total) == pytest.approx((FRAMES - 2) * 20 / 3, rel=1e-4)


def test_padding_has_no_frames() -> None:
    events = objective(timed=True, exclusive=False, pooling="max").eval()
    both = batch([[0, 0, 50], [1, 0, 50]])
    both = replace(both, lengths_B=torch.tensor([SAMPLES, 400 + 320 * 2]))
    assert float(loss_of(events, both).count) == FRAMES + 3


def test_mixed_rows_have_mixed_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    events = objective(mixup=1.0)
    heard: list[torch.Tensor] = []
    loss = events._loss
    monkeypatch.setattr(events, "_loss", lambda h: (heard.append(h.targets_NK), loss(h))[1])
    loss_of(events, batch([[0], [1], [2], [0]]))
    torch.testing.assert_close(heard[0].sum(1), torch.ones(4))
    assert ((heard[0] > 0.001) & (heard[0] < 0.999)).any()


def test_only_training_is_augmented() -> None:
    events = objective(noise=1.0, gain_db=6.0, shift_s=0.05, mixup=1.0, hidden_share=0.5, hidden_span=2)
    given = batch([[0], [1]])
    assert len({float(loss_of(events, given, seed).total.detach()) for seed in range(3)}) == 3
    assert len({float(loss_of(events.eval(), given, seed).total.detach()) for seed in range(3)}) == 1


def test_a_frozen_encoder_has_no_gradients_and_no_trainable_weights() -> None:
    events = objective(head_only=1.0)
    for progress in (0.0, 1.0):
        events.after_step(progress)
        loss_of(events, batch([[0]])).total.backward()
    assert not any(p.requires_grad or p.grad is not None for p in events.encoder.parameters())
    assert all(p.grad is not None for p in events.head.parameters())
    assert events.train().training and events.head.training and not events.encoder.training


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"timed": True}, "timed events may overlap"),
        ({"class_weights": (1.0,)}, "one weight per label"),
        ({"head_only": 1.5}, "head_only is a share"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(numbers, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EventsConfig(labels=LABELS, **numbers)


def test_without_targets_it_says_so() -> None:
    with pytest.raises(ValueError, match="need targets"):
        loss_of(objective(), replace(batch([[1]]), targets_BU=None))


def test_guessing_costs_the_logarithm_of_the_labels() -> None:
    events = objective().eval()
    events.head = Fixed([[0.0] * 3])
    assert float(loss_of(events, batch([[1]])).total) == pytest.approx(math.log(3))


def separable(seed: int, clips: int = 24) -> Pooled:
    generator = torch.Generator().manual_seed(seed)
    truth_N = torch.arange(clips) % 3
    means_NLD = torch.randn(clips, 3, 32, generator=generator)
    means_NLD[:, 1, :3] += 1.5 * F.one_hot(truth_N, 3)
    return Pooled(means_NLD, F.one_hot(truth_N, 3).float())


def summed(logits_NK: torch.Tensor, targets_NK: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_NK, targets_NK, reduction="sum")


def test_a_linear_start_is_the_logistic_regression_of_scikit_learn() -> None:
    """Of one layer, so that the mix has no say."""
    one = EventsSpec(labels=LABELS, pooling="mean", hidden=0).build(replace(ENCODER, depth=2))
    one.mix = LayerMix(1, 32)
    training, valid = separable(0, 60), separable(1)
    training, valid = (Pooled(part.means_NLD[:, 1:2], part.targets_NK) for part in (training, valid))
    found = fit_linear(one, training, valid, summed)
    losses = []
    for decay in WEIGHT_DECAYS:
        reference = LogisticRegression(C=1 / (decay * 60), tol=1e-6, max_iter=2_000)
        reference.fit(training.means_NLD[:, 0].numpy(), training.targets_NK.argmax(1).numpy())
        probabilities_NK = reference.predict_proba(valid.means_NLD[:, 0].numpy())
        losses.append(log_loss(valid.targets_NK.argmax(1).numpy(), probabilities_NK))
    assert found == pytest.approx(min(losses), rel=0.01)
    logits_NK = one.outputs(valid.means_NLD[:, 0])
    assert float(summed(logits_NK, valid.targets_NK).detach()) / 24 == pytest.approx(found, rel=1e-5)


def test_a_linear_start_listens_to_the_layer_that_tells() -> None:
    head = EventsSpec(labels=LABELS, pooling="mean", hidden=0).build(ENCODER)
    fit_linear(head, separable(0, 90), separable(1, 90), summed)
    assert float(head.mix.scores.detach().softmax(0)[1]) > 0.8


def test_without_held_out_clips_there_is_a_linear_start_too() -> None:
    head = EventsSpec(labels=LABELS, pooling="mean", hidden=0).build(ENCODER)
    nothing = Pooled(torch.zeros(0, 3, 32), torch.zeros(0, 3))
    assert math.isnan(fit_linear(head, separable(0), nothing, summed))
    assert float(head.outputs.weight.detach().norm()) > 0


@pytest.mark.parametrize("exclusive", [True, False])
def test_the_start_is_what_the_whole_network_then_says(exclusive: bool) -> None:
    """The loss that was found from pooled states is the objective's on the same clips, with padding."""
    events = objective(hidden=0, exclusive=exclusive, class_weights=(1.0, 2.0, 0.5))
    given = batch([[0], [1], [2], [0]], samples=2 * SAMPLES)
    ragged = Batch(
        given.wave_BS, torch.tensor([SAMPLES, 2 * SAMPLES] * 2), given.targets_BU, given.target_lengths_B
    )
    before = loss_of(events.eval(), ragged).map(torch.detach)
    events.train()
    events.measure([ragged])
    found = events.start_linear([ragged], [ragged])
    assert events.training and events.starts_linear
    after = loss_of(events.eval(), ragged).map(torch.detach)
    assert float(after.total / after.count) == pytest.approx(found, rel=1e-4)
    assert found < 0.5 * float(before.total / before.count)
    assert not objective(hidden=8).starts_linear and not objective(hidden=0, pooling="max").starts_linear


def test_an_encoder_that_moves_starts_with_smaller_weights() -> None:
    norms = []
    for head_only in (0.0, 1.0):
        events = objective(hidden=0, head_only=head_only)
        given = batch([[0], [1], [2], [0]])
        events.measure([given])
        events.start_linear([given], [given])
        norms.append(float(events.head.outputs.weight.detach().norm()))  # type: ignore[union-attr,arg-type]
    assert 0 < norms[0] < 0.5 * norms[1]


@pytest.mark.parametrize("pooling", ["mean", "attentive", "max"])
@pytest.mark.parametrize("exclusive", [True, False])
def test_calibration_scales_the_logits_of_clips_and_nothing_else(pooling: str, exclusive: bool) -> None:
    events = objective(exclusive=exclusive, pooling=pooling).eval()
    given = batch([[0], [1], [2], [0]])
    with torch.no_grad():
        before = events.outputs(given, torch.Generator())
        logits_BK = clip_logits(before.x_BTD, before.valid_BT, events.spec)
        temperature = events.calibrate([given])
        after = events.outputs(given, torch.Generator())
    assert 0 < temperature != 1
    torch.testing.assert_close(
        clip_logits(after.x_BTD, after.valid_BT, events.spec), logits_BK / temperature, rtol=1e-4, atol=1e-6
    )
    again = events.calibrate([given])
    assert again == pytest.approx(1, rel=1e-3) or temperature in (pytest.approx(20), pytest.approx(1 / 20))


def test_without_held_out_clips_or_with_times_there_is_no_temperature() -> None:
    assert objective().calibrate([]) == 1
    timed = objective(exclusive=False, timed=True, pooling="max")
    weight = timed.head.outputs.weight.clone()  # type: ignore[union-attr, operator]
    assert timed.calibrate([batch([[0], [1]])]) == 1
    assert torch.equal(timed.head.outputs.weight, weight)  # type: ignore[union-attr, arg-type]
