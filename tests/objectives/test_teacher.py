"""The teacher that follows by a moving average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from speech_ssl.objectives.teacher import EMATeacher

pytestmark = pytest.mark.numerical


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_it_follows_as_the_sum_of_its_past_says() -> None:
    """After n steps towards a student that stands still: tau^n of the start, the rest of the student."""
    model = student()
    teacher = EMATeacher(model, first=0.9, last=0.9)
    start = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    with torch.no_grad():
        for number in (*model.parameters(), model[1].running_mean):
            number.add_(torch.randn_like(number))
    for _ in range(5):
        teacher.follow(model, 0.5)
    for name, now in teacher.model.state_dict().items():
        if now.is_floating_point():
            wanted = 0.9**5 * start[name] + (1 - 0.9**5) * model.state_dict()[name]
            torch.testing.assert_close(now, wanted, msg=name)


def test_its_rate_rises_and_then_stays() -> None:
    teacher = EMATeacher(student(), first=0.5, last=0.9, warmup=0.4)
    assert [teacher.tau(at) for at in (0.0, 0.2, 0.4, 1.0)] == pytest.approx([0.5, 0.7, 0.9, 0.9])
    with pytest.raises(ValueError, match="0 <= first <= last"):
        EMATeacher(student(), first=1.0, last=0.5)


def test_it_has_no_gradient_and_no_dropout() -> None:
    teacher = EMATeacher(student(), first=0.9, last=1.0)
    teacher.train()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
