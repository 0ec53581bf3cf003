"""The command that probes layers: its smoke variant, what it writes, and its refusals in one line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from recipes.probe_layers import VARIANTS, main, smoke
from speech_ssl import runs
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.data.manifest import read_manifest, write_manifest
from speech_ssl.evaluation.probes.report import MIXED, SHOWN, ProbedProblem
from speech_ssl.runs.events import ClipRead, LayersProbed, ReadingBegun, ReadingEnded
from speech_ssl.runs.probing import SEED
from tests.narrow import save_narrow


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_narrow(tmp_path_factory.mktemp("artifacts") / "narrow")


class Made(NamedTuple):
    """By the smoke variant, from Python: its folder, what was returned, and what was told."""

    out: Path
    returned: list[ProbedProblem]
    told: list[runs.RunEvent]


@pytest.fixture(scope="module")
def called(manifest: Path, narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    out, told = tmp_path_factory.mktemp("probes") / "smoke", list[runs.RunEvent]()
    tasks = [(task, manifest) for task in smoke()]
    returned = runs.probe(tasks, out, init=str(narrow), device="cpu", tell=told.append)
    return Made(out, returned, told)


@pytest.fixture
def made(called: Made) -> Path:
    return called.out


def test_a_program_is_told_what_is_read_and_gets_the_problems(called: Made) -> None:
    assert [row.problem.name for row in called.returned] == ["words", "halves"]
    assert LayersProbed(called.returned) in called.told
    assert called.told.count(ReadingEnded()) == 2
    read = [event.seconds for event in called.told if isinstance(event, ClipRead)]
    begun = [event.seconds for event in called.told if isinstance(event, ReadingBegun)]
    assert len(read) == 40 + 80 and sum(read) == pytest.approx(sum(begun))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as leaving:
        main([*map(str, arguments), "--device", "cpu"])
    assert leaving.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_every_representation_has_a_row_for_each_task(made: Path) -> None:
    found = rows(made / "probes.csv")
    for task, metric in (("words", "accuracy"), ("halves", "EER")):
        own = [row for row in found if row["task"] == task]
        assert sorted(row["representation"] for row in own) == sorted(SHOWN)
        assert {row["metric"] for row in own} == {metric} and {row["data"] for row in own} == {"prompts"}
        assert all(0 <= float(row["score"]) <= 1 for row in own)
    assert sum(row["representation"] == "best layer" and row["layer"] in "01" for row in found) == 2


def test_layers_and_their_weights(made: Path) -> None:
    found = rows(made / "layers.csv")
    for task in ("words", "halves"):
        own = [row for row in found if row["task"] == task]
        assert [row["layer"] for row in own] == ["0", "1"]
        assert sum(float(row["weight"]) for row in own) == pytest.approx(1, abs=1e-3)
        best = min(own, key=lambda row: (float(row["held_out"]), float(row["held_out_loss"] or 0)))
        (shown,) = [
            row
            for row in rows(made / "probes.csv")
            if row["task"] == task and row["representation"] == "best layer"
        ]
        assert float(best["score"]) == float(shown["score"])
    assert (made / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_says_what_was_probed(made: Path, narrow: Path) -> None:
    summary = json.loads((made / "probes.json").read_text())
    assert summary["seed"] == SEED and summary["seconds"] > 0
    assert summary["artifact"] == {"name": "narrow", "sha256": load_artifact(narrow).sha256}
    words, halves = summary["tasks"]
    assert words["clips"] == 40 and halves["clips"] == 80
    assert words["problems"][0]["classes"] == 2 and words["skipped"] == {}


def test_the_table_has_a_line_for_each_task(
    narrow: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two data sets of one task; a clip that is not there is named and left out."""
    utterances = [u for u in read_manifest(manifest) if u.duration_s < 1.2][:20]
    labelled = [replace(u, label="ab"[i % 2]) for i, u in enumerate(utterances)]
    given = []
    for name in ("kitchen", "garden"):
        (tmp_path / name).mkdir()
        absent = replace(labelled[0], path=tmp_path / "absent.flac")
        write_manifest(tmp_path / name / "manifest.tsv", labelled + [absent] * (name == "garden"))
        given += ["--manifest", str(tmp_path / name / "manifest.tsv")]
    main(["keyword", *given, "--out", str(tmp_path / "out"), "--init", str(narrow), "--device", "cpu"])
    said = capsys.readouterr()
    head, *lines = said.out.splitlines()
    assert head.split()[:3] == ["task", "data", "measure"] and head.rstrip().endswith(MIXED)
    assert [line.split()[:3] for line in lines] == [
        ["keyword", "kitchen", "accuracy"],
        ["keyword", "garden", "accuracy"],
    ]
    assert lines[0].split()[3:] == lines[1].split()[3:]  # the absent clip changes nothing else
    assert said.err.startswith("skipped: ") and "absent.flac" in said.err.splitlines()[0]


def test_refusals(
    made: Path, narrow: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ("--out", tmp_path / "out", "--init", narrow)
    assert "'label', which this task needs" in refusal(capsys, "keyword", "--manifest", manifest, *rest)
    assert "speaker: the labels are all" in refusal(capsys, "speaker", "--manifest", manifest, *rest)
    assert "absent.tsv" in refusal(capsys, "intent", "--manifest", tmp_path / "absent.tsv", *rest)
    line = refusal(capsys, "all", "--manifest", manifest, *rest)
    assert "--manifest TASK=" in line and "verification" in line
    line = refusal(capsys, "all", "--manifest", f"emotion={tmp_path / 'absent.tsv'}", *rest)
    assert "absent.tsv: cannot be read" in line
    assert not (tmp_path / "out").exists()
    line = refusal(capsys, "smoke", "--manifest", manifest, "--out", made, "--init", narrow)
    assert "choose another folder" in line
    line = refusal(capsys, "smoke", "--manifest", manifest, "--out", tmp_path / "o", "--init", tmp_path)
    assert "is not an artifact" in line
    file = tmp_path / "file"
    file.touch()
    line = refusal(capsys, "smoke", "--manifest", manifest, "--out", file, "--init", narrow)
    assert "is a file" in line


def test_variants_are_functions_of_the_recipe() -> None:
    import recipes.probe_layers as recipe

    assert set(VARIANTS) == {"keyword", "intent", "emotion", "speaker", "verification", "all", "smoke"}
    assert all(getattr(recipe, name) is function for name, function in VARIANTS.items())
    assert [task.name for task in recipe.all()] == ["keyword", "intent", "emotion", "speaker", "verification"]
