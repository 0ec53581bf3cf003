"""USAD: the loss by hand in float64, where a slower teacher's states are taken, and what teachers are."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.distillation import (
    Distillation,
    DistillationConfig,
    at_frames_of,
    chosen_layers,
    distance,
)
from speech_ssl.training.health import fallen
from speech_ssl.types import Batch, Frames
from tests.objectives.methods import distillation, mel
from tests.objectives.narrow import ENCODER, QUIET
from tests.test_objective_contract import fresh, loss_of, tones

pytestmark = pytest.mark.numerical

DEEP = ENCODER.changed(depth=6, width=48, ffn_width=48)
SLOW = ENCODER.changed(
    frontend={
        "channels": (16,) * 8,
        "kernels": (10, 3, 3, 3, 3, 2, 2, 2),
        "strides": (5, 2, 2, 2, 2, 2, 2, 2),
    }
)


def built(*teachers: Encoder, **options: int) -> Distillation:
    objective = DistillationConfig(teachers=len(teachers), **{"layers": 3, **options}).build(Encoder(QUIET))
    objective.learn_from(teachers)
    return objective


def test_layers_are_those_of_the_paper() -> None:
    assert chosen_layers(12, 4) == [3, 6, 9, 12]
    assert chosen_layers(24, 4) == [6, 12, 18, 24]
    assert chosen_layers(7, 4) == [1, 3, 5, 7]
    assert chosen_layers(1, 2) == [0, 1]


@pytest.mark.parametrize("head_width", [0, 24])
@torch.no_grad()
def test_the_loss_is_the_mean_over_layers_and_teachers_of_each_frame(head_width: int) -> None:
    torch.manual_seed(0)
    teachers = [Encoder(ENCODER), Encoder(DEEP)]
    objective = built(*teachers, head_width=head_width)
    batch = tones(1)
    found = loss_of(objective, batch)
    encoder = objective.encoder.double()
    mine = encoder.hidden_states(batch.wave_BS.double(), batch.lengths_B)
    theirs = [teacher.double().hidden_states(batch.wave_BS.double(), batch.lengths_B) for teacher in teachers]
    total, frames = 0.0, encoder.frame_count(batch.lengths_B).tolist()
    for row, count in enumerate(frames):
        for t in range(count):
            for teacher, states in enumerate(theirs):
                for k in (1, 2, 3):
                    head = objective.heads[teacher][k - 1].double()  # type: ignore[index,operator,union-attr]
                    predicted_E = head(mine[k * 3 // 3][row, t])
                    wanted_E = states[k * (len(states) - 1) // 3][row, t]
                    norms = predicted_E.norm() * wanted_E.norm()
                    cosine = float(predicted_E @ wanted_E / norms)
                    l1 = sum(abs(float(p - z)) for p, z in zip(predicted_E, wanted_E, strict=True))
                    total += (l1 / len(wanted_E) - math.log(1 / (1 + math.exp(-cosine)))) / (2 * 3)
    assert float(found.count) == sum(frames)
    assert float(found.total) == pytest.approx(total, rel=1e-5)


def test_a_perfect_student_and_an_opposite_one() -> None:
    z = torch.randn(2, 5, 8, dtype=torch.float64)
    perfect, opposite = distance(z, z), distance(-z, z)
    torch.testing.assert_close(perfect.loss_BT, torch.full((2, 5), math.log(1 + math.exp(-1))).double())
    torch.testing.assert_close(opposite.loss_BT, 2 * z.abs().mean(-1) + math.log(1 + math.e))


def test_a_copy_of_its_teacher_behind_identities_has_the_least_loss() -> None:
    teacher = Encoder(QUIET)
    objective = built(teacher)
    objective.encoder.load_state_dict(teacher.state_dict())
    for head in objective.heads[0]:  # type: ignore[union-attr]
        torch.nn.init.eye_(head.weight)
        torch.nn.init.zeros_(head.bias)
    with torch.no_grad():
        found = loss_of(objective, tones(1))
    assert float(found.total / found.count) == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-4)
    assert float(found.metrics["cosine_1"] / found.count) == pytest.approx(1, abs=1e-5)


def test_normalized_targets_are_blind_to_the_teachers_scale() -> None:
    teacher, loud = Encoder(QUIET), Encoder(QUIET)
    loud.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        loud.norm.weight.mul_(50)  # type: ignore[union-attr,operator]
        losses = []
        for one in (teacher, loud):
            torch.manual_seed(0)
            objective = DistillationConfig(teachers=1, layers=1, normalize=True).build(Encoder(QUIET))
            objective.learn_from([one])
            losses.append(loss_of(objective, tones(1)).total)
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)


def test_a_teacher_whose_state_never_changes_is_known_blindly() -> None:
    teacher = Encoder(QUIET)
    torch.nn.init.zeros_(teacher.norm.weight)  # type: ignore[arg-type]
    torch.nn.init.normal_(teacher.norm.bias)  # type: ignore[arg-type]
    objective = DistillationConfig(teachers=1, layers=1).build(Encoder(QUIET))
    objective.learn_from([teacher])
    found = loss_of(objective, tones(1))
    assert float(found.metrics["blind_1"] / found.count) == pytest.approx(1, abs=1e-5)


def test_the_rank_is_watched_beside_the_teachers() -> None:
    teachers = [Encoder(QUIET), Encoder(QUIET)]
    torch.nn.init.zeros_(teachers[0].norm.weight)  # type: ignore[arg-type]
    objective = built(*teachers)
    objective.encoder.load_state_dict(teachers[1].state_dict())

    def reported() -> dict[str, float]:
        with torch.no_grad():
            found = loss_of(objective, tones(1))
        return objective.report({name: value / found.count for name, value in found.metrics.items()})

    assert reported()["rank_share"] == pytest.approx(1, abs=1e-3)
    torch.nn.init.zeros_(objective.encoder.norm.weight)  # type: ignore[arg-type]
    collapsed = reported()
    assert collapsed["rank_share"] == 0 and collapsed["teacher_rank"] > 1
    assert fallen(collapsed, objective.floors()) == ["rank_share"]


def test_a_slower_teacher_is_interpolated_at_the_middles_of_the_students_frames() -> None:
    student, teacher = Encoder(ENCODER), Encoder(SLOW)
    assert (student.hop, teacher.hop) == (320, 640)
    samples = torch.tensor([16_000, 6_000])
    middles_U = torch.arange(24) * 640.0 + teacher.receptive_field / 2
    lengths_B = teacher.frame_count(samples)
    states_BUE = torch.stack([middles_U, -middles_U], -1).expand(2, 24, 2)
    found_BTE = at_frames_of(student, 49, teacher, Frames(states_BUE, lengths_B))
    for row, count in enumerate(lengths_B.tolist()):
        for t in range(49):
            middle = t * 320 + student.receptive_field / 2
            wanted = min(max(middle, float(middles_U[0])), float(middles_U[count - 1]))
            assert found_BTE[row, t].tolist() == pytest.approx([wanted, -wanted])


def test_encoders_with_the_same_frames_are_compared_as_they_are() -> None:
    x = torch.randn(2, 49, 3)
    same = at_frames_of(Encoder(ENCODER), 49, Encoder(DEEP), Frames(x, torch.tensor([49, 20])))
    assert same.data_ptr() == x.data_ptr() and same.shape == x.shape


@pytest.mark.parametrize("teacher", [SLOW, mel(ENCODER)])
def test_teachers_with_other_frames(teacher: object) -> None:
    objective = built(Encoder(teacher), Encoder(DEEP))  # type: ignore[arg-type]
    batch = tones(1)
    whole = loss_of(objective, batch)
    assert float(whole.count) == float(objective.encoder.frame_count(batch.lengths_B).sum())
    short = replace(
        batch, lengths_B=torch.tensor([16_000, 450, 16_000])
    )  # one frame of the student, no other
    assert float(loss_of(objective, short).count) == 2 * 49


def test_teachers_are_frozen_still_and_no_part_of_the_state() -> None:
    objective = fresh(distillation)
    assert isinstance(objective, Distillation)
    teachers = objective._teachers
    before = [{k: v.clone() for k, v in teacher.state_dict().items()} for teacher in teachers]
    objective.train()
    assert not any(teacher.training for teacher in teachers)
    assert all(not p.requires_grad for teacher in teachers for p in teacher.parameters())
    assert all(name.startswith(("encoder.", "heads.")) for name in objective.state_dict())
    loss_of(objective, tones(1)).total.backward()
    objective.after_step(0.5)
    for teacher, state in zip(teachers, before, strict=True):
        for name, value in teacher.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="learns from 2 encoders, not 1"):
        DistillationConfig(layers=3).build(Encoder(ENCODER)).learn_from([Encoder(ENCODER)])
    with pytest.raises(ValueError, match="student's depth, 3, not 4"):
        DistillationConfig(layers=4).build(Encoder(ENCODER))
    with pytest.raises(ValueError, match="teachers must be at least 1"):
        DistillationConfig(teachers=0, layers=3).build(Encoder(ENCODER))
    assert DistillationConfig(teachers=3, layers=1).build(Encoder(ENCODER)).teachers == 3


def test_silence_gives_a_finite_loss() -> None:
    objective = built(Encoder(ENCODER), Encoder(mel(ENCODER)))
    found = loss_of(objective, Batch(torch.zeros(1, 8_000), torch.tensor([8_000])))
    found.total.backward()
    assert found.total.isfinite() and float(found.count) > 0
