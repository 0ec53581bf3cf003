"""DinoSR's loss and codebooks against transcriptions of their equations, and what freezes half-way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.codebooks import OnlineCodebooks
from speech_ssl.objectives.dinosr import DinoSR, DinoSRConfig
from speech_ssl.objectives.masking import hide_spans
from speech_ssl.objectives.teacher import told
from speech_ssl.training.health import fallen
from speech_ssl.types import Frames
from tests.objectives.test_teacher import said_by
from tests.test_objective_contract import QUIET, tones

pytestmark = pytest.mark.numerical


def small(entries: int = 12) -> DinoSR:
    torch.manual_seed(0)
    return DinoSRConfig(top=2, entries=entries, hidden_share=0.6).build(Encoder(QUIET))


@torch.no_grad()
def codes_of(model: DinoSR, features_TC: Tensor, layer: int) -> list[int]:
    """The nearest entry of each frame of one row, in float64. layer: -2 or -1."""
    x_TD = said_by(model.teacher.model, features_TC)[0][layer][0].double()
    x_TD = (x_TD - x_TD.mean(0)) / (x_TD.var(0, unbiased=False) + 1e-5).sqrt()
    books = model.codebooks
    entry_VD = (books.sums_GVD[layer] / books.counts_GV[layer][:, None]).double()
    return [min(range(len(entry_VD)), key=lambda v: float((x_D - entry_VD[v]).norm())) for x_D in x_TD]


@torch.no_grad()
def test_total_is_that_of_the_paper() -> None:
    """The mean over codebooks of -log p(code), summed over hidden frames: all heads on the last layer."""
    model, batch = small(), tones(1)
    loss = model(batch, generator=torch.Generator().manual_seed(3))
    features = model.features(batch)
    hidden_BT = hide_spans(
        features.lengths_B,
        features.x_BTD.shape[1],
        share=0.6,
        span=10,
        generator=torch.Generator().manual_seed(3),
    )
    total = 0.0
    for row, length in enumerate(features.lengths_B.tolist()):
        alone = Frames(features.x_BTD[row : row + 1, :length], torch.tensor([length]))
        context = model.encoder.contextualize(alone, hidden_BT=hidden_BT[row : row + 1, :length])
        logits_TGV = model.heads(context.x_BTD)[0].view(length, 2, 12).double()
        for layer in (-2, -1):
            codes = codes_of(model, alone.x_BTD[0], layer)
            for t in range(length):
                if hidden_BT[row, t]:
                    total -= float(logits_TGV[t, layer].log_softmax(-1)[codes[t]]) / 2
    assert int(loss.count) == int(hidden_BT.sum())
    assert float(loss.total) == pytest.approx(total, rel=1e-4)


def test_codebooks_follow_the_means_of_what_was_near_in_one_step_or_in_parts() -> None:
    torch.manual_seed(1)
    books = OnlineCodebooks(1, 4, 3, decay=0.9)
    x_ND = torch.randn(50, 3)
    with torch.no_grad():
        books.sums_GVD[0, 3] = 1e3  # near nothing
    sums, counts = books.sums_GVD[0].clone().double(), books.counts_GV[0].clone().double()
    for half in x_ND.split(25):
        code_GN = books(half[None])
        wanted = [min(range(4), key=lambda v: float((x - books.sums_GVD[0, v]).norm())) for x in half]
        assert code_GN[0].tolist() == wanted
        books.note(half[None], torch.nn.functional.one_hot(code_GN, 4).float(), torch.tensor(True))
    codes = books(x_ND[None])[0].tolist()
    books.step()
    for v in range(4):
        near = [x.double() for x, code in zip(x_ND, codes, strict=True) if code == v]
        if near:
            sums[v] = 0.9 * sums[v] + 0.1 * sum(near)
            counts[v] = 0.9 * counts[v] + 0.1 * len(near)
    assert 3 not in codes and len(set(codes)) > 1
    torch.testing.assert_close(books.sums_GVD[0].double(), sums, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(books.counts_GV[0].double(), counts, atol=1e-4, rtol=1e-5)


def test_entries_begin_as_vectors_of_the_audio() -> None:
    """More are in use than of random ones, of which a step on some seconds of audio reaches few."""
    model = small(entries=40)
    model.prepare((tones(n) for n in range(9)), torch.Generator().manual_seed(0))
    assert len(model.codebooks.sums_GVD.unique(dim=1)[0]) == 40
    loss = model(tones(1), generator=torch.Generator().manual_seed(0))
    prepared = model.report({k: v / loss.count for k, v in loss.metrics.items()})
    drawn = small(entries=40)
    loss = drawn(tones(1), generator=torch.Generator().manual_seed(0))
    random = drawn.report({k: v / loss.count for k, v in loss.metrics.items()})
    assert prepared["worst_codebook"] > 1.2 * random["worst_codebook"], (prepared, random)


@pytest.mark.parametrize("broken", ["audio", "student"])
def test_a_step_that_is_not_finite_leaves_the_codebooks(broken: str) -> None:
    model, batch = small(), tones(1)
    before = {k: v.clone() for k, v in model.codebooks.state_dict().items()}
    model(batch, generator=torch.Generator().manual_seed(0))
    if broken == "audio":
        batch.wave_BS[1, 100] = torch.nan
    else:
        with torch.no_grad():
            model.heads.weight[0, 0] = torch.inf
    assert not model(batch, generator=torch.Generator().manual_seed(1)).total.isfinite()
    model.codebooks.step()
    assert all(torch.equal(v, before[k]) for k, v in model.codebooks.state_dict().items())


def reported(logits_GNV: Tensor, vectors_GND: Tensor, model: DinoSR) -> dict[str, float]:
    chosen_BM = torch.ones(1, vectors_GND.shape[1], dtype=torch.bool)
    count = torch.tensor(float(vectors_GND.shape[1]))
    metrics = told(torch.tensor(1.0), torch.randn(1, 500, 8), torch.ones(1, 500), count)
    sums = model.compared(logits_GNV, vectors_GND, chosen_BM, metrics)
    means = {k: v / sums.count for k, v in sums.metrics.items()}
    return model.report(means) | {"loss": float(sums.total / sums.count)}


def test_perfect_blind_and_collapsed_models_are_told_apart() -> None:
    model = small(entries=64)
    model.codebooks.sums_GVD.normal_()
    code_GN = torch.arange(64).repeat(2, 8)
    vectors_GND = model.codebooks.sums_GVD.repeat(1, 8, 1)
    perfect = reported(1e3 * torch.nn.functional.one_hot(code_GN).float(), vectors_GND, model)
    assert perfect["loss"] == 0 and perfect["accuracy"] == 1
    assert perfect["information"] == pytest.approx(math.log(64), rel=1e-4)
    blind = reported(torch.zeros(2, 512, 64), vectors_GND, model)
    assert blind["loss"] == pytest.approx(math.log(64), rel=1e-5)
    assert blind["information"] == pytest.approx(0, abs=1e-4)
    assert blind["code_perplexity"] == pytest.approx(64, rel=1e-3)
    assert blind["chance"] == pytest.approx(1 / 64)
    assert not fallen(blind, model.floors())
    vectors_GND[1] = vectors_GND[1, :1]
    collapsed = reported(torch.zeros(2, 512, 64), vectors_GND, model)
    assert fallen(collapsed, model.floors()) == ["worst_codebook"]


def test_half_way_the_teacher_and_the_front_end_stay_as_they_are() -> None:
    model, batch = small(), tones(1)
    for progress, frozen in ((0.4, False), (0.6, True), (0.4, False)):
        model.after_step(progress)
        before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
        model.zero_grad()
        model(batch, generator=torch.Generator().manual_seed(0)).total.backward()
        assert all((p.grad is None) == frozen for p in model.encoder.frontend.parameters())
        with torch.no_grad():
            for number in model.encoder.parameters():
                number.add_(0.1)
        books = model.codebooks.counts_GV.clone()
        model.after_step(progress)
        assert not torch.equal(books, model.codebooks.counts_GV)
        same = [torch.equal(v, before[k]) for k, v in model.teacher.state_dict().items()]
        assert all(same) if frozen else not any(same)
