"""Masked auto-encoder: the loss by hand, what is hidden, and that nothing hidden is heard."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speech_ssl.model.config import Conformer, Rotary
from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.mae import MAE, MAEConfig, hide_chunks
from speech_ssl.types import Batch, Frames
from tests.objectives.methods import mel
from tests.objectives.narrow import ENCODER
from tests.objectives.reconstruction_methods import mae
from tests.test_objective_contract import fresh, tones

pytestmark = pytest.mark.numerical


def built() -> MAE:
    objective = fresh(mae).eval()
    assert isinstance(objective, MAE)
    return objective


def test_the_loss_is_the_mean_square_over_bins_summed_over_hidden_frames() -> None:
    objective, batch = built(), tones(1)
    encoder = objective.encoder
    with torch.no_grad():
        found = objective(batch, generator=torch.Generator().manual_seed(5))
        raw = encoder.convolve(batch.wave_BS, batch.lengths_B)
        hidden_BT = hide_chunks(
            raw.lengths_B,
            raw.x_BTD.shape[1],
            share=0.75,
            span=2,
            generator=torch.Generator().manual_seed(5),
        )
        visible, position_BK = encoder.visible(encoder.normalized(raw), hidden_BT)
        decoded_BTC = objective.decoder(visible, position_BK, raw.lengths_B, raw.x_BTD.shape[1])
        total = blind = count = 0.0
        for row, length in enumerate(raw.lengths_B.tolist()):
            for t in range(length):
                if hidden_BT[row, t]:
                    true_C = raw.x_BTD[row, t].double()
                    total += float((decoded_BTC[row, t].double() - true_C).square().mean())
                    blind += float(true_C.square().mean())
                    count += 1
    assert float(found.count) == count > 0
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert float(found.metrics["blind"]) == pytest.approx(blind, rel=1e-5)


def test_three_quarters_of_the_chunks_are_hidden_whatever_the_length() -> None:
    lengths_B = torch.tensor([80, 41, 3, 2, 1, 0])
    hidden_BT = hide_chunks(lengths_B, 80, share=0.75, span=2, generator=torch.Generator().manual_seed(0))
    assert hidden_BT[0].view(40, 2).float().mean(1).unique().tolist() == [0.0, 1.0]
    assert hidden_BT.sum(1).tolist()[0] == 60
    assert 30 <= int(hidden_BT[1].sum()) <= 32  # 16 of 21 chunks, of which the last has one frame
    assert 1 <= int(hidden_BT[2].sum()) <= 2
    assert hidden_BT[3:].sum() == 0  # the only chunk stays visible
    assert not (hidden_BT & (torch.arange(80) >= lengths_B[:, None])).any()


def test_the_decoder_puts_each_vector_at_its_place_and_the_hidden_vector_elsewhere() -> None:
    decoder = built().decoder
    entered: list[torch.Tensor] = []

    def positions(frames: Frames) -> torch.Tensor:
        entered.append(frames.x_BTD)
        return torch.zeros_like(frames.x_BTD)

    decoder.positions.forward = positions  # type: ignore[union-attr,assignment,method-assign]
    visible = Frames(torch.randn(2, 3, ENCODER.width), torch.tensor([3, 2]))
    place_BK = torch.tensor([[0, 2, 5], [1, 3, 0]])
    with torch.no_grad():
        decoder(visible, place_BK, torch.tensor([6, 4]), 6)
        wanted_BTD = decoder.hidden_vector.expand(2, 6, -1).clone()
        given_BKD = decoder.enter(visible.x_BTD)
    for row, places in enumerate([[0, 2, 5], [1, 3]]):
        for k, place in enumerate(places):
            wanted_BTD[row, place] = given_BKD[row, k]
    wanted_BTD[1, 4:] = 0.0
    torch.testing.assert_close(entered[0], wanted_BTD)


def test_what_is_hidden_is_not_heard() -> None:
    """Frames that are hidden may hold anything, and the reconstruction is the same."""
    objective = built()
    x_BTC = torch.randn(1, 40, objective.encoder.config.frontend.width)
    hidden_BT = torch.arange(40)[None] % 4 != 0
    other_BTC = torch.where(hidden_BT[:, :, None], torch.randn_like(x_BTC), x_BTC)
    lengths_B = torch.tensor([40])
    with torch.no_grad():
        first, second = (
            objective.decoder(
                *objective.encoder.visible(objective.encoder.normalized(Frames(x, lengths_B)), hidden_BT),
                lengths_B,
                40,
            )
            for x in (x_BTC, other_BTC)
        )
    torch.testing.assert_close(first, second)
    assert first.std(dim=1).min() > 0


def test_a_row_of_one_chunk_has_no_target() -> None:
    batch = Batch(torch.randn(1, 900), torch.tensor([900]))
    found = built()(batch, generator=torch.Generator())
    assert float(found.count) == float(found.total.detach()) == 0


def test_uniformity_adds_the_similarity_of_different_clips_frames() -> None:
    """Weighted as a mean over the targets is; without it the loss is as it was."""
    plain = built()
    uniform = MAE(plain.encoder, replace(plain.config, uniformity=0.25)).eval()
    uniform.load_state_dict(plain.state_dict())
    with torch.no_grad():
        first, second = (
            each(tones(1), generator=torch.Generator().manual_seed(5)) for each in (plain, uniform)
        )
    assert (plain.adds, uniform.adds) == (True, False)
    assert torch.equal(second.metrics["reconstruction"], first.total)
    similar = second.metrics["similarity"] / second.count
    assert 1 / plain.encoder.config.width < float(similar) <= 1
    torch.testing.assert_close(second.total, first.total + 0.25 * second.metrics["similarity"])
    means = {name: value / second.count for name, value in second.metrics.items()}
    assert uniform.report(means)["similarity"] == pytest.approx(float(similar))


def test_uniformity_spreads_contexts_that_point_in_one_direction() -> None:
    objective = built().train()
    uniform = MAE(objective.encoder, replace(objective.config, uniformity=100.0))
    with torch.no_grad():
        uniform.encoder.norm.bias.fill_(3.0)  # type: ignore[union-attr,operator]
    optimizer, seen = torch.optim.Adam(uniform.encoder.parameters(), 0.1), []
    for step in range(30):
        found = uniform(tones(step), generator=torch.Generator().manual_seed(step))
        seen.append(float((found.metrics["similarity"] / found.count).detach()))
        optimizer.zero_grad()
        (found.total / found.count).backward()
        optimizer.step()
    assert seen[0] > 0.75 and sum(seen[-5:]) / 5 < 0.55, seen


def test_targets_may_be_normalised_frame_by_frame() -> None:
    objective = MAE(built().encoder, MAEConfig(frame_norm=True, decoder_width=32, decoder_heads=2))
    x_BTC = torch.randn(2, 5, 32) * 3 + 1
    found = objective.target(x_BTC)
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.square().mean(-1), torch.ones(2, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(objective.target(7 * x_BTC - 2), found, atol=1e-4, rtol=0)
    assert torch.equal(built().target(x_BTC), x_BTC)


def test_encoders_and_numbers_that_do_not_fit_are_refused() -> None:
    conformer = mel(ENCODER).changed(block=Conformer(kernel=5), positions=Rotary())
    for config in (ENCODER, conformer):
        with pytest.raises(ValueError, match="LogMel front end and a Transformer"):
            MAEConfig().build(Encoder(config))
    with pytest.raises(ValueError, match="hidden_share"):
        MAEConfig(hidden_share=1.0)
    with pytest.raises(ValueError, match="hidden_span"):
        MAEConfig(hidden_span=0)
    with pytest.raises(ValueError, match="uniformity is a weight"):
        MAEConfig(uniformity=-0.1)
