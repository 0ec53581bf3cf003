"""The command line of recipes: refusals in one line, files that cannot be read, weights to start from."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch

from recipes.common import command
from recipes.pretrain_wav2vec2 import smoke
from recipes.skipped import Skipped, Warned
from speech_ssl.checkpoints.artifact import load_artifact, load_extra, save_artifact
from speech_ssl.data.manifest import Utterance, read_manifest, write_manifest
from speech_ssl.training.config import TrainConfig
from speech_ssl.training.run import Run
from speech_ssl.types import AudioWarning


def brief() -> Run:
    """Two steps that all but leave the weights where they are, decoding in this process."""
    data = replace(smoke().data, workers=0, batch_s=2.0)
    train = TrainConfig(steps=2, peak_lr=1e-12, precision="fp32", weight_decay=0.0)
    encoder = smoke().encoder.changed(frontend={"channels": (16,) * 7})
    return replace(smoke(), encoder=encoder, data=data, train=train)


def deeper() -> Run:
    return replace(brief(), encoder=replace(brief().encoder, depth=3))


def other_codes() -> Run:
    return replace(brief(), objective=replace(brief().objective, entries=16))


def brief_epoch() -> Run:
    """As many steps as two epochs of the few prompts take, at most."""
    return replace(brief(), train=replace(brief().train, steps=24, valid_every=12))


main = command(brief, brief_epoch, deeper, other_codes, doc="For tests.")


class Ended(NamedTuple):
    status: int
    stderr: str


def call(*arguments: object) -> Ended:
    said = io.StringIO()
    with redirect_stderr(said):
        try:
            main([*map(str, arguments), "--device", "cpu"])
        except SystemExit as leaving:
            return Ended(int(leaving.code or 0), said.getvalue())
    return Ended(0, said.getvalue())


def refusal(*arguments: object) -> str:
    """The one line with which it refuses."""
    ended = call(*arguments)
    assert ended.status == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def few(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of a few prompts, two of them held out."""
    utterances = [u for u in read_manifest(prompts / "manifest.tsv") if u.duration_s > 1][:10]
    held_out = [replace(u, split="dev") for u in utterances[:2]]
    path = tmp_path_factory.mktemp("few") / "manifest.tsv"
    write_manifest(path, held_out + [replace(u, split="train") for u in utterances[2:]])
    return path


