"""Rows, sums and batch norm over two processes, beside one that has all rows."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from speech_ssl.objectives.global_batch import GlobalBatchNorm, all_rows, all_sum, similarity
from speech_ssl.training.ranks import joined_ranks
from speech_ssl.types import Frames

pytestmark = pytest.mark.numerical

ROWS = (3, 5)
"""Of each rank."""


def rows() -> tuple[Tensor, ...]:
    return torch.randn(sum(ROWS), 4, generator=torch.Generator().manual_seed(0)).split(ROWS)


def loss(x_ND: Tensor, norm: nn.Module) -> Tensor:
    """The sum over own rows of something that no row decides alone."""
    z_ND = norm(x_ND)
    all_ND, first = all_rows(z_ND)
    similar_NM = (z_ND @ all_ND.T).masked_fill(torch.eye(len(all_ND)).bool()[first : first + len(z_ND)], -9.0)
    frames = Frames(x_ND.view(-1, 2, 2), torch.full((len(x_ND),), 2))
    related = similarity(frames) + (all_sum(z_ND.square().sum(0)) * z_ND.sum(0)).sum()
    return similar_NM.logsumexp(1).sum() + related


def of_one_process() -> tuple[Tensor, Tensor, GlobalBatchNorm]:
    x_ND, norm = torch.cat(rows()).requires_grad_(), GlobalBatchNorm(4)
    total = loss(x_ND, norm)
    total.backward()
    assert x_ND.grad is not None
    return total.detach(), x_ND.grad, norm


def _one_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = (folder / "port").read_text()
    with joined_ranks("cpu"):
        x_ND, norm = rows()[rank].requires_grad_(), GlobalBatchNorm(4)
        total = loss(x_ND, norm)
        total.backward()
        torch.save({"total": total.detach(), "grad": x_ND.grad, **norm.state_dict()}, folder / f"{rank}.pt")
    os._exit(0)


def test_two_ranks_compute_what_one_process_does(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(probe.getsockname()[1]))
    multiprocessing.start_processes(_one_rank, (tmp_path,), nprocs=2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    total, gradient, norm = of_one_process()
    torch.testing.assert_close(first["total"] + second["total"], total)
    torch.testing.assert_close(torch.cat([first["grad"], second["grad"]]), gradient)
    for found in (first, second):
        torch.testing.assert_close(found["running_mean"], norm.running_mean)
        torch.testing.assert_close(found["running_var"], norm.running_var)


def test_similarity_is_the_mean_over_pairs_of_frames_of_different_clips() -> None:
    lengths_B = torch.tensor([3, 1, 0, 2])
    x_BTD = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(1)).double()
    kept = [(b, x_BTD[b, t] / x_BTD[b, t].norm()) for b in range(4) for t in range(int(lengths_B[b]))]
    squares = [float(one @ other) ** 2 for a, one in kept for b, other in kept if a != b]
    assert len(squares) == 36 - 9 - 1 - 4
    found = similarity(Frames(x_BTD, lengths_B))
    assert float(found) == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    line = Frames(torch.tensor([[[1.0, 2.0]], [[-2.0, -4.0]]]), torch.tensor([1, 1]))
    assert float(similarity(line)) == pytest.approx(1.0)
    assert float(similarity(Frames(x_BTD[:1], lengths_B[:1]))) == pytest.approx(0.0, abs=1e-6)


def test_alone_it_is_torchs_batch_norm() -> None:
    ours, theirs = GlobalBatchNorm(4), nn.BatchNorm1d(4)
    x_ND = torch.cat(rows())
    torch.testing.assert_close(ours(x_ND), theirs(x_ND))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x_ND), theirs.eval()(x_ND))
    plain_ND = F.batch_norm(x_ND, None, None, training=True)
    torch.testing.assert_close(GlobalBatchNorm(4, affine=False)(x_ND), plain_ND)


def test_rows_that_are_not_finite_leave_its_statistics() -> None:
    norm = GlobalBatchNorm(4)
    norm(torch.full((3, 4), torch.nan))
    assert torch.equal(norm.running_mean, torch.zeros(4)) and torch.equal(norm.running_var, torch.ones(4))
