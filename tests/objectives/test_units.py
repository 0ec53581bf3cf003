"""Clusters of frames as Lloyd's algorithm finds them, MFCCs as torchaudio's, and what units say of phones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from speech_ssl.model.config import LogMel
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.frontends.mel import MelFrontend
from speech_ssl.objectives.base import perplexity
from speech_ssl.objectives.units import (
    KMeans,
    Units,
    cluster_purity,
    mfcc,
    mfcc_frames,
    on_grid,
    phone_purity,
    pnmi,
    usage,
)
from speech_ssl.types import Batch, Frames
from tests.objectives.narrow import ENCODER, QUIET
from tests.test_objective_contract import tones

pytestmark = pytest.mark.numerical


def blobs(count: int, clusters: int, seed: int = 0, spread: float = 0.3) -> Tensor:
    """Points (N, 5) around centres that are far from each other."""
    centres_KD = 4 * torch.randn(clusters, 5, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    chosen_N = torch.randint(0, clusters, (count,), generator=generator)
    return centres_KD[chosen_N] + spread * torch.randn(count, 5, generator=generator)


def parts(x_ND: Tensor, size: int = 100) -> Iterator[Tensor]:
    yield from x_ND.split(size)


def fitted(x_ND: Tensor, clusters: int, *, seed: int = 0, total: int | None = None) -> KMeans:
    kmeans = KMeans(clusters, x_ND.shape[1])
    generator = torch.Generator().manual_seed(seed)
    kmeans.fit(parts(x_ND), total=total or len(x_ND), generator=generator)
    return kmeans


def inertia(x_ND: Tensor, centroids_KD: Tensor) -> float:
    return float(torch.cdist(x_ND.double(), centroids_KD.double()).amin(1).square().mean())


def lloyd(x_ND: Tensor, centroids_KD: Tensor, rounds: int = 50) -> Tensor:
    """The textbook's algorithm, on all points at once."""
    centroids_KD = centroids_KD.double().clone()
    for _ in range(rounds):
        nearest_N = torch.cdist(x_ND.double(), centroids_KD).argmin(1)
        for k in range(len(centroids_KD)):
            if (nearest_N == k).any():
                centroids_KD[k] = x_ND[nearest_N == k].double().mean(0)
    return centroids_KD


def test_a_stream_is_clustered_nearly_as_well_as_by_lloyds_algorithm_on_all_of_it() -> None:
    x_ND = blobs(10_000, 20, spread=3.0)
    kmeans = fitted(x_ND, 20)
    ours = inertia(x_ND, kmeans.centroids_KD)
    assert ours < 1.02 * inertia(x_ND, lloyd(x_ND, kmeans.centroids_KD))
    assert ours < 1.02 * inertia(x_ND, lloyd(x_ND, x_ND[:20]))


def test_clusters_apart_are_all_found() -> None:
    x_ND = blobs(4_000, 10)
    kmeans = fitted(x_ND, 10)
    assert inertia(x_ND, kmeans.centroids_KD) < 1.05 * 5 * 0.3**2
    assert float(perplexity(usage(kmeans(x_ND), torch.ones(4_000), 10)[None] / 4_000)) > 9


def test_the_nearest_centroid_is_chosen() -> None:
    x_ND = blobs(500, 6, spread=2.0) + 30
    kmeans = fitted(x_ND, 9)
    expected_N = torch.cdist(x_ND.double(), kmeans.centroids_KD.double()).argmin(1)
    assert torch.equal(kmeans(x_ND), expected_N)
    assert torch.equal(kmeans(x_ND.reshape(5, 100, -1)), expected_N.reshape(5, 100))


def test_what_is_new_in_the_stream_gets_a_cluster() -> None:
    """Points of one place for so long that all centroids are there; then others come."""
    generator = torch.Generator().manual_seed(0)
    near_ND, far_ND = 0.01 * torch.randn(1_200, 5, generator=generator), blobs(8_000, 10)
    kmeans = fitted(torch.cat([near_ND, far_ND]), 16)
    assert inertia(far_ND, kmeans.centroids_KD) < 1.2 * 5 * 0.3**2, "3 and more where none began anew"


def test_equal_points_and_such_that_are_no_numbers_do_no_harm() -> None:
    x_ND = torch.ones(900, 5)
    x_ND[::3] = torch.nan
    kmeans = fitted(x_ND, 4)
    assert kmeans.centroids_KD.isfinite().all()
    assert inertia(torch.ones(1, 5), kmeans.centroids_KD) == 0


