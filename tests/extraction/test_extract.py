"""Extraction with real processes: every clip once, whatever is killed, and equal to `encode`."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speech_ssl
from speech_ssl.data.manifest import Utterance, read_manifest, write_manifest
from speech_ssl.extraction import extract
from speech_ssl.extraction.extract import Extraction
from speech_ssl.extraction.parquet import Shard, read_rows
from speech_ssl.inference import Runtime
from speech_ssl.sandbox.process import DecoderProcess, Part
from tests import warm

NAMES = 24  # prompts that the small data set holds


@pytest.fixture(scope="module")
def runtime(tiny_artifact: Path) -> Runtime:
    return speech_ssl.load(tiny_artifact)


@pytest.fixture(scope="module")
def dataset(prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real prompts, a part of one, a clip of several windows, and four that must fail. The manifest."""
    folder = tmp_path_factory.mktemp("data")
    utterances = read_manifest(prompts / "manifest.tsv")[:NAMES]
    waves = [soundfile.read(u.path, dtype="float32")[0] for u in utterances]
    soundfile.write(folder / "long.flac", np.concatenate(waves)[: 45 * 16000], 16000)
    (folder / "cut.flac").write_bytes(utterances[0].path.read_bytes()[:300])
    (folder / "text.wav").write_text("no audio at all")
    soundfile.write(folder / "short.wav", np.zeros(50), 16000)
    extra = [Utterance(folder / f"{name}", 1.0, "") for name in ("long.flac", "cut.flac", "text.wav")]
    extra += [Utterance(folder / name, 1.0, "") for name in ("short.wav", "absent.wav")]
    extra.append(Utterance(folder / "long.flac", 1.5, "", start=2.0, end=3.5))
    write_manifest(folder / "manifest.tsv", utterances + extra)
    return folder / "manifest.tsv"


BAD = {"cut.flac": "undecodable", "text.wav": "unsupported_format"}
BAD |= {"short.wav": "too_short", "absent.wav": "unreadable"}


