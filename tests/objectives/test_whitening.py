"""W-MSE: whitened vectors are white, the loss in loops, slices, and what cannot be whitened."""

from __future__ import annotations

import pytest
import torch

from speech_ssl.objectives.whitening import Whitening, WhiteningConfig, whitened
from tests.objectives.two_views import build, cosine, seeded, seen, vectors

pytestmark = pytest.mark.numerical


def wmse(**options: float) -> Whitening:
    config = WhiteningConfig(hidden_width=16, width=3, **options)  # type: ignore[arg-type]
    return build(config, Whitening)


def test_whitened_vectors_are_white() -> None:
    x_NE = torch.randn(30, 4, generator=seeded()) @ torch.randn(4, 4, generator=seeded(1)) + 3
    white_NE = whitened(x_NE, 0.0)
    torch.testing.assert_close(white_NE.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(white_NE.T.cov(), torch.eye(4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [9, 20])
def test_the_loss_is_equation_6_over_slices(rows: int) -> None:
    """Of 20 rows two slices of 10, drawn; each view whitened apart by W = L^-1, L L^T its covariance."""
    first_BE, second_BE = vectors(rows=rows, width=3)
    order = torch.randperm(rows, generator=seeded()).tolist() if rows == 20 else list(range(rows))
    slices = [order[:10], order[10:]] if rows == 20 else [order]
    expected = [0.0] * rows
    for part in slices:
        white = []
        for view in (first_BE[part].double(), second_BE[part].double()):
            centred = view - view.mean(0)
            covariance = sum(torch.outer(row, row) for row in centred) / (len(part) - 1)
            assert isinstance(covariance, torch.Tensor)
            lower = torch.linalg.cholesky(0.99 * covariance + 0.01 * torch.eye(3))
            white.append([torch.linalg.inv(lower) @ row for row in centred])
        for at, row in enumerate(part):
            expected[row] = 2 - 2 * cosine(white[0][at], white[1][at])
    model = wmse(slice_rows=10, shrinkage=0.01)
    loss_B, _ = model.compare(seen(first_BE, second_BE))
    torch.testing.assert_close(loss_B.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5)


def test_views_that_agree_lose_nothing_and_linear_maps_do_not_matter() -> None:
    """But for the shrinkage."""
    first_BE, second_BE = vectors(rows=20, width=3)
    model = wmse(shrinkage=0.0)
    assert float(model.compare(seen(first_BE, first_BE))[0].max()) < 1e-5
    lower_EE = torch.randn(3, 3, generator=seeded()).tril() + 3 * torch.eye(3)
    loss_B, _ = model.compare(seen(first_BE, second_BE))
    changed_B, _ = model.compare(seen(first_BE @ lower_EE.T + 5, second_BE))
    torch.testing.assert_close(changed_B, loss_B, rtol=1e-3, atol=1e-4)


def test_divisions_are_averaged() -> None:
    first_BE, second_BE = vectors(rows=40, width=3)
    mean_B, _ = wmse(slice_rows=10, iterations=3).compare(seen(first_BE, second_BE))
    model, one = wmse(slice_rows=10), seen(first_BE, second_BE)
    singles = [model.compare(one)[0] for _ in range(3)]  # of the same generator, on and on
    torch.testing.assert_close(mean_B, sum(singles) / 3)
    assert not torch.equal(singles[0], singles[1])


def test_a_collapse_costs_and_what_is_not_finite_is_no_error() -> None:
    same_BE = torch.ones(6, 3)
    assert float(wmse().compare(seen(same_BE, same_BE))[0].mean()) == pytest.approx(2.0)
    broken_BE = torch.full((6, 3), torch.nan)
    assert wmse().compare(seen(broken_BE, broken_BE))[0].isnan().all()
