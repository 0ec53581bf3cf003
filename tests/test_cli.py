"""The command line, through its entry point: output for programs and people, errors in one line."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import speech_ssl
from speech_ssl.data.manifest import read_manifest
from speech_ssl.extraction.parquet import read_rows
from tests.checkpoints.test_foreign import small_torchaudio
from tests.checkpoints.transformers_models import made, saved
from tests.command_line import Run, without_progress
from tests.narrow import save_narrow


@pytest.fixture
def clips(prompts: Path) -> list[Path]:
    return sorted((prompts / "audio").glob("*.flac"))[:3]


def embedding(artifact: Path, clip: Path, **options) -> np.ndarray:
    return speech_ssl.load(artifact).encode([clip], **options)[0].pooled()


def test_version_and_help(run: Run):
    assert run("--version") == (0, f"speech-ssl {speech_ssl.__version__}\n", "")
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    for command in ("embed", "extract", "manifest", "convert", "serve"):
        assert f"\n  {command} " in out
        assert run(command, "--help")[0] == 0
    status, out, err = run()
    assert (status, out) == (2, "") and "Commands:" in err


def test_embed_prints_a_line_a_file(run: Run, tiny_artifact: Path, clips: list[Path]):
    status, out, err = run("embed", *clips, "--model", tiny_artifact)
    assert (status, err) == (0, "")
    for line, clip in zip(out.splitlines(), clips, strict=True):
        path, *values = line.split("\t")
        assert path == str(clip)
        np.testing.assert_allclose(np.array(values, np.float32), embedding(tiny_artifact, clip), atol=1e-5)


def test_embed_prints_json(run: Run, tiny_artifact: Path, clips: list[Path]):
    status, out, _ = run("embed", *clips, "--json", "--layer", 2, "--model", tiny_artifact)
    assert status == 0
    for line, clip in zip(out.splitlines(), clips, strict=True):
        answer = json.loads(line)
        vector = np.array(answer.pop("embedding"), np.float32)
        np.testing.assert_allclose(vector, embedding(tiny_artifact, clip, layer=2), atol=1e-5)
        expected = {"path": str(clip), "model": "tiny-random", "layer": 2, "pooling": "mean", "warnings": []}
        assert answer == expected


def test_embed_prints_frames(run: Run, tiny_artifact: Path, clips: list[Path]):
    expected = speech_ssl.load(tiny_artifact).encode(clips[:1])[0].frames
    _, out, _ = run("embed", clips[0], "--pool", "none", "--json", "--model", tiny_artifact)
    answer = json.loads(out)
    np.testing.assert_allclose(np.array(answer["frames"], np.float32), expected, atol=1e-5)
    assert answer["hop_s"] == 0.02
    _, out, _ = run("embed", clips[0], "--pool", "none", "--model", tiny_artifact)
    rows = [line.split("\t") for line in out.splitlines()]
    assert [float(row[1]) for row in rows[:4]] == [0, 0.02, 0.04, 0.06]
    np.testing.assert_allclose(np.array([row[2:] for row in rows], np.float32), expected, atol=1e-5)


def test_one_bad_file_among_many(run: Run, tiny_artifact: Path, clips: list[Path], tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("no audio")
    absent = tmp_path / "absent.wav"
    status, out, err = run("embed", clips[0], text, absent, clips[1], "--model", tiny_artifact)
    assert status == 2
    assert [line.split("\t")[0] for line in out.splitlines()] == [str(clips[0]), str(clips[1])]
    first, second = err.splitlines()
    assert first.startswith(f"speech-ssl: {text}: not a known audio format")
    assert second == f"speech-ssl: {absent}: No such file or directory"


def mistakes(artifact: Path, clip: Path, folder: Path) -> dict[str, tuple[list[object], str]]:
    manifest = folder / "m.tsv"
    manifest.write_text("path\tduration_s\nabsent.wav\t1.0\n")
    occupied = folder / "occupied"
    occupied.mkdir()
    (occupied / "x.parquet").touch()
    (folder / "empty").mkdir()
    model: list[object] = ["--model", artifact]
    return {
        "no such command": (["embedd"], "No such command 'embedd'"),
        "no such option": (["embed", clip, "--modle", "x"], "No such option '--modle'"),
        "no files": (["embed"], "Missing argument 'FILE...'"),
        "no such model": (["embed", clip, "--model", folder / "x"], "no such folder"),
        "layer": (["embed", clip, "--layer", 5, *model], "layer 5 is not there: tiny-random has 0 to 4"),
        "pool": (["embed", clip, "--pool", "median", *model], "'median' is not one of"),
        "device": (["embed", clip, "--device", "tpu", *model], "device 'tpu' is not"),
        "no manifest": (["extract", folder / "x.tsv", folder / "o", *model], "x.tsv: cannot be read"),
        "no audio listed": (["extract", clip, folder / "o", *model], "not UTF-8 text"),
        "engine": (["extract", manifest, folder / "o", "--engine", "ray"], "ray is not available"),
        "shard": (["extract", manifest, folder / "o", "--shard", "2/2", *model], "shard 2/2 is not there"),
        "shard's form": (["extract", manifest, folder / "o", "--shard", "half"], "not of the form i/n"),
        "occupied": (["extract", manifest, occupied, *model], "choose another folder"),
        "out is a file": (["extract", manifest, clip, *model], "is a file"),
        "no folder": (["manifest", folder / "x", folder / "out.tsv"], "no such folder"),
        "no audio": (["manifest", folder / "empty", folder / "out.tsv"], "no audio files"),
        "port": (["serve", "--port", "70000"], "--port or SPEECH_SSL_PORT: Input should be less than"),
        "served model": (["serve", "--port", "0", "--model", folder / "x"], "no such folder"),
    }


MISTAKES = """no such command|no such option|no files|no such model|layer|pool|device|no manifest|
no audio listed|engine|shard|shard's form|occupied|out is a file|no folder|no audio|port|served model"""


