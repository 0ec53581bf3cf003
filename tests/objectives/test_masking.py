"""Hidden spans: counts in closed form, independence of the neighbours, fixed shapes."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_ssl.objectives.masking import (
    all_but_blocks,
    hidden_positions,
    hide_spans,
    highest,
    most_hidden,
    take,
)
from speech_ssl.types import valid_mask

WAV2VEC2 = {"share": 0.65, "span": 10}


def hide(lengths: list[int], size: int, seed: int, share: float = 0.65, span: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return hide_spans(torch.tensor(lengths), size, share=share, span=span, generator=generator)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=6),
    padding=st.integers(0, 30),
    share=st.floats(0.05, 1.0),
    span=st.integers(1, 20),
    seed=st.integers(0, 9),
)
def test_spans_stay_on_valid_frames_and_within_their_bound(
    lengths: list[int], padding: int, share: float, span: int, seed: int
) -> None:
    size = max(lengths) + padding
    hidden_BT = hide(lengths, size, seed, share, span)
    assert not (hidden_BT & ~valid_mask(torch.tensor(lengths), size)).any()
    assert hidden_BT.any(1).all()
    assert int(hidden_BT.sum(1).max()) <= most_hidden(size, share=share, span=span)
    for row, length in zip(hidden_BT.tolist(), lengths, strict=True):
        runs = "".join("x" if hidden else " " for hidden in row).split()
        assert all(len(run) >= min(span, length) for run in runs)


def test_the_share_hidden_is_the_published_one() -> None:
    hidden_BT = hide([780] * 400, 780, 0)
    assert abs(float(hidden_BT.float().mean()) - 0.49) < 0.01


def test_a_short_row_does_not_change_the_share_of_a_long_one() -> None:
    lengths = [780] * 5 + [150]
    share = torch.stack([hide(lengths, 780, seed)[:5].float().mean() for seed in range(60)]).mean()
    assert abs(float(share) - 0.49) < 0.01  # 9 % where the shortest row decides


def test_starts_are_uniform_over_the_row() -> None:
    hidden_BT = hide([40] * 20_000, 50, 1, share=0.25)  # one or two spans a row
    inner = hidden_BT[:, 9:31].float().mean(0)  # frames that as many starts reach
    assert float(inner.max() - inner.min()) < 0.02


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(30, 200), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_positions_are_the_hidden_frames_in_order(lengths: list[int], seed: int) -> None:
    size = max(lengths)
    hidden_BT = hide(lengths, size, seed)
    most = most_hidden(size, **WAV2VEC2)  # type: ignore[arg-type]
    position_BM, chosen_BM = hidden_positions(hidden_BT, most)
    assert position_BM.shape == (len(lengths), most)
    for hidden_T, position_M, chosen_M in zip(hidden_BT, position_BM, chosen_BM, strict=True):
        assert position_M[chosen_M].tolist() == hidden_T.nonzero().flatten().tolist()


def test_what_stays_visible_has_its_exact_number_and_stays_in_blocks() -> None:
    lengths_B = torch.tensor([200, 131, 20, 2, 1])
    hidden_BT = all_but_blocks(
        lengths_B, 210, share=0.8, block=5, adjust=0.07, generator=torch.Generator().manual_seed(0)
    )
    assert not (hidden_BT & ~valid_mask(lengths_B, 210)).any()
    assert hidden_BT.sum(1).tolist() == [160, 131 - 26, 16, 1, 0]
    visible_T = (~hidden_BT[0, :200]).tolist()
    neighbours = sum(a and b for a, b in zip(visible_T, visible_T[1:], strict=False))
    assert neighbours > 20  # 8 of 40 frames by chance, 32 if all stood in blocks of five


def test_the_highest_are_chosen_and_of_equal_ones_any() -> None:
    rank_BT = torch.tensor([[2.0, 0.0, 1.0, 1.0, 1.0, 1.0]]).expand(300, -1)
    chosen_BT = highest(
        rank_BT, torch.full((300,), 2), torch.full((300,), 5), torch.Generator().manual_seed(0)
    )
    assert chosen_BT[:, 0].all() and not chosen_BT[:, [1, 5]].any() and (chosen_BT.sum(1) == 2).all()
    assert chosen_BT[:, 2:5].any(0).all()


def test_frames_are_taken_at_their_places() -> None:
    x_BTD, position_BM = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    found_BMD = take(x_BTD, position_BM)
    assert all(torch.equal(found_BMD[b, m], x_BTD[b, position_BM[b, m]]) for b in range(2) for m in range(2))
