"""Transcription and classification by the runtime: one pass for all heads, alike in any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import speech_ssl
from speech_ssl import audio
from speech_ssl.checkpoints.artifact import load_artifact
from speech_ssl.inference import Runtime
from speech_ssl.types import Waveform
from tests.narrow import HEADS

pytestmark = pytest.mark.numerical

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def artifact(answering_artifact: Path) -> Path:
    return answering_artifact


@pytest.fixture
def runtime(artifact: Path) -> Runtime:
    return speech_ssl.load(artifact)


@pytest.fixture(scope="module")
def waves(prompts: Path) -> list[Waveform]:
    paths = sorted((prompts / "audio").glob("*.flac"))
    return [audio.decode(path) for path in paths[:6]]


@pytest.fixture
def passes(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each pass of the encoder from now on."""
    counts: list[int] = []
    encoder = runtime._engine.encoder
    hidden_states = encoder.hidden_states

    def counted(wave_BS: torch.Tensor, *args: object, **options: object) -> list[torch.Tensor]:
        counts.append(len(wave_BS))
        return hidden_states(wave_BS, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder, "hidden_states", counted)
    return counts


def test_only_the_head_that_was_asked_for_is_run(runtime, waves, passes, monkeypatch) -> None:
    """Each call is one pass, and nothing is kept of it."""
    asked: list[list[str]] = []
    run = runtime._engine.run
    monkeypatch.setattr(runtime._engine, "run", lambda *given: (asked.append(list(given[2])), run(*given))[1])
    runtime.transcribe(waves[:1])
    runtime.classify(waves[:1])
    runtime.classify(waves[:1], head="moods")
    runtime.frame_scores(waves[:1])
    runtime.align(waves[:1], [""])
    runtime.transcribe([waves[0].copy()])
    assert asked == [["ctc"], ["sounds"], ["moods"], ["sounds"], ["ctc"], ["ctc"]] and passes == [1] * 6
    runtime.analyze(waves[:1])
    assert asked[6:] == [["ctc", "sounds"]] and passes == [1] * 7


def test_labels_and_scores_of_frames_come_from_one_pass(runtime, waves, passes) -> None:
    ((found, scores_TK, edges_s),) = runtime.classify_frames(waves[:1])
    assert passes == [1]
    assert [found] == runtime.classify(waves[:1])
    ((alone_TK, alone_s),) = runtime.frame_scores(waves[:1])
    assert np.array_equal(scores_TK, alone_TK) and np.array_equal(edges_s, alone_s)


def test_a_file_that_was_written_to_is_heard_again(runtime, waves, passes, tmp_path) -> None:
    import soundfile

    path = tmp_path / "clip.wav"
    soundfile.write(path, waves[0], 16_000)
    first = runtime.transcribe([path])
    assert runtime.transcribe([str(path)]) == first
    soundfile.write(path, waves[1], 16_000)
    assert runtime.transcribe([path]) != first


def test_all_answers_at_once_are_the_single_ones(runtime, artifact, waves, passes) -> None:
    analyses = runtime.analyze(waves)
    assert sum(passes) == len(waves)
    alone = speech_ssl.load(artifact)
    for analysis, wave in zip(analyses, waves, strict=True):
        fresh = speech_ssl.load(artifact)
        np.testing.assert_allclose(analysis.features.frames, alone.encode([wave])[0].frames, atol=TOLERANCE)
        assert analysis.transcript.text == fresh.transcribe([wave])[0].text
        (found,) = fresh.classify([wave])
        assert [label.label for label in analysis.classification.labels] == [x.label for x in found.labels]
    some = runtime.analyze(waves[:1], tasks=["classification"])[0]
    assert some.features is None and some.transcript is None and some.classification is not None
    assert runtime.analyze(waves[:1], tasks=["embedding"], layer=0)[0].features.frames.shape[1] == 256


