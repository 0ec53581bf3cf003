"""Two models with one hash compute the same; what computes something else has another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from speech_ssl.checkpoints.artifact import Head, load_artifact, save_artifact
from speech_ssl.checkpoints.identity import identity
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from speech_ssl.model.config import EncoderConfig
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.heads.specs import CTCSpec, EventsSpec, HeadSpec
from tests.checkpoints.transformers_models import change_json, made, saved
from tests.narrow import save_narrow

SPEECH = CTCSpec(vocabulary=("<blank>", " ", "a", "b"))
SOUNDS = EventsSpec(labels=("dog", "rain"), hidden=0)


def built(config: EncoderConfig, **specs: HeadSpec) -> tuple[Encoder, dict[str, Head]]:
    """The same weights for the same shapes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(config)
        heads = {name: Head(spec, spec.build(config), {}, "CC0") for name, spec in specs.items()}
    return encoder, heads


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    return load_artifact(save_narrow(tmp_path_factory.mktemp("narrow") / "narrow")).encoder.config


def test_names_and_how_it_is_stored_change_nothing(config: EncoderConfig, tmp_path: Path) -> None:
    encoder, heads = built(config, ctc=SPEECH, events=SOUNDS)
    with torch.no_grad():  # numbers that half precision has
        for parameter in (*encoder.parameters(), *heads["ctc"].module.parameters()):
            parameter.copy_(parameter.half())
        for parameter in heads["events"].module.parameters():
            parameter.copy_(parameter.half())
    wanted = identity(encoder, heads)
    encoder.config = replace(encoder.config, dropout=0.3, layer_drop=0.2, feature_grad_scale=0.5)
    about: dict[str, Any] = {"training": {"a": 1}, "licence": "MIT", "extra": {"x": torch.ones(2)}}
    one = save_artifact(encoder, tmp_path / "one", name="one", heads=heads, **about)
    reordered = dict(reversed(heads.items()))
    other = save_artifact(
        encoder, tmp_path / "b", name="b", training={}, licence="", heads=reordered, dtype=torch.float16
    )
    assert load_artifact(one).sha256 == load_artifact(other).sha256 == wanted
    text = (one / "config.json").read_text()
    (one / "config.json").write_text(json.dumps({**json.loads(text), "name": "another", "licence": "?"}))
    assert load_artifact(one).sha256 == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"frontend": {"normalize_wave": False}},
        {"frontend": {"wave_eps": 1e-5}},
        {"norm_eps": 1e-4},
        {"activation": "relu"},
        {"conv_activation": "silu"},
        {"heads": 4},
        {"frontend": {"strides": (5, 2, 2, 2, 2, 2, 1)}},
        {"block": {"pre_norm": False}},
    ],
)
def test_the_same_weights_in_another_encoder(config: EncoderConfig, change: dict[str, Any]) -> None:
    assert identity(*built(config.changed(**change))) != identity(*built(config))


def test_the_same_weights_in_other_heads(config: EncoderConfig) -> None:
    specs: list[dict[str, HeadSpec]] = [
        {"ctc": SPEECH, "events": SOUNDS},
        {"ctc": replace(SPEECH, vocabulary=("<blank>", " ", "b", "a")), "events": SOUNDS},
        {"ctc": SPEECH, "events": replace(SOUNDS, labels=("rain", "dog"))},
        {"ctc": SPEECH, "events": replace(SOUNDS, exclusive=False)},
        {"ctc": SPEECH, "events": replace(SOUNDS, pooling="max")},
        {"ctc": SPEECH, "sounds": SOUNDS},
        {"ctc": SPEECH},
        {},
    ]
    found = [identity(*built(config, **each)) for each in specs]
    assert len(set(found)) == len(specs)


def test_the_same_numbers_in_other_tensors(config: EncoderConfig) -> None:
    encoder, _ = built(config)
    before = identity(encoder, {})
    block = encoder.blocks[0]
    one, other = block.attention_norm.weight, block.ffn_norm.weight
    with torch.no_grad():
        one[0], other[0] = 1.25, 1.5
        first = identity(encoder, {})
        one[0], other[0] = 1.5, 1.25
    assert len({before, first, identity(encoder, {})}) == 3


@pytest.mark.parametrize(
    "file, change",
    [
        ("preprocessor_config.json", {"do_normalize": True}),
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"layer_norm_eps": 1e-3}),
        ("vocab.json", {"A": 2, "B": 1}),
    ],
)
def test_of_another_library_in_memory_and_converted(
    tmp_path: Path, file: str, change: dict[str, Any]
) -> None:
    pytest.importorskip("transformers")
    folder = saved(made("Wav2Vec2", "ForCTC"), tmp_path / "model")
    first = open_checkpoint(folder).sha256
    assert (
        convert(folder, tmp_path / "artifact").sha256 == first == load_artifact(tmp_path / "artifact").sha256
    )
    change_json(folder / file, **change)
    assert open_checkpoint(folder).sha256 != first
