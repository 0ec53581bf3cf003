"""Fine-tuning as a user starts it: what it leaves, what it keeps, and its refusals in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file

import speech_ssl
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.data.manifest import read_manifest, write_manifest
from speech_ssl.training.checkpoint import LAST
from tests.narrow import save_narrow
from tests.recipes.tuning import Main, call, done, refusal, results, sounds, transcription


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_narrow(tmp_path_factory.mktemp("artifacts") / "narrow")


@pytest.fixture(scope="module")
def data(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prompts: texts, labels "long" and "short", three folds as splits, languages."""
    folder = tmp_path_factory.mktemp("data")
    chosen = sorted(read_manifest(prompts / "manifest.tsv"), key=lambda u: u.duration_s)[20:140:10]
    labelled = [
        replace(u, label="long" if i >= 6 else "short", split=f"fold{i % 3}", lang="en" if i else "fr")
        for i, u in enumerate(chosen)
    ]
    write_manifest(folder / "folds.tsv", labelled)
    split = [replace(u, split="dev" if i % 4 == 1 else "train") for i, u in enumerate(labelled)]
    write_manifest(folder / "m.tsv", split)
    return folder


@pytest.fixture(scope="module")
def transcribing(data: Path, narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "ctc"
    done(transcription, "ctc", "--manifest", data / "m.tsv", "--init", narrow, "--out", out)
    return out


def test_a_manifest_with_texts_becomes_a_model_that_transcribes(
    transcribing: Path, data: Path, narrow: Path
) -> None:
    artifact = load_artifact(transcribing / "artifact")
    assert list(artifact.heads) == ["ctc"]
    spec = artifact.heads["ctc"].spec
    assert spec.vocabulary[:2] == ("<blank>", " ") and "e" in spec.vocabulary  # type: ignore[union-attr]
    assert artifact.encoder.config == load_artifact(narrow).encoder.config
    assert artifact.config["training"]["init"]["name"] == "narrow"
    measured = results(transcribing)
    assert measured["clips"] == 3 and float(measured["wer"]) > 0 and float(measured["cer"]) > 0  # type: ignore[arg-type]
    clip = read_manifest(data / "m.tsv")[1]
    (transcript,) = speech_ssl.load(transcribing / "artifact").transcribe([clip.path])
    assert [clip.text, transcript.text] in measured["examples"]  # type: ignore[operator]


def test_the_encoder_learns_but_for_its_front_end(transcribing: Path, narrow: Path) -> None:
    """By the last step: the best may be one that moved the head alone."""
    before = load_artifact(narrow).encoder.state_dict()
    last = load_file(transcribing / LAST)
    changed = {name for name, value in before.items() if not (last[f"module.encoder.{name}"] == value).all()}
    assert any(name.startswith("blocks.") for name in changed)
    assert not any(name.startswith("frontend.") for name in changed)


def test_a_finished_run_resumes_to_the_same_and_another_vocabulary_is_refused(
    transcribing: Path, data: Path, narrow: Path, tmp_path: Path
) -> None:
    before = results(transcribing)
    options = ("ctc", "--manifest", data / "m.tsv", "--init", narrow, "--out", transcribing)
    assert "continue it with --resume" in refusal(transcription, *options)
    done(transcription, *options, "--resume")
    again = results(transcribing)
    assert {**again, "seconds": 0} == {**before, "seconds": 0}
    (tmp_path / "characters.txt").write_text("|\n" + "\n".join("abcdefghijklmnopqrstuvwxyz'"))
    line = refusal(transcription, *options, "--resume", "--vocabulary", tmp_path / "characters.txt")
    assert "objective.vocabulary was" in line


def test_a_head_on_a_frozen_encoder_joins_the_others(transcribing: Path, data: Path, tmp_path: Path) -> None:
    source, out = transcribing / "artifact", tmp_path / "run"
    done(sounds, "frozen", "--manifest", data / "m.tsv", "--init", source, "--out", out)
    assert list(load_artifact(out / "artifact").heads) == ["ctc", "events"]
    for name in ("encoder.safetensors", "head.ctc.safetensors"):
        assert (out / "artifact" / name).read_bytes() == (source / name).read_bytes()
    clip = read_manifest(data / "m.tsv")[0].path
    both, before = speech_ssl.load(out / "artifact"), speech_ssl.load(source)
    assert both.transcribe([clip])[0] == before.transcribe([clip])[0]
    assert {label.label for label in both.classify([clip])[0].labels} == {"long", "short"}


def test_a_trained_encoder_drops_the_heads_it_no_longer_fits_and_says_so(
    transcribing: Path, data: Path, tmp_path: Path
) -> None:
    options = ("clips", "--manifest", data / "m.tsv", "--init", transcribing / "artifact")
    ended = done(sounds, *options, "--out", tmp_path / "run", "--head", "lengths")
    assert "left out, for the encoder was trained on: heads ctc" in ended.stderr
    heads = load_artifact(tmp_path / "run" / "artifact").heads
    assert list(heads) == ["lengths"]
    assert heads["lengths"].training["temperature"] not in (1.0, None)
    assert {"accuracy", "balanced_accuracy", "confusion", "ece"} <= results(tmp_path / "run").keys()


def test_without_init_all_of_it_is_trained_from_random_weights(data: Path, tmp_path: Path) -> None:
    ended = done(sounds, "clips", "--manifest", data / "m.tsv", "--out", tmp_path / "run")
    assert "starts from random weights" in ended.stderr
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["objective"]["train_frontend"] and run["objective"]["head_only"] == 0
    assert run["inputs"]["init"] == ""


def test_each_fold_is_tested_once_and_finished_ones_are_kept(
    data: Path, narrow: Path, tmp_path: Path
) -> None:
    options = ("clips", "--manifest", data / "folds.tsv", "--folds", "split", "--init", narrow)
    ended = done(sounds, *options, "--out", tmp_path)
    folds = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("fold-*")}
    assert sorted(folds) == ["fold-01-fold0", "fold-02-fold1", "fold-03-fold2"]
    summary = results(tmp_path)
    accuracies = [results(tmp_path / name)["accuracy"] for name in sorted(folds)]
    assert summary["folds_accuracy"] == accuracies and summary["clips"] == 12
    assert summary["mean_accuracy"] == pytest.approx(np.mean(accuracies))  # type: ignore[arg-type]
    assert np.sum(summary["confusion"]) == 12  # type: ignore[arg-type]
    assert summary["pooled_accuracy"] == pytest.approx(np.trace(summary["confusion"]) / 12)  # type: ignore[arg-type]
    assert "all folds: " in ended.stdout
    again = done(sounds, *options, "--out", tmp_path, "--resume")
    assert "all folds: " in again.stdout and "held out: " not in again.stdout
    other = call(sounds, "tags", *options[1:], "--out", tmp_path, "--resume")
    assert other.status == 2 and "made by another run" in other.stderr  # not passed off as its figures


