"""What transformers' feature extractors do to waves before a model hears them: both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from speech_ssl.checkpoints.conversion import ConversionError, read_json
from speech_ssl.model.config import Convolutions, LogMel
from speech_ssl.types import SAMPLE_RATE

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
NESTED = ("feature_extractor", "audio_processor")
"""Where transformers 5 has in the processor's file what was a file of its own before."""
WAVES, MELS = "Wav2Vec2FeatureExtractor", "SeamlessM4TFeatureExtractor"


def heard(folder: Path, frontend: Convolutions | LogMel) -> Convolutions | LogMel:
    """The front end, and whether waves are brought to zero mean and unit variance before it. Without a file:
    as the class does by default.

    Raises ConversionError for what models here do not hear.
    """
    options, path = _options(folder)
    wanted = MELS if isinstance(frontend, LogMel) else WAVES
    kind = options.get("feature_extractor_type", wanted)
    if kind != wanted:
        raise ConversionError(
            f"{path}: field 'feature_extractor_type' is {kind!r}; such a model is fed by {wanted}"
        )
    rate = options.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise ConversionError(f"{path}: field 'sampling_rate' is {rate!r}; models here hear {SAMPLE_RATE} Hz")
    if isinstance(frontend, Convolutions):
        return replace(frontend, normalize_wave=bool(options.get("do_normalize", True)))
    for name, needed in (("stride", 2), ("num_mel_bins", frontend.bins)):
        if options.get(name, needed) != needed:
            raise ConversionError(
                f"{path}: field {name!r} is {options[name]!r}, where the model has {needed}"
            )
    if not options.get("return_attention_mask", True):
        raise ConversionError(
            f"{path}: field 'return_attention_mask' is false: such a model would hear the padding of its own "
            "clip; set it to true"
        )
    return frontend


def _options(folder: Path) -> tuple[Mapping[str, Any], Path]:
    """As transformers chooses: what is nested in the processor's file goes first."""
    processor, alone = folder / PROCESSOR, folder / PREPROCESSOR
    nested = read_json(processor) if processor.is_file() else {}
    for name in NESTED:
        if isinstance(nested.get(name), dict):
            return nested[name], processor
    return (read_json(alone) if alone.is_file() else {}), alone


def written(frontend: Convolutions | LogMel) -> dict[str, Any]:
    """The inverse, as every version of transformers reads it: for `preprocessor_config.json`."""
    if isinstance(frontend, LogMel):
        return {
            "feature_extractor_type": MELS,
            "feature_size": frontend.bins,
            "num_mel_bins": frontend.bins,
            "sampling_rate": SAMPLE_RATE,
            "stride": 2,
            "padding_value": 0.0,
            "return_attention_mask": True,
        }
    return {
        "feature_extractor_type": WAVES,
        "feature_size": 1,
        "sampling_rate": SAMPLE_RATE,
        "padding_value": 0.0,
        "do_normalize": frontend.normalize_wave,
        "return_attention_mask": frontend.norm == "layer",
    }
