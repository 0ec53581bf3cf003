"""The teacher that follows by a moving average."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.teacher import (
    EMATeacher,
    beyond_place,
    encoder_teacher,
    instance_norm,
    top_layers,
)
from speech_ssl.types import Frames
from tests.test_objective_contract import QUIET

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


def test_it_shares_some_weights_and_has_no_copy_of_others() -> None:
    """After one step: the projection is the student's, positions and blocks are between, the front end is
    not there; once it becomes its student, all are the same."""
    student = Encoder(QUIET)
    teacher = encoder_teacher(student, (0.75, 0.75), 0.0, shares_positions=False)
    before = {k: v.clone() for k, v in teacher.model.named_parameters()}
    assert not any(name.startswith("frontend.") for name in before)
    assert any(name.startswith("frontend.") for name, _ in student.named_parameters())
    with torch.no_grad():
        for number in student.parameters():
            number.add_(torch.randn_like(number))
    theirs = dict(student.named_parameters())
    teacher.follow(student, 0.0)
    for name, now in teacher.model.named_parameters():
        shared = name.startswith(("feature_norm.", "feature_projection."))
        wanted = theirs[name] if shared else 0.75 * before[name] + 0.25 * theirs[name]
        torch.testing.assert_close(now, wanted, msg=name)
        assert not shared or torch.equal(now, theirs[name])
    teacher.become(student)
    assert all(torch.equal(now, theirs[name]) for name, now in teacher.model.named_parameters())


def test_each_row_is_normalised_over_its_own_frames() -> None:
    x_BTD = 3 * torch.randn(2, 9, 4) + 5
    found_BTD = instance_norm(x_BTD, torch.arange(9) < torch.tensor([[9], [5]]))
    for row, length in enumerate((9, 5)):
        wanted = nn.functional.instance_norm(x_BTD[row : row + 1, :length].transpose(1, 2))
        torch.testing.assert_close(found_BTD[row, :length], wanted[0].T, atol=1e-5, rtol=1e-5)
    assert not found_BTD[1, 5:].any()


def said_by(encoder: Encoder, features_TC: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of one row, block by block as the paper's figure has it: outputs of feed-forwards, and of blocks."""
    frames = Frames(features_TC[None], torch.tensor([len(features_TC)]))
    x = encoder.entering(frames).x_BTD
    forwards, blocks = [], []
    for block in encoder.blocks:
        x = x + block.attention(block.attention_norm(x), torch.ones(1, 1, 1, x.shape[1], dtype=torch.bool))
        forwards.append(block.ffn(block.ffn_norm(x)))
        x = x + forwards[-1]
        blocks.append(x)
    blocks[-1] = encoder.norm(x)
    return forwards, blocks


@torch.no_grad()
def mean_of_top(encoder: Encoder, features_TC: Tensor, top: int, spoken: str) -> Tensor:
    """The target of data2vec (T, D) in float64: normalised over time, then the mean over layers."""
    forwards, blocks = said_by(encoder, features_TC)
    layers = [x[0].double() for x in (forwards if spoken == "feed_forward" else blocks)[-top:]]
    normed = [(x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() for x in layers]
    return torch.stack(normed).mean(0)


@pytest.mark.parametrize("spoken", ["feed_forward", "block"])
def test_top_layers_are_those_of_each_row_alone(spoken: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(QUIET).eval()
    features = Frames(torch.randn(2, 20, QUIET.frontend.width), torch.tensor([20, 11]))
    layers = top_layers(encoder, features, 2, spoken)  # type: ignore[arg-type]
    assert len(layers) == 2 and not any(block._forward_hooks for block in encoder.modules())
    for row, length in enumerate((20, 11)):
        wanted = mean_of_top(encoder, features.x_BTD[row, :length], 2, spoken)
        found = torch.stack(layers).mean(0)[row, :length].double()
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


def test_a_teacher_that_tells_but_the_place_is_found_out() -> None:
    """Place and content of equal power: half lies beyond the place. Of one row nothing is known."""
    torch.manual_seed(0)
    lengths_B = torch.tensor([50] * 30 + [20])
    valid_BT = torch.arange(50) < lengths_B[:, None]
    place_1TD, content_BTD = torch.randn(1, 50, 64), torch.randn(31, 50, 64)
    shares = [
        float(beyond_place(a * place_1TD + b * content_BTD, valid_BT)) for a, b in ((0, 1), (1, 1), (1, 0))
    ]
    assert shares == pytest.approx([1, 0.5, 0], abs=0.03)
    assert float(beyond_place(content_BTD[:1], valid_BT[:1])) == 1
    assert float(beyond_place(0 * content_BTD, valid_BT)) == 1
