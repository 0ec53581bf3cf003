"""A head that cannot be read never takes the encoder with it: it is left out, and a line says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import speech_ssl
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.checkpoints.opening import open_checkpoint
from tests.checkpoints.transformers_models import VOCABULARY, change_json, made, saved, write_json
from tests.command_line import Run

transformers = pytest.importorskip("transformers")
Damage = Callable[[Path], object]


def field(name: str = "config.json", **changes: Any) -> Damage:
    return lambda folder: change_json(folder / name, **changes)


def weights(**changes: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    """By the last part of their names; None removes one."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {
            key: changes.get(key.replace(".", "_"), lambda value: value)(value)
            for key, value in load_file(path).items()
        }
        save_file({key: value for key, value in tensors.items() if value is not None}, path)

    return damage


def vocabulary(**changes: Any) -> Damage:
    return field("vocab.json", **changes)


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content)


def check_left_out(folder: Path, head: str, said: str, encoder: dict[str, torch.Tensor]) -> None:
    artifact = open_checkpoint(folder)
    state = artifact.encoder.state_dict()
    assert all(torch.equal(value, encoder[key]) for key, value in state.items())
    assert not artifact.heads and list(artifact.heads_left_out) == [head]
    why = artifact.heads_left_out[head]
    assert said in why and "\n" not in why and str(folder) not in why
    parts = "lm_head." if head == "ctc" else "classifier."
    assert any(key.startswith(parts) for key in artifact.config["training"]["left_out"])


OF_CTC: dict[str, tuple[Damage, str]] = {
    "no vocabulary": (lambda folder: (folder / "vocab.json").unlink(), "vocab.json: missing"),
    "no JSON": (text("vocab.json", "{"), "vocab.json: not valid JSON"),
    "a list": (text("vocab.json", "[1]"), "vocab.json: not a JSON object"),
    "ids that are none": (vocabulary(A="x"), "the unit of 'A' is 'x'"),
    "a delimiter and a space": (vocabulary(**{" ": 5}), "two units of the tokenizer stand for ' '"),
    "two cases in one": (
        lambda folder: [
            vocabulary(**{"a": 5})(folder),
            field("tokenizer_config.json", do_lower_case=True)(folder),
        ],
        "two units of the tokenizer stand for 'a'",
    ),
    "our blank's name": (vocabulary(**{"<blank>": 5}), "two units of the tokenizer stand for '<blank>'"),
    "no such language": (
        lambda folder: write_json(folder / "vocab.json", {"deu": VOCABULARY}),
        "none for 'eng'",
    ),
    "another tokenizer": (
        field("tokenizer_config.json", tokenizer_class="WhisperTokenizer"),
        "'tokenizer_class' is 'WhisperTokenizer'",
    ),
    "another tokenizer by the model's config": (
        field(tokenizer_class="BertTokenizer"),
        "'tokenizer_class' is 'BertTokenizer'",
    ),
    "more units than told": (field(vocab_size=8), "they belong to different models"),
    "fewer units than told": (field(vocab_size=12), "they belong to different models"),
    "no size": (field(vocab_size=None), "'vocab_size' is missing"),
    "no bias": (weights(lm_head_bias=lambda _: None), "key 'lm_head.bias' is missing"),
    "a narrow head": (weights(lm_head_weight=lambda w: w[:, :-1].contiguous()), "(9, 31)"),
    "a scalar": (weights(lm_head_weight=lambda w: w.sum()), "of shape ()"),
    "a quantised head": (weights(lm_head_weight=lambda w: w.to(torch.int8)), "holds torch.int8"),
    "no blank": (
        lambda folder: [
            field(pad_token_id=70)(folder),
            field("tokenizer_config.json", pad_token="<none>")(folder),
        ],
        "'pad_token_id' is 70, which is no unit",
    ),
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, torch.Tensor]]:
    model = made("Wav2Vec2", "ForCTC")
    folder = saved(model, tmp_path_factory.mktemp("hf") / "model")
    return model, open_checkpoint(folder).encoder.state_dict()


