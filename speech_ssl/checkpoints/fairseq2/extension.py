"""Our encoder as a model of fairseq2: the entry point that fairseq2 0.8 calls when it starts.

It adds the family `speech_ssl`, whose models are our `Encoder`, and an asset card for the packaged model and
for each artifact in SPEECH_SSL_ARTIFACTS. Without fairseq2 this is never called, and imports nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech_ssl.model.encoder import Encoder

FAMILY = "speech_ssl"
DEFAULT = "speech_ssl_default"
VARIABLE = "SPEECH_SSL_ARTIFACTS"
"""Folders of artifacts, separated by `:` as in PATH."""


@dataclass(kw_only=True)
class ArtifactEncoderConfig:
    """The `model_config` of a card. encoder: as in an artifact's `config.json` of any version."""

    encoder: dict[str, object] = field(default_factory=dict)


def build(config: ArtifactEncoderConfig) -> Encoder:
    """The encoder for a config. Raises ValueError for missing or unknown fields."""
    from speech_ssl.model.encoder import Encoder
    from speech_ssl.model.flat import stored_config

    return Encoder(stored_config(config.encoder))


def card(folder: Path, name: str | None = None) -> dict[str, object]:
    """The asset card of an artifact's encoder. Raises ValueError if the folder holds no artifact."""
    from speech_ssl.checkpoints.artifact import CONFIG, ENCODER

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return {
            "name": name or config["name"],
            "model_family": FAMILY,
            "model_config": {"encoder": config["encoder"]},
            "checkpoint": str((folder / ENCODER).absolute()),
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is not an artifact, look at {VARIABLE}: {error!r}") from None


def cards(warn: Callable[[str], object]) -> Iterator[dict[str, object]]:
    """The cards of all known artifacts; those that cannot be read are reported and left out."""
    default = Path(str(files("speech_ssl") / "assets" / "default"))
    named = [Path(name) for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    for folder, name in [(default, DEFAULT), *((folder, None) for folder in named)]:
        try:
            yield card(folder, name)
        except ValueError as error:
            warn(str(error))


def register(container: Any) -> None:
    """Called by fairseq2 with its dependency container."""
    from fairseq2.composition import register_in_memory_assets, register_model_family
    from fairseq2.logging import log

    from speech_ssl.model.encoder import Encoder

    register_model_family(
        container,
        FAMILY,
        kls=Encoder,
        config_kls=ArtifactEncoderConfig,
        factory=build,
        supports_meta=False,
    )
    register_in_memory_assets(container, f"package:{FAMILY}", list(cards(log.warning)))
