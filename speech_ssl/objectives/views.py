"""Augmentations of padded waves, on the batch's device: gain, noise, shifts, mixup.

All randomness comes from the generator, so that a resumed run repeats a step bit for bit. Padding stays zero.
What is drawn depends on the batch's shape, never on its contents.

Of torchaudio only the mixing at a given SNR is used; its transforms do not fit: `Vol` clips and gives all
rows one gain, `Speed` changes the lengths, `SpecAugment` works on spectrograms (hidden spans are in
`masking.hide_spans`), and none takes a generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from speech_ssl.types import SAMPLE_RATE, valid_mask

LOWEST_HZ = 20.0
"""Coloured noise is flat below this; otherwise half of the energy of pink noise would be inaudible."""

VOICES = 3
"""Most rows in a babble; Kaldi's recipes take 3 to 7."""

SILENT = 1e-6
"""A row with a smaller 2-norm is silent: its energy cannot be matched."""

LEAST_ALPHA = 0.01
"""Below this the gamma variates that make a beta variate underflow even in double precision."""


class Mixed(NamedTuple):
    """Row i is `weight_B[i]` of itself plus the rest of row `partner_B[i]`; mix its targets likewise. A row
    that was not mixed has weight 1 and itself as its partner."""

    wave_BS: Tensor
    partner_B: Tensor
    weight_B: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixing:
    """Utterance mixing: speech or noise added to a part of some rows of the encoder's input, with targets of
    the clean wave (WavLM, Chen et al. 2021, arXiv 2110.13900, section III-B, algorithm 1)."""

    share: float = 0.2
    """Share of the rows that are mixed."""
    noise: float = 0.5
    """Share of the mixed rows that get noise; the others get another row of the batch. Noise is synthetic,
    between white and pink, where the paper uses recordings; this share is ours."""
    longest: float = 0.5
    """Longest mixed part, as a share of the row; its length is uniform."""
    speech_db: tuple[float, float] = (-5.0, 5.0)
    noise_db: tuple[float, float] = (-5.0, 20.0)
    """Ratios of the row's energy to that of what is added, each over the whole row: uniform in dB."""

    def __post_init__(self) -> None:
        for name in ("share", "noise", "longest"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} of Mixing is within 0 and 1, not {getattr(self, name)}")
        for name in ("speech_db", "noise_db"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} of Mixing must be (lowest, highest), not {low, high}")


def random_gain(wave_BS: Tensor, *, most_db: float, generator: torch.Generator) -> Tensor:
    """Scale each row by up to `most_db` up or down, uniform in dB. Nothing is clipped.

    No effect on an encoder that normalises its waves.
    """
    if most_db < 0:
        raise ValueError(f"most_db must be at least 0, not {most_db}")
    gain_db_B = most_db * (2 * _rand(len(wave_BS), generator) - 1)
    return wave_BS * 10 ** (gain_db_B[:, None] / 20)


def add_noise(
    wave_BS: Tensor,
    lengths_B: Tensor,
    *,
    snr_db: tuple[float, float],
    share: float,
    generator: torch.Generator,
    babble: float = 0.5,
) -> Tensor:
    """Add noise to a share of the rows, at signal-to-noise ratios uniform in dB over the row's length.

    A share `babble` of the noises is babble: up to three other rows of the batch with equal energy, cut or
    repeated to the row's length. The rest, and all where the other rows are silent, is noise between white
    and pink. Silent rows stay silent.
    """
    low, high = snr_db
    if low > high:
        raise ValueError(f"snr_db must be (lowest, highest), not {snr_db}")
    from torchaudio.functional import add_noise as mix

    B, S = wave_BS.shape
    noisy_B = _chosen(B, share, generator)
    snr_db_B = low + (high - low) * _rand(B, generator)
    babbling_B = _chosen(B, babble, generator)
    coloured_BS = coloured_noise(B, S, generator)
    others_BS = _babble(wave_BS, lengths_B, generator)
    babbling_B &= _norm(others_BS) > 0  # torchaudio's scale for a silent noise is NaN
    noise_BS = torch.where(babbling_B[:, None], others_BS, coloured_BS)
    noise_BS = noise_BS.masked_fill(~valid_mask(lengths_B, S), 0.0)
    return torch.where(noisy_B[:, None], mix(wave_BS, noise_BS, snr_db_B), wave_BS)


