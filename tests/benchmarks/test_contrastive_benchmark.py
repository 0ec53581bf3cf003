"""The benchmark of the contrastive loss: its gather is right, and it notices when ours is not."""

from __future__ import annotations

import pytest
import torch

from benchmarks import contrastive
from speech_ssl.objectives.wav2vec2 import Contrast, contrastive_loss


def test_it_prints_both_and_the_ratios(capsys):
    assert contrastive.main(["--tiny", "--repeats", "1"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["ratio"].count("x") == 2
    assert "MB" in lines["gather"] and "MB" in lines["product"]


def test_the_gather_is_the_papers_formula():
    inputs = contrastive.make_inputs(contrastive.TINY["tiny"], torch.device("cpu"))
    loss_BM = contrastive.by_gather(inputs, 10, torch.Generator().manual_seed(1))
    j_BMK = contrastive.draw_indices(2, 30, 10, torch.Generator().manual_seed(1))
    for row, frame in ((0, 0), (1, 17)):
        context_D, targets_MD = inputs.context_BMD[row, frame], inputs.target_BMD[row]
        others = [
            j for j in j_BMK[row, frame].tolist() if inputs.code_BM[row, j] != inputs.code_BM[row, frame]
        ]
        similar = torch.stack([torch.dot(context_D, targets_MD[j]) for j in (frame, *others)])
        lengths = torch.stack([context_D.norm() * targets_MD[j].norm() for j in (frame, *others)])
        e = (similar / lengths / contrastive.KAPPA).exp()
        assert loss_BM[row, frame].item() == pytest.approx(-(e[0] / e.sum()).log().item(), rel=1e-4)


def test_saved_memory_is_that_of_the_graph():
    inputs = contrastive.make_inputs(contrastive.TINY["tiny"], torch.device("cpu"))

    def squares(inputs, distractors, generator):
        doubled_BMD = 2 * (inputs.context_BMD + inputs.target_BMD)
        return (doubled_BMD * doubled_BMD).sum(-1)  # keeps one tensor, named twice

    cost = contrastive.measure(squares, inputs, 10, repeats=1)
    assert cost.saved_bytes == inputs.context_BMD.nbytes


@pytest.mark.parametrize("part", ["value", "gradient", "draws"])
def test_a_difference_ends_with_status_1(monkeypatch, capsys, part):
    def wrong(context_BMD, target_BMD, times_BMM, code_BM, kappa):
        if part == "gradient":
            target_BMD = target_BMD.detach() + 0.99 * (target_BMD - target_BMD.detach())
        right = contrastive_loss(context_BMD, target_BMD, times_BMM, code_BM, kappa)
        return Contrast(right.loss_BM * (1.01 if part == "value" else 1), right.won_BM, right.chance_BM)

    monkeypatch.setattr(contrastive, "contrastive_loss", wrong)
    if part == "draws":
        monkeypatch.setattr(contrastive, "contrastive_loss", contrastive_loss)
        monkeypatch.setattr(
            contrastive, "draw_indices", lambda b, m, k, generator: torch.zeros(b, m, k, dtype=torch.long)
        )
    assert contrastive.main(["--tiny", "--repeats", "1"]) == 1
    assert "the two differ" in capsys.readouterr().out
