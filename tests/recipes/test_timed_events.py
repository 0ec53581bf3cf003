"""Fine-tuning on events with their times."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import speech_ssl
from speech_ssl.data.labels import timed_windows
from speech_ssl.data.manifest import Utterance, write_manifest
from speech_ssl.inference.answers import Classification, TimedEvent
from speech_ssl.model.heads.specs import EventsSpec
from speech_ssl.runs.events import silent
from speech_ssl.runs.notes import Notes
from speech_ssl.runs.reading import readable
from speech_ssl.runs.sound_events import WINDOW_S, TimedEvents
from tests.narrow import save_narrow
from tests.recipes.tuning import done, refusal, results, sounds


def test_timed_events(tmp_path: Path) -> None:
    """Files of noise with tones in them; one without."""
    narrow = save_narrow(tmp_path / "narrow")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(6):
        wave = 0.01 * generator.standard_normal(16_000 * 12)
        split, path = "dev" if number > 3 else "train", tmp_path / f"{number}.wav"
        for label, hertz, start in (("low", 300, 1.0), ("high", 2_000, 7.5))[: number % 3]:
            part = slice(round(start * 16_000), round((start + 2) * 16_000))
            wave[part] += 0.3 * np.sin(2 * np.pi * hertz * np.arange(32_000) / 16_000)
            rows.append(
                Utterance(path, 2.0, "", label=label, split=split, start=start, end=start + 2, file_s=12)
            )
        if number % 3 == 0:
            rows.append(Utterance(path, 12.0, "", split=split))
        soundfile.write(path, wave, 16_000)
    rows.append(replace(next(r for r in rows if r.split == "dev" and r.label), start=2.0, end=3.5))
    write_manifest(tmp_path / "m.tsv", rows)
    out = tmp_path / "run"
    done(sounds, "timed", "--manifest", tmp_path / "m.tsv", "--init", narrow, "--out", out)
    assert {"event_f1", "psds_1", "psds_2"} <= results(out).keys()
    runtime = speech_ssl.load(out / "artifact")
    (found,) = runtime.classify([tmp_path / "5.wav"], threshold=0.01)
    assert {label.label for label in found.labels} == {"low", "high"}
    assert all(0 <= e.start < e.end <= 12 for e in found.events)

    write_manifest(tmp_path / "moved.tsv", [replace(r, end=r.end and r.end - 0.25) for r in rows])
    options = ("timed", "--manifest", tmp_path / "moved.tsv", "--init", narrow, "--out", out, "--resume")
    assert "inputs.sha256 was" in refusal(sounds, *options)
    silent = [r for r in rows if r.split != "dev"] + [Utterance(tmp_path / "5.wav", 12.0, "", split="dev")]
    write_manifest(tmp_path / "silent.tsv", silent)
    options = ("timed", "--manifest", tmp_path / "silent.tsv", "--out", tmp_path / "other")
    assert "clips to test on has a label" in refusal(sounds, *options)


class Loud:
    """A runtime that hears the label "loud" where a wave is, in frames of 20 ms."""

    heads = {"events": EventsSpec(labels=("loud",), exclusive=False, pooling="max", hidden=0)}

    def plan(self, samples: int) -> None:
        pass

    def classify_frames(self, waves, *, head: str):
        answers = []
        for wave in waves:
            scores = np.abs(wave.reshape(-1, 320)).max(axis=1)[:, None]
            edges = np.arange(len(wave) // 320 + 1) * 0.02
            bounds = np.flatnonzero(np.diff(np.concatenate(([0], scores[:, 0] > 0.5, [0]))))
            spans = zip(edges[bounds[::2]], edges[bounds[1::2]], strict=True)
            events = [TimedEvent("loud", *span, 1.0) for span in spans]
            answers.append((Classification([], events, len(wave) / 16e3), scores, edges))
        return answers


def test_events_are_measured_in_whole_files(tmp_path: Path) -> None:
    """One begins shortly before the edge of two windows: heard 0.1 s too soon, it is one hit, and no false
    alarm in the window before."""
    wave = np.zeros(320_000)
    wave[round(9.9 * 16_000) : 13 * 16_000] = 0.9
    soundfile.write(tmp_path / "a.wav", wave, 16_000)
    row = Utterance(tmp_path / "a.wav", 3.0, "a.wav#10-13", label="loud", start=10.0, end=13.0, file_s=20.0)
    windows, events = timed_windows([row], window_s=WINDOW_S)
    assert [window.id for window in windows] == ["a.wav#0-10", "a.wav#10-20"]
    notes = Notes.into(tmp_path, silent)
    figures = TimedEvents(events).measure(Loud(), "events", windows, notes)  # type: ignore[arg-type]
    assert figures["clips"] == 1 and figures["event_f1"] == figures["event_f1_micro"] == 1.0
    assert figures["psds_1"] == pytest.approx(1.0)


def test_what_is_measured_is_all_of_a_file_or_part(tmp_path: Path) -> None:
    """Whatever the manifest says of a file's length."""
    soundfile.write(tmp_path / "a.wav", np.zeros(48_000), 16_000)
    rows = [
        Utterance(tmp_path / "a.wav", 1.0, "a.wav"),
        Utterance(tmp_path / "a.wav", 1.5, "a.wav#1-2.5", start=1.0, end=2.5),
    ]
    left = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000)
    soundfile.write(tmp_path / "b.wav", np.stack([left, -left], axis=1), 16_000)
    bad = [Utterance(tmp_path / "b.wav", 1.0, "b.wav"), Utterance(tmp_path / "gone.wav", 1.0, "gone.wav")]
    notes = Notes.into(tmp_path, silent)
    ((clips, waves),) = readable([*rows, *bad], Loud(), notes)  # type: ignore[arg-type]
    assert clips == [*rows, bad[0]]
    assert [len(wave) for wave in waves] == [48_000, 24_000, 16_000]  # type: ignore[arg-type]
    (skipped,), (warned,) = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("skipped.jsonl", "warnings.jsonl")
    )
    assert skipped["id"] == "gone.wav" and (warned["id"], warned["code"]) == ("b.wav", "opposite_phase")
