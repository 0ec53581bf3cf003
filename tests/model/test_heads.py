"""Heads: their descriptions, and how frames become an answer for the clip."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speech_ssl.model.heads.head import LayerMix, clip_logits, frame_logits
from speech_ssl.model.heads.specs import CTCSpec, EventsSpec, spec_from_dict, spec_to_dict
from speech_ssl.model.presets import tiny

pytestmark = pytest.mark.numerical

SPECS = [
    CTCSpec(vocabulary=("<blank>", "a", " ")),
    EventsSpec(labels=("dog", "rain")),
    EventsSpec(labels=("dog",), exclusive=False, pooling="max", hidden=8),
    EventsSpec(labels=("dog", "rain"), pooling="mean", hidden=0),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_a_description_comes_back(spec) -> None:
    values = spec_to_dict(spec)
    assert spec_from_dict({**values, "training": {"further": "fields"}}) == spec


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "magic"}, "kind 'magic' is not known"),
        ({"kind": None}, "kind None"),
        ({"labels": "dog"}, "labels must be a list of texts"),
        ({"labels": ["dog", "dog"]}, "each once"),
        ({"labels": ["dog"]}, "at least 2"),
        ({"labels": ["dog", 3]}, "list of texts"),
        ({"pooling": "sum"}, "pooling must be"),
        ({"exclusive": "false"}, "exclusive must be true or false"),
        ({"hidden": -1}, "hidden must be at least 0"),
        ({"hidden": "wide"}, "hidden must be at least 0"),
    ],
)
def test_a_wrong_description_is_refused(change, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_from_dict({**spec_to_dict(SPECS[1]), **change})


def test_a_missing_field_is_named() -> None:
    values = spec_to_dict(SPECS[1])
    del values["pooling"]
    with pytest.raises(ValueError, match="field 'pooling' is missing"):
        spec_from_dict(values)


def states(seed: int = 0, frames: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, frames, 32, generator=generator) * 10**layer for layer in range(3)]


CONFIG = replace(tiny(), width=32, depth=2, heads=2)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: type(spec).__name__)
def test_each_frame_is_judged_by_itself(spec) -> None:
    """So that windows of a long file can be put together."""
    torch.manual_seed(0)
    head = spec.build(CONFIG).eval()
    whole = head(states())
    parts = [head([x_BTD[:, part] for x_BTD in states()]) for part in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    assert whole.dtype == torch.float32


def test_log_probabilities_sum_to_one() -> None:
    log_probs = SPECS[0].build(CONFIG)(states())
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 6))


def test_the_mix_is_convex_and_blind_to_scale() -> None:
    mix = LayerMix(3, 32)
    with torch.no_grad():
        mix.scores.copy_(torch.tensor([0.0, 100.0, 0.0]))
    expected = torch.nn.functional.layer_norm(states()[1], (32,))
    torch.testing.assert_close(mix(states()), expected)
    scaled = [x * factor for x, factor in zip(states(), (3.0, 0.5, 7.0), strict=True)]
    torch.testing.assert_close(mix(scaled), mix(states()), atol=1e-4, rtol=1e-4)


def test_channels_are_standardised_by_what_was_measured() -> None:
    mix = LayerMix(3, 32)
    valid_BT = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    batches = [([x * torch.arange(1, 33) + 5 for x in states(seed)], valid_BT) for seed in range(20)]
    mix.measure(batches)
    for layer in range(3):
        with torch.no_grad():
            mix.scores.zero_()[layer] = 100.0
        seen_ND = torch.cat([mix(given)[valid_BT] for given, _ in batches]).detach()
        torch.testing.assert_close(seen_ND.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
        torch.testing.assert_close(seen_ND.std(0, correction=0), torch.ones(32), atol=0.1, rtol=0)


OUTPUTS = torch.tensor([[[1.0, 4.0], [3.0, 2.0], [9.0, 9.0]], [[5.0, 6.0], [0.0, 0.0], [0.0, 0.0]]])
VALID = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", [[2.0, 3.0], [5.0, 6.0]]), ("max", [[3.0, 4.0], [5.0, 6.0]])]
)
def test_pooling_counts_valid_frames_alone(pooling, expected) -> None:
    spec = EventsSpec(labels=("dog", "rain"), pooling=pooling)
    assert clip_logits(OUTPUTS, VALID, spec).tolist() == expected


def test_attention_weighs_each_labels_frames() -> None:
    """With even attention it is the mean; where one frame draws all of it, that frame's logit."""
    spec = EventsSpec(labels=("dog", "rain"), pooling="attentive")
    even = torch.cat([OUTPUTS, torch.full((2, 3, 2), 0.7)], dim=-1)
    torch.testing.assert_close(clip_logits(even, VALID, spec), torch.tensor([[2.0, 3.0], [5.0, 6.0]]))
    drawn = even.clone()
    drawn[0, 1, 2] = 50.0  # the dog is in the second frame
    drawn[0, 2, 3] = 1e6  # padding may draw as it likes
    torch.testing.assert_close(clip_logits(drawn, VALID, spec), torch.tensor([[3.0, 3.0], [5.0, 6.0]]))
    assert torch.equal(frame_logits(drawn, spec), OUTPUTS)
