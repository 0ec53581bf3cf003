"""Instance discrimination: the softmax over the bank in loops, slots, and what a step leaves in the bank."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from speech_ssl.objectives.instance_discrimination import (
    InstanceDiscrimination,
    InstanceDiscriminationConfig,
    slots_of,
)
from tests.objectives.two_views import build, cosine, seen, vectors

pytestmark = pytest.mark.numerical

NAMES = tuple(f"audio/{letter}.flac 0.00-2.60 s" for letter in "abcdefg")


def discrimination(**options: float) -> InstanceDiscrimination:
    config = InstanceDiscriminationConfig(width=8, slots=400, tau=0.2, **options)  # type: ignore[arg-type]
    return build(config, InstanceDiscrimination)


def test_the_loss_is_equation_3_of_both_views_and_proximity() -> None:
    first_BE, second_BE = vectors()
    model = discrimination(proximal=0.7)
    bank, slots = model.bank_KE, slots_of(NAMES, 400)
    expected = []
    for i, slot in enumerate(slots):
        loss = 0.0
        for view in (first_BE[i], second_BE[i]):
            p = math.exp(cosine(bank[slot], view) / 0.2) / sum(math.exp(cosine(v, view) / 0.2) for v in bank)
            unit_E = view.double() / view.double().norm()
            loss += -math.log(p) + 0.7 * float((unit_E - bank[slot].double()).square().sum())
        expected.append(loss / 2)
    loss_B, _ = model.compare(seen(first_BE, second_BE, names=NAMES))
    torch.testing.assert_close(loss_B.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_slots_are_of_files_and_the_same_for_ever() -> None:
    crops = ("my audio/a.wav 0.00-2.60 s", "my audio/a.wav 12.31-14.91 s", "my audio/b.wav 0.00-2.60 s")
    first, second, other = slots_of(crops, 16_384)
    assert first == second != other
    assert (first, other) == (14_872, 200), "an upgrade must not reshuffle the bank of a run"
    found = slots_of([f"{number}.wav 0.00-1.00 s" for number in range(1_000)], 10_000)
    assert len(set(found)) > 0.98 * 10_000 * (1 - math.exp(-0.1)), "not more share a slot than by chance"


def test_the_bank_moves_towards_what_was_seen_after_the_step() -> None:
    model = discrimination(momentum=0.25)
    first_BE, second_BE = vectors()
    before_KE = model.bank_KE.clone()
    model.compare(seen(first_BE[:4], second_BE[:4], names=NAMES[:4]))
    model.compare(seen(first_BE[4:], second_BE[4:], names=NAMES[4:6] + NAMES[:1]))
    assert torch.equal(model.bank_KE, before_KE)
    model.after_step(0.5)
    seen_BE = (F.normalize(first_BE, dim=1) + F.normalize(second_BE, dim=1)) / 2
    seen_BE[0] = (seen_BE[0] + seen_BE[6]) / 2  # two crops of one file in a step
    expected_KE = before_KE.clone()
    for row, slot in enumerate(slots_of(NAMES[:6], 400)):
        expected_KE[slot] = F.normalize(0.25 * before_KE[slot] + 0.75 * seen_BE[row], dim=0)
    torch.testing.assert_close(model.bank_KE, expected_KE)
    model.after_step(0.6)
    torch.testing.assert_close(model.bank_KE, expected_KE)


def test_a_step_that_is_not_finite_and_an_evaluation_leave_the_bank() -> None:
    model = discrimination()
    before_KE, (first_BE, second_BE) = model.bank_KE.clone(), vectors()
    broken_BE = first_BE.clone()
    broken_BE[2] = torch.nan
    model.compare(seen(broken_BE, second_BE, names=NAMES))
    model.after_step(0.5)
    model.eval().compare(seen(first_BE, second_BE, names=NAMES))
    model.after_step(0.5)
    assert torch.equal(model.bank_KE, before_KE)


def test_rows_need_names() -> None:
    with pytest.raises(ValueError, match=r"Batch\.names must name every row"):
        discrimination().compare(seen(*vectors()))
