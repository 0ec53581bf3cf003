"""Folders of transformers: the same numbers in, the same weights out, and one line for what is wrong."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import speech_ssl
from speech_ssl.checkpoints.artifact import Artifact, ArtifactError, load_extra
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from speech_ssl.inference.answers import Classification
from speech_ssl.model.heads.specs import CTCSpec, EventsSpec
from tests.checkpoints.transformers_models import (
    LARGE,
    answer_of,
    change_json,
    made,
    noise,
    saved,
    write_json,
)

transformers = pytest.importorskip("transformers")
CASES = [
    ("Wav2Vec2", "ForCTC", {}),
    ("Wav2Vec2", "ForCTC", LARGE),
    ("Hubert", "ForSequenceClassification", {"num_labels": 3}),
    ("WavLM", "ForSequenceClassification", {"num_labels": 3, "use_weighted_layer_sum": True}),
    ("Data2VecAudio", "ForAudioFrameClassification", {"num_labels": 3}),
    ("UniSpeechSat", "ForAudioFrameClassification", {"num_labels": 2, "use_weighted_layer_sum": True}),
    ("Wav2Vec2", "ForPreTraining", {}),
    ("UniSpeech", "Model", {}),
]
IDS = [f"{family}{head}{'-large' if options == LARGE else ''}" for family, head, options in CASES]


@pytest.fixture(scope="module", params=CASES, ids=IDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    family, head, options = request.param
    model = made(family, head, **options)
    return model, saved(model, tmp_path_factory.mktemp("hf") / "model")


def test_the_same_states_and_outputs(case: tuple[Any, Path]) -> None:
    """Through the folder itself, and through the artifact that is made of it."""
    model, folder = case
    wave = noise(1.0)
    answer = answer_of(model, wave)
    runtime = speech_ssl.load(folder)
    features = [runtime.encode([wave], layer=layer)[0].frames for layer in range(3)]
    base = answer_of(model.base_model, wave)
    theirs = [*base.hidden_states[:-1], base.last_hidden_state]  # some lack the final norm in the list
    for ours, their in zip(features, theirs, strict=True):
        np.testing.assert_allclose(ours, their[0].numpy(), atol=1e-4)
    for head in runtime.heads:
        outputs = runtime.run_windows([wave], [None], [head])[0].heads[head]
        check_outputs(outputs, answer.logits[0], runtime.heads[head])


def check_outputs(outputs: np.ndarray, logits: torch.Tensor, spec: object) -> None:
    if isinstance(spec, CTCSpec):
        logits = logits.log_softmax(-1)[:, [6, 0, 1, 2, 3, 4, 5, 7, 8]]  # their blank is unit 6
    elif logits.ndim == 1:  # of a clip: they pool before the linear layers, we after them
        outputs = outputs.mean(axis=0)
        assert isinstance(spec, EventsSpec) and not spec.frames_decide
    else:
        assert isinstance(spec, EventsSpec) and spec.frames_decide
    np.testing.assert_allclose(outputs, logits.numpy(), atol=1e-4)


def test_there_and_back_is_the_same(case: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = case
    artifact = convert(folder, tmp_path / "artifact")
    convert(tmp_path / "artifact", tmp_path / "back", "huggingface")
    again = type(model).from_pretrained(tmp_path / "back")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    wave = torch.from_numpy(noise(0.5))[None]
    with torch.inference_mode():
        one, other = model(wave), again.eval()(wave)
        for key in ("logits", "last_hidden_state"):
            if key in one:
                assert torch.equal(one[key], other[key])
    loaded = speech_ssl.load(tmp_path / "artifact")
    assert loaded.heads == {name: head.spec for name, head in artifact.heads.items()}


def test_what_is_said_is_what_their_tokenizer_says(tmp_path: Path) -> None:
    """But for special units, which it spells and we leave out."""
    model = made("Wav2Vec2", "ForCTC")
    with torch.no_grad():
        model.lm_head.bias[[5, 7, 8]] -= 100.0
    folder = saved(model, tmp_path / "model")
    wave = noise(2.0)
    said = speech_ssl.load(folder).transcribe([wave])[0]
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
    theirs = tokenizer.decode(answer_of(model, wave).logits[0].argmax(-1))
    assert said.text == " ".join(theirs.split()) and len(said.text) > 10
    assert [word.word for word in said.words] == said.text.split()
    convert(folder, tmp_path / "back", "huggingface")
    again = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "back")
    assert again.decode(answer_of(model, wave).logits[0].argmax(-1)) == theirs
    assert speech_ssl.load(folder).align([wave], ["ab a"])[0].text == "ab a"  # the vocabulary has capitals


def test_special_units_are_never_said(tmp_path: Path) -> None:
    model = made("Wav2Vec2", "ForCTC")
    with torch.no_grad():
        model.lm_head.bias[[5, 7, 8]] += 100.0
    folder = saved(model, tmp_path / "model")
    runtime = speech_ssl.load(folder)
    assert runtime.transcribe([noise(1.0)])[0].text == ""
    searched = runtime.transcribe([noise(1.0)], decoder=runtime.beam_search(beam=4))[0].text
    assert not set(searched) - set(" ABC'")


def test_clips_are_classified_as_by_theirs(tmp_path: Path) -> None:
    labels = {0: "yes", 1: "no", 2: "cat"}
    model = made(
        "Hubert", "ForSequenceClassification", id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    folder, wave = saved(model, tmp_path / "model"), noise(1.5)
    (heard,) = speech_ssl.load(folder).classify([wave])
    assert isinstance(heard, Classification)
    theirs = answer_of(model, wave).logits[0].softmax(-1)
    assert {label.label: pytest.approx(label.score, abs=1e-5) for label in heard.labels} == {
        labels[unit]: float(score) for unit, score in enumerate(theirs)
    }


@pytest.mark.parametrize("normalizes", [True, False, None])
def test_the_preprocessors_normalisation_comes_along(tmp_path: Path, normalizes: bool | None) -> None:
    """Without its file it is what their class does by default."""
    model = made("Wav2Vec2", "Model", **LARGE)
    folder = saved(
        model, tmp_path / "model", preprocessor={"do_normalize": normalizes, "sampling_rate": 16000}
    )
    if normalizes is None:
        (folder / "preprocessor_config.json").unlink()
    wave = 3 * noise(0.7) + 0.2
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalizes is not False)
    prepared = extractor(wave, sampling_rate=16000, return_tensors="np").input_values[0].astype(np.float32)
    ours = speech_ssl.load(folder).encode([wave])[0].frames
    np.testing.assert_allclose(ours, answer_of(model, prepared).last_hidden_state[0].numpy(), atol=1e-4)


def test_what_pre_training_needs_comes_along(tmp_path: Path) -> None:
    """The same codes for the same frames, by our quantizer."""
    from speech_ssl.objectives.wav2vec2 import Wav2Vec2Config

    model = made("Wav2Vec2", "ForPreTraining")
    artifact = convert(saved(model, tmp_path / "model"), tmp_path / "artifact")
    objective = Wav2Vec2Config(entries=8, code_width=32, final_width=24).build(artifact.encoder).eval()
    missing, unknown = objective.load_state_dict(load_extra(tmp_path / "artifact"), strict=False)
    assert not unknown and all(key.startswith("encoder.") for key in missing)
    wave = torch.from_numpy(noise(0.5))[None]
    with torch.inference_mode():
        features = artifact.encoder.convolve(wave, torch.tensor([wave.shape[1]]))
        normed = artifact.encoder.normalized(features).x_BTD
        ours = objective.quantizer(normed, temperature=1.0, generator=torch.Generator())
        theirs = model(wave)
        np.testing.assert_allclose(
            objective.project_target(ours.vectors_ND), theirs.projected_quantized_states, atol=1e-4
        )


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_read_by_convert_alone_and_never_run(tmp_path: Path) -> None:
    model = made("Wav2Vec2", "ForCTC")
    folder = saved(model, tmp_path / "model")
    whole = open_checkpoint(folder).encoder.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="is a pickle, which is not loaded"):
        speech_ssl.load(folder)
    read = convert(folder, tmp_path / "artifact").encoder.state_dict()
    assert all(torch.equal(read[key], whole[key]) for key in whole)
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        save({"lm_head.bias": Runs(tmp_path / "made")}, folder / "pytorch_model.bin")
        with pytest.raises(ArtifactError, match="not a (file of weights only|whole file)") as refused:
            convert(folder, tmp_path / "other")
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "made").exists() and not (tmp_path / "other").exists()


def drop_field(name: str) -> Any:
    return lambda folder: change_json(folder / "config.json", **{name: None})


def set_field(file: str = "config.json", **changes: Any) -> Any:
    return lambda folder: change_json(folder / file, **changes)


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage, said",
    [
        (drop_field("hidden_size"), "'hidden_size'"),
        (drop_field("conv_dim"), "'conv_dim'"),
        (drop_field("num_attention_heads"), "'num_attention_heads'"),
        (set_field(hidden_size="32"), "'hidden_size'"),
        (set_field(hidden_size=33), "33"),
        (set_field(intermediate_size=50), "shape"),
        (set_field(num_hidden_layers=3), "is missing"),
        (set_field(num_hidden_layers=1), "is not known"),
        (set_field(model_type="whisper"), "'model_type' is 'whisper'"),
        (set_field(hidden_act="swishy"), "'hidden_act' is 'swishy'"),
        (set_field("preprocessor_config.json", sampling_rate=8000), "'sampling_rate' is 8000"),
        (cut_weights, "not a whole safetensors file"),
        (no_weights, "has no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": '), "not valid JSON"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, damage: Any, said: str) -> None:
    folder = saved(made("Wav2Vec2", "ForCTC"), tmp_path / "model")
    damage(folder)
    with pytest.raises(ArtifactError) as refused:
        speech_ssl.load(folder)
    assert (
        said in str(refused.value) and "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)
    )


@pytest.mark.parametrize("change", [{"stride": 1}, {"num_mel_bins": 40}])
def test_mel_features_of_another_kind_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    folder = saved(
        made("Wav2Vec2Bert", "Model"), tmp_path / "model", preprocessor={"stride": 2, "num_mel_bins": 80}
    )
    speech_ssl.load(folder).encode([noise(0.5)])
    change_json(folder / "preprocessor_config.json", **change)
    with pytest.raises(ArtifactError, match=next(iter(change))):
        speech_ssl.load(folder)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    model = made("Wav2Vec2", "ForCTC")
    model.surprise = torch.nn.Linear(2, 2)
    with pytest.raises(ArtifactError, match="key 'surprise.bias' is not known"):
        speech_ssl.load(saved(model, tmp_path / "model"))


def test_a_model_card_has_the_licence(tmp_path: Path) -> None:
    folder = saved(made("Wav2Vec2", "Model"), tmp_path / "model")
    assert open_checkpoint(folder).config["licence"] == "unknown"
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    artifact: Artifact = open_checkpoint(folder)
    assert artifact.config["licence"] == "apache-2.0"


def test_our_own_heads_cannot_all_be_handed_back(tmp_path: Path, answering_artifact: Path) -> None:
    """Transcription can; events over normalised layers are not a model of theirs."""
    convert(answering_artifact, tmp_path / "back", "huggingface")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "back").architectures == ["Wav2Vec2ForCTC"]
    (tmp_path / "taken").mkdir()
    write_json(tmp_path / "taken" / "some.json", {})
    with pytest.raises(ArtifactError, match="is not empty"):
        convert(answering_artifact, tmp_path / "taken", "huggingface")
    assert EventsSpec(labels=("a", "b")).mixing == "normalized"
