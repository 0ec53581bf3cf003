"""HuBERT's two iterations in a few steps: what the second needs of the first, and what is kept of units."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import pretrain_best_rq, pretrain_hubert
from speech_ssl import runs
from speech_ssl.checkpoints.artifact import load_artifact, load_extra
from speech_ssl.training.run import Run
from tests.recipes.runs import log
from tests.training.toys import CPU

VARIANTS = [
    *(getattr(pretrain_hubert, name) for name in ("smoke", "tiny", "tiny_second", "base", "base_second")),
    *(getattr(pretrain_best_rq, name) for name in ("smoke", "tiny", "base")),
]


def brief(run: Run) -> Run:
    train = replace(run.train, steps=2, batches_per_step=1, log_every=1, valid_every=2)
    return replace(run, train=train, data=replace(run.data, workers=0, batch_s=2.0))


@pytest.fixture(scope="module")
def first(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of HuBERT's first iteration."""
    out = tmp_path_factory.mktemp("runs") / "first"
    runs.pretrain(brief(pretrain_hubert.smoke()), [manifest], out, CPU)
    return out


def test_units_are_fitted_and_part_of_the_artifact(first: Path) -> None:
    for entry in log(first, "train"):
        assert 4 < entry["unit_perplexity"] <= 32
        assert entry["cross_entropy"] > 0 and entry["effective_rank"] > 1
    units = load_extra(first / "artifact")["units.kmeans.centroids_KD"]
    assert units.shape == (32, 39) and units.std() > 0


def test_the_second_iteration_learns_from_the_first(first: Path, manifest: Path, tmp_path: Path) -> None:
    run = brief(pretrain_hubert.smoke())
    second = replace(run, objective=replace(run.objective, units=1))
    with pytest.raises(ValueError, match="learns from 1 encoders, not 0"):
        runs.pretrain(second, [manifest], tmp_path / "none", CPU)
    artifact = runs.pretrain(second, [manifest], tmp_path / "second", CPU, teachers=[str(first / "artifact")])
    extra = load_extra(artifact)
    assert extra["units.kmeans.centroids_KD"].shape == (32, 64)
    assert not any("teacher" in name for name in extra)
    recorded = json.loads((tmp_path / "second" / "run.json").read_text())["inputs"]["teachers"]
    assert recorded == [load_artifact(first / "artifact").sha256]


def test_a_run_from_a_hubert_goes_on_with_its_units(first: Path, manifest: Path, tmp_path: Path) -> None:
    run = brief(pretrain_hubert.smoke())
    run = replace(run, train=replace(run.train, seed=5))
    artifact = runs.pretrain(run, [manifest], tmp_path / "more", CPU, init=str(first / "artifact"))
    mine, theirs = (
        load_extra(folder)["units.kmeans.centroids_KD"] for folder in (artifact, first / "artifact")
    )
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_describes_itself_in_json(variant: Any) -> None:
    described = variant().to_dict()
    assert json.loads(json.dumps(described)) == described
