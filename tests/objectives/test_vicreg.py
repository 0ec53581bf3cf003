"""VICReg: its equations in loops, and what collapsed and whitened vectors give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speech_ssl.objectives.vicreg import VICReg, VICRegConfig, redundant, too_narrow
from tests.objectives.two_views import build, seen, vectors

pytestmark = pytest.mark.numerical


def vicreg() -> VICReg:
    return build(VICRegConfig(width=8), VICReg)


def s(z: Tensor, z_: Tensor) -> float:
    """Equation 5, with the mean over the width that the authors' code takes too."""
    return sum(float((z[i] - z_[i]).square().sum()) for i in range(len(z))) / len(z) / z.shape[1]


def v(z: Tensor) -> float:
    """Equations 1 and 2."""
    d = z.shape[1]
    return sum(max(0.0, 1 - (float(z[:, j].var()) + 1e-4) ** 0.5) for j in range(d)) / d


def c(z: Tensor) -> float:
    """Equations 3 and 4."""
    n, d = z.shape
    mean = sum(z) / n
    C = sum(torch.outer(row - mean, row - mean) for row in z) / (n - 1)
    assert isinstance(C, Tensor)
    return sum(float(C[i, j]) ** 2 for i in range(d) for j in range(d) if i != j) / d


def test_the_loss_is_equation_6() -> None:
    first, second = vectors(rows=12)
    z, z_ = 0.6 * first.double(), 0.6 * second.double()
    expected = 25 * s(z, z_) + 25 * (v(z) + v(z_)) + (c(z) + c(z_))
    loss_B, metrics = vicreg().compare(seen(0.6 * first, 0.6 * second))
    assert float(loss_B.mean()) == pytest.approx(expected, rel=1e-5)
    parts = 25 * metrics["invariance"] + 25 * metrics["variance"] + metrics["covariance"]
    assert float(parts) == pytest.approx(12 * expected, rel=1e-5)


def test_closed_forms() -> None:
    same_BE = torch.ones(6, 8)
    assert float(too_narrow(same_BE)) == pytest.approx(1 - 0.01) and float(redundant(same_BE)) == 0
    hadamard = 2.0 * torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])[:, 1:]
    assert float(too_narrow(hadamard)) == 0 and float(redundant(hadamard)) == pytest.approx(0, abs=1e-6)
    twice = hadamard[:, :1].expand(4, 2)
    assert float(redundant(twice)) == pytest.approx((16 / 3) ** 2)
    loss_B, _ = vicreg().compare(seen(same_BE, same_BE))
    torch.testing.assert_close(loss_B, torch.full((6,), 50 * 0.99))


def test_one_row_is_finite() -> None:
    x_BE = torch.randn(1, 8, requires_grad=True)
    vicreg().compare(seen(x_BE, x_BE + 1))[0].sum().backward()
    assert x_BE.grad is not None and x_BE.grad.isfinite().all()
