"""`transcribe` and `classify`: what they print is what Python gives, and their errors are one line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speech_ssl
from tests.command_line import Run
from tests.sounds import noise


@pytest.fixture
def clips(prompts: Path) -> list[Path]:
    return sorted((prompts / "audio").glob("*.flac"))[:3]


def test_transcripts_are_those_of_python(run: Run, answering_artifact: Path, clips: list[Path]) -> None:
    expected = speech_ssl.load(answering_artifact).transcribe(clips)
    status, out, err = run("transcribe", *clips, "--model", answering_artifact)
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"{c}\t{t.text}" for c, t in zip(clips, expected, strict=True)]
    status, out, _ = run("transcribe", *clips, "--json", "--model", answering_artifact)
    for line, clip, transcript in zip(out.splitlines(), clips, expected, strict=True):
        answer = json.loads(line)
        assert (answer["path"], answer["text"]) == (str(clip), transcript.text)
        assert answer["duration_s"] == pytest.approx(transcript.duration_s)
        for word, other in zip(answer["words"], transcript.words, strict=True):
            assert word["word"] == other.word
            assert (word["start"], word["end"]) == pytest.approx((other.start, other.end))


def test_classifications_are_those_of_python(run: Run, answering_artifact: Path, clips: list[Path]) -> None:
    expected = speech_ssl.load(answering_artifact).classify(clips[:1], threshold=0.3)[0]
    options = ("--json", "--threshold", "0.3", "--model", answering_artifact)
    status, out, _ = run("classify", clips[0], *options)
    answer = json.loads(out)
    assert status == 0 and answer["head"] == "sounds"
    assert [x["label"] for x in answer["labels"]] == [x.label for x in expected.labels]
    assert answer["events"] == [pytest.approx(asdict(event), abs=1e-4) for event in expected.events]
    _, out, _ = run("classify", *clips, "--model", answering_artifact)
    assert len(out.splitlines()) == 3 and out.startswith(f"{clips[0]}\t{expected.labels[0].label}\t")
    _, out, _ = run("classify", clips[0], "--model", answering_artifact, "--head", "moods", "--top-k", "2")
    assert {line.split("\t")[1] for line in out.splitlines()} == {"calm", "tense"}


def test_a_lexicon_is_obeyed(run: Run, answering_artifact: Path, clips: list[Path], tmp_path: Path) -> None:
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("bad\ncab\nface\nzoo\n")
    status, out, err = run(
        "transcribe", *clips, "--model", answering_artifact, "--lexicon", lexicon, "--beam", 20
    )
    assert status == 0, err
    assert f"{lexicon}: 1 words are left out, as 'zoo': the model cannot spell them" in err
    assert {word for line in out.splitlines() for word in line.split("\t")[1].split()} <= {
        "bad",
        "cab",
        "face",
    }


def test_a_bad_file_is_named_and_the_others_are_done(
    run: Run, answering_artifact: Path, clips: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "text.wav").write_text("no audio at all")
    for command in ("transcribe", "classify"):
        status, out, err = run(command, tmp_path / "text.wav", clips[0], "--model", answering_artifact)
        assert status == 2 and out.startswith(f"{clips[0]}\t")
        assert err.count("\n") == 1 and "text.wav" in err


@pytest.mark.parametrize("command", [("embed",), ("embed", "--pool", "none"), ("transcribe",), ("classify",)])
def test_a_warning_is_a_line_on_stderr_and_stands_in_the_json(
    run: Run, answering_artifact: Path, clips: list[Path], tmp_path: Path, command: tuple[str, ...]
) -> None:
    left = noise(1)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, -left], axis=1), 16_000)
    arguments = (*command, tmp_path / "stereo.wav", clips[0], "--model", answering_artifact)
    status, out, err = run(*arguments)
    assert status == 0 and {line.split("\t")[0] for line in out.splitlines()} == set(
        map(str, arguments[-4:-2])
    )
    assert err.count("\n") == 1 and err.startswith(f"speech-ssl: warning: {tmp_path / 'stereo.wav'}: ")
    status, out, told = run(*arguments, "--json")
    bad, good = (json.loads(line)["warnings"] for line in out.splitlines())
    assert (status, told, good) == (0, err, [])
    assert [warning["code"] for warning in bad] == ["opposite_phase"]
    assert bad[0]["message"] in err and bad[0].keys() == {"code", "message"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("transcribe",), "cannot transcribe: it has no head for it"),
        (("classify",), "cannot classify: it has no head for it"),
    ],
)
def test_a_model_without_a_head_says_how_to_get_one(
    run: Run, tiny_artifact: Path, clips: list[Path], arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = run(*arguments, clips[0], "--model", tiny_artifact)
    assert status == 2 and not out and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("classify", "--head", "birds"), "no head 'birds'"),
        (("classify", "--threshold", "0"), "threshold must be a probability above 0"),
        (("classify", "--top-k", "0"), "at least 1"),
        (("transcribe", "--beam", "0"), "beam must be at least 1"),
        (("transcribe", "--lm", "absent.arpa"), "absent.arpa"),
    ],
)
def test_mistakes_are_one_line(
    run: Run, answering_artifact: Path, clips: list[Path], options: tuple[str, ...], words: str
) -> None:
    status, out, err = run(options[0], clips[0], "--model", answering_artifact, *options[1:])
    assert status == 2 and not out and words in err and err.count("\n") == 1


def test_an_analysis_is_that_of_python(run: Run, answering_artifact: Path, clips: list[Path]) -> None:
    """All that the model can, and only what is asked for."""
    runtime = speech_ssl.load(answering_artifact)
    (expected,) = runtime.analyze(clips[:1], layer=2, threshold=0.3)
    options = ("--layer", 2, "--threshold", "0.3", "--model", answering_artifact)
    status, out, err = run("analyze", clips[0], "--json", *options)
    answer = json.loads(out)
    assert (status, err) == (0, "")
    np.testing.assert_allclose(answer["embedding"], expected.features.pooled(), atol=1e-5)
    assert answer["transcription"]["text"] == expected.transcript.text
    assert len(answer["transcription"]["words"]) == len(expected.transcript.words)
    labels = [label.label for label in expected.classification.labels]
    assert [label["label"] for label in answer["classification"]["labels"]] == labels
    assert len(answer["classification"]["events"]) == len(expected.classification.events)
    assert (answer["model"], answer["duration_s"]) == (runtime.name, expected.features.duration_s)
    _, out, _ = run("analyze", clips[0], *options)
    assert [line.split("\t")[:2] for line in out.splitlines()] == [
        [str(clips[0]), task] for task in ("embedding", "transcription", "classification")
    ]
    _, out, _ = run("analyze", *clips, "--tasks", "classification", "--sounds-head", "moods", *options)
    assert [line.split("\t")[1] for line in out.splitlines()] == ["classification"] * 3


def test_what_a_model_cannot_analyze_is_one_line(run: Run, tiny_artifact: Path, clips: list[Path]) -> None:
    _, out, _ = run("analyze", clips[0], "--model", tiny_artifact)
    assert out.startswith(f"{clips[0]}\tembedding\t") and out.count("\n") == 1
    for tasks, message in (("transcription", "cannot transcribe"), ("songs", "'songs' is not known")):
        status, out, err = run("analyze", clips[0], "--model", tiny_artifact, "--tasks", tasks)
        assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_text_is_aligned(run: Run, answering_artifact: Path, clips: list[Path], tmp_path: Path) -> None:
    """Given for one file, or beside each."""
    clip = tmp_path / "clip.flac"
    clip.write_bytes(clips[0].read_bytes())
    (said,) = speech_ssl.load(answering_artifact).align([clip], ["bad cab"])
    model = ("--model", answering_artifact)
    status, out, err = run("align", clip, "--text", "bad cab", *model)
    rows = [line.split("\t") for line in out.splitlines()]
    assert (status, err) == (0, "") and [row[0] for row in rows] == [str(clip)] * 2
    for (_, start, end, word), expected in zip(rows, said.words, strict=True):
        assert word == expected.word
        assert (float(start), float(end)) == pytest.approx((expected.start, expected.end), abs=1e-3)
    (tmp_path / "clip.txt").write_text("bad cab\n")
    _, out, _ = run("align", clip, "--json", *model)
    answer = json.loads(out)
    assert answer["text"] == "bad cab" and [word["word"] for word in answer["words"]] == ["bad", "cab"]
    status, out, err = run("align", clips[1], clip, *model)
    assert status == 2 and out.count("\n") == 2 and f"{clips[1].with_suffix('.txt')}: No such file" in err
    assert "--text is of one FILE" in run("align", clip, clip, "--text", "bad", *model)[2]
