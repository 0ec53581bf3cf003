"""The contrastive loss against a direct transcription of the paper, and the parts around it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speech_ssl.model import presets
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.quantizers import GumbelQuantizer
from speech_ssl.objectives.base import effective_rank, moments, perplexity
from speech_ssl.objectives.views import Mixing
from speech_ssl.objectives.wav2vec2 import Wav2Vec2Config, contrastive_loss, draw_distractors
from speech_ssl.types import Batch

pytestmark = pytest.mark.numerical


def paper_loss(
    context_MD: Tensor, target_MD: Tensor, drawn_MK: Tensor, code_M: Tensor, kappa: float
) -> list[Tensor]:
    """Equation 3, frame by frame: -log exp(sim(c, q)/kappa) / sum over q~ of exp(sim(c, q~)/kappa), where
    the candidates are the target and the distractors drawn, but for those that equal the target."""
    losses = []
    for t in range(len(context_MD)):
        own = torch.exp(F.cosine_similarity(context_MD[t], target_MD[t], dim=0) / kappa)
        total = own
        for j in drawn_MK[t].tolist():
            if code_M[j] != code_M[t]:
                total = total + torch.exp(F.cosine_similarity(context_MD[t], target_MD[j], dim=0) / kappa)
        losses.append(-torch.log(own / total))
    return losses


def test_value_and_gradient_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    B, M, K, D = 3, 12, 20, 8
    context_BMD = torch.randn(B, M, D, requires_grad=True)
    target_BMD = torch.randn(B, M, D, requires_grad=True)
    code_BM = torch.randint(0, 6, (B, M))
    drawn_BMK = torch.randint(0, M - 1, (B, M, K))
    drawn_BMK += drawn_BMK >= torch.arange(M)[None, :, None]
    times_BMM = F.one_hot(drawn_BMK, M).sum(2).float()

    losses_BM = contrastive_loss(context_BMD, target_BMD, times_BMM, code_BM, 0.1).loss_BM
    ours = torch.autograd.grad(losses_BM.sum(), (context_BMD, target_BMD))
    rows = [
        torch.stack(paper_loss(context_BMD[b], target_BMD[b], drawn_BMK[b], code_BM[b], 0.1))
        for b in range(B)
    ]
    theirs = torch.autograd.grad(torch.stack(rows).sum(), (context_BMD, target_BMD))

    torch.testing.assert_close(losses_BM, torch.stack(rows), atol=1e-5, rtol=1e-5)
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-4)


def test_closed_form_where_all_vectors_are_equal() -> None:
    ones_BMD, times_BMM = torch.ones(1, 5, 4), 25.0 * (1 - torch.eye(5))[None]
    contrast = contrastive_loss(ones_BMD, ones_BMD, times_BMM, torch.arange(5)[None], 0.1)
    torch.testing.assert_close(contrast.loss_BM, torch.full((1, 5), math.log(101)))
    torch.testing.assert_close(contrast.chance_BM, torch.full((1, 5), 1 / 5))
    assert not contrast.won_BM.any()


def test_a_collapse_to_one_code_wins_nothing() -> None:
    vectors_BMD, times_BMM = torch.randn(1, 5, 4), (1 - torch.eye(5))[None]
    contrast = contrastive_loss(vectors_BMD, vectors_BMD, times_BMM, torch.zeros(1, 5), 0.1)
    assert not contrast.loss_BM.any()
    assert not contrast.won_BM.any()


def test_distractors_are_uniform_over_the_other_hidden_frames_of_the_row() -> None:
    chosen_BM = torch.tensor([[True] * 6 + [False] * 2, [True] * 3 + [False] * 5])
    times_BMM = draw_distractors(chosen_BM, 50_000, torch.Generator().manual_seed(0))
    assert torch.equal(times_BMM.sum(2), torch.full((2, 8), 50_000.0))
    for row, size in enumerate((6, 3)):
        counts = times_BMM[row, :size, :size]
        assert not counts.diagonal().any()
        assert not times_BMM[row, :size, size:].any()
        others = counts[~torch.eye(size, dtype=torch.bool)] / 50_000
        torch.testing.assert_close(others, torch.full_like(others, 1 / (size - 1)), atol=0.01, rtol=0)


def objective(**changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    encoder = Encoder(replace(presets.tiny(), depth=1, width=32, heads=2, ffn_width=32))
    return replace(Wav2Vec2Config(entries=20, code_width=16, final_width=16), **changes).build(encoder)  # type: ignore[arg-type]


def test_total_is_the_sum_of_its_reported_parts() -> None:
    model = objective()
    batch = Batch(torch.randn(2, 16_000), torch.tensor([16_000, 9_000]))
    loss = model(batch, generator=torch.Generator().manual_seed(0))
    parts = {k: float(v / loss.count) for k, v in loss.metrics.items() if v.ndim == 0}
    expected = parts["contrastive"] + 0.1 * parts["diversity"] + 10 * parts["feature_energy"]
    assert float(loss.total.detach() / loss.count) == pytest.approx(expected, rel=1e-5)
    assert 2 <= model.report({k: v / loss.count for k, v in loss.metrics.items()})["code_perplexity"] <= 40


def test_the_temperature_falls_to_its_lowest_value() -> None:
    model = objective()
    seen = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        model.after_step(progress)
        seen.append(float(model.temperature))
    assert seen == pytest.approx([2.0, 2 * math.exp(-0.5), 2 * math.exp(-1), 0.5], rel=1e-4)


def test_quantizer_straight_through_gradient_is_that_of_the_softmax() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(6, groups=2, entries=5, width=8)
    x_NC = torch.randn(7, 6)
    noise = torch.empty(7, 2, 5).exponential_(generator=torch.Generator().manual_seed(3))
    soft = ((quantizer.logits(x_NC).view(7, 2, 5) - noise.log()) / 0.7).softmax(-1)
    weights_ND = torch.randn(7, 8)

    quantized = quantizer(x_NC, temperature=0.7, generator=torch.Generator().manual_seed(3))
    assert torch.equal(quantized.codes_NG, soft.argmax(-1))
    entries_NGD = quantizer.codebook_GVD[torch.arange(2), quantized.codes_NG]
    torch.testing.assert_close(quantized.vectors_ND, entries_NGD.flatten(1))
    ours = torch.autograd.grad((quantized.vectors_ND * weights_ND).sum(), quantizer.logits.weight)
    mixed = torch.einsum("ngv,gvd->ngd", soft, quantizer.codebook_GVD).flatten(1)
    theirs = torch.autograd.grad((mixed * weights_ND).sum(), quantizer.logits.weight)
    torch.testing.assert_close(ours, theirs)


def test_quantizer_draws_no_noise_in_evaluation() -> None:
    quantizer = GumbelQuantizer(6).eval()
    x_NC = torch.randn(4, 6)
    quantized = quantizer(x_NC, temperature=1.0, generator=torch.Generator())
    assert torch.equal(quantized.codes_NG, quantizer.logits(x_NC).view(4, 2, 320).argmax(-1))
    with pytest.raises(ValueError, match="multiple of its groups"):
        GumbelQuantizer(6, width=7)


def test_statistics_of_collapse_in_closed_form() -> None:
    uniform_GV = torch.full((2, 320), 1 / 320)
    assert float(perplexity(uniform_GV)) == pytest.approx(640, rel=1e-5)
    assert float(perplexity(torch.eye(320)[:2])) == pytest.approx(2)
    directions_BMD = torch.eye(8).repeat(50, 1)[None] * 3 + 5
    weight_BM = torch.ones(1, 400)
    sums = moments(directions_BMD, weight_BM)
    assert effective_rank(sums["moment_1"] / 400, sums["moment_2"] / 400) == pytest.approx(7, rel=1e-3)
    sums = moments(torch.ones(1, 400, 8), weight_BM)
    assert effective_rank(sums["moment_1"] / 400, sums["moment_2"] / 400) == 0


def test_mixed_rows_are_heard_and_clean_ones_are_the_targets() -> None:
    torch.manual_seed(0)
    config = Wav2Vec2Config(entries=8, code_width=8, final_width=8, target_dropout=0.0)
    encoder = Encoder(presets.tiny().changed(frontend={"channels": (16,) * 7}, width=32, depth=1, heads=2))
    plain, mixed = config.build(encoder), replace(config, mixing=Mixing(share=1.0)).build(encoder)
    batch = Batch(torch.randn(3, 8_000), torch.tensor([8_000, 8_000, 6_000]))
    quantized: list[Tensor] = []
    mixed.quantizer.register_forward_pre_hook(lambda _, inputs: quantized.append(inputs[0]))
    heard: list[Tensor] = []
    contextualize = encoder.contextualize
    encoder.contextualize = lambda features, **how: (  # type: ignore[method-assign]
        heard.append(features.x_BTD) or contextualize(features, **how)  # type: ignore[func-returns-value]
    )
    generator = torch.Generator()
    mixed(batch, generator=generator.manual_seed(0)).total.backward()
    with torch.no_grad():
        clean_BTD = encoder.normalized(encoder.convolve(batch.wave_BS, batch.lengths_B)).x_BTD
    assert float(torch.cdist(quantized[0].detach(), clean_BTD).amin(2).max()) < 1e-3
    assert float((heard[0].detach() - clean_BTD).abs().amax((1, 2)).min()) > 1e-2
    mixed.load_state_dict(plain.state_dict())
    losses = [o.eval()(batch, generator=generator.manual_seed(0)).total for o in (plain, mixed)]
    assert torch.equal(*losses), "held-out audio is heard as it is"
