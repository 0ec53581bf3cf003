"""Fine-tuning on events with their times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

import speech_ssl
from speech_ssl.data.manifest import Utterance, write_manifest
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
