"""The command that follows HEAR's protocol: what it writes, how it finds folds, and its refusals."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from recipes.hear import crema_d, folds, main, smoke
from speech_ssl import runs
from speech_ssl.data.manifest import Utterance, read_manifest, write_manifest
from speech_ssl.runs.hearing import GUESSING, LOG_MEL, SCENE, folded
from tests.narrow import save_narrow


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_narrow(tmp_path_factory.mktemp("artifacts") / "narrow")


@pytest.fixture(scope="module")
def clips(prompts: Path) -> list[Utterance]:
    """Prompts with a label and a fold."""
    found = [u for u in read_manifest(prompts / "manifest.tsv") if u.duration_s > 0.4][:40]
    return [
        replace(u, label="one" if len(u.text.split()) == 1 else "several", split=f"fold{i % 5:02}")
        for i, u in enumerate(found)
    ]


@pytest.fixture(scope="module")
def labelled(clips: list[Utterance], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "manifest.tsv"
    write_manifest(path, clips)
    return path


def test_it_leaves_the_scores_of_both_representations_and_heads(
    labelled: Path, narrow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hear"
    words = ("--manifest", labelled, "--out", out, "--init", f"{narrow}:layer=1", "--device", "cpu")
    main(["smoke", *map(str, words)])
    summary = json.loads((out / "hear.json").read_text())
    assert (summary["folds_by"], summary["clips"], summary["model"]) == ("split", 40, f"{narrow}:layer=1")
    assert sum(summary["labels"].values()) == 40
    named = [(row["representation"], row["head"]) for row in summary["results"]]
    heads = [(name, head) for name in (SCENE, LOG_MEL) for head in ("linear", "MLP")]
    assert named == [(GUESSING, ""), *heads]
    for row in summary["results"]:
        assert len(row["folds"]) == 5
        assert row["mean"] == pytest.approx(sum(row["folds"].values()) / 5)
    with (out / "hear.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5 * 5
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6 and shown[0].startswith("representation")
    with pytest.raises(ValueError, match="choose another folder"):
        runs.hear(smoke(), labelled, out, init=str(narrow), device="cpu")


def test_folds_are_named_in_split_or_are_speakers(clips: list[Utterance]) -> None:
    assert folded(clips, folds()) == (clips, "split") == folded(clips, crema_d())
    spoken = [replace(u, split="train", speaker=f"s{i % 4}") for i, u in enumerate(clips)]
    assert folded(spoken, folds()) == (spoken, "speaker")
    usual = [
        replace(u, split=("train", "dev", "test")[i % 3], speaker=f"s{i % 4}") for i, u in enumerate(clips)
    ]
    assert folded(usual, folds())[1] == "speaker"
    unlabelled = [replace(u, label="") for u in clips]
    assert folded([*unlabelled, *clips], folds()) == (clips, "split")
    assert len(folded(clips, replace(folds(), clips=3))[0]) == 15
    for wrong, plan in ((unlabelled, folds()), (spoken, crema_d()), (unlabelled, crema_d())):
        with pytest.raises(ValueError, match="folds"):
            folded(wrong, plan)


def test_mistakes_are_one_line(
    labelled: Path, narrow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: Path
) -> None:
    rest = ("--out", tmp_path / "out", "--device", "cpu")
    for words, wanted in (
        (("crema_d", "--manifest", prompts / "manifest.tsv"), "5 folds in the column 'split'"),
        (("folds", "--manifest", labelled, "--init", f"{narrow}:layer=7"), "layer must be from 0 to 1"),
        (("folds", "--manifest", labelled, "--init", tmp_path), "is not an artifact"),
    ):
        with pytest.raises(SystemExit) as leaving:
            main([*map(str, (*words, *rest))])
        assert leaving.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and wanted in line
    assert not (tmp_path / "out").exists()