@pytest.fixture(scope="module")
def made(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `brief`."""
    out = tmp_path_factory.mktemp("made") / "run"
    ended = call("brief", "--manifest", few, "--out", out)
    assert ended.status == 0, ended.stderr
    return out


def test_a_used_folder_is_refused_without_resume(made: Path, few: Path) -> None:
    before = (made / "last.safetensors").read_bytes()
    assert "continue it with --resume" in refusal("brief", "--manifest", few, "--out", made)
    assert (made / "last.safetensors").read_bytes() == before


def test_a_changed_run_is_refused(made: Path, few: Path) -> None:
    line = refusal("deeper", "--manifest", few, "--out", made, "--resume")
    assert "encoder.depth was 2, is now 3" in line


def test_a_changed_manifest_is_refused(made: Path, few: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.tsv", read_manifest(few)[:-1])
    line = refusal("brief", "--manifest", tmp_path / "m.tsv", "--out", made, "--resume")
    assert "inputs.utterances was 10, is now 9" in line


def test_a_folder_where_no_artifact_could_be_left_is_refused_at_once(few: Path, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied" / "artifact"
    occupied.mkdir(parents=True)
    (occupied / "notes.txt").touch()
    ended = call("brief", "--manifest", few, "--out", occupied.parent)
    assert ended.status == 2 and "something other than an artifact" in ended.stderr
    assert [path.name for path in occupied.parent.iterdir()] == ["artifact"]


def test_files_of_the_same_name_are_named_each_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    one, other = (Utterance(tmp_path / name / "0.wav", 1.0, "0.wav") for name in "ab")
    Skipped(path, aloud=False)(one, "why")
    with path.open("a") as file:
        file.write('{"id": "torn", "pa')
    note = Skipped(path, aloud=False)
    note(one, "again")
    note(other, "why")
    first, torn, last = path.read_text().splitlines()
    assert [json.loads(line)["path"] for line in (first, last)] == [str(one.path), str(other.path)]
    assert torn.startswith('{"id": "torn"') and "again" not in path.read_text()


def test_each_thing_that_is_wrong_with_a_file_is_written_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = Utterance(tmp_path / "0.wav", 1.0, "0.wav")
    for _ in range(2):  # the run, and its resume
        note = Warned(tmp_path / "warnings.jsonl", aloud=True)
        for code in ("truncated", "opposite_phase", "truncated"):
            note(one, AudioWarning(code, f"0.wav: {code}"))
    entries = [json.loads(line) for line in (tmp_path / "warnings.jsonl").read_text().splitlines()]
    assert [entry["code"] for entry in entries] == ["truncated", "opposite_phase"]
    assert entries[0] == {
        "id": "0.wav",
        "path": str(one.path),
        "reason": "0.wav: truncated",
        "code": "truncated",
    }
    assert capsys.readouterr().err == "warning: 0.wav: truncated\nwarning: 0.wav: opposite_phase\n"


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    assert "absent.tsv" in refusal("brief", "--manifest", tmp_path / "absent.tsv", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(made: Path, few: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((made / "run.json").read_bytes())
    (tmp_path / "last.safetensors").write_bytes((made / "last.safetensors").read_bytes()[:1000])
    ended = call("brief", "--manifest", few, "--out", tmp_path, "--resume")
    assert ended.status == 2
    assert "last.safetensors cannot be read as a checkpoint" in ended.stderr.splitlines()[-1]


def test_unreadable_files_are_skipped_and_named_once(few: Path, tmp_path: Path) -> None:
    good = read_manifest(few)
    (tmp_path / "cut.flac").write_bytes(good[3].path.read_bytes()[:300])
    (tmp_path / "text.wav").write_text("no audio at all")
    soundfile.write(tmp_path / "mute.wav", np.zeros(24_000), 16_000)
    bad = [Utterance(tmp_path / "cut.flac", 1.5, "", split="train")]
    bad += [Utterance(tmp_path / "text.wav", 1.5, "", split="dev")]
    soundfile.write(tmp_path / "half.wav", np.random.default_rng(0).uniform(-0.3, 0.3, 12_000), 16_000)
    bad += [Utterance(tmp_path / "half.wav", 1.5, "", split="dev")]
    bad += [Utterance(tmp_path / name, 1.5, "", split="train") for name in ("absent.wav", "mute.wav")]
    write_manifest(tmp_path / "m.tsv", good + bad)
    ended = call("brief_epoch", "--manifest", tmp_path / "m.tsv", "--out", tmp_path / "run")
    assert ended.status == 0, ended.stderr
    skipped = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    reasons = {Path(entry["path"]).name: entry["reason"] for entry in skipped}
    assert sorted(reasons) == ["absent.wav", "cut.flac", "mute.wav", "text.wav"] and all(reasons.values())
    assert "mute.wav: silent (all samples are equal) from 0." in reasons["mute.wav"]
    (line,) = (tmp_path / "run" / "warnings.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (Path(entry["path"]).name, entry["code"]) == ("half.wav", "truncated")
    assert (
        f"warning: {tmp_path / 'half.wav'}: the audio ends at 0.75 s, the manifest says 1.50 s"
        in ended.stderr
    )
    assert ended.stderr.count("skipped: ") == len(skipped) == 4
    assert re.search(r"\d+ of \d+ crops were silent and left out \(\d+\.\d%\)", ended.stderr)
    assert (tmp_path / "run" / "artifact" / "config.json").exists()


def test_weights_and_quantizer_of_an_artifact_are_taken_over(made: Path, few: Path, tmp_path: Path) -> None:
    start = made / "artifact"
    parts = load_extra(start)
    assert any(name.startswith("quantizer.") for name in parts)
    marked = tmp_path / "marked"
    mark(start, marked)
    ended = call("brief", "--manifest", few, "--out", tmp_path / "run", "--init", marked)
    assert ended.status == 0, ended.stderr
    source, end = (
        load_artifact(folder).encoder.state_dict() for folder in (marked, tmp_path / "run" / "artifact")
    )
    for name, value in source.items():
        torch.testing.assert_close(end[name], value, rtol=0, atol=1e-6, msg=name)
    for name, value in load_extra(marked).items():
        torch.testing.assert_close(load_extra(tmp_path / "run" / "artifact")[name], value, rtol=0, atol=1e-6)
    line = refusal("brief", "--manifest", few, "--out", tmp_path / "run", "--resume")
    assert "inputs.init was" in line


def mark(source: Path, folder: Path) -> None:
    """The same artifact with every weight changed, so that it is not what a seed makes."""
    encoder = load_artifact(source).encoder
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1.25)
    parts = {name: value * 1.25 for name, value in load_extra(source).items()}
    save_artifact(encoder, folder, name="marked", training={}, licence="Apache-2.0", extra=parts)


def test_an_artifact_of_another_size_is_refused(made: Path, few: Path, tmp_path: Path) -> None:
    line = refusal("deeper", "--manifest", few, "--out", tmp_path / "run", "--init", made / "artifact")
    assert "another encoder than this variant: depth is 2, wanted 3" in line
    assert not (tmp_path / "run").exists()


def test_a_quantizer_of_another_size_is_left_behind(made: Path, few: Path, tmp_path: Path) -> None:
    ended = call("other_codes", "--manifest", few, "--out", tmp_path / "run", "--init", made / "artifact")
    assert ended.status == 0, ended.stderr
    quantizer = load_extra(tmp_path / "run" / "artifact")["quantizer.codebook_GVD"]
    assert quantizer.shape[1] == 16
