"""The examples do what they say, one after the other in this process: PyTorch is loaded once."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

import speech_ssl
from recipes import sizes
from speech_ssl.extraction.extract import Extraction
from speech_ssl.training.config import TrainConfig
from tests.service.fakes import FakeRuntime
from tests.service.support import serving

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN_BELOW = {
    "ask_service.py",
    "compare_clips.py",
    "encoder_in_torch.py",
    "first_steps.ipynb",
    "pretrain_smoke.py",
    "probe_features.py",
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Runs one as its command line would; gives the lines that it prints."""

    def run(name: str, *arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_none_is_left_out() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert files == RUN_BELOW
    assert all(f"({name})" in (EXAMPLES / "README.md").read_text() for name in files)


def test_clips_are_compared(example) -> None:  # type: ignore[no-untyped-def]
    pairs = [line.split() for line in example("compare_clips.py")]
    assert len(pairs) == 15 and pairs[0][1:] == ["vm-message.flac", "vm-messages.flac"]


def test_a_probe_reads_extracted_features(example, prompts: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    few = (prompts / "manifest.tsv").read_text().splitlines()[:61]
    manifest = tmp_path / "few.tsv"
    manifest.write_text("\n".join(few).replace("audio/", f"{prompts}/audio/") + "\n")
    Extraction(speech_ssl.load("default"), pooling="mean", workers=1).run(manifest, tmp_path / "vectors")
    probed, guessed = example("probe_features.py", tmp_path / "vectors")
    assert probed.startswith("60 clips")
    assert float(probed.split()[-1]) > float(guessed.split()[-1])


def test_the_service_is_asked(example, prompts: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "notes.txt").write_text("no audio")
    with serving(FakeRuntime()) as http:
        monkeypatch.setenv("SPEECH_SSL_URL", str(http.base_url))
        said = example("ask_service.py", prompts / "audio" / "hello.flac", tmp_path / "notes.txt")
    assert said[0] == "fake: 3 layers, vectors of 5 numbers, no heads"
    assert sorted("vector of length" in line for line in said[1:]) == [False, True]


def test_the_encoder_computes_in_torch(example) -> None:  # type: ignore[no-untyped-def]
    said = example("encoder_in_torch.py")
    assert len(said) == 5 and said[-1].startswith("hello.flac: the frames depend most on the sound at 0.")


def test_a_short_training_is_looked_at(example, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """With fewer steps: the whole of it is what tests/recipes runs."""
    fewer = {"steps": 4, "log_every": 2, "valid_every": 4}
    monkeypatch.setattr(sizes, "TrainConfig", lambda **given: TrainConfig(**given | fewer))
    *table, end = example("pretrain_smoke.py", tmp_path / "run")
    assert [line.split()[:2] for line in table[1:]] == [["train", "2"], ["train", "4"], ["valid", "4"]]
    assert end.startswith("wav2vec2-smoke: 2 layers of width 64")


def test_the_notebook_runs_and_holds_no_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib

    matplotlib.use("agg")
    cells = json.loads((EXAMPLES / "first_steps.ipynb").read_text())["cells"]
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert codes and not any(cell["outputs"] or cell["execution_count"] for cell in codes)
    names: dict[str, object] = {}
    for cell in codes:
        exec("".join(cell["source"]), names)
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert abs(names["alone"] - names["together"]).max() < 1e-4  # type: ignore[operator]
