"""`add_adapter` of transformers' models for CTC: the same numbers, texts, weights; one line for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import speech_ssl
from speech_ssl.checkpoints.artifact import ArtifactError, Head, load_artifact, save_artifact
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from speech_ssl.inference import Runtime
from speech_ssl.model.heads.specs import AdapterSpec, CTCSpec
from speech_ssl.text import normalize
from tests.checkpoints.conformer_families import mel_inputs
from tests.checkpoints.transformers_models import LARGE, change_json, made, noise, saved

transformers = pytest.importorskip("transformers")

BERT = {"feature_projection_input_dim": 160, "conv_depthwise_kernel_size": 5}
FIRST = {"use_intermediate_ffn_before_adapter": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "one layer": ("Wav2Vec2", {"num_adapter_layers": 1}),
    "two layers, projected, large": (
        "Wav2Vec2",
        {"num_adapter_layers": 2, "output_hidden_size": 20, **LARGE},
    ),
    "three layers, large": ("Wav2Vec2", {**LARGE, "layer_norm_eps": 0.1}),
    "three layers, projected": ("Wav2Vec2", {"output_hidden_size": 40, "layer_norm_eps": 0.1}),
    "wavlm": ("WavLM", {"num_adapter_layers": 1}),
    "data2vec": ("Data2VecAudio", {"num_adapter_layers": 2, "output_hidden_size": 24}),
    "conformer": ("Wav2Vec2Conformer", {"num_adapter_layers": 1}),
    "bert": ("Wav2Vec2Bert", BERT),
    "bert, two layers": ("Wav2Vec2Bert", {**BERT, "num_adapter_layers": 2, "adapter_act": "gelu"}),
    "bert, feed-forward first": ("Wav2Vec2Bert", {**BERT, **FIRST, "layer_norm_eps": 0.1}),
    "bert, all": (
        "Wav2Vec2Bert",
        {**BERT, **FIRST, "num_adapter_layers": 2, "output_hidden_size": 24, "adapter_act": "swish"},
    ),
}
BLANK_FIRST = [6, 0, 1, 2, 3, 4, 5, 7, 8]
Wave = NDArray[np.float32]


@pytest.fixture(scope="module", autouse=True)
def own_randomness() -> Iterator[None]:
    """Other tests draw as if these were not there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def made_with_adapter(case: str, head: str = "ForCTC") -> Any:
    """Norms and biases further from where they begin than `made` leaves them."""
    family, options = CASES[case]
    torch.manual_seed(0)
    model = made(family, head, add_adapter=True, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def save_with_adapter(case: str, folder: Path) -> tuple[Any, Path]:
    model = made_with_adapter(case)
    with torch.no_grad():
        model.lm_head.bias[[5, 7, 8]] -= 100.0  # units that they spell and we leave out
    return model, saved(model, folder)


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return save_with_adapter(request.param, tmp_path_factory.mktemp("hf") / "model")


def wave_of(frames: int, model: Any, more: int = 0) -> Wave:
    """A clip of so many frames: for w2v-BERT of an even number of mel steps."""
    field = 560 if model.config.model_type == "wav2vec2-bert" else 400
    return noise(10, seed=frames)[: field + 320 * (frames - 1) + more]


def log_probs_of(model: Any, wave: Wave, frames: int | None = None) -> Wave:
    """Theirs, the blank first: (T', V). frames: of the mel features, all of which are then valid."""
    inputs = {"input_values": torch.from_numpy(wave)[None]}
    if model.config.model_type == "wav2vec2-bert":
        inputs = mel_inputs([torch.from_numpy(wave)], model.config.feature_projection_input_dim // 2)
        inputs = {name: value[:, :frames] for name, value in inputs.items()}
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    with torch.inference_mode():
        return np.asarray(model(**inputs).logits[0].log_softmax(-1)[:, BLANK_FIRST].numpy())


def their_frames(model: Any, wave: Wave) -> torch.Tensor:
    """What the encoder gives the adapter: (1, T, D)."""
    seen: list[torch.Tensor] = []
    hook = model.base_model.encoder.register_forward_hook(
        lambda *call: seen.append(call[2].last_hidden_state.clone())
    )
    log_probs_of(model, wave)
    hook.remove()
    return seen[0]


def outputs_of(runtime: Runtime, waves: list[Wave]) -> list[Wave]:
    passed = runtime.run_windows(waves, [None] * len(waves), ["ctc"])
    return [one.heads["ctc"] for one in passed]


def test_the_same_log_probabilities_of_the_same_frames(case: tuple[Any, Path]) -> None:
    model, folder = case
    head = open_checkpoint(folder).heads["ctc"]
    for count in (1, 2, 3, 4, 5, 8, 15, 16, 17, 50):
        wave = wave_of(count, model)
        with torch.inference_mode():
            ours = head.module([their_frames(model, wave)])[0, :: head.spec.stride]
        np.testing.assert_allclose(ours, log_probs_of(model, wave), atol=2e-5)


def test_the_same_log_probabilities_alone_and_in_a_padded_batch(case: tuple[Any, Path]) -> None:
    model, folder = case
    runtime = speech_ssl.load(folder)
    spec = runtime.heads["ctc"]
    assert isinstance(spec, CTCSpec) and spec.stride == 2**model.config.num_adapter_layers
    counts = (2, 3, 4, 7, 8, 9, 24, 51)  # normalising two steps of mel features magnifies their rounding
    waves = [wave_of(count, model) for count in counts]
    for count, wave, together in zip(counts, waves, outputs_of(runtime, waves), strict=True):
        theirs = log_probs_of(model, wave)
        (alone,) = outputs_of(runtime, [wave])
        assert len(alone) == len(together) == count and len(theirs) == -(-count // spec.stride)
        np.testing.assert_allclose(alone[:: spec.stride], theirs, atol=5e-5, rtol=1e-6)
        np.testing.assert_allclose(together[:: spec.stride], theirs, atol=5e-5, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("bert")])
def test_half_a_frame_that_they_pad_is_not_heard(name: str, tmp_path: Path) -> None:
    """Of an odd number of mel steps their extractor makes one frame more, which is masked, but not to the
    adapter's convolutions. Ours are those of the whole frames alone."""
    model, folder = save_with_adapter(name, tmp_path / "model")
    runtime = speech_ssl.load(folder)
    stride = 2**model.config.num_adapter_layers
    for count in (3, 8, 25):
        wave = wave_of(count, model, more=160)
        (ours,) = outputs_of(runtime, [wave])
        assert len(ours) == count
        np.testing.assert_allclose(ours[::stride], log_probs_of(model, wave, count), atol=5e-5, rtol=1e-6)


def test_frames_are_those_of_the_encoder(case: tuple[Any, Path]) -> None:
    model, folder = case
    wave = wave_of(50, model)
    frames = speech_ssl.load(folder).encode([wave])[0].frames
    np.testing.assert_allclose(frames, their_frames(model, wave)[0], atol=1e-4)


def test_there_and_back_is_the_same(case: tuple[Any, Path], tmp_path: Path) -> None:
    """Through an artifact: the same weights, bit for bit, but for a convolution that wav2vec2-conformer has
    and never runs."""
    model, folder = case
    artifact = convert(folder, tmp_path / "artifact")
    assert "left_out" not in artifact.config["training"]
    loaded = load_artifact(tmp_path / "artifact")
    assert loaded.heads["ctc"].spec == artifact.heads["ctc"].spec
    convert(tmp_path / "artifact", tmp_path / "back", "huggingface")
    again = type(model).from_pretrained(tmp_path / "back").eval()
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    unused = "conformer.encoder.pos_conv_embed" if "conformer" in model.config.model_type else "none"
    assert all(torch.equal(before[key], after[key]) for key in before if unused not in key)
    for name in ("add_adapter", "num_adapter_layers", "output_hidden_size", "adapter_act"):
        assert getattr(again.config, name, None) == getattr(model.config, name, None) or (
            {model.config.adapter_act, again.config.adapter_act} == {"swish", "silu"}
        )
    wave = wave_of(51, model)
    assert np.array_equal(log_probs_of(again, wave), log_probs_of(model, wave))
    one, other = open_checkpoint(tmp_path / "back").heads["ctc"], artifact.heads["ctc"]
    assert one.spec == other.spec
    state = other.module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in one.module.state_dict().items())


@pytest.mark.parametrize("name", ["two layers, projected, large", "bert", "bert, all"])
def test_what_is_said_is_what_their_tokenizer_says(name: str, tmp_path: Path) -> None:
    model, folder = save_with_adapter(name, tmp_path / "model")
    wave = wave_of(400, model)
    theirs_TV = log_probs_of(model, wave)
    units = [BLANK_FIRST[unit] for unit in theirs_TV.argmax(-1)]
    text = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder).decode(units)
    runtime = speech_ssl.load(folder)
    (said,) = runtime.transcribe([wave])
    assert said.text == " ".join(text.split()) and len(said.text) > 10
    assert [word.word for word in said.words] == said.text.split()
    assert all(0 <= word.start < word.end <= len(wave) / 16_000 for word in said.words)
    (aligned,) = runtime.align([wave], [said.text])
    assert aligned.text == normalize(said.text) and len(aligned.words) == len(aligned.text.split())
    assert runtime.transcribe([wave], decoder=runtime.beam_search(beam=4))[0].text


