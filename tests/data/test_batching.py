from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from speech_ssl.data.batching import DataConfig, EpochPlan, plan_epoch, plan_evaluation

RATE = 16_000


@st.composite
def configs(draw: st.DrawFn) -> DataConfig:
    batch_s = draw(st.floats(0.5, 100))
    crop_s = draw(st.none() | st.floats(0.2, 1).map(lambda share: share * batch_s))
    return DataConfig(
        batch_s=batch_s,
        crop_s=crop_s,
        min_s=draw(st.floats(0.01, 1)) * (crop_s or batch_s),
        max_batch_rows=draw(st.none() | st.integers(1, 20)),
    )


lengths = st.lists(st.floats(0, 300), max_size=60).map(np.array)
epochs = st.integers(0, 1_000)


def rows(plan: EpochPlan) -> list[tuple[int, float, float]]:
    return [segment for batch in plan for segment in batch]


@settings(deadline=None, max_examples=200)
@given(lengths, configs(), epochs)
def test_every_utterance_is_covered_about_once(durations: np.ndarray, config: DataConfig, epoch: int) -> None:
    longest = config.longest_s
    found: dict[int, list[tuple[float, float]]] = {}
    for number, start, stop in rows(plan_epoch(durations, config, seed=7, epoch=epoch)):
        found.setdefault(number, []).append((start, stop))
    sample = 1.5 / RATE
    for number, duration in enumerate(durations):
        if min(abs(duration - config.min_s), abs(duration - longest)) < sample:
            continue  # left out or not, cut or not by a rounding
        assert (number in found) == (duration > config.min_s)
        if number not in found:
            continue
        parts = sorted(found[number])
        assert parts[0][0] >= 0
        assert parts[-1][1] <= duration + sample
        if duration <= longest:
            assert len(parts) == 1
            assert parts[0] == (0, pytest.approx(duration, abs=sample))
            continue
        assert all(stop - start == pytest.approx(longest, abs=sample) for start, stop in parts)
        assert abs(len(parts) - duration / longest) <= 0.5 + len(parts) * sample / longest
        # No hole within, and at the ends no more than what the phase or the rounding leaves.
        assert all(one[1] >= two[0] - 2 / RATE for one, two in zip(parts, parts[1:], strict=False))
        assert duration - (parts[-1][1] - parts[0][0]) <= 0.5 * longest + 3 * sample


@settings(deadline=None, max_examples=200)
@given(lengths, configs(), epochs)
def test_batches_keep_their_budgets(durations: np.ndarray, config: DataConfig, epoch: int) -> None:
    for plan in (plan_epoch(durations, config, seed=0, epoch=epoch), plan_evaluation(durations, config)):
        for batch in plan:
            assert batch
            longest = max(stop - start for _, start, stop in batch)
            assert longest * len(batch) <= config.batch_s + 1e-6
            assert config.max_batch_rows is None or len(batch) <= config.max_batch_rows


@settings(deadline=None)
@given(lengths, configs(), epochs)
def test_a_plan_depends_on_seed_and_epoch_alone(
    durations: np.ndarray, config: DataConfig, epoch: int
) -> None:
    plan = list(plan_epoch(durations, config, seed=3, epoch=epoch))
    np.random.seed(epoch)  # the global generator has no say
    assert list(plan_epoch(durations, config, seed=3, epoch=epoch)) == plan


@settings(deadline=None)
@given(lengths, configs())
def test_a_plan_is_a_sequence_that_knows_its_padding(durations: np.ndarray, config: DataConfig) -> None:
    plan = plan_epoch(durations, config, seed=0, epoch=0)
    batches = list(plan)
    assert batches == [plan[index] for index in range(len(plan))] == plan[:]
    sizes = [[stop - start for _, start, stop in batch] for batch in batches]
    padded = sum(len(size) * max(size) for size in sizes)
    assert plan.seconds == pytest.approx(sum(sum(size) for size in sizes))
    assert plan.padded_seconds == pytest.approx(padded)
    assume(padded)
    assert plan.padding == pytest.approx(1 - plan.seconds / padded, abs=1e-9)


def speech_like(size: int) -> np.ndarray:
    return np.random.default_rng(0).lognormal(1.0, 0.6, size)


