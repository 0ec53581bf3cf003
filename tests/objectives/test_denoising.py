"""Denoising: the loss by hand, which log-mel steps a frame has, and what each damage does."""

from __future__ import annotations

import pytest
import torch

from speech_ssl.model.config import Convolutions, EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.mel import log_mel
from speech_ssl.objectives.denoising import Damage, Denoising, DenoisingConfig, low_pass, silence_frames
from speech_ssl.types import Batch
from tests.objectives.methods import mel
from tests.objectives.narrow import ENCODER
from tests.test_objective_contract import fresh, tones

pytestmark = pytest.mark.numerical


def built(damage: Damage = "noise", encoder: EncoderConfig = ENCODER) -> Denoising:
    objective = fresh(lambda: DenoisingConfig(damage=damage, bins=16).build(Encoder(encoder))).eval()
    assert isinstance(objective, Denoising)
    return objective


@pytest.mark.parametrize("damage", ["noise", "bandwidth", "inpainting"])
def test_the_loss_is_the_distance_to_clean_log_mel_steps(damage: Damage) -> None:
    """The steps that begin at 320 t and 320 t + 160 for frame t, normalised by bin."""
    objective, batch = built(damage), tones(1)
    with torch.no_grad():
        found = objective(batch, generator=torch.Generator().manual_seed(5))
        damaged_BS, chosen_BT = objective._damaged(
            batch.wave_BS, batch.lengths_B, torch.Generator().manual_seed(5)
        )
        predicted_BTC = objective.predict(objective.encoder(damaged_BS, batch.lengths_B).x_BTD).double()
        total = count = blind = 0.0
        for row, samples in enumerate(batch.lengths_B.tolist()):
            clean_NC = log_mel(batch.wave_BS[row, :samples].double()[None], 16)[0]
            clean_NC = (clean_NC - clean_NC.mean(0)) / (clean_NC.var(0) + 1e-7).sqrt()
            for t in range((samples - 400) // 320 + 1):
                if damage != "inpainting" or chosen_BT[row, t]:
                    true_KC = clean_NC[2 * t : 2 * t + 2]  # the last frame may have one step alone
                    told_KC = predicted_BTC[row, t].view(2, 16)[: len(true_KC)]
                    total += float((told_KC - true_KC).abs().mean())
                    blind += float(true_KC.abs().mean())
                    count += 1
    assert float(found.count) == count > 0
    assert float(found.total) == pytest.approx(total, rel=1e-5)
    assert float(found.metrics["blind"]) == pytest.approx(blind, rel=1e-5)
    assert not torch.equal(damaged_BS, batch.wave_BS)


def test_a_clean_wave_would_be_told_by_its_own_frames() -> None:
    """Frames of a log-mel front end are the targets themselves: the steps fit each other."""
    objective, batch = built(encoder=mel(ENCODER)), tones(2)
    frames = objective.encoder.convolve(batch.wave_BS, batch.lengths_B)
    T = frames.x_BTD.shape[1]
    target_BTKC, there_BTK = objective.targets(batch.wave_BS, batch.lengths_B, T)
    assert there_BTK[frames.valid_BT].all()
    torch.testing.assert_close(target_BTKC.flatten(2)[frames.valid_BT], frames.x_BTD[frames.valid_BT])


def test_other_hops_have_other_steps() -> None:
    wide = ENCODER.changed(frontend={"strides": (5, 2, 2, 2, 2, 2, 4)})
    assert built(encoder=wide).steps == 4 and built(encoder=wide).encoder.hop == 640
    short = Convolutions(channels=(16,), kernels=(10,), strides=(5,), norm="layer", bias=True)
    with pytest.raises(ValueError, match="400 samples"):
        built(encoder=EncoderConfig(frontend=short, width=32, heads=2, ffn_width=64, depth=1))


def test_silence_is_told_as_zero() -> None:
    objective = built()
    target_BTKC, _ = objective.targets(torch.zeros(1, 8_000), torch.tensor([8_000]), 20)
    assert target_BTKC.abs().max() < 1e-6


def test_nothing_above_the_cutoff_is_left() -> None:
    wave_BS = torch.randn(2, 16_000)
    passed_BS = low_pass(wave_BS, torch.tensor([16_000, 16_000]), torch.tensor([1_500.0, 4_000.0]))
    power_BF = torch.fft.rfft(passed_BS * torch.hann_window(16_000)).abs().square()
    above_B = torch.stack([power_BF[0, 1_600:].sum(), power_BF[1, 4_100:].sum()])
    assert (above_B / power_BF.sum(1)).max() < 1e-5
    kept = torch.fft.rfft(wave_BS * torch.hann_window(16_000)).abs().square()
    torch.testing.assert_close(power_BF[0, :1_400], kept[0, :1_400], rtol=0.05, atol=1.0)


def test_frames_that_are_filled_in_hear_nothing() -> None:
    wave_BS = torch.ones(1, 4_000)
    hidden_BT = torch.tensor([[False, False, True, True, False, False, False, False, False, False, False]])
    silent_S = silence_frames(wave_BS, hidden_BT, 320, 560)[0] == 0
    assert silent_S.nonzero().flatten().tolist() == list(range(2 * 320, 3 * 320 + 560))


def test_damage_stays_within_the_row_and_leaves_silence_silent() -> None:
    batch = tones(1)
    wave_BS = torch.cat([torch.zeros(1, batch.wave_BS.shape[1]), batch.wave_BS[1:]])
    for damage in ("noise", "bandwidth", "inpainting"):
        damaged_BS, _ = built(damage)._damaged(wave_BS, batch.lengths_B, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
        padding_BS = torch.arange(wave_BS.shape[1]) >= batch.lengths_B[:, None]
        assert not damaged_BS[0].any() and not damaged_BS[padding_BS].any(), damage


def test_rows_without_a_frame_have_no_target() -> None:
    for damage in ("noise", "bandwidth", "inpainting"):
        both = Batch(torch.randn(2, 8_000), torch.tensor([8_000, 100]))
        one = Batch(both.wave_BS[:1], both.lengths_B[:1])
        counts = [float(built(damage)(batch, generator=torch.Generator()).count) for batch in (both, one)]  # type: ignore[arg-type]
        assert counts[0] == counts[1] or damage == "inpainting"  # which draws by the batch's shape


def test_numbers_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="noise, bandwidth, inpainting"):
        DenoisingConfig(damage="clipping")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cutoff_hz"):
        DenoisingConfig(cutoff_hz=(4_000.0, 1_000.0))
