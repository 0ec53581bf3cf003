"""Segment order: the cross-entropy by hand, how rows are cut, and that level does not tell a segment."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch

from speech_ssl.model.encoder import Encoder
from speech_ssl.objectives.segment_order import SegmentOrder, SegmentOrderConfig
from speech_ssl.types import Batch
from tests.objectives.narrow import ENCODER
from tests.test_objective_contract import fresh, tones

pytestmark = pytest.mark.numerical


def built(segments: int = 3, free_share: float = 0.2) -> SegmentOrder:
    config = SegmentOrderConfig(segments=segments, free_share=free_share, head_width=32)
    objective = fresh(lambda: config.build(Encoder(ENCODER))).eval()
    assert isinstance(objective, SegmentOrder)
    return objective


def test_the_loss_is_the_cross_entropy_of_the_permutation() -> None:
    objective, batch = built(), tones(1, rows=4)
    with torch.no_grad():
        found = objective(batch, generator=torch.Generator().manual_seed(5))
        generator = torch.Generator().manual_seed(5)
        class_B = torch.randint(6, (4,), generator=generator).tolist()
        pieces_BNP, lengths_B = objective.cut(batch, generator)
        total = right = 0.0
        for row, drawn in enumerate(class_B):
            vectors = []
            for segment in list(permutations(range(3)))[drawn]:
                wave_S = pieces_BNP[row, segment, : int(lengths_B[row])]
                frames = objective.encoder(wave_S[None], torch.tensor([len(wave_S)]))
                vectors.append(frames.x_BTD[0].mean(0))
            logits_V = objective.head(torch.cat(vectors)).double().tolist()
            total += math.log(sum(map(math.exp, logits_V))) - logits_V[drawn]
            right += max(logits_V) == logits_V[drawn]
    assert float(found.count) == 4
    assert float(found.total) == pytest.approx(total, rel=1e-4)
    assert float(found.metrics["accuracy"]) == right


def test_who_answers_nothing_pays_the_logarithm_of_all_orders() -> None:
    objective = built(segments=4)
    torch.nn.init.zeros_(objective.head[-1].weight)
    torch.nn.init.zeros_(objective.head[-1].bias)
    found = objective(tones(1), generator=torch.Generator())
    assert float(found.total.detach() / found.count) == pytest.approx(math.log(24))
    reported = objective.report({k: v / found.count for k, v in found.metrics.items()})
    assert reported["answer_perplexity"] == pytest.approx(24, rel=1e-5)


def test_segments_are_in_their_parts_with_gaps_that_vary() -> None:
    """On a rising wave each sample tells where it is from."""
    objective = built()
    lengths_B = torch.tensor([9_000, 6_000, 6_001])
    wave_BS = torch.arange(9_000.0).expand(3, -1)
    places = set()
    for seed in range(20):
        pieces_BNP, piece_B = objective.cut(Batch(wave_BS, lengths_B), torch.Generator().manual_seed(seed))
        assert piece_B.tolist() == [2_400, 1_600, 1_600]
        assert pieces_BNP.shape == (3, 3, 2_400)
        for row, part in enumerate([3_000, 2_000, 2_000]):
            scale = float(wave_BS[row, : lengths_B[row]].double().square().mean().sqrt())
            for i in range(3):
                piece_S = pieces_BNP[row, i, : piece_B[row]].double() / scale
                # A stretch of a ramp, normalised: that it is one, and no more, is left of it.
                assert torch.allclose(piece_S.diff(), piece_S.diff().mean(), atol=1e-4)
                assert float(piece_S.std(correction=0)) == pytest.approx(1, rel=1e-3)
                assert float(piece_S.mean()) == pytest.approx(0, abs=1e-3)
            assert not pieces_BNP[row, :, piece_B[row] :].any() and part
        click_S = (torch.arange(9_000) == 1_500).float()[None]  # the middle of the first part
        pieces_BNP, _ = objective.cut(Batch(click_S, lengths_B[:1]), torch.Generator().manual_seed(seed))
        assert float(pieces_BNP[0, 1:].abs().max()) < 1e-3
        places.add(int(pieces_BNP[0, 0].argmax()))
    assert len(places) > 10 and all(900 <= place <= 1_500 for place in places)


def test_loudness_does_not_tell_a_segment() -> None:
    noise_S = torch.randn(9_000)
    louder_S = noise_S * torch.tensor([1.0, 10.0, 0.1]).repeat_interleave(3_000) + 0.5
    first, second = (
        built().cut(Batch(wave_S[None], torch.tensor([9_000])), torch.Generator().manual_seed(1))[0]
        for wave_S in (noise_S, louder_S)
    )
    unit = [x / x.std() for x in (first, second)]
    torch.testing.assert_close(unit[0], unit[1], atol=1e-3, rtol=0)


def test_rows_whose_segments_have_no_frame_are_no_targets() -> None:
    batch = Batch(torch.randn(3, 9_000), torch.tensor([9_000, 1_000, 2]))
    found = built()(batch, generator=torch.Generator())
    assert float(found.count) == 1 and bool(found.total.isfinite())
    found.total.backward()


def test_puzzles_of_too_few_or_many_pieces_are_refused() -> None:
    for segments in (1, 6):
        with pytest.raises(ValueError, match="from 2 to 5"):
            SegmentOrderConfig(segments=segments)
    with pytest.raises(ValueError, match="free_share"):
        SegmentOrderConfig(free_share=1.0)
