"""The loader's sequence of batches: over epochs and ranks, from any state, and with utterances that fail."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speech_ssl.data.batching import DataConfig, plan_epoch
from speech_ssl.data.loader import DataError, Loader, LoaderState, evaluation
from speech_ssl.data.manifest import Utterance
from speech_ssl.data.reading import collate
from speech_ssl.data.source import Silent, Sounding
from speech_ssl.types import Waveform
from tests.data.ramps import CONFIG, RATE, SILENT_S, START, Ramps, assert_same, loader, made_up, take


class Mute:
    """The same wave for everything."""

    def __init__(self, wave: NDArray[np.float64]) -> None:
        self.wave = wave.astype(np.float32)

    def read(self, utterance: Utterance, start_s: float, stop_s: float, *, warn: object = None) -> Waveform:
        return self.wave


def test_collate_pads_with_zeros() -> None:
    batch = collate([np.ones(3, np.float32), np.full(5, 2, np.float32)])
    assert batch.wave_BS.tolist() == [[1, 1, 1, 0, 0], [2, 2, 2, 2, 2]]
    assert batch.lengths_B.tolist() == [3, 5]
    assert batch.wave_BS.dtype == torch.float32
    assert batch.lengths_B.dtype == torch.int64


def test_batches_are_those_of_the_plans_epoch_after_epoch() -> None:
    reading = loader()
    durations = np.array([u.duration_s for u in reading.utterances])
    plans = [plan_epoch(durations, CONFIG, seed=5, epoch=epoch) for epoch in range(3)]
    wanted = [batch for plan in plans for batch in plan]
    for plan, (batch, _) in zip(wanted, reading.iterate(START), strict=False):
        assert len(plan) == len(batch.lengths_B)
        for row, wave_S, length in zip(plan, batch.wave_BS, batch.lengths_B.tolist(), strict=True):
            assert length == round((row.stop_s - row.start_s) * RATE)
            assert wave_S[0].item() == pytest.approx(1_000 * row.utterance + row.start_s, abs=0.01)
            assert (wave_S[length:] == 0).all()


@settings(deadline=None, max_examples=25)
@given(
    world=st.integers(1, 5),
    count=st.integers(1, 30),
    begin=st.integers(0, 20),
    broken=st.sets(st.integers(0, 29), max_size=5),
    silent=st.sets(st.integers(0, 29), max_size=20),
)
def test_ranks_together_read_the_global_sequence(
    world: int, count: int, begin: int, broken: set[int], silent: set[int]
) -> None:
    names, quiet = ([str(number) for number in some if count > 12] for some in (broken, silent))
    rounds = 7

    def reading() -> Loader:
        return loader(count, broken=names, silent=quiet)

    alone = take(reading().iterate(START), begin + rounds * world)
    state = alone[begin - 1][1] if begin else START
    ranks = [take(reading().iterate(state, rank=rank, world=world), rounds) for rank in range(world)]
    together = [ranks[rank][turn][0] for turn in range(rounds) for rank in range(world)]
    assert_same(together, [batch for batch, _ in alone[begin:]])
    for turn in range(rounds):  # all ranks agree on where the next round begins
        after = alone[begin + (turn + 1) * world - 1][1]
        assert {ranks[rank][turn][1] for rank in range(world)} == {after}


@settings(deadline=None, max_examples=25)
@given(cut=st.integers(1, 40), world=st.integers(1, 3), count=st.integers(1, 12))
def test_from_any_state_the_same_batches_follow(cut: int, world: int, count: int) -> None:
    whole = take(loader(count).iterate(START, rank=world - 1, world=world), cut + 10)
    state = LoaderState.from_dict(whole[cut - 1][1].to_dict())
    rest = take(loader(count).iterate(state, rank=world - 1, world=world), 10)
    assert_same([batch for batch, _ in rest], [batch for batch, _ in whole[cut:]])
    assert [after for _, after in rest] == [after for _, after in whole[cut:]]


def test_a_run_goes_on_with_another_number_of_ranks() -> None:
    alone = [batch for batch, _ in take(loader().iterate(START), 24)]
    two = [take(loader().iterate(START, rank=rank, world=2), 6) for rank in range(2)]
    state = two[0][-1][1]
    three = [take(loader().iterate(state, rank=rank, world=3), 4) for rank in range(3)]
    first = [two[rank][turn][0] for turn in range(6) for rank in range(2)]
    second = [three[rank][turn][0] for turn in range(4) for rank in range(3)]
    assert_same(first + second, alone)


def test_the_state_shows_the_epoch() -> None:
    reading = loader(20)
    batches = len(plan_epoch(np.array([u.duration_s for u in reading.utterances]), CONFIG, seed=5, epoch=0))
    states = [after for _, after in take(reading.iterate(START), batches + 1)]
    assert states[batches - 2] == LoaderState(0, batches - 1)
    assert states[batches - 1] == LoaderState(1, 0)
    assert states[batches] == LoaderState(1, 1)


@pytest.mark.parametrize("state", [{"epoch": -1, "index": 0}, {"epoch": 0, "index": -2}])
def test_states_that_cannot_be(state: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="counts from 0"):
        LoaderState.from_dict(state)


def test_a_rank_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        next(loader().iterate(START, rank=2, world=2))


def test_no_global_generator_is_touched() -> None:
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    one = take(loader(config=dataclasses.replace(CONFIG, workers=1)).iterate(START), 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    torch.manual_seed(99)
    two = take(loader(config=dataclasses.replace(CONFIG, workers=1)).iterate(START), 3)
    assert_same([batch for batch, _ in one], [batch for batch, _ in two])


# --- utterances that fail ----------------------------------------------------------------------------


def test_where_a_whole_batch_fails_another_takes_its_place() -> None:
    config = dataclasses.replace(CONFIG, max_batch_rows=1)  # so that a broken file is a broken batch
    broken = [str(number) for number in range(0, 30, 3)]
    reading = loader(config=config, broken=broken)
    steps = take(reading.iterate(START), 200)
    assert set(reading.failures) == set(broken)
    assert all(len(batch.lengths_B) == 1 for batch, _ in steps)
    ids = {int(batch.wave_BS[0, 0].item()) // 1_000 for batch, _ in steps}
    assert ids == {number for number in range(30) if str(number) not in broken}
    again = take(loader(config=config, broken=broken).iterate(steps[50][1]), 100)
    assert_same([batch for batch, _ in again], [batch for batch, _ in steps[51:151]])


def test_silent_crops_are_left_out_and_counted_and_their_clips_named_once() -> None:
    rows = made_up(30)
    silent = {row.id for row in rows[::2]}
    lost = {row.id for row in rows[::2] if row.duration_s <= SILENT_S}
    told: list[str] = []
    source = Sounding(Ramps(silent=list(silent)))
    reading = Loader(rows, CONFIG, seed=5, source=source, on_failure=lambda row, why: told.append(why))
    steps = take(reading.iterate(START), 100)
    used = [
        wave_S[:length]
        for batch, _ in steps
        for wave_S, length in zip(batch.wave_BS, batch.lengths_B, strict=True)
    ]
    assert steps[-1][1].epoch > 3 and all(wave_S.max() > wave_S.min() for wave_S in used)
    assert {str(int(wave_S[0]) // 1_000) for wave_S in used} == {row.id for row in rows} - lost
    assert 0 < reading.silent == reading.crops - len(used)
    assert len(told) == len(set(told)) and lost <= {Path(why.split(":")[0]).name for why in told}
    assert all("silent (all samples are equal) from" in why for why in told)
    assert not reading.failures
    again = take(loader(silent=list(silent)).iterate(steps[40][1]), 20)
    assert_same([batch for batch, _ in again], [batch for batch, _ in steps[41:61]])


def test_mostly_silent_audio_is_used_and_silence_alone_is_an_error() -> None:
    quiet = [str(number) for number in range(1, 30)]
    assert len(take(loader(silent=quiet).iterate(START), 100)) == 100
    mute = Loader(made_up(6), CONFIG, seed=0, source=Sounding(Mute(np.zeros(RATE))))
    with pytest.raises(DataError, match="nothing in the manifest can be used.*silent"):
        next(mute.iterate(START))


def test_evaluation_leaves_out_what_is_silent() -> None:
    rows = made_up(40)
    (batch, *more) = evaluation(rows, CONFIG, source=Sounding(Ramps(silent=[row.id for row in rows[1:]])))
    assert batch.wave_BS[0, 0] == 0 and len(batch.lengths_B) == 1 and not more


@pytest.mark.parametrize(("ripple", "silent"), [(0.0, True), (1e-7, True), (1 / 32_768, False)])
def test_an_offset_is_silent_and_the_last_bit_is_not(ripple: float, silent: bool) -> None:
    source = Sounding(Mute(0.25 + ripple * np.random.default_rng(0).integers(0, 2, RATE)))
    row = made_up(1)[0]
    if silent:
        with pytest.raises(Silent):
            source.read(row, 0.0, 1.0)
    else:
        assert len(source.read(row, 0.0, 1.0)) == RATE


def test_nothing_readable_is_an_error_not_an_endless_search() -> None:
    rows = made_up(6)
    reading = Loader(rows, CONFIG, seed=0)  # their files do not exist
    with pytest.raises(DataError, match="No such file or directory") as caught:
        take(reading.iterate(START), 10)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_is_mostly_wrong_is_an_error() -> None:
    reading = loader(broken=[str(number) for number in range(2, 30)])
    with pytest.raises(DataError, match="of 30 utterances cannot be used.*broken on purpose"):
        take(reading.iterate(START), 100)


@pytest.mark.parametrize("rows", [[], made_up(5)])
def test_nothing_long_enough_is_an_error_at_once(rows: list[Utterance]) -> None:
    with pytest.raises(DataError, match="as long as min_s, 3.9 s"):
        Loader(rows, DataConfig(batch_s=4, min_s=3.9), seed=0)


# --- evaluation ------------------------------------------------------------------------------------


def test_evaluation_sees_each_utterance_once() -> None:
    rows = made_up(40)
    batches = list(evaluation(rows, CONFIG, source=Ramps(["7"])))
    starts = [wave_S[0].item() for batch in batches for wave_S in batch.wave_BS]
    assert sorted(starts) == [1_000 * number for number in range(40) if number != 7]
    assert max(batch.seconds for batch in batches) <= CONFIG.batch_s
    assert_same(batches, list(evaluation(rows, CONFIG, source=Ramps(["7"]))))


def test_leaving_evaluation_early_leaves_no_thread() -> None:
    before = threading.active_count()
    steps = evaluation(made_up(40), CONFIG, source=Ramps())
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
