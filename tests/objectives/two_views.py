"""What the tests of the methods of two views share."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.two_views import Seen
from tests.objectives.narrow import QUIET

T = TypeVar("T")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(config: Any, of: type[T], seed: int = 0) -> T:
    """Over a narrow encoder."""
    torch.manual_seed(seed)
    objective = config.build(Encoder(QUIET))
    assert isinstance(objective, of)
    return objective


def vectors(rows: int = 7, width: int = 8, seed: int = 0, views: int = 2) -> tuple[Tensor, ...]:
    """Projections of both views (rows, width): alike, but not the same; and a teacher's."""
    generator = seeded(seed)
    shared_BE = torch.randn(rows, width, generator=generator)
    return tuple(shared_BE + 0.5 * torch.randn(rows, width, generator=generator) for _ in range(views))


def seen(
    first_BE: Tensor,
    second_BE: Tensor,
    taught: tuple[Tensor, Tensor] | None = None,
    names: tuple[str, ...] = (),
) -> Seen:
    return Seen(first_BE, second_BE, taught, names, seeded())


def cosine(a_E: Tensor, b_E: Tensor) -> float:
    return float(F.cosine_similarity(a_E.detach().double(), b_E.detach().double(), dim=0))