@pytest.mark.parametrize("case", OF_CTC)
def test_of_ctc(speech: tuple[Any, dict[str, torch.Tensor]], tmp_path: Path, case: str) -> None:
    model, encoder = speech
    damage, said = OF_CTC[case]
    folder = saved(model, tmp_path / "model")
    damage(folder)
    check_left_out(folder, "ctc", said, encoder)


OF_LABELS: dict[str, tuple[str, Damage, str]] = {
    "regression": ("ForSequenceClassification", field(problem_type="regression"), "outputs are values"),
    "one value": (
        "ForSequenceClassification",
        lambda folder: [
            weights(classifier_weight=lambda w: w[:1].clone(), classifier_bias=lambda b: b[:1].clone())(
                folder
            ),
            field(id2label={"0": "arousal"})(folder),
        ],
        "there is one label: its outputs are values",
    ),
    "one value in frames": (
        "ForAudioFrameClassification",
        lambda folder: [
            weights(classifier_weight=lambda w: w[:1].clone(), classifier_bias=lambda b: b[:1].clone())(
                folder
            ),
            field(id2label={"0": "arousal"})(folder),
        ],
        "there is one label: its outputs are values",
    ),
    "a label twice": (
        "ForSequenceClassification",
        field(id2label={"0": "a", "1": "b", "2": "a"}),
        "the same label twice",
    ),
    "fewer labels": ("ForSequenceClassification", field(id2label={"0": "a", "1": "b"}), "names 2 labels"),
    "labels in a list": ("ForSequenceClassification", field(id2label=["a", "b", "c"]), "labels by number"),
    "labels by no numbers": (
        "ForSequenceClassification",
        field(id2label={"x": "a", "1": "b", "2": "c"}),
        "labels by number",
    ),
    "no weights of layers": (
        "ForSequenceClassification",
        field(use_weighted_layer_sum=True),
        "'layer_weights' is missing",
    ),
    "no bias": (
        "ForAudioFrameClassification",
        weights(classifier_bias=lambda _: None),
        "'classifier.bias' is missing",
    ),
}


@pytest.mark.parametrize("case", OF_LABELS)
def test_of_labels(tmp_path: Path, case: str) -> None:
    architecture, damage, said = OF_LABELS[case]
    folder = saved(made("Data2VecAudio", architecture, num_labels=3), tmp_path / "model")
    encoder = open_checkpoint(folder).encoder.state_dict()
    damage(folder)
    check_left_out(folder, "events", said, encoder)


def test_one_label_of_several_is_a_probability(tmp_path: Path) -> None:
    """As transformers' pipeline takes it: with a sigmoid."""
    labels = {"id2label": {0: "speech"}, "label2id": {"speech": 0}}
    model = made("Hubert", "ForSequenceClassification", problem_type="multi_label_classification", **labels)
    artifact = open_checkpoint(saved(model, tmp_path / "model"))
    assert artifact.heads["events"].spec.exclusive is False  # type: ignore[union-attr]


def test_speakers_have_no_place(tmp_path: Path) -> None:
    speakers = made("Wav2Vec2", "ForXVector", tdnn_dim=[8] * 5, xvector_output_dim=8, num_labels=2)
    artifact = open_checkpoint(saved(speakers, tmp_path / "speakers"))
    assert not artifact.heads and "tdnn.0.kernel.bias" in artifact.config["training"]["left_out"]
    assert "x-vectors" in artifact.heads_left_out["events"]


def test_it_is_said_when_it_is_converted_and_when_it_is_asked(
    speech: tuple[Any, dict[str, torch.Tensor]], tmp_path: Path, run: Run, prompts: Path
) -> None:
    folder = saved(speech[0], tmp_path / "model")
    vocabulary(**{" ": 5})(folder)
    why = "vocab.json: two units of the tokenizer stand for ' '"
    status, out, err = run("convert", folder, tmp_path / "artifact")
    assert (status, err) == (0, "") and f"; without its head ctc, {why}; left out: lm_head.bias" in out
    assert load_artifact(tmp_path / "artifact").heads_left_out == {"ctc": why}
    for source in (folder, tmp_path / "artifact"):
        with pytest.raises(ValueError, match="cannot transcribe: it has no head for it") as refused:
            speech_ssl.load(source).check_head("transcription")
        assert f"({why})" in str(refused.value) and "\n" not in str(refused.value)
