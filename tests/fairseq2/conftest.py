"""These tests run in an environment of their own, by `scripts/test-fairseq2`: elsewhere none is collected."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("fairseq2") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def started() -> None:
    """fairseq2, ready: in starting it calls functions of its own that it has deprecated."""
    from speech_ssl.training.fairseq2.state import started

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        started()


@pytest.fixture(scope="session")
def manifest(prompts: Path) -> Path:
    return prompts / "manifest.tsv"
