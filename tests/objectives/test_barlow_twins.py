"""Barlow Twins: equations 1 and 2 in loops, and what independent and redundant vectors give."""

from __future__ import annotations

import pytest
import torch

from speech_ssl.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from tests.objectives.two_views import build, seeded, seen, vectors

pytestmark = pytest.mark.numerical


def barlow(redundancy: float = 0.02) -> BarlowTwins:
    return build(BarlowTwinsConfig(width=8, redundancy=redundancy), BarlowTwins)


def test_the_loss_is_equation_1() -> None:
    z_a, z_b = (z.double() for z in vectors(rows=20))
    z_a, z_b = z_a - z_a.mean(0), z_b - z_b.mean(0)
    expected = 0.0
    for i in range(8):
        for j in range(8):
            norms = (
                sum(float(z) ** 2 for z in z_a[:, i]) ** 0.5 * sum(float(z) ** 2 for z in z_b[:, j]) ** 0.5
            )
            c = sum(float(z_a[b, i] * z_b[b, j]) for b in range(20)) / norms
            expected += (1 - c) ** 2 if i == j else 0.02 * c**2
    loss_B, metrics = barlow().compare(seen(*vectors(rows=20)))
    torch.testing.assert_close(loss_B, torch.full((20,), expected), rtol=1e-4, atol=0)
    assert float(metrics["invariance"] + 0.02 * metrics["redundancy"]) == pytest.approx(
        20 * expected, rel=1e-4
    )


def test_closed_forms() -> None:
    hadamard = torch.tensor([[1.0, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])  # three columns, uncorrelated
    model = build(BarlowTwinsConfig(width=2, redundancy=0.1), BarlowTwins)
    perfect_B, _ = model.compare(seen(hadamard[:, 1:], hadamard[:, 1:]))
    torch.testing.assert_close(perfect_B, torch.zeros(4), atol=1e-4, rtol=0)
    same_BE = hadamard[:, 1:2].expand(4, 2)
    redundant_B, _ = model.compare(seen(same_BE, same_BE))
    torch.testing.assert_close(redundant_B, torch.full((4,), 0.2), atol=1e-4, rtol=0)
    collapsed_B, _ = model.compare(seen(torch.ones(4, 2), torch.ones(4, 2)))
    torch.testing.assert_close(collapsed_B, torch.full((4,), 2.0))


def test_scale_and_offset_of_a_number_do_not_matter() -> None:
    z_a, z_b = vectors(rows=20)
    scale_E, offset_E = 1 + torch.rand(2, 8, generator=seeded())
    loss_B, _ = barlow().compare(seen(z_a, z_b))
    torch.testing.assert_close(
        barlow().compare(seen(z_a * scale_E + offset_E, z_b))[0], loss_B, rtol=1e-4, atol=1e-5
    )
