"""Which files the weights of a folder of transformers are read from, in which precision, and refusals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import speech_ssl
from speech_ssl.checkpoints.artifact import ArtifactError, load_artifact
from speech_ssl.checkpoints.opening import open_checkpoint
from tests.checkpoints.transformers_models import change_json, made, saved, write_json
from tests.command_line import Run

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model() -> Any:
    return made("Wav2Vec2", "ForCTC")


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    return saved(model, tmp_path / "model")


def same(one: Path | str, other: Path | str, *, pickles: bool = False) -> bool:
    ours, theirs = (open_checkpoint(each, pickles=pickles).encoder.state_dict() for each in (one, other))
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def shard(folder: Path, name: str, index: str, save: Any) -> None:
    """`model.safetensors` as two files with an index, which stays beside them."""
    tensors = load_file(folder / "model.safetensors")
    places = {key: name.format(i % 2 + 1) for i, key in enumerate(tensors)}
    for part in set(places.values()):
        save({key: tensors[key] for key, place in places.items() if place == part}, folder / part)
    write_json(folder / index, {"weight_map": places})


def test_weights_in_several_files(model: Any, folder: Path, tmp_path: Path) -> None:
    parts = saved(model, tmp_path / "parts", max_shard_size="20KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    assert same(folder, parts)
    next(parts.glob("*.safetensors")).unlink()
    with pytest.raises(ArtifactError, match="fetch it again"):
        open_checkpoint(parts)


def test_one_file_goes_before_an_index_that_is_left_from_before(folder: Path, tmp_path: Path) -> None:
    """As for transformers: a model that was saved again, smaller, leaves the old parts beside it."""
    shutil.copytree(folder, tmp_path / "alone")
    save = lambda tensors, path: save_file({k: v + 1 for k, v in tensors.items()}, path)  # noqa: E731
    shard(folder, "model-{}-of-2.safetensors", "model.safetensors.index.json", save)
    assert same(folder, tmp_path / "alone")
    theirs = transformers.Wav2Vec2ForCTC.from_pretrained(folder).state_dict()["wav2vec2.masked_spec_embed"]
    assert torch.equal(open_checkpoint(folder).encoder.hidden_vector, theirs)


def test_pickles_come_last_and_may_be_several(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "whole")
    shard(folder, "pytorch_model-{}-of-2.bin", "pytorch_model.bin.index.json", torch.save)
    torch.save({}, folder / "pytorch_model.bin")
    assert same(folder, tmp_path / "whole", pickles=True)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ArtifactError, match="is a pickle, which is not loaded"):
        open_checkpoint(folder)
    assert same(folder, tmp_path / "whole", pickles=True)


def test_a_config_may_name_the_file(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "plain")
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value + 1 for key, value in tensors.items()}, folder / "model.safetensors")
    save_file(tensors, folder / "best.safetensors")
    change_json(folder / "config.json", transformers_weights="best.safetensors")
    assert same(folder, tmp_path / "plain")
    for name, said in (
        ("../x.safetensors", "not a safetensors file"),
        ("other.safetensors", "has no other.safe"),
    ):
        change_json(folder / "config.json", transformers_weights=name)
        with pytest.raises(ArtifactError, match=said):
            open_checkpoint(folder)


@pytest.mark.parametrize(("dtype", "told"), [("bfloat16", "bfloat16"), ("float16", "float16"), (None, None)])
def test_the_precision_that_weights_had_is_told(
    folder: Path, tmp_path: Path, run: Run, dtype: str | None, told: str | None
) -> None:
    tensors = load_file(folder / "model.safetensors")
    if dtype is not None:
        tensors = {key: value.to(getattr(torch, dtype)) for key, value in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    status, out, err = run("convert", folder, tmp_path / "artifact")
    assert (status, err) == (0, "") and out.endswith(f"; its weights were {told}\n") is (told is not None)
    assert load_artifact(tmp_path / "artifact").config["training"].get("stored_as") == told


def test_of_other_libraries_too(tmp_path: Path) -> None:
    """Mixed precisions are all told."""
    import torchaudio

    model = torchaudio.models.wav2vec2_base()
    tensors = {
        key: value.half() if "layer_norm" in key else value for key, value in model.state_dict().items()
    }
    torch.save(tensors, tmp_path / "model.pt")
    told = open_checkpoint(tmp_path / "model.pt", pickles=True).config["training"]
    assert told["stored_as"] == "float16 and float32"


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_no_number_is_refused(folder: Path, value: float) -> None:
    """In the encoder; a head is left out."""
    tensors = load_file(folder / "model.safetensors")
    damaged = {key: tensor.clone() for key, tensor in tensors.items()}
    damaged["wav2vec2.encoder.layers.1.feed_forward.output_dense.bias"][3] = value
    save_file(damaged, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"'blocks.1.ffn.down.bias' holds infinite values or NaN"):
        open_checkpoint(folder)
    tensors["lm_head.bias"][3] = value
    save_file(tensors, folder / "model.safetensors")
    artifact = open_checkpoint(folder)
    assert not artifact.heads and "'logits.bias' holds infinite values" in artifact.heads_left_out["ctc"]


def lora(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    told = {"peft_type": "LORA", "base_model_name_or_path": "facebook/wav2vec2-base", "r": 8}
    write_json(folder / "adapter_config.json", told)
    save_file({"base_model.model.lora_A.weight": torch.ones(2)}, folder / "adapter_model.safetensors")
    return folder


def test_what_peft_trained_is_no_model(folder: Path, tmp_path: Path, run: Run) -> None:
    alone, beside = lora(tmp_path / "alone"), lora(tmp_path / "beside")
    shutil.copy(folder / "config.json", beside)
    for path in (alone, beside):
        status, out, err = run("convert", path, tmp_path / "artifact")
        assert (status, out) == (2, "") and len(err.splitlines()) == 1
        assert "PEFT adapter (LORA) for facebook/wav2vec2-base" in err and "merge_and_unload()" in err
        with pytest.raises(ArtifactError, match="merge_and_unload"):
            speech_ssl.load(path)
    shutil.copytree(folder, tmp_path / "whole")
    status, out, _ = run("convert", lora(folder), tmp_path / "artifact")
    assert status == 0 and "; not applied: adapter_config.json" in out
    assert same(folder, tmp_path / "whole")
