"""Heads in artifacts: they come back, are added without touching the encoder, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speech_ssl.checkpoints.artifact import ArtifactError, Head, add_head, load_artifact, save_artifact
from speech_ssl.model.heads.specs import CTCSpec, EventsSpec, HeadSpec
from speech_ssl.model.presets import tiny

CTC = CTCSpec(vocabulary=("<blank>", "a", "\u00df", " "))
EVENTS = EventsSpec(labels=("dog", "rain"))


def head_of(spec: HeadSpec, seed: int = 0) -> Head:
    torch.manual_seed(seed)
    return Head(spec, spec.build(tiny()), {"step": seed}, "CC0")


@pytest.fixture
def with_ctc(tiny_artifact: Path, tmp_path: Path) -> Path:
    encoder = load_artifact(tiny_artifact).encoder
    folder = tmp_path / "ctc"
    return save_artifact(encoder, folder, name="m", training={}, licence="MIT", heads={"ctc": head_of(CTC)})


def assert_same(found: Head, saved: Head) -> None:
    assert (found.spec, found.training, found.licence) == (saved.spec, saved.training, saved.licence)
    for key, value in saved.module.state_dict().items():
        assert torch.equal(found.module.state_dict()[key], value)


def test_a_saved_head_comes_back(with_ctc: Path) -> None:
    artifact = load_artifact(with_ctc)
    assert list(artifact.heads) == ["ctc"]
    assert_same(artifact.heads["ctc"], head_of(CTC))


def test_adding_a_head_leaves_all_else_as_it_is(with_ctc: Path, tmp_path: Path) -> None:
    folder = add_head(with_ctc, tmp_path / "both", "sounds", head_of(EVENTS, 3), model="both")
    artifact = load_artifact(folder)
    assert list(artifact.heads) == ["ctc", "sounds"] and artifact.name == "both"
    assert_same(artifact.heads["sounds"], head_of(EVENTS, 3))
    before, after = (json.loads((f / "config.json").read_text())["files"] for f in (with_ctc, folder))
    assert before.items() <= after.items()
    for name in before:
        assert (folder / name).read_bytes() == (with_ctc / name).read_bytes()
    assert not (with_ctc / "head.sounds.safetensors").exists()


def test_a_head_of_the_same_name_is_replaced_in_place(with_ctc: Path) -> None:
    add_head(with_ctc, with_ctc, "ctc", head_of(CTC, 5))
    assert_same(load_artifact(with_ctc).heads["ctc"], head_of(CTC, 5))


def test_a_damaged_artifact_gets_no_head(with_ctc: Path, tmp_path: Path) -> None:
    (with_ctc / "encoder.safetensors").write_bytes(b"no longer")
    with pytest.raises(ArtifactError, match="sha256"):
        add_head(with_ctc, tmp_path / "new", "sounds", head_of(EVENTS))
    assert [path.name for path in tmp_path.iterdir()] == ["ctc"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", "UPPER", "a" * 65])
def test_a_name_unfit_for_a_file_is_refused(with_ctc: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot name a head"):
        add_head(with_ctc, with_ctc, name, head_of(EVENTS))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda heads: heads["ctc"].update(kind="magic"), "head 'ctc' can be made of it: kind 'magic'"),
        (lambda heads: heads["ctc"].pop("vocabulary"), "field 'vocabulary' is missing"),
        (lambda heads: heads["ctc"]["vocabulary"].append("x"), "key 'logits.weight' has shape"),
        (lambda heads: heads.update(ctc=3), "field 'heads' is malformed"),
        (lambda heads: heads.update(other=heads["ctc"]), "does not list head.other.safetensors"),
    ],
)
def test_a_wrong_config_is_named(with_ctc: Path, change, words: str) -> None:
    path = with_ctc / "config.json"
    config = json.loads(path.read_text())
    change(config["heads"])
    path.write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=words):
        load_artifact(with_ctc)


def test_a_config_nested_without_end_is_refused(with_ctc: Path) -> None:
    (with_ctc / "config.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="not valid JSON"):
        load_artifact(with_ctc)


def test_a_damaged_head_is_named(with_ctc: Path) -> None:
    with (with_ctc / "head.ctc.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"head\.ctc\.safetensors: its sha256"):
        load_artifact(with_ctc)


def test_what_is_loaded_has_no_dropout(answering_artifact: Path) -> None:
    """As what another library's checkpoint becomes."""
    artifact = load_artifact(answering_artifact)
    modules = [artifact.encoder, *(head.module for head in artifact.heads.values())]
    assert len(modules) == 4 and not any(part.training for module in modules for part in module.modules())