def left_out(folder: Path) -> list[str]:
    artifact = open_checkpoint(folder)
    assert not artifact.heads
    return list(artifact.config["training"]["left_out"])


def test_without_a_head_for_ctc_the_adapter_is_left_out(tmp_path: Path) -> None:
    """Of a base model, whatever its adapter is like; and of one for CTC without its vocabulary."""
    model = made_with_adapter("one layer", "Model")
    folder = saved(model, tmp_path / "base")
    adapter = ["adapter.layers.0.conv.bias", "adapter.layers.0.conv.weight"]
    change_json(folder / "config.json", adapter_kernel_size=5)
    assert left_out(folder) == adapter
    _, folder = save_with_adapter("one layer", tmp_path / "ctc")
    (folder / "vocab.json").unlink()
    assert left_out(folder) == ["lm_head.bias", "lm_head.weight", *(f"wav2vec2.{key}" for key in adapter)]
    model, folder = save_with_adapter("bert, feed-forward first", tmp_path / "bert")
    (folder / "vocab.json").unlink()
    assert "wav2vec2_bert.intermediate_ffn.output_dense.bias" in left_out(folder)


def test_a_head_for_labels_is_left_out_with_its_adapter(tmp_path: Path) -> None:
    """transformers makes no such models; without the adapter its head would be wrong."""
    _, folder = save_with_adapter("one layer", tmp_path / "model")
    weights = folder / "model.safetensors"
    tensors = {key.replace("lm_head", "classifier"): value for key, value in load_file(weights).items()}
    save_file(tensors, weights)
    assert set(left_out(folder)) >= {"classifier.weight", "wav2vec2.adapter.layers.0.conv.weight"}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("one layer", {"adapter_kernel_size": 5}, "'adapter_kernel_size' is 5: adapters here have 3"),
        ("bert", {"adapter_stride": 4}, "'adapter_stride' is 4: adapters here have 2"),
        ("bert", {"adapter_act": "mish"}, "'adapter_act' is 'mish', an activation that is not supported"),
        ("bert", {"output_hidden_size": 33}, "width 33 must be a multiple of its heads 2"),
        ("bert", {"num_adapter_layers": 0}, "layers must be a whole number from 1, not 0"),
        ("bert", {"num_adapter_layers": "1"}, "'num_adapter_layers' is '1', not of type int"),
        ("bert", {"num_adapter_layers": 2}, "key 'adapter.layers.1.residual_layer_norm.weight' is missing"),
        ("three layers, large", {"num_adapter_layers": 2}, "key 'adapter.layers.2.conv.bias' is not known"),
        ("one layer", {"output_hidden_size": 24}, "key 'adapter.proj.weight' is missing"),
        ("bert, all", {"output_hidden_size": 2**18}, "convolutions have shape (48, 24, 3)"),
        ("bert, feed-forward first", {**FIRST, "use_intermediate_ffn_before_adapter": False}, "is not known"),
    ],
)
def test_an_adapter_that_cannot_be_read_leaves_the_encoder(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """With the head out, all of it: that was trained on the adapter."""
    _, folder = save_with_adapter(name, tmp_path / "model")
    whole = open_checkpoint(folder)
    change_json(folder / "config.json", **changes)
    without = open_checkpoint(folder)
    for key, value in whole.encoder.state_dict().items():
        assert torch.equal(without.encoder.state_dict()[key], value)
    told = without.config["training"]
    assert whole.heads and not without.heads and list(told["heads_left_out"]) == ["ctc"]
    assert said in (message := told["heads_left_out"]["ctc"]) and "\n" not in message
    assert str(folder) not in message and "lm_head.weight" in told["left_out"]
    assert any("adapter" in key for key in told["left_out"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one layer", "key 'adapter.layers.0.conv.bias' is not known"),
        ("bert, feed-forward first", "'add_adapter' is not: set both or none"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(name: str, said: str, tmp_path: Path) -> None:
    _, folder = save_with_adapter(name, tmp_path / "model")
    change_json(folder / "config.json", add_adapter=False)
    with pytest.raises(ArtifactError) as refused:
        speech_ssl.load(folder)
    message = str(refused.value)
    assert said in message and "\n" not in message and str(folder) in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "the adapter's kind is 'blocks': a 'wav2vec2' model of transformers"),
        ({"kind": "convolutions", "heads": 0, "ffn_width": 0, "eps": 0.1}, "the adapter's eps is 0.1"),
    ],
)
def test_an_adapter_that_a_family_lacks_is_not_written(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    encoder = open_checkpoint(saved(made("Wav2Vec2", "Model"), tmp_path / "model")).encoder
    values = {"kind": "blocks", "layers": 1, "width": 32, "heads": 2, "ffn_width": 48, **changes}
    spec = CTCSpec(vocabulary=("<blank>", "a"), adapter=AdapterSpec(**values))
    head = Head(spec, spec.build(encoder.config), {}, "unknown")
    save_artifact(encoder, tmp_path / "own", name="own", training={}, licence="unknown", heads={"ctc": head})
    with pytest.raises(ValueError, match=said) as refused:
        convert(tmp_path / "own", tmp_path / "back", "huggingface")
    assert "\n" not in str(refused.value) and not (tmp_path / "back").exists()


def test_an_artifact_of_before_is_read_as_ever(tmp_path: Path) -> None:
    """A head without an adapter is stored as it always was."""
    convert(saved(made("Wav2Vec2", "ForCTC"), tmp_path / "model"), tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact")
    assert artifact.config["heads"]["ctc"].keys() == {"kind", "vocabulary", "training", "licence"}
    assert artifact.heads["ctc"].spec.stride == 1
