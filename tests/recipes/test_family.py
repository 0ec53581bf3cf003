"""Every pre-training recipe's smoke run on real speech: a few steps, in this process, to an artifact."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import recipes
import speech_ssl
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.model.encoder import Encoder
from speech_ssl.runs import Run, pretrain
from tests.narrow import save_narrow

NAMES = sorted(path.stem for path in Path(recipes.__path__[0]).glob("pretrain_*.py"))
STEPS = 4


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_narrow(tmp_path_factory.mktemp("teacher") / "narrow")


def shortened(run: Run) -> Run:
    train = replace(run.train, steps=STEPS, log_every=2, valid_every=STEPS, save_every=STEPS)
    return replace(run, data=replace(run.data, workers=0), train=train)


@pytest.mark.parametrize("name", NAMES)
def test_smoke_leaves_an_artifact_that_encodes(
    name: str, prompts: Path, teacher: Path, tmp_path: Path
) -> None:
    recipe = importlib.import_module(f"recipes.{name}")
    run = shortened(recipe.smoke())
    wanted = run.objective.build(Encoder(run.encoder)).teachers
    folder = pretrain(run, [prompts / "manifest.tsv"], tmp_path / "run", teachers=[str(teacher)] * wanted)
    clip = next((prompts / "audio").glob("*.flac"))
    features = speech_ssl.load(folder, device="cpu").encode([clip])[0]
    assert np.isfinite(features.frames).all() and features.frames.std() > 0
    training = load_artifact(folder).config["training"]
    assert training["step"] == STEPS and training["recipe"]["name"] == recipe.smoke().name
    assert variants_are_named(recipe)


def variants_are_named(recipe: ModuleType) -> bool:
    """The docstring's list has each variant, and each is a run of its own name."""
    doc = recipe.__doc__ or ""
    variants = [name for name in ("smoke", "tiny", "small", "base", "large") if hasattr(recipe, name)]
    return all(f"\n{name} " in doc for name in variants) and len(
        {getattr(recipe, name)().name for name in variants}
    ) == len(variants)
