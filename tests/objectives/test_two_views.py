"""What the methods of two views share: clip vectors, how they spread, teachers and views of a batch."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from speech_ssl.model.config import LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.byol import BYOL, BYOL_A_VIEWS, BYOLConfig
from speech_ssl.objectives.global_batch import GlobalBatchNorm, Queue, mlp
from speech_ssl.objectives.simclr import SimCLRConfig
from speech_ssl.objectives.two_views import Inputs, TwoViews, ViewsConfig, clip_vectors, spread
from speech_ssl.types import Batch
from tests.objectives.narrow import QUIET
from tests.test_objective_contract import tones
from tests.test_silence import FRONT_ENDS

pytestmark = pytest.mark.numerical


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


DEFAULT = ViewsConfig()


def objective(views: ViewsConfig = DEFAULT, mel: bool = False) -> TwoViews:
    torch.manual_seed(0)
    encoder = Encoder(FRONT_ENDS["mel"] if mel else QUIET)
    return SimCLRConfig(views=views, hidden_width=16, width=8).build(encoder)


def numbers(first_BE: torch.Tensor, second_BE: torch.Tensor) -> dict[str, float]:
    sums = spread(torch.cat([first_BE, second_BE]), first_BE, second_BE)
    return objective().report({name: value / len(first_BE) for name, value in sums.items()})


def test_a_clip_vector_is_mean_plus_maximum_of_its_own_frames() -> None:
    encoder, batch = Encoder(QUIET).eval(), tones(0)
    found_ND = clip_vectors(encoder, Inputs(batch.wave_BS, batch.lengths_B, None))
    for row in range(3):
        length = batch.lengths_B[row : row + 1]
        frames_TD = encoder(batch.wave_BS[row : row + 1, : int(length)], length).x_BTD[0]
        torch.testing.assert_close(found_ND[row], frames_TD.mean(0) + frames_TD.amax(0), atol=1e-4, rtol=1e-4)


def test_a_row_without_a_frame_has_a_vector_of_zeros() -> None:
    batch = tones(0)
    lengths_B = batch.lengths_B.clone()
    lengths_B[1] = 100
    vectors_ND = clip_vectors(Encoder(QUIET), Inputs(batch.wave_BS, lengths_B, None))
    vectors_ND.square().sum().backward()
    assert vectors_ND.isfinite().all() and not vectors_ND[1].any() and vectors_ND[0].any()


def test_spread_of_vectors_all_over_the_sphere() -> None:
    """Uniformity of Gaussians in E dimensions: E exp(-4 (1 - cos)), of which cos has variance 1 / E."""
    x_BE = torch.randn(2_000, 64, generator=seeded())
    found = numbers(x_BE, x_BE)
    assert found["std"] == pytest.approx(1.0, abs=0.02)
    assert found["alignment"] == pytest.approx(0.0, abs=1e-4)
    assert found["uniformity"] == pytest.approx(-4 + 8 / 64, abs=0.02)
    assert found["effective_rank"] > 55


def test_spread_of_vectors_that_are_all_the_same_is_below_the_floors() -> None:
    x_BE = torch.ones(50, 16) + 1e-4 * torch.randn(50, 16, generator=seeded())
    found, floors = numbers(x_BE, x_BE), objective().floors()
    assert found["std"] < floors["std"].minimum and found["uniformity"] == pytest.approx(0.0, abs=1e-3)
    one_direction_BE = torch.randn(50, 1, generator=seeded()) * torch.ones(16)
    assert numbers(one_direction_BE, one_direction_BE)["effective_rank"] < floors["effective_rank"].minimum


def test_spread_as_the_papers_write_it() -> None:
    """In loops and float64: alignment and uniformity (Wang & Isola 2020, section 4.1), std of VICReg."""
    one_BE, two_BE = torch.randn(2, 7, 5, generator=seeded()) + 0.5
    found = numbers(one_BE, two_BE)
    a, b = F.normalize(one_BE.double(), dim=1), F.normalize(two_BE.double(), dim=1)
    assert found["alignment"] == pytest.approx(
        float(sum((a[i] - b[i]).norm() ** 2 for i in range(7)) / 7), abs=1e-5
    )
    pairs = [math.exp(-2 * float((a[i] - a[j]).norm()) ** 2) for i in range(7) for j in range(7) if i != j]
    assert found["uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-5)
    won = [max(range(7), key=lambda j: float(a[i] @ b[j])) == i for i in range(7)]
    assert found["matched"] == pytest.approx(sum(won) / 7) and 0 < sum(won) < 7
    std_E = torch.cat([a, b]).std(0, correction=0)
    assert found["std"] == pytest.approx(float(std_E.mean()) * 5**0.5, abs=1e-5)


def test_one_row_is_uniform_with_nothing() -> None:
    x_BE = torch.randn(1, 5, generator=seeded())
    assert numbers(x_BE, x_BE)["uniformity"] == 0.0


def test_fixed_views_are_the_two_ends_of_each_row() -> None:
    batch = tones(0)
    seen = objective(ViewsConfig(crop=(0.75, 0.75), fixed=True)).look(batch, seeded())
    for row, length in enumerate(batch.lengths_B.tolist()):
        kept = math.ceil(0.75 * length)
        assert seen.lengths_N.tolist()[row] == seen.lengths_N.tolist()[row + 3] == kept
        assert torch.equal(seen.wave_NS[row, :kept], batch.wave_BS[row, :kept])
        assert torch.equal(seen.wave_NS[row + 3, :kept], batch.wave_BS[row, length - kept : length])
        assert not seen.wave_NS[[row, row + 3], kept:].any()


EVERYTHING = ViewsConfig(crop=(0.5, 0.8), speed=(0.9, 1.1), band_pass=0.5, noise=0.5, mixup=0.3)


@pytest.mark.parametrize("mel", [False, True])
def test_views_differ_and_are_the_generators(mel: bool) -> None:
    views = replace(EVERYTHING, resized=(0.6, 1.5)) if mel else EVERYTHING
    batch, model = tones(0), objective(views, mel)
    one, again, other = (model.look(batch, seeded(seed)) for seed in (0, 0, 1))
    heard = [seen.wave_NS if seen.mel is None else seen.mel.x_BTD for seen in (one, again, other)]
    assert torch.equal(heard[0], heard[1]) and not torch.equal(heard[0], heard[2])
    assert not torch.equal(*heard[0].chunk(2))
    assert one.wave_NS.shape[1] <= 0.8 * batch.wave_BS.shape[1] + 1, "no more is encoded than is heard"
    assert (one.lengths_N <= 0.8 / 0.9 * torch.cat([batch.lengths_B] * 2)).all()
    if one.mel is not None:
        assert one.mel.x_BTD.isfinite().all() and not one.mel.x_BTD[~one.mel.valid_BT].any()


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(ValueError, match="log-mel front end"):
        objective(ViewsConfig(resized=(0.6, 1.5)))
    with pytest.raises(ValueError, match="slowest, fastest"):
        ViewsConfig(speed=(1.1, 0.9))


def test_on_mels_the_views_of_byol_a_are_of_the_same_samples() -> None:
    model = objective(BYOL_A_VIEWS, mel=True)
    assert isinstance(model.encoder.config.frontend, LogMel)
    seen = model.look(tones(0), seeded())
    assert torch.equal(*seen.wave_NS.chunk(2)) and seen.mel is not None
    assert not torch.equal(*seen.mel.x_BTD.chunk(2))


def test_a_teacher_follows_the_whole_student_and_takes_no_gradient() -> None:
    torch.manual_seed(0)
    model = BYOLConfig(views=EVERYTHING, hidden_width=16, width=8, momentum=(0.5, 1.0)).build(Encoder(QUIET))
    assert isinstance(model, BYOL)
    before = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    model(tones(0), generator=seeded()).total.backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    with torch.no_grad():
        for parameter in (*model.encoder.parameters(), *model.projector.parameters()):
            parameter += 1.0
    model.after_step(0.5)  # tau is 0.75 by now
    for name, value in model.teacher.model[0].named_parameters():
        torch.testing.assert_close(value, before[f"model.0.{name}"] + 0.25, msg=name)
    model.after_step(1.0)
    for name, value in model.teacher.model[0].named_parameters():
        torch.testing.assert_close(value, before[f"model.0.{name}"] + 0.25, msg=name)


def test_a_queue_forgets_the_oldest_and_what_is_not_finite() -> None:
    queue = Queue(5, 2)
    start_KE = queue.rows_KE.clone()
    rows_NE = torch.arange(14.0).reshape(7, 2)
    queue.note(rows_NE[:2])
    queue.note(rows_NE[2:4])
    assert torch.equal(queue.rows_KE, start_KE), "not before the step is over"
    queue.settle()
    queue.settle()
    assert torch.equal(queue.rows_KE, torch.cat([rows_NE[:4], start_KE[4:]]))
    queue.note(rows_NE[4:])
    queue.note(torch.full((1, 2), torch.nan))
    queue.settle()
    assert torch.equal(queue.rows_KE, torch.cat([rows_NE[:4], start_KE[4:]])), "that step was skipped"
    queue.put(rows_NE[4:])
    assert torch.equal(queue.rows_KE, rows_NE[[5, 6, 2, 3, 4]])
    queue.put(rows_NE)
    assert sorted(queue.rows_KE[:, 0].tolist()) == [4.0, 6.0, 8.0, 10.0, 12.0]
    other = Queue(5, 2)
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.put(rows_NE[:1])
    assert torch.equal(queue.rows_KE, other.rows_KE)


def test_norms_and_biases_are_where_they_do_something() -> None:
    plain, ending = mlp(3, 4, 5), mlp(3, 4, 5, last_norm=True)
    assert [type(layer).__name__ for layer in plain] == ["Linear", "GlobalBatchNorm", "ReLU", "Linear"]
    assert plain[0].bias is None and plain[3].bias is not None
    assert isinstance(ending[-1], GlobalBatchNorm) and ending[-1].weight is None and ending[3].bias is None
    assert [type(layer).__name__ for layer in mlp(3, 4, 5, batch_norm=False)] == ["Linear", "ReLU", "Linear"]


def test_silence_is_finite_on_every_front_end() -> None:
    silence = Batch(torch.zeros(3, 8_000), torch.full((3,), 8_000), names=("a", "b", "c"))
    for mel in (False, True):
        loss = objective(EVERYTHING, mel)(silence, generator=seeded())
        loss.total.backward()
        assert loss.total.isfinite() and all(value.isfinite().all() for value in loss.metrics.values())
