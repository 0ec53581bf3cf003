"""Read and write the settings of transformers' feature extractors."""

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
"""Keys under which transformers 5 nests the feature extractor's settings in the processor's file."""
WAVES, MELS = "Wav2Vec2FeatureExtractor", "SeamlessM4TFeatureExtractor"


def heard(folder: Path, frontend: Convolutions | LogMel) -> Convolutions | LogMel:
    """The front end, with `normalize_wave` from the settings, or without a file from the class's default.

    Raises ConversionError for settings that our front ends do not support.
    """
    options, path = _options(folder)
    wanted = MELS if isinstance(frontend, LogMel) else WAVES
    kind = options.get("feature_extractor_type", wanted)
    if kind != wanted:
        raise ConversionError(
            f"{path}: field 'feature_extractor_type' is {kind!r}; such a model needs {wanted}"
        )
    rate = options.get("sampling_rate", SAMPLE_RATE)
    if rate != SAMPLE_RATE:
        raise ConversionError(f"{path}: field 'sampling_rate' is {rate!r}; models here need {SAMPLE_RATE} Hz")
    if isinstance(frontend, Convolutions):
        return replace(frontend, normalize_wave=bool(options.get("do_normalize", True)))
    for name, needed in (("stride", 2), ("num_mel_bins", frontend.bins)):
        if options.get(name, needed) != needed:
            raise ConversionError(f"{path}: field {name!r} is {options[name]!r}, but the model has {needed}")
    if not options.get("return_attention_mask", True):
        raise ConversionError(
            f"{path}: field 'return_attention_mask' is false: such a model would attend to its own clip's "
            "padding; set it to true"
        )
    return frontend


def _options(folder: Path) -> tuple[Mapping[str, Any], Path]:
    """The settings and their file, as transformers chooses: those in the processor's file come first."""
    processor, alone = folder / PROCESSOR, folder / PREPROCESSOR
    nested = read_json(processor) if processor.is_file() else {}
    for name in NESTED:
        if isinstance(nested.get(name), dict):
            return nested[name], processor
    return (read_json(alone) if alone.is_file() else {}), alone


def written(frontend: Convolutions | LogMel) -> dict[str, Any]:
    """The inverse, for `preprocessor_config.json`, in a form that every version of transformers reads."""
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
