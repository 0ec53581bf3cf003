"""Adapters of CTC heads: their descriptions, fewer frames, and padding that nobody hears."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from speech_ssl.model.heads.adapters import Halving
from speech_ssl.model.heads.head import CTCHead
from speech_ssl.model.heads.specs import AdapterSpec, CTCSpec, spec_from_dict, spec_to_dict
from speech_ssl.model.presets import tiny
from speech_ssl.types import Frames

pytestmark = pytest.mark.numerical

WIDTH = 16
CONFIG = replace(tiny(), width=WIDTH, depth=1, heads=2)
CONVOLUTIONS = AdapterSpec(kind="convolutions", layers=2, width=WIDTH)
PROJECTED = AdapterSpec(kind="convolutions", layers=3, width=12)
BLOCKS = AdapterSpec(kind="blocks", layers=1, width=WIDTH, eps=1e-3, heads=4, ffn_width=20)
FULL_BLOCKS = replace(BLOCKS, layers=2, width=12, activation="gelu", ffn_first=True)
ALL = [CONVOLUTIONS, PROJECTED, BLOCKS, FULL_BLOCKS]
names = pytest.mark.parametrize("adapter", ALL, ids=["convolutions", "projected", "blocks", "full blocks"])


def spec_of(adapter: AdapterSpec | None) -> CTCSpec:
    return CTCSpec(vocabulary=("<blank>", " ", "a", "b"), adapter=adapter)


@pytest.fixture(scope="module", autouse=True)
def own_randomness() -> Iterator[None]:
    """Other tests draw as if these were not there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def head_of(adapter: AdapterSpec) -> CTCHead:
    torch.manual_seed(0)
    head = spec_of(adapter).build(CONFIG).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return head


def frames_of(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@names
def test_a_description_comes_back(adapter: AdapterSpec) -> None:
    values = spec_to_dict(spec_of(adapter))
    assert type(values["adapter"]) is dict
    assert spec_from_dict(values) == spec_of(adapter)


def test_a_head_without_one_is_described_as_before() -> None:
    values = spec_to_dict(spec_of(None))
    assert values == {"kind": "ctc", "vocabulary": ["<blank>", " ", "a", "b"]}
    assert spec_from_dict(values) == spec_from_dict({**values, "adapter": None}) == spec_of(None)
    assert spec_of(None).stride == 1


@pytest.mark.parametrize(
    ("adapter", "changes", "words"),
    [
        (BLOCKS, {"kind": "magic"}, "kind must be 'convolutions' or 'blocks', not 'magic'"),
        (BLOCKS, {"layers": 0}, "layers must be a whole number from 1, not 0"),
        (BLOCKS, {"layers": 9}, "can have 8 layers at most, not 9"),
        (BLOCKS, {"width": 2**21}, "width must be a whole number from 1, not 2097152"),
        (BLOCKS, {"width": 12.0}, "width must be a whole number from 1, not 12.0"),
        (BLOCKS, {"heads": 0}, "heads must be a whole number from 1, not 0"),
        (BLOCKS, {"heads": 3}, "width 16 must be a multiple of its heads 3"),
        (BLOCKS, {"ffn_width": True}, "ffn_width must be a whole number from 1, not True"),
        (BLOCKS, {"activation": "mish"}, "activation must be one of gelu, .*, not 'mish'"),
        (BLOCKS, {"ffn_first": 1}, "ffn_first must be true or false, not 1"),
        (BLOCKS, {"eps": 0.0}, "eps must be above 0 and below 1, not 0.0"),
        (BLOCKS, {"kernel": 5}, "field 'kernel' of the adapter is not known"),
        (CONVOLUTIONS, {"heads": 2}, "an adapter of convolutions has no heads"),
        (CONVOLUTIONS, {"ffn_first": True}, "an adapter of convolutions has no heads"),
    ],
)
def test_a_wrong_description_is_refused(adapter: AdapterSpec, changes: dict[str, Any], words: str) -> None:
    values = spec_to_dict(spec_of(adapter))
    with pytest.raises(ValueError, match=words) as refusal:
        spec_from_dict({**values, "adapter": {**values["adapter"], **changes}})
    assert "\n" not in str(refusal.value)


def test_what_is_no_description_is_refused() -> None:
    values = spec_to_dict(spec_of(BLOCKS))
    del values["adapter"]["layers"]
    with pytest.raises(ValueError, match="field 'layers' of the adapter is missing"):
        spec_from_dict(values)
    with pytest.raises(ValueError, match="adapter must be an object with its fields, not 3"):
        spec_from_dict({**values, "adapter": 3})


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
def test_halving_is_a_gated_convolution_of_every_second_frame(count: int) -> None:
    """By its definition, frame by frame; beyond the ends is nothing."""
    torch.manual_seed(0)
    halving = Halving(WIDTH)
    with torch.no_grad():
        halving.bias.normal_()
    x_TD = frames_of(count)
    (halved_TD,) = halving(Frames(x_TD[None], torch.tensor([count])))
    assert len(halved_TD) == -(-count // 2)
    for t, found_D in enumerate(halved_TD):
        near = [(k, 2 * t + k - 1) for k in range(3) if 0 <= 2 * t + k - 1 < count]
        both = halving.bias + sum(halving.weight[:, :, k] @ x_TD[place] for k, place in near)
        value_D, gate_D = both.chunk(2)
        torch.testing.assert_close(found_D, value_D * gate_D.sigmoid(), atol=1e-5, rtol=0)


@names
@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 17])
def test_every_frame_of_the_encoder_has_outputs(adapter: AdapterSpec, count: int) -> None:
    """The first of each `stride` is repeated; they are probabilities in fp32."""
    outputs_1TV = head_of(adapter)([frames_of(count)[None]])
    assert outputs_1TV.shape == (1, count, 4) and outputs_1TV.dtype == torch.float32
    stride = spec_of(adapter).stride
    assert stride == 2**adapter.layers
    again = outputs_1TV[:, ::stride].repeat_interleave(stride, dim=1)[:, :count]
    assert torch.equal(outputs_1TV, again)
    assert len(outputs_1TV[0, ::stride].unique(dim=0)) == -(-count // stride)
    torch.testing.assert_close(outputs_1TV.exp().sum(-1), torch.ones(1, count))


@names
@settings(max_examples=20)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    padding=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_a_row_is_the_same_alone_and_in_any_batch(
    adapter: AdapterSpec, counts: list[int], padding: int, seed: int
) -> None:
    head, rows = head_of(adapter), [frames_of(count, seed + i) for i, count in enumerate(counts)]
    x_BTD = torch.full((len(rows), max(counts) + padding, WIDTH), 1e3)
    for row_TD, given_TD in zip(x_BTD, rows, strict=True):
        row_TD[: len(given_TD)] = given_TD
    with torch.inference_mode():
        together = head([x_BTD], torch.tensor(counts))
        for outputs_TV, given_TD in zip(together, rows, strict=True):
            (alone_TV,) = head([given_TD[None]])
            torch.testing.assert_close(outputs_TV[: len(given_TD)], alone_TV, atol=1e-4, rtol=0)


def test_a_head_without_one_needs_no_lengths() -> None:
    head = spec_of(None).build(CONFIG).eval()
    states = [frames_of(9)[None]]
    assert torch.equal(head(states, torch.tensor([4])), head(states))


def test_states_in_bf16_are_judged_in_fp32() -> None:
    states = [frames_of(9)[None].bfloat16()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = head_of(FULL_BLOCKS)(states)
    assert torch.equal(half, head_of(FULL_BLOCKS)([states[0].float()]))
