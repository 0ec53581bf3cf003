"""run.json: a run is not mixed with another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from recipes.pretrain_wav2vec2 import base, large, small, smoke, tiny
from speech_ssl.data.batching import DataConfig
from speech_ssl.model.flat import REQUIRED, flat_of
from speech_ssl.objectives.views import Mixing
from speech_ssl.objectives.wav2vec2 import Wav2Vec2Config
from speech_ssl.precision import Float
from speech_ssl.training import run as runs
from speech_ssl.training.checkpoint import LAST, RunState, save_checkpoint
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.run import Run

INPUTS = {"utterances": 3, "sha256": "ab"}
open_run_folder = partial(runs.open_run_folder, here="fp32")


def test_what_was_written_can_be_resumed(tmp_path: Path) -> None:
    open_run_folder(tmp_path / "a" / "run", smoke(), INPUTS, resume=False)
    open_run_folder(tmp_path / "a" / "run", smoke(), INPUTS, resume=True)


def test_a_run_that_was_begun_with_a_flat_config_can_be_resumed(tmp_path: Path) -> None:
    """As runs were described before the encoder's config had parts."""
    open_run_folder(tmp_path, smoke(), INPUTS, resume=False)
    (tmp_path / LAST).touch()
    path = tmp_path / "run.json"
    described = json.loads(path.read_text())
    flat = {**REQUIRED, **flat_of(smoke().encoder)}
    path.write_text(json.dumps({**described, "encoder": flat}))
    open_run_folder(tmp_path, smoke(), INPUTS, resume=True)
    path.write_text(json.dumps({**described, "encoder": {**flat, "depth": 3}}))
    with pytest.raises(ValueError, match="encoder.depth was 3, is now 2"):
        open_run_folder(tmp_path, smoke(), INPUTS, resume=True)
    path.write_text(json.dumps({**described, "encoder": {**flat, "wide": 3}}))
    with pytest.raises(ValueError, match="is damaged .*'wide'"):
        open_run_folder(tmp_path, smoke(), INPUTS, resume=True)


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


def with_precision(precision: Any) -> Run:
    return replace(SMOKE, train=replace(SMOKE.train, precision=precision))


