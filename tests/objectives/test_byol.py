"""BYOL-A: its loss in loops, who learns from whom, and what agreement gives."""

from __future__ import annotations

import pytest
import torch

from speech_ssl.objectives.byol import BYOL, BYOLConfig, distance
from speech_ssl.objectives.two_views import ViewsConfig
from tests.objectives.two_views import build, cosine, seeded, seen, vectors
from tests.test_objective_contract import tones

pytestmark = pytest.mark.numerical


def byol() -> BYOL:
    return build(BYOLConfig(views=ViewsConfig(), hidden_width=16, width=8), BYOL)


def test_the_loss_is_equation_2_both_ways() -> None:
    first, second, taught_1, taught_2 = vectors(views=4)
    model = byol()
    predicted = model.predictor(torch.cat([first, second])).detach().double()
    expected = []
    for i in range(7):
        loss = 0.0
        for q, z in ((predicted[i], taught_2[i].double()), (predicted[7 + i], taught_1[i].double())):
            loss += float((q / q.norm() - z / z.norm()).square().sum())
        expected.append(loss)
    loss_B, _ = model.compare(seen(first, second, (taught_1, taught_2)))
    torch.testing.assert_close(loss_B.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5)


def test_closed_forms() -> None:
    x_BE, y_BE = vectors()
    torch.testing.assert_close(distance(x_BE, 3 * x_BE), torch.zeros(7), atol=1e-6, rtol=0)
    torch.testing.assert_close(distance(x_BE, -x_BE), torch.full((7,), 4.0))
    assert float(distance(x_BE, y_BE)[0]) == pytest.approx(2 - 2 * cosine(x_BE[0], y_BE[0]), abs=1e-5)


def test_the_teacher_says_what_it_says_of_a_row_whatever_the_batch() -> None:
    """Batch norm by running statistics: neighbours do not matter."""
    model = byol().train()
    for number in range(3):
        model(tones(number), generator=seeded())
        model.after_step(0.0)
    inputs = model.look(tones(0), seeded())
    one = inputs._replace(wave_NS=inputs.wave_NS[:2], lengths_N=inputs.lengths_N[:2])
    first_BE, second_BE = model.taught(one)
    torch.testing.assert_close(
        torch.cat([first_BE, second_BE]), model.taught(inputs)[0][:2], atol=1e-4, rtol=1e-4
    )


def test_the_teacher_begins_with_statistics_of_the_data() -> None:
    """So that it tells rows apart at once: their mean is not most of what it says."""
    model = byol()
    before = torch.cat(model.taught(model.look(tones(9, rows=12), seeded())))
    model.prepare((tones(number, rows=6) for number in range(9)), seeded())
    assert model.training and not model.teacher.training
    after = torch.cat(model.taught(model.look(tones(9, rows=12), seeded())))
    told_apart = [float(x_NE.std(0).norm() / x_NE.mean(0).norm()) for x_NE in (before, after)]
    assert told_apart[1] > 1.5 * told_apart[0]
    norm = model.projector[1]
    assert torch.equal(model.teacher.model[1][1].running_var, norm.running_var)
