from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.runs import complete


@pytest.fixture(scope="session")
def manifest(prompts: Path) -> Path:
    return prompts / "manifest.tsv"


@pytest.fixture(scope="session")
def undisturbed(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a smoke run that nothing happened to."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    complete(manifest, out)
    return out
