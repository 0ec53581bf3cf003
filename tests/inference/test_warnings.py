"""What is wrong with audio that is used stands in every answer about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import speech_ssl
from speech_ssl.inference import Runtime
from speech_ssl.types import AudioWarning
from tests.sounds import noise


@pytest.fixture(scope="module")
def runtime(answering_artifact: Path) -> Runtime:
    return speech_ssl.load(answering_artifact)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A good one, and one whose channels cancel each other out."""
    folder = tmp_path_factory.mktemp("clips")
    left = noise(1)
    soundfile.write(folder / "good.wav", left, 16_000)
    soundfile.write(folder / "bad.wav", np.stack([left, -left], axis=1), 16_000)
    return [folder / "good.wav", folder / "bad.wav"]


def codes(warnings: tuple[AudioWarning, ...]) -> list[str]:
    return [warning.code for warning in warnings]


def test_of_one_clip_among_others(runtime: Runtime, clips: list[Path]):
    for _ in range(2):  # the second time from what is remembered
        for answers in (
            runtime.encode(clips),
            runtime.transcribe(clips),
            runtime.align(clips, ["a", "b"]),
            runtime.classify(clips),
        ):
            assert [codes(answer.warnings) for answer in answers] == [[], ["opposite_phase"]]
            assert str(clips[1]) in answers[1].warnings[0].message
    _, bad = runtime.analyze(clips)
    for answer in (bad.features, bad.transcript, bad.classification):
        assert answer is not None and codes(answer.warnings) == ["opposite_phase"]
    assert runtime.encode([noise(1)])[0].warnings == ()


def test_of_a_clip_in_pieces(runtime: Runtime, clips: list[Path]):
    told: list[AudioWarning] = []
    for clip in clips:
        list(runtime.stream(clip, warn=told.append))
        runtime.pooled(clip, warn=told.append)
    assert [warning.code for warning in told] == ["opposite_phase"] * 2
    runtime.pooled(clips[1])  # nobody has to listen