@pytest.mark.parametrize(("crop_s", "batch_s"), [(2.6, 15.6), (15.6, 87.5), (None, 100)])
def test_padding_is_small(crop_s: float | None, batch_s: float) -> None:
    config = DataConfig(crop_s=crop_s, batch_s=batch_s)
    plans = [plan_epoch(speech_like(2_000), config, seed=1, epoch=epoch) for epoch in range(3)]
    assert max(plan.padding for plan in plans) < 0.1
    full = [plan.padded_seconds / len(plan) / batch_s for plan in plans]
    assert min(full) > 0.85


def test_neighbours_and_order_change_from_epoch_to_epoch() -> None:
    config = DataConfig(batch_s=40)
    plans = [plan_epoch(speech_like(1_000), config, seed=1, epoch=epoch) for epoch in range(2)]
    one, two = ([frozenset(row.utterance for row in batch) for batch in plan] for plan in plans)
    assert len(set(one) & set(two)) < 0.1 * len(one)
    lengths_in_order = [max(stop - start for _, start, stop in batch) for batch in plans[0]]
    assert abs(np.corrcoef(lengths_in_order, np.arange(len(one)))[0, 1]) < 0.3
    other_seed = plan_epoch(speech_like(1_000), config, seed=2, epoch=0)
    assert list(other_seed) != list(plans[0])


@pytest.mark.parametrize("duration", [3.0, 5.2, 20.0, 105.0])
def test_crops_begin_elsewhere_in_each_epoch(duration: float) -> None:
    config = DataConfig(crop_s=2.6, batch_s=15.6)
    firsts = {
        min(rows(plan_epoch(np.array([duration]), config, seed=0, epoch=epoch)))[1] for epoch in range(20)
    }
    assert len(firsts) > 15


def test_a_long_clip_gives_all_its_crops() -> None:
    config = DataConfig(crop_s=2.6, batch_s=15.6)
    plan = plan_epoch(np.array([105.0]), config, seed=0, epoch=0)
    assert len(rows(plan)) == 40
    assert plan.padding == 0


def test_evaluation_takes_the_first_crop_of_each() -> None:
    config = DataConfig(crop_s=2, batch_s=6, min_s=0.5)
    plan = plan_evaluation(np.array([1.0, 9.0, 0.4, 2.0, 0.5, 3.0]), config)
    assert list(plan) == [((4, 0, 0.5), (0, 0, 1.0), (1, 0, 2.0)), ((3, 0, 2.0), (5, 0, 2.0))]


@pytest.mark.parametrize("durations", [[], [0.0], [0.1, 0.39]])
def test_nothing_long_enough_is_an_empty_plan(durations: list[float]) -> None:
    for plan in (
        plan_epoch(np.array(durations), DataConfig(batch_s=10), seed=0, epoch=0),
        plan_evaluation(np.array(durations), DataConfig(batch_s=10)),
    ):
        assert len(plan) == 0
        assert list(plan) == []
        assert plan.padding == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_s": 0.0},
        {"batch_s": 10, "crop_s": 11},
        {"batch_s": 10, "crop_s": 2, "min_s": 3},
        {"batch_s": 10, "min_s": 0},
        {"batch_s": float("nan")},
        {"batch_s": float("inf")},
        {"batch_s": 10, "workers": -1},
        {"batch_s": 10, "max_batch_rows": 0},
    ],
)
def test_settings_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="min_s|workers"):
        DataConfig(**settings)  # type: ignore[arg-type]


def test_crop_lengths_are_whole_samples_despite_floats() -> None:
    plan = plan_epoch(np.array([9.0]), DataConfig(crop_s=2.01, batch_s=8), seed=0, epoch=0)
    assert {round((stop - start) * RATE) for _, start, stop in rows(plan)} == {32_160}  # 2.01 * 16000 is less


@pytest.mark.slow
def test_a_million_utterances_are_planned_in_seconds() -> None:
    import time

    durations = speech_like(1_000_000)
    started = time.process_time()
    plan = plan_epoch(durations, DataConfig(crop_s=2.6, batch_s=15.6), seed=0, epoch=0)
    assert time.process_time() - started < 10
    arrays = (plan.utterance, plan.start, plan.length, plan.edges, plan.order)
    assert sum(array.nbytes for array in arrays) < 40 * len(plan.utterance)