def test_a_test_row_without_a_label_is_passed_over(data: Path, narrow: Path, tmp_path: Path) -> None:
    rows = read_manifest(data / "m.tsv")
    rows = [replace(u, split="test") if i in (3, 7) else u for i, u in enumerate(rows)]
    rows[3] = replace(rows[3], label="")
    write_manifest(tmp_path / "m.tsv", rows)
    out = tmp_path / "run"
    done(sounds, "clips", "--manifest", tmp_path / "m.tsv", "--init", narrow, "--out", out)
    assert results(out)["clips"] == 1


def test_test_clips_that_cannot_be_read_are_named(data: Path, narrow: Path, tmp_path: Path) -> None:
    rows = [
        replace(u, split="test" if i in (3, 7) else u.split)
        for i, u in enumerate(read_manifest(data / "m.tsv"))
    ]
    rows[3] = replace(rows[3], path=tmp_path / "gone.flac")
    write_manifest(tmp_path / "m.tsv", rows)
    out = tmp_path / "run"
    ended = done(sounds, "clips", "--manifest", tmp_path / "m.tsv", "--init", narrow, "--out", out)
    assert results(out)["clips"] == 1 and "of the test" in ended.stderr
    assert "gone.flac" in (out / "skipped.jsonl").read_text()


@pytest.mark.parametrize(("main", "variant"), [(transcription, "ctc"), (sounds, "clips")])
def test_no_text_is_learnt_from_silence_but_a_label_is(
    main: Main, variant: str, data: Path, narrow: Path, tmp_path: Path
) -> None:
    rows = read_manifest(data / "m.tsv")
    soundfile.write(tmp_path / "mute.wav", np.zeros(24_000), 16_000)
    mute = tmp_path / "mute.wav"
    rows = [replace(row, path=mute) if i in (0, 2, 4, 6, 8) else row for i, row in enumerate(rows)]
    rows = [replace(row, start=0.0, end=1.5 - i / 100) for i, row in enumerate(rows)]
    write_manifest(tmp_path / "m.tsv", rows)
    options = (variant, "--manifest", tmp_path / "m.tsv", "--init", narrow, "--out", tmp_path / "run")
    said = done(main, *options).stderr
    assert ("mute.wav: silent" in said) == ("crops were silent" in said) == (main is transcription)