def failures(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def vectors(folder: Path) -> dict[str, np.ndarray]:
    table = read_rows(folder)
    ids = table["id"].to_pylist()
    assert len(set(ids)) == len(ids), "a row was doubled"
    return dict(zip(ids, np.array(table["embedding"].to_pylist(), dtype=np.float32), strict=True))


def assert_same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    assert max(np.abs(left[key] - right[key]).max() for key in left) < 1e-5


def test_rows_are_what_encode_gives(runtime: Runtime, dataset: Path, tmp_path: Path):
    summary = Extraction(runtime, layer=2, pooling="max", workers=2).run(dataset, tmp_path)
    utterances = {u.id: u for u in read_manifest(dataset)}
    assert (summary.clips, summary.failures, summary.done_before) == (NAMES + 2, len(BAD), 0)
    table = read_rows(tmp_path)
    assert set(table["id"].to_pylist()) == set(utterances) - set(BAD)
    for row in table.to_pylist():
        utterance = utterances[row["id"]]
        wave, _ = soundfile.read(utterance.path, dtype="float32")
        if utterance.end is not None:
            wave = wave[32000:56000]
        features = runtime.encode([wave], layer=2)[0]
        np.testing.assert_allclose(row["embedding"], features.pooled("max"), atol=1e-5)
        assert row["num_frames"] == len(features.frames) and row["duration_s"] == features.duration_s
        assert (row["path"], row["layer"], row["pooling"]) == (str(utterance.path), 2, "max")
        assert (row["text"], row["speaker"]) == (utterance.text, utterance.speaker)
        assert row["model"] == "tiny-random" and row["artifact_sha256"] == runtime.sha256
    assert "label" not in table.column_names  # the manifest has none
    seconds = sum(table["duration_s"].to_pylist())
    assert summary.audio_s == pytest.approx(seconds)

    found = failures(tmp_path / "failures.jsonl")
    assert {entry["id"]: entry["code"] for entry in found} == BAD and len(found) == len(BAD)
    assert all(entry["id"] in entry["reason"] for entry in found if entry["id"] != "short.wav")

    again = Extraction(runtime, layer=2, pooling="max", workers=1).run(dataset, tmp_path)
    assert (again.clips, again.failures, again.done_before) == (0, len(BAD), NAMES + 2)
    assert len(failures(tmp_path / "failures.jsonl")) == len(BAD)  # tried again, and listed once


def test_frames_of_a_long_file_are_in_order(runtime: Runtime, dataset: Path, tmp_path: Path):
    runtime_id = "long.flac"
    Extraction(runtime, pooling="none", workers=2).run(dataset, tmp_path)
    row = next(row for row in read_rows(tmp_path).to_pylist() if row["id"] == runtime_id)
    expected = runtime.encode([dataset.parent / runtime_id])[0].frames
    np.testing.assert_allclose(np.array(row["frames"], np.float32), expected, atol=1e-5)


def test_a_mended_file_is_done_by_the_next_run(runtime: Runtime, prompts: Path, tmp_path: Path):
    good = next((prompts / "audio").glob("*.flac"))
    (tmp_path / "a.flac").write_bytes(b"fLaC and nothing else")
    write_manifest(tmp_path / "m.tsv", [Utterance(tmp_path / "a.flac", 1.0, "")])
    extraction = Extraction(runtime, workers=1)
    assert extraction.run(tmp_path / "m.tsv", tmp_path / "out").failures == 1
    shutil.copy(good, tmp_path / "a.flac")
    assert extraction.run(tmp_path / "m.tsv", tmp_path / "out").clips == 1
    assert failures(tmp_path / "out" / "failures.jsonl") == []
    assert list(vectors(tmp_path / "out")) == ["a.flac"]


def test_shards_are_disjoint_and_cover_all(runtime: Runtime, dataset: Path, tmp_path: Path):
    Extraction(runtime, workers=1).run(dataset, tmp_path / "whole")
    done = []
    for index in range(3):
        done.append(Extraction(runtime, shard=Shard(index, 3), workers=1).run(dataset, tmp_path / "out"))
    assert sum(summary.clips for summary in done) == NAMES + 2 and min(s.clips for s in done) >= NAMES // 3
    assert_same(vectors(tmp_path / "out"), vectors(tmp_path / "whole"))
    found = [entry for path in (tmp_path / "out").glob("failures-*.jsonl") for entry in failures(path)]
    assert sorted(entry["id"] for entry in found) == sorted(BAD)
    # What shards left undone, a run over the whole would do: nothing is.
    assert Extraction(runtime, workers=1).run(dataset, tmp_path / "out").clips == 0


def test_rows_of_other_files_under_the_same_names_are_refused(
    runtime: Runtime, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, clip in zip("ab", sorted((prompts / "audio").glob("*.flac")), strict=False):
        (tmp_path / name).mkdir()
        shutil.copy(clip, tmp_path / name / "0.flac")
        (tmp_path / name / "m.tsv").write_text("path\tduration_s\n0.flac\t1\n")
    extraction = Extraction(runtime, workers=1)
    monkeypatch.chdir(tmp_path / "a")
    assert extraction.run("m.tsv", tmp_path / "out").clips == 1
    assert read_rows(tmp_path / "out")["path"].to_pylist() == [str(tmp_path / "a" / "0.flac")]
    monkeypatch.chdir(tmp_path)
    assert extraction.run("a/m.tsv", tmp_path / "out").done_before == 1
    with pytest.raises(ValueError, match=r"holds a row '0.flac' of .*a/0.flac, not of .*b/0.flac"):
        extraction.run("b/m.tsv", tmp_path / "out")


def test_a_folder_whose_name_is_no_text(runtime: Runtime, prompts: Path, tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"d\xff")
    folder.mkdir()
    shutil.copy(next((prompts / "audio").glob("*.flac")), folder / "0.flac")
    (folder / "m.tsv").write_text("path\tduration_s\n0.flac\t1\nabsent.flac\t1\n")
    summary = Extraction(runtime, workers=1).run(folder / "m.tsv", tmp_path / "out")
    assert (summary.clips, summary.failures) == (1, 1)
    assert read_rows(tmp_path / "out")["path"][0].as_py().endswith(r"d\xff/0.flac")
    (failure,) = failures(tmp_path / "out" / "failures.jsonl")
    assert failure["path"].endswith(r"d\xff/absent.flac")


def test_other_settings_are_refused(runtime: Runtime, dataset: Path, tmp_path: Path):
    Extraction(runtime, layer=1, workers=1).run(dataset, tmp_path)
    with pytest.raises(ValueError, match="was made with layer 1, not 4"):
        Extraction(runtime, layer=-1).run(dataset, tmp_path)
    with pytest.raises(ValueError, match="pooling 'mean', not 'max'"):
        Extraction(runtime, layer=1, pooling="max").run(dataset, tmp_path)
    with pytest.raises(ValueError, match="layer 9 is not there"):
        Extraction(runtime, layer=9)
    with pytest.raises(ValueError, match="pooling must be"):
        Extraction(runtime, pooling="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one decoder"):
        Extraction(runtime, workers=0)


def test_a_decoder_killed_by_a_signal_costs_one_clip(
    runtime: Runtime, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The process is killed when it gets a certain file, as a crash in a codec would kill it."""
    utterances = read_manifest(prompts / "manifest.tsv")[:6]
    os.mkfifo(tmp_path / "crash.wav")
    used: list[DecoderProcess] = []
    blocks = DecoderProcess.blocks

    def killing(decoder: DecoderProcess, part: Part, *options: object):
        used.append(decoder)
        if part.path.endswith("crash.wav"):
            decoder.popen.kill()
        return blocks(decoder, part, *options)

    monkeypatch.setattr(DecoderProcess, "blocks", killing)
    write_manifest(tmp_path / "m.tsv", [*utterances, Utterance(tmp_path / "crash.wav", 1.0, "")])
    summary = Extraction(runtime, workers=1).run(tmp_path / "m.tsv", tmp_path / "out")
    assert (summary.clips, summary.failures) == (6, 1) and len({id(decoder) for decoder in used}) == 2
    (failure,) = failures(tmp_path / "out" / "failures.jsonl")
    assert (failure["id"], failure["code"]) == ("crash.wav", "decoder_died")


def children(pid: int) -> list[int]:
    """All processes below one, from /proc."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, queue = [], [pid]
    while queue:
        below = parents.get(queue.pop(), [])
        found += below
        queue += below
    return found


def test_decoders_are_as_many_as_the_cores_that_may_be_used_suggest(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    assert extract._default_workers(runtime) == 2


def extract_command(manifest: Path, out: Path, artifact: Path) -> list[object]:
    command = ["speech_ssl.cli", "extract", manifest, out, "--model", artifact]
    return [*command, "--commit-seconds", "0.1", "--workers", "2", "--precision", "fp32"]


def files(out: Path) -> int:
    return len(list(out.glob("part-*.parquet")))


@pytest.mark.parametrize(("kills", "copies"), [(1, 1), pytest.param(6, 5, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_loses_and_doubles_nothing(
    runtime: Runtime, prompts: Path, tiny_artifact: Path, tmp_path: Path, kills: int, copies: int
):
    manifest = tmp_path / "manifest.tsv"
    folder = tmp_path / "data"
    folder.mkdir()
    clips = []  # the same recordings under several names
    for utterance in read_manifest(prompts / "manifest.tsv"):
        for copy in range(copies):
            link = folder / f"{copy}-{utterance.path.name}"
            link.symlink_to(utterance.path)
            clips.append(Utterance(link, utterance.duration_s, ""))
    (folder / "bad.wav").write_text("no audio")
    write_manifest(manifest, [*clips, Utterance(folder / "bad.wav", 99.0, "")])
    whole = Extraction(runtime, workers=1).run(manifest, tmp_path / "whole")
    assert whole.clips == len(clips)

    out, chance = tmp_path / "out", random.Random(5)
    command = extract_command(manifest, out, tiny_artifact)
    interrupted = 0
    for _ in range(kills):
        before = files(out)
        with (tmp_path / "said").open("w") as said:
            process = warm.Popen(command, stdout=said, stderr=said)
        while files(out) == before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.4))
        orphans = children(process.pid)
        process.kill()
        interrupted += process.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}/fd").exists() for pid in orphans) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert orphans and not any(Path(f"/proc/{pid}/fd").exists() for pid in orphans)
    assert interrupted == kills and 0 < len(vectors(out)) < len(clips)

    ended = warm.run(command, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "were there before; 1 failed" in ended.stdout
    assert_same(vectors(out), vectors(tmp_path / "whole"))
    assert [entry["id"] for entry in failures(out / "failures.jsonl")] == ["data/bad.wav"]
