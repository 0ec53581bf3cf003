"""run.json: a run is not mixed with another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.pretrain_wav2vec2 import base, large, small, smoke, tiny
from speech_ssl.training.checkpoint import LAST
from speech_ssl.training.run import Run, open_run_folder

INPUTS = {"utterances": 3, "sha256": "ab"}


def test_what_was_written_can_be_resumed(tmp_path: Path) -> None:
    open_run_folder(tmp_path / "a" / "run", smoke(), INPUTS, resume=False)
    open_run_folder(tmp_path / "a" / "run", smoke(), INPUTS, resume=True)


def test_every_variant_describes_itself_in_json() -> None:
    for variant in (smoke, tiny, small, base, large):
        described = variant().to_dict()
        assert json.loads(json.dumps(described)) == described
        assert described["objective"]["method"] == "Wav2Vec2Config"


def test_a_used_folder_needs_resume(tmp_path: Path) -> None:
    open_run_folder(tmp_path, smoke(), INPUTS, resume=False)
    (tmp_path / LAST).touch()
    with pytest.raises(ValueError, match="already holds a run: continue it with --resume"):
        open_run_folder(tmp_path, smoke(), INPUTS, resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_without_a_checkpoint_is_as_good_as_new(tmp_path: Path, resume: bool) -> None:
    open_run_folder(tmp_path, smoke(), INPUTS, resume=False)
    open_run_folder(tmp_path, smoke(), {**INPUTS, "sha256": "cd"}, resume=resume)
    assert json.loads((tmp_path / "run.json").read_text())["inputs"]["sha256"] == "cd"


SMOKE = smoke()
CHANGES = [
    (
        replace(SMOKE, train=replace(SMOKE.train, betas=(0.9, 0.99))),
        INPUTS,
        "train.betas was [0.9, 0.98], is",
    ),
    (replace(SMOKE, encoder=replace(SMOKE.encoder, depth=3)), INPUTS, "encoder.depth was 2, is now 3"),
    (SMOKE, {**INPUTS, "sha256": "cd"}, "inputs.sha256 was 'ab', is now 'cd'"),
    (SMOKE, {**INPUTS, "more": 1}, "inputs.more was None, is now 1"),
    (replace(SMOKE, data=replace(SMOKE.data, crop_s=0.9)), INPUTS, "data.crop_s was 1.0, is now 0.9"),
]


@pytest.mark.parametrize(("run", "inputs", "named"), CHANGES)
def test_a_changed_number_is_named(tmp_path: Path, run: Run, inputs: dict[str, object], named: str) -> None:
    open_run_folder(tmp_path, SMOKE, INPUTS, resume=False)
    (tmp_path / LAST).touch()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError) as caught:
        open_run_folder(tmp_path, run, inputs, resume=True)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "wav')
    (tmp_path / LAST).touch()
    with pytest.raises(ValueError, match="run.json is damaged"):
        open_run_folder(tmp_path, SMOKE, INPUTS, resume=True)
