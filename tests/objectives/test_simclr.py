"""SimCLR and COLA: the papers' losses in loops, and what models that know all or nothing get."""

from __future__ import annotations

import math

import pytest
import torch

from speech_ssl.objectives.simclr import COLA, COLAConfig, SimCLR, SimCLRConfig
from tests.objectives.two_views import build, cosine, seen, vectors

pytestmark = pytest.mark.numerical


def simclr(tau: float = 0.3) -> SimCLR:
    return build(SimCLRConfig(hidden_width=16, width=8, tau=tau), SimCLR)


def test_the_loss_is_equation_1() -> None:
    """Over 2N views, where 2k - 1 and 2k are of a clip: here the first views, then the second."""
    first_BE, second_BE = vectors()
    z = [*first_BE, *second_BE]
    N, tau = len(first_BE), 0.3

    def loss(i: int, j: int) -> float:
        others = sum(math.exp(cosine(z[i], z[k]) / tau) for k in range(2 * N) if k != i)
        return -math.log(math.exp(cosine(z[i], z[j]) / tau) / others)

    expected = sum(loss(k, k + N) + loss(k + N, k) for k in range(N)) / (2 * N)
    loss_B, _ = simclr(tau).compare(seen(first_BE, second_BE))
    assert float(loss_B.mean()) == pytest.approx(expected, rel=1e-5)


def test_closed_forms() -> None:
    same_BE = torch.ones(6, 8)
    collapsed_B, _ = simclr().compare(seen(same_BE, same_BE))
    torch.testing.assert_close(collapsed_B, torch.full((6,), math.log(11)))
    apart_BE = torch.eye(8)[:6]
    perfect_B, metrics = simclr(0.5).compare(seen(apart_BE, apart_BE))
    torch.testing.assert_close(perfect_B, torch.full((6,), math.log(1 + 10 * math.exp(-2))))
    assert float(metrics["accuracy"]) == 6
    alone_B, _ = simclr().compare(seen(same_BE[:1], same_BE[:1]))
    assert float(alone_B) == pytest.approx(0.0, abs=1e-6)


def test_neither_lengths_nor_the_order_of_rows_and_views_matter() -> None:
    first_BE, second_BE = vectors()
    model, order = simclr(), torch.randperm(7)
    loss_B, _ = model.compare(seen(first_BE, second_BE))
    torch.testing.assert_close(model.compare(seen(3 * first_BE, 0.5 * second_BE))[0], loss_B)
    torch.testing.assert_close(model.compare(seen(first_BE[order], second_BE[order]))[0], loss_B[order])
    torch.testing.assert_close(model.compare(seen(second_BE, first_BE))[0], loss_B)


def test_cola_is_its_equation() -> None:
    """-log exp s(x, x+) / sum over x- and x+ of exp s(x, x'), with s(x, x') = g(x)^T W g(x')."""
    first_BE, second_BE = vectors()
    model = build(COLAConfig(width=8), COLA)
    assert model.bilinear is not None
    weight_EE = model.bilinear.weight.detach().double().T

    def s(i: int, j: int) -> float:
        return float(first_BE[i].double() @ weight_EE @ second_BE[j].double())

    expected = [-s(i, i) + math.log(sum(math.exp(s(i, j)) for j in range(7))) for i in range(7)]
    loss_B, _ = model.compare(seen(first_BE, second_BE))
    torch.testing.assert_close(loss_B.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)
    model = build(COLAConfig(width=8, similarity="cosine"), COLA)
    assert model.bilinear is None
    expected = [
        -cosine(first_BE[i], second_BE[i]) / 0.2
        + math.log(sum(math.exp(cosine(first_BE[i], second_BE[j]) / 0.2) for j in range(7)))
        for i in range(7)
    ]
    loss_B, _ = model.compare(seen(first_BE, second_BE))
    torch.testing.assert_close(loss_B.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_colas_vectors_are_normed_and_bounded() -> None:
    projected_BE = build(COLAConfig(width=8), COLA).projector(100 * torch.randn(5, 32))
    assert projected_BE.abs().max() < 1
    torch.testing.assert_close(projected_BE.atanh().mean(1), torch.zeros(5), atol=1e-4, rtol=0)
