"""What feature extractors do to waves, told by the files that transformers writes, of every age."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import speech_ssl
from speech_ssl.checkpoints.artifact import ArtifactError
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from speech_ssl.model.config import LogMel
from tests.checkpoints.transformers_models import LARGE, answer_of, made, noise, saved, write_json

transformers = pytest.importorskip("transformers")
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"


@pytest.fixture(scope="module")
def model() -> Any:
    return made("Wav2Vec2", "ForCTC", **LARGE)


def test_a_folder_of_transformers_5(model: Any, tmp_path: Path) -> None:
    """Its processor writes one file. A quiet clip is another one when it is normalised."""
    folder = saved(model, tmp_path / "model")
    (folder / PREPROCESSOR).unlink()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    assert (folder / PROCESSOR).is_file() and not (folder / PREPROCESSOR).exists()
    quiet = (0.02 * noise(0.7)).astype(np.float32)
    theirs = answer_of(model.wav2vec2, quiet).last_hidden_state[0].numpy()
    np.testing.assert_allclose(speech_ssl.load(folder).encode([quiet])[0].frames, theirs, atol=1e-4)
    convert(folder, tmp_path / "artifact")
    convert(tmp_path / "artifact", tmp_path / "back", "huggingface")
    again = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "back")
    assert type(again) is type(extractor) and again.do_normalize is False


NO, YES = {"do_normalize": False}, {"do_normalize": True}


@pytest.mark.parametrize(
    "processor, alone, normalizes",
    [
        ({"feature_extractor": NO}, YES, False),
        ({"audio_processor": NO}, YES, False),
        ({"feature_extractor": YES, "audio_processor": NO}, NO, True),
        ({"processor_class": "Wav2Vec2Processor"}, NO, False),
        ({"feature_extractor": NO}, None, False),
        (None, NO, False),
        (None, {}, True),
    ],
)
def test_which_file_is_believed(
    model: Any, tmp_path: Path, processor: Any, alone: Any, normalizes: bool
) -> None:
    """As transformers chooses."""
    folder = saved(model, tmp_path / "model")
    (folder / PREPROCESSOR).unlink()
    for name, content in ((PROCESSOR, processor), (PREPROCESSOR, alone)):
        if content is not None:
            write_json(folder / name, content)
    theirs = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder).do_normalize
    assert open_checkpoint(folder).encoder.config.frontend.normalize_wave is theirs is normalizes


@pytest.mark.parametrize(
    "options, said",
    [
        ({"sampling_rate": 8000}, "'sampling_rate' is 8000"),
        ({"feature_extractor_type": "WhisperFeatureExtractor"}, "such a model needs Wav2Vec2Feature"),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor"}, "such a model needs Wav2Vec2Feature"),
    ],
)
def test_what_models_here_do_not_hear_is_refused(
    model: Any, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    folder = saved(model, tmp_path / "model", preprocessor=options)
    with pytest.raises(ArtifactError, match=said) as refused:
        open_checkpoint(folder)
    assert str(folder / PREPROCESSOR) in str(refused.value) and "\n" not in str(refused.value)
    (folder / PREPROCESSOR).unlink()
    write_json(folder / PROCESSOR, {"feature_extractor": options})
    with pytest.raises(ArtifactError, match=said) as refused:
        open_checkpoint(folder)
    assert str(folder / PROCESSOR) in str(refused.value)


def test_of_mel_features(tmp_path: Path) -> None:
    folder = saved(made("Wav2Vec2Bert", "Model"), tmp_path / "model")
    (folder / PREPROCESSOR).unlink()
    extractor = transformers.SeamlessM4TFeatureExtractor().to_dict()
    write_json(folder / PROCESSOR, {"feature_extractor": extractor})
    assert isinstance(open_checkpoint(folder).encoder.config.frontend, LogMel)
    for change, said in (
        ({"stride": 1}, "stride"),
        ({"num_mel_bins": 40}, "num_mel_bins"),
        ({"return_attention_mask": False}, "return_attention_mask"),
    ):
        write_json(folder / PROCESSOR, {"feature_extractor": {**extractor, **change}})
        with pytest.raises(ArtifactError, match=said):
            open_checkpoint(folder)
