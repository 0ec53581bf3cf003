"""Codes and loss against a literal transcription of the paper; what is hidden, and what never changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_ssl.model.config import EncoderConfig, LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.best_rq import BestRQ, BestRQConfig, RandomProjection
from speech_ssl.objectives.masking import hide_spans
from speech_ssl.objectives.views import Mixing
from speech_ssl.types import Frames
from tests.test_objective_contract import QUIET, tones

pytestmark = pytest.mark.numerical

HEARS_MEL = QUIET.changed(frontend=LogMel(bins=20, stacked=4))
both_front_ends = pytest.mark.parametrize("encoder", [QUIET, HEARS_MEL], ids=["wave", "mel"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(encoder: EncoderConfig = QUIET, **changes: Any) -> BestRQ:
    torch.manual_seed(0)
    return BestRQConfig(**{"bins": 20, "entries": 32, "code_width": 4, **changes}).build(Encoder(encoder))


def paper_code(x_D: Tensor, projection_DC: Tensor, codebook_VC: Tensor) -> int:
    """Equation 1: the code whose vector of length 1 is nearest to that of the projection."""
    projected_C = projection_DC.T.double() @ x_D.double()
    target_C = projected_C / projected_C.norm()
    apart = [float((c_C.double() / c_C.double().norm() - target_C).norm()) for c_C in codebook_VC]
    return min(range(len(apart)), key=apart.__getitem__)


def test_codes_are_the_papers() -> None:
    torch.manual_seed(0)
    quantizer = RandomProjection(12, 40, 6)
    assert float(quantizer.projection_DC.abs().max()) <= math.sqrt(6 / 18), "Xavier's bound"
    quantizer.codebook_VC *= torch.rand(40, 1) + 0.5  # however long: they are compared at length 1
    quantizer.codebook_VC /= quantizer.codebook_VC.norm(dim=1, keepdim=True)
    x_BTD = torch.randn(2, 30, 12)
    codes_BT = quantizer(x_BTD)
    for b in range(2):
        for t in range(30):
            expected = paper_code(x_BTD[b, t], quantizer.projection_DC, quantizer.codebook_VC)
            assert int(codes_BT[b, t]) == expected


def hidden_of(objective: BestRQ, frames: Frames, generator: torch.Generator) -> Tensor:
    return hide_spans(
        frames.lengths_B,
        frames.x_BTD.shape[1],
        share=objective.config.hidden_share,
        span=objective.config.hidden_span,
        generator=generator,
    )


@both_front_ends
def test_the_loss_is_the_cross_entropy_of_the_hidden_frames_codes(encoder: EncoderConfig) -> None:
    objective, batch = made(encoder).eval(), tones(1)
    with torch.no_grad():
        sums = objective(batch, generator=seeded(4))
        raw = objective.encoder.convolve(batch.wave_BS, batch.lengths_B)
        context, hidden_BT = objective.context(raw, seeded(4))
        assert torch.equal(hidden_BT, hidden_of(objective, raw, seeded(4)))
        mel_BTD = objective.mel_frames(batch)
        total, count = 0.0, 0
        for b, t in hidden_BT.nonzero().tolist():
            code = paper_code(
                mel_BTD[b, t], objective.quantizer.projection_DC, objective.quantizer.codebook_VC
            )
            logits_V = objective.head.weight.double() @ context.x_BTD[b, t].double() + objective.head.bias
            total -= float(logits_V[code] - torch.logsumexp(logits_V, 0))
            count += 1
    assert float(sums.count) == count > 0
    assert float(sums.total) == pytest.approx(total, rel=1e-5)


def test_a_blind_model_has_the_loss_of_a_guess() -> None:
    objective = made().eval()
    torch.nn.init.zeros_(objective.head.weight)
    torch.nn.init.zeros_(objective.head.bias)
    with torch.no_grad():
        sums = objective(tones(1), generator=seeded())
    assert float(sums.total / sums.count) == pytest.approx(math.log(32))
    report = objective.report({k: v / sums.count for k, v in sums.metrics.items()})
    assert report["guess_perplexity"] == pytest.approx(1)
    assert report["accuracy"] <= report["chance"] < 1


@both_front_ends
def test_nothing_of_a_hidden_frame_is_heard(encoder: EncoderConfig) -> None:
    """And what is in its place in log-mel frames is noise of the deviation asked for."""
    objective, batch = made(encoder).eval(), tones(1)
    raw = objective.encoder.convolve(batch.wave_BS, batch.lengths_B)
    hidden_BT = hidden_of(objective, raw, seeded(2))
    other = Frames(torch.where(hidden_BT[:, :, None], 7.0, raw.x_BTD), raw.lengths_B)
    seen: list[Tensor] = []
    contextualize = objective.encoder.contextualize

    def seeing(features: Frames, **how: Any) -> Frames:
        seen.append(features.x_BTD)
        return contextualize(features, **how)

    objective.encoder.contextualize = seeing  # type: ignore[method-assign]
    one, two = objective.context(raw, seeded(2))[0], objective.context(other, seeded(2))[0]
    torch.testing.assert_close(one.x_BTD, two.x_BTD)
    if objective.hears_mel:
        assert float(seen[0][hidden_BT].detach().std()) == pytest.approx(0.1, rel=0.1)


def test_how_loud_a_row_is_does_not_change_its_codes() -> None:
    objective, batch = made(), tones(1)
    codes = []
    for gain in (1.0, 0.1):
        louder = type(batch)(gain * batch.wave_BS, batch.lengths_B)
        codes.append(objective.quantizer(objective.mel_frames(louder)))
    assert float((codes[0] == codes[1]).float().mean()) > 0.99


@both_front_ends
def test_targets_are_of_the_clean_wave_and_never_learnt(encoder: EncoderConfig) -> None:
    objective, batch = made(encoder, mixing=Mixing(share=1.0)), tones(1)
    codes: list[Tensor] = []
    quantize = objective.quantizer.forward
    objective.quantizer.forward = lambda x_BTD: codes.append(quantize(x_BTD)) or codes[-1]  # type: ignore
    frozen = {k: v.clone() for k, v in objective.quantizer.state_dict().items()}
    mixed = objective(batch, generator=seeded(1))
    mixed.total.backward()
    with torch.no_grad():
        for p in objective.parameters():
            p -= 0.1 * (0 if p.grad is None else p.grad)
    assert all(p.grad is not None and p.grad.any() for p in objective.parameters() if p.requires_grad), (
        "and every parameter learns"
    )
    assert len(frozen) == 2
    for name, value in objective.quantizer.state_dict().items():
        assert torch.equal(value, frozen[name])
    objective.eval()(batch, generator=seeded(1))
    valid_BT = objective.encoder.convolve(batch.wave_BS, batch.lengths_B).valid_BT
    assert torch.equal(codes[0][valid_BT], codes[1][valid_BT])
