"""Runs that start from another library's checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes.common import command, pretraining_parts, start_from
from recipes.pretrain_wav2vec2 import smoke
from speech_ssl.checkpoints.artifact import load_artifact, load_extra, save_artifact
from speech_ssl.checkpoints.opening import convert, open_checkpoint
from speech_ssl.data.manifest import read_manifest, write_manifest
from speech_ssl.model.encoder import Encoder
from speech_ssl.training.run import Run
from tests.checkpoints.transformers_models import change_json
from tests.recipes.tuning import done, sounds

pytest.importorskip("transformers")


def brief() -> Run:
    """Two steps of the smoke run."""
    run = smoke()
    train = replace(run.train, steps=2, log_every=1, valid_every=1, save_every=1)
    return replace(run, data=replace(run.data, workers=0), train=train)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained model of the smoke run's size, as transformers has it."""
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(3)
    objective = brief().objective.build(Encoder(brief().encoder))
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    extra = pretraining_parts(objective)
    save_artifact(objective.encoder, folder / "a", name="n", training={}, licence="l", extra=extra)
    convert(folder / "a", folder / "hf", "huggingface")
    return folder / "hf"


def test_pre_training_goes_on_with_encoder_and_quantizer(theirs: Path) -> None:
    torch.manual_seed(0)
    objective = brief().objective.build(Encoder(brief().encoder))
    artifact = open_checkpoint(theirs)
    start_from(objective, artifact)
    state = objective.state_dict()
    wanted = {f"encoder.{key}": value for key, value in artifact.encoder.state_dict().items()}
    wanted |= artifact.extra or {}
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in state)


def test_a_run_from_it(theirs: Path, manifest: Path, tmp_path: Path) -> None:
    """What the folder says of waves, and only that, changes the variant's encoder."""
    main = command(brief, doc="")
    options = ["brief", "--device", "cpu", "--manifest", str(manifest)]
    main([*options, "--out", str(tmp_path / "run"), "--init", str(theirs)])
    trained = load_artifact(tmp_path / "run" / "artifact")
    assert trained.encoder.config == brief().encoder and load_extra(trained.folder)
    change_json(theirs / "preprocessor_config.json", do_normalize=False)
    try:
        main([*options, "--out", str(tmp_path / "other"), "--init", str(theirs)])
    finally:
        change_json(theirs / "preprocessor_config.json", do_normalize=True)
    recorded = json.loads((tmp_path / "other" / "run.json").read_text())["encoder"]
    assert not recorded["frontend"]["normalize_wave"] and brief().encoder.frontend.normalize_wave


@pytest.mark.parametrize("variant", ["clips", "frozen"])
def test_fine_tuning_from_it(theirs: Path, manifest: Path, tmp_path: Path, variant: str) -> None:
    chosen = sorted(read_manifest(manifest), key=lambda u: u.duration_s)[20:140:10]
    labelled = [
        replace(u, label="long" if i >= 6 else "short", split="dev" if i % 4 == 1 else "train")
        for i, u in enumerate(chosen)
    ]
    write_manifest(tmp_path / "m.tsv", labelled)
    done(sounds, variant, "--manifest", tmp_path / "m.tsv", "--init", theirs, "--out", tmp_path / "out")
    tuned = load_artifact(tmp_path / "out" / "artifact")
    assert list(tuned.heads) == ["events"]
    before, after = open_checkpoint(theirs), tuned.encoder.state_dict()
    if variant == "frozen":
        assert all(torch.equal(value, before.encoder.state_dict()[key]) for key, value in after.items())
    else:
        assert tuned.config["training"]["init"]["sha256"] == before.sha256
    assert before.extra