def test_the_same_generator_gives_the_same_units_and_so_many_frames_are_read() -> None:
    x_ND = blobs(3_000, 20, spread=1.0)
    one, same, other = (fitted(x_ND, 12, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.centroids_KD, same.centroids_KD)
    assert not torch.equal(one.centroids_KD, other.centroids_KD)
    read = []
    KMeans(12, 5).fit(
        (read.append(part) or part for part in parts(x_ND)),  # type: ignore[func-returns-value]
        total=700,
        generator=torch.Generator().manual_seed(0),
    )
    assert sum(map(len, read)) == 1_200, "in samples of 50 a cluster"


def test_mfccs_are_those_of_torchaudio() -> None:
    """As fairseq computes HuBERT's: Kaldi's MFCCs, and torchaudio's deltas of them and of these."""
    from torchaudio.compliance import kaldi
    from torchaudio.functional import compute_deltas

    wave_BS, lengths_B = tones(1).wave_BS, tones(1).lengths_B
    found = mfcc(wave_BS, lengths_B)
    for b, length in enumerate(lengths_B.tolist()):
        x_KT = kaldi.mfcc(wave_BS[b : b + 1, :length] * 2**15, use_energy=False, dither=0.0).T
        first_KT = compute_deltas(x_KT[None])[0]
        expected_TD = torch.cat([x_KT, first_KT, compute_deltas(first_KT[None])[0]]).T
        assert len(expected_TD) == found.lengths_B[b]
        torch.testing.assert_close(found.x_BTD[b, : len(expected_TD)], expected_TD, atol=2e-2, rtol=1e-3)


def test_every_other_step_is_at_a_frame_of_the_published_convolutions() -> None:
    encoder, batch = Encoder(ENCODER), tones(1)
    steps = mfcc(batch.wave_BS, batch.lengths_B)
    frames = on_grid(steps, 160, 400, encoder, batch)
    count = int(frames.lengths_B[0])
    assert count == encoder.frame_count(16_000)
    assert torch.equal(frames.x_BTD[0, :count], steps.x_BTD[0, : 2 * count : 2])


@pytest.mark.parametrize(("hop", "field"), [(160, 400), (320, 560), (320, 400), (640, 1_000)])
@pytest.mark.parametrize("front", ["convolutions", "mel"])
def test_a_frame_gets_the_step_nearest_to_its_middle(front: str, hop: int, field: int) -> None:
    config = ENCODER if front == "convolutions" else ENCODER.changed(frontend=LogMel(bins=8))
    encoder, batch = Encoder(config), tones(1)
    counts_B = ((batch.lengths_B - field) // hop + 1).clamp(min=0)
    x_BTD = torch.arange(int(counts_B.max())).float()[None, :, None].expand(3, -1, 1)
    found = on_grid(Frames(x_BTD, counts_B), hop, field, encoder, batch)
    assert torch.equal(found.lengths_B, encoder.frame_count(batch.lengths_B))
    for b in range(3):
        for t in range(int(found.lengths_B[b])):
            middle = t * encoder.hop + encoder.receptive_field / 2
            apart = [abs(j * hop + field / 2 - middle) for j in range(int(counts_B[b]))]
            assert apart[int(found.x_BTD[b, t, 0])] == min(apart)


@pytest.mark.parametrize("normalizes", [True, False])
def test_loudness_is_in_the_mfccs_if_the_encoder_hears_it(normalizes: bool) -> None:
    encoder = Encoder(ENCODER.changed(frontend={"normalize_wave": normalizes}))
    batch = tones(1)
    loud, soft = (
        mfcc_frames(gain * batch.wave_BS, batch.lengths_B, encoder).x_BTD[0, :40] for gain in (1.0, 0.1)
    )
    assert torch.allclose(loud, soft, atol=1e-2) == normalizes
    torch.testing.assert_close(loud[:, 1:13], soft[:, 1:13], atol=1e-2, rtol=1e-2)


def test_frames_of_a_teacher_are_its_layers() -> None:
    torch.manual_seed(0)
    encoder, teacher, batch = Encoder(ENCODER), Encoder(QUIET), tones(1)
    units = Units(8, 2, teacher)
    found = units.describe(batch, encoder)
    expected = teacher.eval().hidden_states(batch.wave_BS, batch.lengths_B)[2]
    for b, count in enumerate(found.lengths_B.tolist()):
        torch.testing.assert_close(found.x_BTD[b, :count], expected[b, :count])
    assert not any(name.startswith("teacher") for name in units.state_dict())
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match="layers 0 to 3, not 4"):
        Units(8, 4, teacher)


@pytest.mark.parametrize("source", ["mfcc", 2])
def test_features_by_clip_have_no_mean_and_no_scale(source: Literal["mfcc"] | int) -> None:
    """Of each row's valid frames, as numpy has them."""
    torch.manual_seed(0)
    encoder, batch = Encoder(ENCODER), tones(1)
    teacher = None if source == "mfcc" else Encoder(QUIET)
    plain, by_clip = (Units(8, source, teacher, by_clip=on).describe(batch, encoder) for on in (False, True))
    assert torch.equal(plain.lengths_B, by_clip.lengths_B)
    for row, count in enumerate(plain.lengths_B.tolist()):
        x_TD = plain.x_BTD[row, :count].double().numpy()
        expected_TD = (x_TD - x_TD.mean(0)) / np.sqrt(x_TD.var(0) + 1e-5)
        np.testing.assert_allclose(by_clip.x_BTD[row, :count].numpy(), expected_TD, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(plain.x_BTD, by_clip.x_BTD)


def test_a_batch_of_less_than_a_step_has_units() -> None:
    """A teacher of mel bins needs 560 samples for its first frame, a student of convolutions 400."""
    teacher = Encoder(ENCODER.changed(frontend=LogMel(bins=8)))
    assert isinstance(teacher.frontend, MelFrontend)
    batch = Batch(0.1 * torch.randn(2, 450), torch.tensor([450, 400]))
    assert Units(8, 1, teacher)(batch, Encoder(ENCODER)).shape == (2, 1)


def literal(units: list[int], phones: list[int]) -> tuple[float, float, float]:
    """PNMI, phone purity and cluster purity by their definitions, pair by pair."""
    n = len(units)
    joint, unit, phone = Counter(zip(units, phones, strict=True)), Counter(units), Counter(phones)
    shared = sum(c / n * math.log((c / n) / (unit[z] / n * phone[y] / n)) for (z, y), c in joint.items())
    entropy = -sum(c / n * math.log(c / n) for c in phone.values())
    likely_phone = {z: max(phone, key=lambda y: joint[z, y]) for z in unit}
    likely_unit = {y: max(unit, key=lambda z: joint[z, y]) for y in phone}
    phone_purity = sum(unit[z] / n * joint[z, likely_phone[z]] / unit[z] for z in unit)
    cluster_purity = sum(phone[y] / n * joint[likely_unit[y], y] / phone[y] for y in phone)
    return shared / entropy, phone_purity, cluster_purity


def test_what_units_say_of_phones_is_as_defined() -> None:
    generator = torch.Generator().manual_seed(0)
    phone_N = torch.randint(0, 6, (400,), generator=generator)
    unit_N = (2 * phone_N + torch.randint(0, 5, (400,), generator=generator)) % 11
    ours = (pnmi(unit_N, phone_N), phone_purity(unit_N, phone_N), cluster_purity(unit_N, phone_N))
    assert ours == pytest.approx(literal(unit_N.tolist(), phone_N.tolist()), abs=1e-12)


def test_units_that_tell_all_or_nothing() -> None:
    phone_N = torch.arange(4).repeat_interleave(6)
    assert pnmi(phone_N, phone_N) == pytest.approx(1) == phone_purity(phone_N, phone_N)
    each_N = torch.arange(24)  # a unit for each frame: all is known, but no phone has one unit
    assert pnmi(each_N, phone_N) == pytest.approx(1) == phone_purity(each_N, phone_N)
    assert cluster_purity(each_N, phone_N) == pytest.approx(1 / 6)
    assert pnmi(torch.zeros_like(phone_N), phone_N) == pytest.approx(0)
    assert phone_purity(torch.zeros_like(phone_N), phone_N) == 0.25
    assert pnmi(phone_N, torch.zeros_like(phone_N)) == 0
    with pytest.raises(ValueError, match="as many phones as units"):
        pnmi(phone_N, phone_N[:3])
