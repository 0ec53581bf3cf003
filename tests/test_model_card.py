"""What the model card and the citation say, held against the artifact and the version that they speak of."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors.torch import load_file

import speech_ssl
from speech_ssl.checkpoints.artifact import load_artifact

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "speech_ssl" / "assets"
CARD = (ASSETS / "MODEL_CARD.md").read_text()


def test_the_card_is_of_the_shipped_model() -> None:
    artifact = load_artifact(ASSETS / "default")
    weights = load_file(ASSETS / "default" / "encoder.safetensors")
    millions = sum(value.numel() for value in weights.values()) / 1e6
    megabytes = (ASSETS / "default" / "encoder.safetensors").stat().st_size / 1e6
    training = artifact.config["training"]
    held_out = training["held_out"]
    for said in (
        f"`{artifact.name}`",
        f"| {artifact.config['licence']} |",
        f"{millions:.1f} M, stored in fp16 ({megabytes:.1f} MB)",
        f"one vector of {artifact.encoder.config.width} numbers",
        f"{training['step']:,} steps of {training['recipe']['data']['batch_s']} s",
        f"contrastive loss {held_out['contrastive']:.2f}, accuracy {held_out['accuracy']:.3f}",
        f"(guessing: {held_out['chance']:.3f}), code perplexity {held_out['code_perplexity']:.0f}",
        f"effective rank {held_out['effective_rank']:.1f}",
    ):
        assert said in CARD.replace("\n", " "), said
    assert not artifact.heads and "| heads | none |" in CARD


def test_the_card_names_all_recordings_with_their_licence() -> None:
    audio = load_artifact(ASSETS / "default").config["training"]["audio"]
    assert [name for name, licence in audio.items() if f"| {name} | {licence} |" not in CARD] == []


def test_the_citation_is_of_this_version() -> None:
    said = dict(re.findall(r"^([a-z-]+): (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE))
    assert said["version"] == speech_ssl.__version__ and said["license"] == "Apache-2.0"
