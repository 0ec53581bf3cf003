from __future__ import annotations

import numpy as np
import soundfile

import speech_ssl
from benchmarks import stitching
from speech_ssl.inference.chunking import Chunker


def test_one_window_is_the_whole_and_context_brings_it_nearer(tiny_artifact):
    runtime = speech_ssl.load(tiny_artifact, precision="fp32")
    wave = np.random.default_rng(0).standard_normal(16_000 * 6).astype(np.float32)
    whole = runtime.encode_windows([wave], [-1])[0]

    def measured(window_s, context_s):
        chunker = Chunker.of_seconds(runtime.hop, runtime.min_samples, window_s=window_s, context_s=context_s)
        return stitching.distance(runtime, wave, whole, chunker)

    assert measured(8.0, 1.0) == stitching.Distance(0.0, 0.0, 1.0)
    bare, padded = measured(2.0, 0.0), measured(2.0, 0.5)
    assert 0 < padded.frames < bare.frames
    assert 1.0 < bare.computed < 1.02 < padded.computed < 2.0


def test_it_prints_a_line_for_each_window(tiny_artifact, tmp_path, capsys, monkeypatch):
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).uniform(-1, 1, 48_000), 16_000)
    monkeypatch.setattr(stitching, "WINDOWS", ((1.0, 0.2), (2.0, 0.5)))
    monkeypatch.setattr("sys.argv", ["stitching", str(tmp_path / "long.wav"), "--model", str(tiny_artifact)])
    stitching.main()
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "1 file(s) of 3 s"
    assert len(out) == 3 and all(" s computed a second" in line for line in out[1:])