@pytest.mark.parametrize("name", MISTAKES.replace("\n", "").split("|"))
def test_a_mistake_is_one_line_and_status_2(
    run: Run, tiny_artifact: Path, clips: list[Path], tmp_path: Path, name: str
):
    args, message = mistakes(tiny_artifact, clips[0], tmp_path)[name]
    status, out, err = run(*args)
    assert status == 2 and not out
    lines = [line for line in err.splitlines() if " INFO " not in line]  # a service that starts says so
    assert len(lines) == 1 and message in lines[0] and lines[0].startswith("speech-ssl: ")


def test_manifest_then_extract(run: Run, tiny_artifact: Path, clips: list[Path], tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    for clip in clips:
        (data / clip.name).symlink_to(clip)
    (data / "broken.wav").write_bytes(b"RIFF\x00\x00\x00\x00WAVE")
    manifest, out_folder = tmp_path / "m.tsv", tmp_path / "out"
    status, out, err = run("manifest", data, manifest)
    assert status == 0 and "3 clips" in out and "1 files cannot be read" in out
    assert err.startswith("speech-ssl: ") and "broken.wav" in err and err.count("\n") == 1
    assert [utterance.path.name for utterance in read_manifest(manifest)] == [clip.name for clip in clips]

    args = ("extract", manifest, out_folder, "--model", tiny_artifact, "--pool", "max", "--layer", "-2")
    status, out, err = run(*args)
    assert status == 0 and re.match(r"3 clips, 0\.\d+ h of audio in .* s: .*x real time\n", out)
    table = read_rows(out_folder)
    assert sorted(table["id"].to_pylist()) == sorted(f"data/{clip.name}" for clip in clips)
    assert set(table["layer"].to_pylist()) == {3} and set(table["pooling"].to_pylist()) == {"max"}
    status, out, err = run(*args)
    assert status == 0 and out.startswith("0 clips") and "3 were there before" in out


def test_nothing_but_failures_is_an_error(run: Run, tiny_artifact: Path, tmp_path: Path):
    manifest = tmp_path / "m.tsv"
    manifest.write_text("path\tduration_s\na.wav\t1.0\nb.wav\t1.0\n")
    status, out, err = run("extract", manifest, tmp_path / "out", "--model", tiny_artifact)
    assert status == 2 and "2 failed" in out and "every clip" in err and err.count("\n") == 1
    assert len((tmp_path / "out" / "failures.jsonl").read_text().splitlines()) == 2


def test_extract_says_how_many_rows_have_warnings(
    run: Run, tiny_artifact: Path, tmp_path: Path, clips: list[Path]
):
    (tmp_path / "m.tsv").write_text(f"path\tduration_s\n{clips[0]}\t60\n{clips[1]}\t0.1\n")
    status, out, err = run("extract", tmp_path / "m.tsv", tmp_path / "out", "--model", tiny_artifact)
    assert (status, err) == (0, "")
    assert out.endswith(f"x real time; 1 with warnings, see the warnings in {tmp_path / 'out'}\n")


def test_convert_there_and_back(run: Run, tmp_path: Path, clips: list[Path]):
    folder = saved(made("Wav2Vec2", "ForCTC"), tmp_path / "theirs")
    status, out, err = run("convert", folder, tmp_path / "ours")
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'ours'}: theirs: 0.0 M parameters; head ctc\n"
    before = embedding(folder, clips[0])
    np.testing.assert_array_equal(embedding(tmp_path / "ours", clips[0]), before)
    assert run("convert", tmp_path / "ours", tmp_path / "back", "--to", "huggingface")[0] == 0
    np.testing.assert_array_equal(embedding(tmp_path / "back", clips[0]), before)
    assert run("transcribe", clips[0], "--model", folder) == run(
        "transcribe", clips[0], "--model", tmp_path / "ours"
    )


