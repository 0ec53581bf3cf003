"""A long file costs no more memory than a short one, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.narrow import save_narrow

# The command, then the largest size it had, in KiB. Not ru_maxrss: a process inherits that from the one that
# started it, and pytest may be larger.
MEASURED = """
import json, re
from pathlib import Path
from speech_ssl.cli import main
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    print(json.dumps({"peak": int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])}))
"""


def real_speech(prompts: Path, path: Path, seconds: int) -> Path:
    """The prompts, one after the other and over again."""
    waves = [soundfile.read(clip, dtype="int16")[0] for clip in sorted((prompts / "audio").glob("*.flac"))]
    block = np.concatenate(waves)
    left = seconds * 16000
    with soundfile.SoundFile(path, "w", 16000, 1) as sound:
        while left > 0:
            sound.write(block[:left])
            left -= len(block)
    return path


def peak_bytes(artifact: Path, path: Path) -> int:
    command = [sys.executable, "-c", MEASURED, "embed", str(path), "--model", str(artifact), "--json"]
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    answer, measured = map(json.loads, out.splitlines())
    assert np.isfinite(answer["embedding"]).all()
    return int(measured["peak"]) * 1024


def test_memory_does_not_grow_with_the_length(prompts: Path, tmp_path: Path):
    """Ten minutes as float32 are 38 MB, their frames another 2 of a narrow model."""
    narrow = save_narrow(tmp_path / "narrow")
    short, long = (
        peak_bytes(narrow, real_speech(prompts, tmp_path / f"{seconds}.flac", seconds))
        for seconds in (60, 660)
    )
    assert long - short < 12e6


@pytest.mark.slow
def test_three_hours_stay_below_two_gibibytes(prompts: Path, tiny_artifact: Path, tmp_path: Path):
    path = real_speech(prompts, tmp_path / "three-hours.flac", 3 * 3600)
    peak = peak_bytes(tiny_artifact, path)
    print(f"peak {peak / 2**20:.0f} MiB")
    assert peak < 2 << 30
