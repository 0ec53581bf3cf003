"""Artifacts with random weights: an encoder so narrow that minutes of audio take a second, and heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import speech_ssl
from speech_ssl import audio
from speech_ssl.checkpoints.artifact import Artifact, Head, add_head, load_artifact, save_artifact
from speech_ssl.inference import Runtime
from speech_ssl.model.encoder import Encoder
from speech_ssl.model.heads.head import CTCHead
from speech_ssl.model.heads.specs import CTCSpec, EventsSpec, HeadSpec
from speech_ssl.model.presets import tiny

HEADS = {
    "ctc": CTCSpec(vocabulary=("<blank>", " ", *"abcdefgh")),
    "sounds": EventsSpec(labels=("dog", "rain", "siren")),
    "moods": EventsSpec(labels=("calm", "tense"), exclusive=False, pooling="max"),
}
PROMPT = Path(speech_ssl.__file__).parent / "assets" / "prompts" / "audio" / "hello.flac"
NARROW: dict[str, Any] = {
    "frontend": {"channels": (8,) * 7},
    "width": 16,
    "depth": 1,
    "heads": 2,
    "ffn_width": 16,
}


def save_narrow(folder: Path) -> Path:
    """The tiny encoder's strides and window lengths, but 16 wide and one layer deep."""
    return save_artifact(
        Encoder(tiny().changed(**NARROW)), folder, name="narrow", training={}, licence="Apache-2.0"
    )


def narrow_runtime(
    *,
    window_s: float = 20.0,
    context_s: float = 2.0,
    specs: Mapping[str, HeadSpec] = HEADS,
    **changes: Any,
) -> Runtime:
    """Heads on an encoder as narrow, changed in some fields of its config; nothing is written."""
    config = tiny().changed(**NARROW).changed(**changes)
    heads = {}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = Encoder(config)
        for name, spec in specs.items():
            module = spec.build(config)
            for parameter in module.parameters():
                parameter.data.mul_(4.0)
            heads[name] = Head(spec, module, {}, "CC0")
    artifact = Artifact(Path(), {"name": "narrow", "training": {}}, encoder, "", heads)
    return Runtime(artifact, window_s=window_s, context_s=context_s)


def add_random_heads(source: Path, folder: Path) -> Path:
    """`HEADS` with weights so large that their answers vary from frame to frame."""
    encoder = load_artifact(source).encoder
    for name, spec in HEADS.items():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            module = spec.build(encoder.config)
            for parameter in module.parameters():
                parameter.data.mul_(4.0)
        if isinstance(module, CTCHead):
            even_out_(module, encoder)
        source = add_head(source, folder, name, Head(spec, module, {}, "CC0"))
    return folder


@torch.no_grad()
def even_out_(head: CTCHead, encoder: Encoder) -> None:
    """Give all units the same mean logit over a recording: of random weights one unit is mostly ahead of the
    others everywhere, so that nothing else is said."""
    wave_BS = torch.from_numpy(audio.decode(PROMPT))[None]
    states = encoder.eval().hidden_states(wave_BS, torch.tensor([wave_BS.shape[1]]))
    head.logits.bias -= head.logits(states[-1]).mean((0, 1))
