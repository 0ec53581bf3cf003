"""SimSiam: its loss in loops, and the gradient that is stopped."""

from __future__ import annotations

import pytest
import torch

from speech_ssl.objectives.simsiam import SimSiam, SimSiamConfig, negative_cosine
from tests.objectives.two_views import build, cosine, seen, vectors

pytestmark = pytest.mark.numerical


def simsiam() -> SimSiam:
    return build(SimSiamConfig(width=8, bottleneck=4), SimSiam)


def test_the_loss_is_equation_4() -> None:
    z1, z2 = vectors()
    model = simsiam()
    p1, p2 = model.predictor(torch.cat([z1, z2])).chunk(2)
    expected = [-cosine(p1[i], z2[i]) / 2 - cosine(p2[i], z1[i]) / 2 for i in range(7)]
    loss_B, _ = model.compare(seen(z1, z2))
    torch.testing.assert_close(loss_B.double(), torch.tensor(expected).double(), rtol=1e-4, atol=1e-5)


def test_closed_forms() -> None:
    x_BE, _ = vectors()
    torch.testing.assert_close(negative_cosine(x_BE, 2 * x_BE), torch.full((7,), -1.0))
    torch.testing.assert_close(negative_cosine(x_BE, -x_BE), torch.full((7,), 1.0))


def test_no_gradient_goes_through_what_is_predicted() -> None:
    model = simsiam()
    one, two = [z.requires_grad_() for z in vectors()], [z.requires_grad_() for z in vectors()]
    model.compare(seen(*one))[0].sum().backward()
    p1, p2 = model.predictor(torch.cat(two)).chunk(2)
    similar = torch.nn.functional.cosine_similarity
    (-similar(p1, two[1].detach()) / 2 - similar(p2, two[0].detach()) / 2).sum().backward()
    for ours, theirs in zip(one, two, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_the_projector_ends_in_a_norm_without_scale() -> None:
    z_NE = simsiam().projector(torch.randn(50, 32))
    torch.testing.assert_close(z_NE.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(z_NE.std(0, correction=0), torch.ones(8), atol=1e-3, rtol=0)