def test_a_linear_head_starts_as_a_probe_and_the_start_is_validated(
    data: Path, narrow: Path, tmp_path: Path
) -> None:
    options = ("clips", "--manifest", data / "m.tsv", "--init", narrow, "--out", tmp_path / "run")
    ended = done(sounds, *options)
    assert "starts as a linear probe" in ended.stderr
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert first["kind"] == "valid" and first["step"] == 0
    said = float(ended.stderr.split("held-out loss ")[1].split()[0])
    assert first["loss"] == pytest.approx(said, abs=2e-3)
    scratch = done(sounds, *options[:3], "--out", tmp_path / "scratch")
    assert "linear probe" not in scratch.stderr


def test_the_artifact_it_starts_from_is_not_overwritten(data: Path, narrow: Path, tmp_path: Path) -> None:
    shutil.copytree(narrow, tmp_path / "artifact")
    options = ("clips", "--manifest", data / "m.tsv", "--init", tmp_path / "artifact", "--out", tmp_path)
    assert "would be overwritten" in refusal(sounds, *options)


def test_clips_that_are_all_too_long_are_refused(data: Path, tmp_path: Path) -> None:
    rows = [replace(u, duration_s=100.0) for u in read_manifest(data / "m.tsv")]
    write_manifest(tmp_path / "m.tsv", rows)
    line = refusal(sounds, "clips", "--manifest", tmp_path / "m.tsv", "--out", tmp_path / "run")
    assert "no clip is as short as 8 s" in line


def test_several_labels_a_clip(data: Path, narrow: Path, tmp_path: Path) -> None:
    rows = [replace(u, label=f"speech;{u.label}") for u in read_manifest(data / "m.tsv")]
    write_manifest(tmp_path / "m.tsv", rows)
    done(sounds, "tags", "--manifest", tmp_path / "m.tsv", "--init", narrow, "--out", tmp_path / "run")
    measured = results(tmp_path / "run")
    assert 0 < float(measured["mean_ap"]) <= 1 and 0 < float(measured["lwlrap"]) <= 1  # type: ignore[arg-type]
    (found,) = speech_ssl.load(tmp_path / "run" / "artifact").classify([rows[0].path])
    assert {label.label for label in found.labels} == {"long", "short", "speech"}


def changed(data: Path, folder: Path, **fields: str) -> Path:
    path = folder / "m.tsv"
    write_manifest(path, [replace(u, **fields) for u in read_manifest(data / "m.tsv")])  # type: ignore[arg-type]
    return path


MISTAKES = {
    "no text": (transcription, "ctc", {"text": ""}, (), "column 'text'"),
    "language": (
        transcription,
        "ctc",
        {},
        ("--lang", "de"),
        "no clip has lang 'de': the manifest has en, fr",
    ),
    "init": (transcription, "ctc", {}, ("--init", "absent"), "absent: no such folder"),
    "vocabulary": (transcription, "ctc", {}, ("--vocabulary", "absent.txt"), "absent.txt"),
    "no label": (sounds, "clips", {"label": ""}, (), "column 'label'"),
    "one label": (sounds, "clips", {"label": "one"}, (), "labels needs at least 2"),
    "no speaker": (sounds, "clips", {"speaker": ""}, ("--folds", "speaker"), "have no speaker"),
    "head": (sounds, "clips", {}, ("--head", "No Good"), "cannot name a head"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_in_a_line_and_leave_nothing(data: Path, tmp_path: Path, mistake: str) -> None:
    main, variant, fields, options, words = MISTAKES[mistake]
    manifest = changed(data, tmp_path, **fields)
    line = refusal(main, variant, "--manifest", manifest, "--out", tmp_path / "run", *options)
    assert words in line
    assert not (tmp_path / "run").exists()


def test_texts_that_do_not_fit_are_named_and_passed_over(data: Path, narrow: Path, tmp_path: Path) -> None:
    rows = read_manifest(data / "m.tsv")
    rows[0] = replace(rows[0], text="much too long a text for such a short clip " * 5)
    rows[2] = replace(rows[2], text="")
    write_manifest(tmp_path / "m.tsv", rows)
    out = tmp_path / "run"
    ended = done(transcription, "ctc", "--manifest", tmp_path / "m.tsv", "--init", narrow, "--out", out)
    skipped = [json.loads(line)["reason"] for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert any("is it the text of this clip?" in reason for reason in skipped)
    assert any("no text" in reason for reason in skipped)
    assert "skipped: " in ended.stderr
