"""Targets travel with their waves, and an utterance without any is left out like an unreadable one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from speech_ssl.data.loader import Loader, evaluation
from speech_ssl.data.manifest import Utterance
from speech_ssl.types import Batch
from tests.data.ramps import CONFIG, START, Ramps, made_up, take

WHOLE = dataclasses.replace(CONFIG, crop_s=None)


def digits(utterance: Utterance) -> Sequence[int]:
    """Units of an utterance's number: as many as it has digits."""
    if int(utterance.id) % 7 == 3:
        raise ValueError(f"{utterance.id}: no text")
    return [int(digit) + 1 for digit in utterance.id]


def rows(batch: Batch) -> dict[str, list[int]]:
    assert batch.targets_BU is not None and batch.target_lengths_B is not None
    assert batch.targets_BU.shape == (len(batch.lengths_B), int(batch.target_lengths_B.max()))
    found = {}
    for wave_S, units_U, length in zip(
        batch.wave_BS, batch.targets_BU.tolist(), batch.target_lengths_B.tolist(), strict=True
    ):
        assert units_U[length:] == [0] * (len(units_U) - length)
        found[str(round(float(wave_S[0]) / 1_000))] = units_U[:length]
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_each_wave_has_its_own_targets(workers: int) -> None:
    told: dict[str, str] = {}
    config = dataclasses.replace(WHOLE, workers=workers)
    loader = Loader(
        made_up(30),
        config,
        seed=0,
        source=Ramps(broken=["8", "12"]),
        on_failure=lambda utterance, why: told.update({utterance.id: why}),
        targets=digits,
    )
    seen: dict[str, list[int]] = {}
    for batch, _ in take(loader.iterate(START), 60):
        seen |= rows(batch)
    left_out = {"3", "10", "17", "24"} | {"8", "12"}
    assert seen.keys() == {str(number) for number in range(30)} - left_out
    assert all(units == [int(digit) + 1 for digit in name] for name, units in seen.items())
    assert told.keys() == left_out and told["10"] == "10: no text"


def test_evaluation_has_them_too_and_without_any_there_are_none() -> None:
    seen: dict[str, list[int]] = {}
    for batch in evaluation(made_up(20), WHOLE, source=Ramps(), targets=digits):
        seen |= rows(batch)
    assert len(seen) == 17 and seen["19"] == [2, 10]
    assert next(evaluation(made_up(20), WHOLE, source=Ramps())).targets_BU is None


def test_crops_have_no_targets() -> None:
    with pytest.raises(ValueError, match="crop_s must be None"):
        Loader(made_up(20), CONFIG, seed=0, source=Ramps(), targets=digits)
    with pytest.raises(ValueError, match="crop_s must be None"):
        next(evaluation(made_up(20), CONFIG, source=Ramps(), targets=digits))