def time_shift(wave_BS: Tensor, lengths_B: Tensor, *, most_s: float, generator: torch.Generator) -> Tensor:
    """Roll each row within its own length by up to `most_s` in either direction; samples leaving at one end
    enter at the other."""
    if most_s < 0:
        raise ValueError(f"most_s must be at least 0, not {most_s}")
    B, S = wave_BS.shape
    most = round(most_s * SAMPLE_RATE)
    device = wave_BS.device
    shift_B = torch.randint(-most, most + 1, (B,), device=device, generator=generator)
    at_S = torch.arange(S, device=device)
    rolled_BS = (at_S - shift_B[:, None]) % lengths_B[:, None].clamp(min=1)
    return wave_BS.gather(1, torch.where(valid_mask(lengths_B, S), rolled_BS, at_S))


def random_crop(
    wave_BS: Tensor, lengths_B: Tensor, *, share: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A part of each row, of a share of its length that is uniform between the two, anywhere in it: waves
    (B, S), zero-padded, and their lengths (B,)."""
    low, high = share
    if not 0 < low <= high <= 1:
        raise ValueError(f"a crop must be (shortest, longest) within 0 and 1, not {share}")
    share_B = low + (high - low) * _rand(len(wave_BS), generator)
    kept_B = (share_B * lengths_B).round().long().clamp(min=1).minimum(lengths_B)
    first_B = (_rand(len(wave_BS), generator) * (lengths_B - kept_B + 1)).long()
    at_BS = first_B[:, None] + torch.arange(wave_BS.shape[1], device=wave_BS.device)
    part_BS = wave_BS.gather(1, at_BS.clamp(max=wave_BS.shape[1] - 1))
    return part_BS.masked_fill(~valid_mask(kept_B, wave_BS.shape[1]), 0.0), kept_B


def change_speed(wave_BS: Tensor, lengths_B: Tensor, factor_B: Tensor) -> tuple[Tensor, Tensor]:
    """Each row played faster by its factor (slower below 1), pitch included: waves (B, S) and their lengths.
    What a slower row has beyond S samples is cut off.

    By linear interpolation, which takes factors that differ from row to row; torchaudio's resampling takes
    one for all. Between 0.8 and 1.25 what it adds above the highest frequencies is of no weight as a view.
    """
    S = wave_BS.shape[1]
    at_BS = torch.arange(S, device=wave_BS.device) * factor_B[:, None]
    below_BS = at_BS.floor()
    last_B1 = (lengths_B - 1).clamp(min=0)[:, None]
    one_BS = wave_BS.gather(1, below_BS.long().minimum(last_B1))
    next_BS = wave_BS.gather(1, (below_BS.long() + 1).minimum(last_B1))
    changed_BS = torch.lerp(one_BS, next_BS, (at_BS - below_BS).to(wave_BS.dtype))
    length_B = (lengths_B / factor_B).floor().long().clamp(min=1, max=S)
    return changed_BS.masked_fill(~valid_mask(length_B, S), 0.0), length_B


def band_pass(wave_BS: Tensor, lengths_B: Tensor, low_hz_B: Tensor, high_hz_B: Tensor) -> Tensor:
    """Each row with what lies outside of its band 24 dB an octave quieter, without a change of phase: two
    Butterworth magnitudes of fourth order, applied in the frequency domain. 0 and 8000 Hz leave all."""
    S = wave_BS.shape[1]
    size = 1 << S.bit_length()
    hertz_F = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=wave_BS.device)[1:]
    low_B1, high_B1 = low_hz_B[:, None], high_hz_B[:, None]
    upper_BF = torch.where(high_B1 < SAMPLE_RATE / 2, 1 / (1 + (hertz_F / high_B1) ** 8).sqrt(), 1.0)
    gain_BF = upper_BF / (1 + (low_B1 / hertz_F) ** 8).sqrt()
    gain_BF = torch.cat([(low_B1 <= 0).to(gain_BF.dtype), gain_BF], dim=1)
    passed_BS: Tensor = torch.fft.irfft(torch.fft.rfft(wave_BS.float(), n=size) * gain_BF, n=size)[:, :S]
    return passed_BS.to(wave_BS.dtype).masked_fill(~valid_mask(lengths_B, S), 0.0)


def mixup(
    wave_BS: Tensor, lengths_B: Tensor, *, alpha: float, share: float, generator: torch.Generator
) -> Mixed:
    """Mix a share of the rows with one other row each: weight * row + (1 - weight) * partner.

    The weight is drawn from Beta(alpha, alpha) (Zhang et al. 2018, arXiv 1710.09412). The partner is first
    cut or repeated to the row's length and scaled to its energy, so that the weight is what is heard
    (Tokozume et al. 2018, arXiv 1711.10282, without their A-weighting and final scaling); it is not scaled if
    either is silent. A batch of one is not mixed.
    """
    if alpha < LEAST_ALPHA:
        raise ValueError(f"alpha must be at least {LEAST_ALPHA}, not {alpha}; share=0 mixes nothing")
    B, S = wave_BS.shape
    mixed_B = _chosen(B, share, generator) & (B > 1)
    own_B = torch.arange(B, device=wave_BS.device)
    step_B = torch.randint(1, max(B, 2), (B,), device=wave_BS.device, generator=generator)
    partner_B = torch.where(mixed_B, (own_B + step_B) % max(B, 1), own_B)
    weight_B = torch.where(mixed_B, beta(alpha, B, generator), 1.0)
    other_BS = _cut_or_repeated(wave_BS, lengths_B, partner_B)
    norm_B, other_norm_B = _norm(wave_BS), _norm(other_BS)
    heard_B = (norm_B > SILENT) & (other_norm_B > SILENT)
    gain_B = torch.where(heard_B, norm_B / other_norm_B.clamp(min=SILENT), 1.0)
    other_share_B = (1 - weight_B) * gain_B
    mixed_BS = weight_B[:, None] * wave_BS + other_share_B[:, None] * other_BS
    return Mixed(mixed_BS, partner_B, weight_B)


def mix_utterances(
    wave_BS: Tensor, lengths_B: Tensor, mixing: Mixing | None, generator: torch.Generator
) -> Tensor:
    """Waves (B, S) mixed as `mixing` says; None leaves them alone. The part begins anywhere in the row, and
    what is added anywhere in the other row, which is repeated if it is too short. Silent rows stay silent. A
    row alone in its batch gets noise or nothing. Nothing is clipped."""
    if mixing is None:
        return wave_BS
    B, S = wave_BS.shape
    mixed_B, noisy_B = _chosen(B, mixing.share, generator), _chosen(B, mixing.noise, generator)
    ratio_B = _rand(B, generator)
    (lowest, highest), (low, high) = mixing.noise_db, mixing.speech_db
    ratio_db_B = torch.where(noisy_B, lowest + (highest - lowest) * ratio_B, low + (high - low) * ratio_B)

    own_B = torch.arange(B, device=wave_BS.device)
    step_B = torch.randint(1, max(B, 2), (B,), device=wave_BS.device, generator=generator)
    partner_B = (own_B + step_B) % max(B, 1)
    other_BS = torch.where(
        noisy_B[:, None],
        coloured_noise(B, S, generator),
        _cut_or_repeated(wave_BS, lengths_B, partner_B, _rand(B, generator)),
    ).masked_fill(~valid_mask(lengths_B, S), 0.0)
    mixed_B = mixed_B & (noisy_B | (partner_B != own_B))

    part_B = (_rand(B, generator) * (mixing.longest * lengths_B).floor()).long() + 1
    first_B = (_rand(B, generator) * (lengths_B - part_B + 1)).long()
    at_S = torch.arange(S, device=wave_BS.device)
    inside_BS = (at_S >= first_B[:, None]) & (at_S < (first_B + part_B)[:, None])
    norm_B = _norm(other_BS)
    gain_B = torch.where(norm_B > SILENT, _norm(wave_BS) / norm_B.clamp(min=SILENT), 0.0)
    gain_B = gain_B * 10 ** (-ratio_db_B / 20)
    return torch.where(inside_BS & mixed_B[:, None], wave_BS + gain_B[:, None] * other_BS, wave_BS)


def beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draws from Beta(alpha, alpha): (count,) float32.

    Uses the kernel under torch.distributions.Beta, which itself takes no generator. In double precision, as
    the CPU kernel computes anyway: in single, both gamma variates of a small alpha often underflow.
    """
    alphas_B2 = torch.full((count, 2), alpha, dtype=torch.float64, device=generator.device)
    draws_B2: Tensor = torch._sample_dirichlet(alphas_B2, generator=generator)
    return draws_B2[:, 0].float()


def coloured_noise(rows: int, samples: int, generator: torch.Generator) -> Tensor:
    """Gaussian noise (rows, samples) with a power spectrum of 1 / f^e, e uniform between 0 (white) and 1
    (pink).

    Drawn in the frequency domain (Timmer & Koenig 1995). The scale is arbitrary.
    """
    size = 1 << (samples - 1).bit_length()
    device = generator.device
    exponent_B1 = _rand(rows, generator)[:, None]
    hertz = torch.fft.rfftfreq(size, 1 / SAMPLE_RATE, device=device).clamp(min=LOWEST_HZ)
    draws = torch.randn(rows, len(hertz), 2, device=device, generator=generator)
    spectrum = torch.view_as_complex(draws) * (hertz / LOWEST_HZ) ** (-exponent_B1 / 2)
    noise: Tensor = torch.fft.irfft(spectrum, n=size)
    return noise[:, :samples]


def _babble(wave_BS: Tensor, lengths_B: Tensor, generator: torch.Generator) -> Tensor:
    """The sum of up to VOICES other rows, each scaled to a 2-norm of 1 unless it is silent."""
    B = len(wave_BS)
    draws_BB = torch.rand(B, B, device=wave_BS.device, generator=generator).fill_diagonal_(2.0)
    others_BB = draws_BB.argsort(dim=1)
    babble_BS = torch.zeros_like(wave_BS)
    for partner_B in others_BB.T[: min(VOICES, B - 1)]:
        voice_BS = _cut_or_repeated(wave_BS, lengths_B, partner_B)
        norm_B = _norm(voice_BS)
        gain_B = torch.where(norm_B > SILENT, 1 / norm_B.clamp(min=SILENT), 0.0)
        babble_BS += gain_B[:, None] * voice_BS
    return babble_BS


def _cut_or_repeated(
    wave_BS: Tensor, lengths_B: Tensor, partner_B: Tensor, start_B: Tensor | None = None
) -> Tensor:
    """Each row's partner, cut or repeated to the row's length, then zeros. start_B: where in the partner to
    begin, as a share of its length."""
    S = wave_BS.shape[1]
    length_B1 = lengths_B[partner_B][:, None].clamp(min=1)
    at_BS = torch.arange(S, device=wave_BS.device) % length_B1
    if start_B is not None:
        at_BS = (at_BS + (start_B[:, None] * length_B1).long()) % length_B1
    return wave_BS[partner_B].gather(1, at_BS).masked_fill(~valid_mask(lengths_B, S), 0.0)


def _norm(wave_BS: Tensor) -> Tensor:
    norm_B: Tensor = torch.linalg.vector_norm(wave_BS, dim=1)
    return norm_B


def _chosen(count: int, share: float, generator: torch.Generator) -> Tensor:
    if not 0 <= share <= 1:
        raise ValueError(f"a share must be within 0 and 1, not {share}")
    return _rand(count, generator) < share


def _rand(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, device=generator.device, generator=generator)