def test_a_clip_has_the_same_outputs_in_any_company(runtime, waves) -> None:
    heads = list(HEADS)
    together = runtime.run_windows(waves, [-1] * len(waves), heads)
    backwards = runtime.run_windows(waves[::-1], [-1] * len(waves), heads)[::-1]
    for wave, one, other in zip(waves, together, backwards, strict=True):
        (alone,) = runtime.run_windows([wave], [-1], heads)
        for name in heads:
            assert np.abs(alone.heads[name] - one.heads[name]).max() <= TOLERANCE
            assert np.abs(alone.heads[name] - other.heads[name]).max() <= TOLERANCE


def test_long_clips_go_through_in_windows(artifact, waves) -> None:
    """Each frame is answered once, and the times are those of the whole clip."""
    long = np.concatenate(waves * 3)
    narrow = Runtime(load_artifact(artifact), window_s=3.0, context_s=0.5)
    ((scores_TK, edges_s),) = narrow.frame_scores([long])
    assert len(scores_TK) == narrow.chunker.frame_count(len(long))
    assert edges_s[0] == 0 and edges_s[-1] == pytest.approx(len(long) / 16_000)
    assert (np.diff(edges_s) > 0).all()
    (transcript,) = narrow.transcribe([long])
    times = [(word.start, word.end) for word in transcript.words]
    assert times == sorted(times) and times[-1][1] <= transcript.duration_s
    assert " ".join(word.word for word in transcript.words) == transcript.text


def test_loudness_is_that_of_the_wave_around_each_frame(artifact, waves) -> None:
    """Also of a clip in windows; without heads there is none."""
    long = np.concatenate(waves)
    narrow = Runtime(load_artifact(artifact), window_s=3.0, context_s=0.5)
    (whole,) = narrow._wholes([long], None, ["ctc"])
    loudness_TE = whole.passed.loudness
    assert loudness_TE.shape == (narrow.chunker.frame_count(len(long)), 4)
    for frame, quarter in ((0, 0), (160, 3), (len(loudness_TE) - 1, 2)):
        first = 320 * frame + 40 + 80 * quarter  # the middle of a frame's 400 samples is at 200
        expected = np.square(long[first : first + 80].astype(np.float64)).mean()
        assert loudness_TE[frame, quarter] == pytest.approx(expected, rel=1e-4)
    (without,) = narrow._wholes([long], 0)
    assert not without.passed.loudness.size


def test_what_the_model_cannot_do_is_said(tiny_artifact, runtime, waves) -> None:
    without = speech_ssl.load(tiny_artifact)
    with pytest.raises(ValueError, match=r"cannot transcribe: it has no head.*recipes.finetune_ctc"):
        without.transcribe(waves[:1])
    with pytest.raises(ValueError, match=r"cannot classify: .*recipes.finetune_events"):
        without.analyze(waves[:1], tasks=["classification"])
    with pytest.raises(ValueError, match="no head 'birds' to classify: it has sounds, moods"):
        runtime.classify(waves[:1], head="birds")
    with pytest.raises(ValueError, match="no head 'sounds' to transcribe"):
        runtime.transcribe(waves[:1], head="sounds")


def test_the_first_head_of_a_kind_answers(runtime, waves) -> None:
    assert {label.label for label in runtime.classify(waves[:1])[0].labels} == set(HEADS["sounds"].labels)
    found = runtime.classify(waves[:1], head="moods", top_k=1)[0]
    assert len(found.labels) == 1 and found.labels[0].label in HEADS["moods"].labels


def test_bad_clips_are_refused_as_by_encode(runtime) -> None:
    with pytest.raises(ValueError, match="clip 0.*too short"):
        runtime.transcribe([np.zeros(10, dtype=np.float32)])
    with pytest.raises(OSError):
        runtime.classify(["absent.wav"])
    with pytest.raises(ValueError, match="a list of clips"):
        runtime.transcribe(np.zeros(16_000, dtype=np.float32))
    assert runtime.transcribe([]) == []


def test_silence_and_precisions_give_answers(artifact) -> None:
    silence = np.zeros(16_000, dtype=np.float32)
    for precision in ("fp32", "bf16", "int8"):
        runtime = speech_ssl.load(artifact, precision=precision)
        (found,) = runtime.classify([silence])
        assert sum(label.score for label in found.labels) == pytest.approx(1, abs=1e-5)
