"""How much a clip's frames change when other clips share its batch: ours, transformers', torchaudio's.

    python -m benchmarks.batch_invariance [--sizes base large] [--tiny]

The same weights in all three: BASE (group norm) and LARGE (layer norm), random, made by torchaudio, read by
`speech_ssl.checkpoints` and handed back to transformers. A clip of 1 s alone, then in a batch with one of
10 s, each library in the way that its documentation gives for such a batch:

- ours: the true lengths.
- transformers: its feature extractor's padding; for BASE without an attention mask, as its checkpoints ask
  for, and with one all the same; for LARGE with one.
- torchaudio: the true lengths, from which it makes its own mask. It normalises no waves: they are given
  normalised.

Printed is the largest change of any value of the last layer's frames, whose standard deviation is near 1, and
the largest difference between the libraries for the clip alone: it shows that the weights are the same. Ends
with status 1 if ours changes by more than 1e-4, or a library computes something else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speech_ssl.checkpoints import torchaudio as reader
from speech_ssl.checkpoints.artifact import Artifact
from speech_ssl.checkpoints.transformers import folder as huggingface
from speech_ssl.model.frontends.wave import normalize_waves
from speech_ssl.types import SAMPLE_RATE

SHORT_S, LONG_S = 1.0, 10.0
PROMISE = 1e-4

Frames = Callable[[Sequence[Tensor]], Tensor]
"""Waves as one batch to the frames of the first one."""


def sizes(tiny: bool) -> Mapping[str, Mapping[str, Any]]:
    """Arguments of torchaudio's `wav2vec2_model`."""
    common: dict[str, Any] = {
        "extractor_conv_layer_config": [(64, k, s) for _, k, s in CONVOLUTIONS] if tiny else CONVOLUTIONS,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": 128,
        "encoder_pos_conv_groups": 16,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_drop": 0.0,
        "aux_num_out": None,
    }
    base = {"encoder_embed_dim": 768, "encoder_num_layers": 12, "encoder_num_heads": 12}
    large = {"encoder_embed_dim": 1024, "encoder_num_layers": 24, "encoder_num_heads": 16}
    if tiny:
        base |= {"encoder_num_layers": 2}
        large |= {"encoder_num_layers": 2}
    return {
        "base": common
        | base
        | {"encoder_ff_interm_features": 3072, "extractor_mode": "group_norm"}
        | {"extractor_conv_bias": False, "encoder_layer_norm_first": False},
        "large": common
        | large
        | {"encoder_ff_interm_features": 4096, "extractor_mode": "layer_norm"}
        | {"extractor_conv_bias": True, "encoder_layer_norm_first": True},
    }


CONVOLUTIONS = [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]


def made(options: Mapping[str, Any]) -> Any:
    """torchaudio's model with random weights."""
    from torchaudio.models import wav2vec2_model

    torch.manual_seed(0)
    return wav2vec2_model(**options).eval()


def ways(theirs: Any, artifact: Artifact, transformers_model: Any) -> dict[str, Frames]:
    """Each library's way with a batch."""
    layer_norm = artifact.encoder.config.frontend.norm == "layer"

    def padded(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True), torch.tensor(
            [*map(len, waves)]
        )

    def ours(waves: Sequence[Tensor]) -> Tensor:
        return artifact.encoder(*padded(waves)).x_BTD

    def of_torchaudio(waves: Sequence[Tensor]) -> Tensor:
        frames: Tensor = theirs(*padded(waves))[0]
        return frames

    def of_transformers(attention: bool) -> Frames:
        def frames(waves: Sequence[Tensor]) -> Tensor:
            wave_BS, lengths_B = padded(waves)
            valid_BS = torch.arange(wave_BS.shape[1]) < lengths_B[:, None]
            found: Tensor = transformers_model(
                wave_BS, attention_mask=valid_BS.long() if attention else None
            ).last_hidden_state
            return found

        return frames

    found = {"ours": ours, "torchaudio": of_torchaudio, "transformers": of_transformers(layer_norm)}
    if not layer_norm:
        found["transformers, with a mask"] = of_transformers(True)
    return found


def measure(options: Mapping[str, Any], folder: Path) -> dict[str, tuple[float, float]]:
    """Of each way: the largest change through the batch, and the distance from ours of the clip alone."""
    from transformers import AutoModel

    theirs = made(options)
    converted = reader.read(theirs.state_dict(), "torchaudio", "model")
    config = {"name": "model", "training": {}, "licence": "", "encoder": converted.encoder.config.to_dict()}
    artifact = Artifact(folder, config, converted.encoder, "")
    huggingface.write(artifact, folder, {})
    twin = AutoModel.from_pretrained(folder).eval()
    rng = np.random.default_rng(0)
    waves = [
        torch.from_numpy(rng.normal(0, 0.1, int(seconds * SAMPLE_RATE)).astype(np.float32))
        for seconds in (SHORT_S, LONG_S)
    ]
    waves = [normalize_waves(wave[None], torch.tensor([len(wave)]))[0] for wave in waves]
    changes = {}
    with torch.inference_mode():
        reference: Tensor | None = None
        for name, way in ways(theirs, artifact, twin).items():
            alone = way(waves[:1])[0]
            together = way(waves)[0, : len(alone)]
            reference = alone if reference is None else reference
            changes[name] = (float((together - alone).abs().max()), float((alone - reference).abs().max()))
    return changes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How much a clip's frames change in a batch.")
    parser.add_argument("--sizes", nargs="+", choices=["base", "large"], default=["base", "large"])
    parser.add_argument("--tiny", action="store_true", help="two layers and narrow convolutions, for tests")
    options = parser.parse_args(arguments)
    kept = True
    print(f"{'':8}{'':28}{'change in a batch':>20}{'alone, from ours':>20}")
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of their libraries, about their own code
            changes = measure(sizes(options.tiny)[size], Path(folder) / "model")
        for name, (change, distance) in changes.items():
            print(f"{size:8}{name:28}{change:20.2e}{distance:20.2e}", flush=True)
        kept &= changes["ours"][0] <= PROMISE and max(away for _, away in changes.values()) <= PROMISE
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