def test_convert_says_what_it_left_out_and_assumed(run: Run, tmp_path: Path):
    golden = Path(__file__).parent / "checkpoints" / "golden" / "fairseq"
    status, out, _ = run("convert", golden / "hubert.pt", tmp_path / "a")
    assert status == 0 and out.endswith("; left out: final_proj.bias, final_proj.weight, label_embs_concat\n")
    torch.save(small_torchaudio("group").state_dict(), tmp_path / "model.pt")
    status, out, _ = run("convert", tmp_path / "model.pt", tmp_path / "b")
    assert status == 0 and "; assumed, for it does not say: attention has 2 heads, the convolutions'" in out


def test_what_cannot_be_converted_is_one_line(run: Run, tmp_path: Path, tiny_artifact: Path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for source, out, said in (
        (tmp_path / "none", tmp_path / "out", "no such folder or file"),
        (tmp_path / "text.pt", tmp_path / "out", "text.pt"),
        (tiny_artifact, tmp_path / "full", "other than an artifact"),
        (tmp_path / "full", tmp_path / "out", "full"),
    ):
        status, printed, err = run("convert", source, out)
        assert (status, printed) == (2, "") and said in err and err.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_serving_says_which_extra_it_needs(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as if it were not installed
    said = "the service needs uvicorn: pip install 'speech-ssl[serve]'"
    assert run("serve") == (2, "", f"speech-ssl: {said}\n")


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "speech_ssl.cli", *map(str, args)]


def test_a_closed_pipe_is_no_error(tiny_artifact: Path, clips: list[Path]):
    args = ("embed", *clips * 3, "--pool", "none", "--model", tiny_artifact)
    process = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith(str(clips[0]))
    process.stdout.close()
    errors = without_progress(process.stderr.read())
    process.stderr.close()
    assert process.wait(60) == 1 and errors == ""


def test_closed_streams_are_no_error(tiny_artifact: Path, clips: list[Path]):
    line = shlex.join(map(str, command("embed", clips[0], "--model", tiny_artifact)))
    for closed in (">&-", "2>&-"):
        ended = subprocess.run(f"{line} {closed}", shell=True, capture_output=True, text=True, check=False)
        assert (ended.returncode, without_progress(ended.stderr)) == (0, "")
        assert ended.stdout.startswith(str(clips[0])) == (closed == "2>&-")


def test_names_that_are_no_text_or_no_line(tiny_artifact: Path, clips: list[Path], tmp_path: Path):
    odd = [tmp_path / os.fsdecode(b"n\xff.flac"), tmp_path / "a\tb\nc.flac"]
    for path in odd:
        path.write_bytes(clips[0].read_bytes())
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    ended = subprocess.run(
        command("embed", *odd, "--model", tiny_artifact), capture_output=True, env=strict, check=True
    )
    names = [line.split(b"\t")[0] for line in ended.stdout.splitlines()]
    assert [name.rpartition(b"/")[2] for name in names] == [b"n\xff.flac", rb"a\tb\nc.flac"]


def test_a_manifest_that_cannot_be_written_is_refused_before_the_scan(run: Run, tmp_path: Path):
    status, _, err = run("manifest", tmp_path / "absent", tmp_path / "nowhere" / "m.tsv")
    assert status == 2 and "no such folder to write to" in err


def test_interrupted_it_keeps_what_is_done(prompts: Path, tmp_path: Path):
    """Ctrl-C reaches the whole process group, decoders included. On a terminal there is a bar."""
    utterances = read_manifest(prompts / "manifest.tsv")[:20]
    long = tmp_path / "long.flac"
    soundfile.write(long, np.tile(soundfile.read(utterances[0].path)[0], 6_000), 16000)
    rows = [f"{utterance.path}\t9999.0" for utterance in utterances]  # so that they come first
    manifest = tmp_path / "m.tsv"
    manifest.write_text("\n".join(("path\tduration_s", *rows, f"{long}\t100")))
    narrow = save_narrow(tmp_path / "narrow")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    args = ("extract", manifest, tmp_path / "out", "--model", narrow, "--commit-seconds", "0.01")
    with subprocess.Popen(
        command(*args),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
        # It is inherited where the tests themselves run in the background of a shell, which ignores Ctrl-C.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(theirs)
        try:
            shown = b"".join(output(ours, process, lambda: any(tmp_path.glob("out/part-*.parquet"))))
        finally:
            process.kill()
            os.close(ours)
    assert process.returncode == 130
    text = shown.decode()
    assert "Traceback" not in text and "KeyboardInterrupt" not in text
    assert "extract:" in text and "x real time" in text and "\r" in text
    assert 0 < len(read_rows(tmp_path / "out")) <= 20


def output(terminal: int, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> Iterator[bytes]:
    """What a process shows on its terminal; when `ready`, it gets a Ctrl-C."""
    interrupted = False
    while select.select([terminal], [], [], 120)[0]:
        try:
            yield os.read(terminal, 4096)
        except OSError:  # the process has ended
            process.wait(60)
            return
        if ready() and not interrupted:
            interrupted = True
            os.killpg(process.pid, signal.SIGINT)
    raise AssertionError("nothing was shown for two minutes")