def recorded(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("here", ["bf16", "fp16", "fp32"])
def test_auto_is_recorded_as_what_it_stands_for_and_kept_elsewhere(tmp_path: Path, here: Float) -> None:
    auto = with_precision("auto")
    assert open_run_folder(tmp_path, auto, INPUTS, resume=False, here=here).precision == here
    assert recorded(tmp_path)["train"]["precision"] == here
    (tmp_path / LAST).touch()
    for elsewhere in ("bf16", "fp16", "fp32"):
        assert open_run_folder(tmp_path, auto, INPUTS, resume=True, here=elsewhere).precision == here
    assert open_run_folder(tmp_path, with_precision(here), INPUTS, resume=True).precision == here
    other = "fp32" if here != "fp32" else "bf16"
    with pytest.raises(ValueError, match=f"train.precision was '{here}', is now '{other}'"):
        open_run_folder(tmp_path, with_precision(other), INPUTS, resume=True)


def test_a_run_begun_under_an_older_program_keeps_what_that_did(tmp_path: Path) -> None:
    """Numbers that it did not know; bf16, which was its default whatever the processor."""
    open_run_folder(tmp_path, with_precision("bf16"), INPUTS, resume=False)
    (tmp_path / LAST).touch()
    older = recorded(tmp_path)
    del older["train"]["decay_vectors"], older["train"]["max_bad_steps"]
    (tmp_path / "run.json").write_text(json.dumps(older))
    run = with_precision("auto")
    run = replace(run, train=replace(run.train, decay_vectors=True))
    config = open_run_folder(tmp_path, run, INPUTS, resume=True)
    assert config.precision == "bf16" and not config.decay_vectors
    assert recorded(tmp_path) == older


def test_a_run_begun_before_rows_were_mixed_goes_on_without(tmp_path: Path) -> None:
    open_run_folder(tmp_path, SMOKE, INPUTS, resume=False)
    (tmp_path / LAST).touch()
    older = recorded(tmp_path)
    del older["objective"]["mixing"]
    (tmp_path / "run.json").write_text(json.dumps(older))
    open_run_folder(tmp_path, SMOKE, INPUTS, resume=True)
    assert isinstance(SMOKE.objective, Wav2Vec2Config)
    mixed = replace(SMOKE, objective=replace(SMOKE.objective, mixing=Mixing()))
    with pytest.raises(ValueError, match="objective.mixing was None, is now"):
        open_run_folder(tmp_path, mixed, INPUTS, resume=True)


def test_a_run_begun_before_a_field_existed_has_its_default(tmp_path: Path) -> None:
    """Of the objective and the data. Another value than the default is a change like any other."""
    open_run_folder(tmp_path, SMOKE, INPUTS, resume=False)
    (tmp_path / LAST).touch()
    older = recorded(tmp_path)
    del older["objective"]["kappa"], older["data"]["min_s"]
    (tmp_path / "run.json").write_text(json.dumps(older))
    assert isinstance(SMOKE.objective, Wav2Vec2Config) and isinstance(SMOKE.data, DataConfig)
    usual = Wav2Vec2Config().kappa, DataConfig(batch_s=1.0).min_s
    run = replace(
        SMOKE,
        objective=replace(SMOKE.objective, kappa=usual[0]),
        data=replace(SMOKE.data, min_s=usual[1]),
    )
    open_run_folder(tmp_path, run, INPUTS, resume=True)
    other = replace(run, objective=replace(run.objective, kappa=0.3))
    with pytest.raises(ValueError, match="objective.kappa was .*, is now 0.3"):
        open_run_folder(tmp_path, other, INPUTS, resume=True)


def begun(out: Path, step: int, run: Run = SMOKE, **how: Any) -> None:
    """The folder of a run whose last checkpoint is of a step."""
    open_run_folder(out, run, INPUTS, resume=False, **how)
    save_checkpoint(out / LAST, RunState(step=step), nn.Linear(1, 1))


def resumed(out: Path, changes: Mapping[str, Any] | None = None, run: Run = SMOKE, **how: Any) -> TrainConfig:
    return open_run_folder(out, run, INPUTS, resume=True, changes=changes or {}, **how)


def test_a_change_is_recorded_with_its_step_and_stays(tmp_path: Path) -> None:
    begun(tmp_path, 7)
    before = recorded(tmp_path)
    expected = replace(SMOKE.train, peak_lr=1e-4, clip_norm=1.0)
    assert resumed(tmp_path, {"peak_lr": 1e-4, "clip_norm": 1.0}) == expected
    first = [
        {"step": 7, "name": "peak_lr", "was": 1e-3, "now": 1e-4},
        {"step": 7, "name": "clip_norm", "was": None, "now": 1.0},
    ]
    assert recorded(tmp_path) == {**before, "changes": first}
    assert resumed(tmp_path) == expected
    assert resumed(tmp_path, {"peak_lr": 1e-4}) == expected  # given again: it is so already
    assert recorded(tmp_path)["changes"] == first
    save_checkpoint(tmp_path / LAST, RunState(step=9), nn.Linear(1, 1))
    assert resumed(tmp_path, {"clip_norm": None}) == replace(expected, clip_norm=None)
    assert recorded(tmp_path)["changes"][2:] == [{"step": 9, "name": "clip_norm", "was": 1.0, "now": None}]
    assert recorded(tmp_path)["train"] == before["train"]


def test_a_change_of_precision_is_one_too(tmp_path: Path) -> None:
    begun(tmp_path, 7, with_precision("auto"), here="bf16")
    assert resumed(tmp_path, {"precision": "auto"}, with_precision("auto"), here="fp32").precision == "fp32"
    assert recorded(tmp_path)["changes"] == [{"step": 7, "name": "precision", "was": "bf16", "now": "fp32"}]
    assert resumed(tmp_path, run=with_precision("auto"), here="bf16").precision == "fp32"


def test_a_change_that_makes_no_run_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    begun(tmp_path, 7)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ValueError, match="peak_lr must be a number above 0, not nan"):
        resumed(tmp_path, {"peak_lr": float("nan")})
    (tmp_path / LAST).write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        resumed(tmp_path, {"peak_lr": 1e-4})
    assert (tmp_path / "run.json").read_bytes() == before


def test_with_nothing_to_resume_it_holds_from_the_start(tmp_path: Path) -> None:
    assert resumed(tmp_path, {"peak_lr": 1e-4}).peak_lr == 1e-4
    assert recorded(tmp_path)["changes"] == [{"step": 0, "name": "peak_lr", "was": 1e-3, "now": 1e-4}]


def test_the_last_step_of_another_engine(tmp_path: Path) -> None:
    open_run_folder(tmp_path, SMOKE, INPUTS, resume=False)
    for step in (5, 10):
        (tmp_path / "checkpoints" / f"step_{step}" / "trainer").mkdir(parents=True)
    resumed(tmp_path, {"peak_lr": 1e-4})
    assert recorded(tmp_path)["changes"][0]["step"] == 10


@pytest.mark.parametrize(
    "damage",
    ['{"name": 1}', "[]", '{"train": []}', '{"train": {"steps": "x"}}', '{"train": {}, "changes": [1]}'],
)
def test_a_file_that_describes_no_run_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "run.json").write_text(damage)
    (tmp_path / LAST).touch()
    with pytest.raises(ValueError, match="run.json is damaged|was made by another run") as caught:
        resumed(tmp_path)
    assert "\n" not in str(caught.value)
