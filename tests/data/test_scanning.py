from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech_ssl import audio
from speech_ssl.data.manifest import ManifestError, read_manifest, write_manifest
from speech_ssl.data.scanning import scan_folder
from tests.command_line import Run
from tests.sounds import encoded, noise, timit


def sound(path: Path, seconds: float, rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * rate)), rate)


def test_a_folder_becomes_a_manifest(tmp_path: Path) -> None:
    sound(tmp_path / "b.wav", 1.25)
    sound(tmp_path / "sub" / "deep" / "A.FLAC", 2.0, 44_100)
    sound(tmp_path / ".hidden" / "c.wav", 1.0)
    sound(tmp_path / "._b.wav", 1.0)
    for name in ("readme.txt", "notes.TXT", "sub/prompt.ulaw", "sub/LICENCE"):
        (tmp_path / name).write_text("no audio")
    (tmp_path / "broken.mp3").write_text("no audio either")
    (tmp_path / "empty.ogg").touch()
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    ticks: list[None] = []
    scan = scan_folder(tmp_path, tick=lambda: ticks.append(None))
    assert [(u.id, u.path, u.duration_s) for u in scan.utterances] == [
        ("b.wav", tmp_path / "b.wav", 1.25),
        ("sub/deep/A.FLAC", tmp_path / "sub/deep/A.FLAC", 2.0),
    ]
    assert {path.name for path, _ in scan.failures} == {"broken.mp3", "empty.ogg", "gone.wav"}
    assert all(reason for _, reason in scan.failures)
    assert scan.passed_over == {".txt": 2, ".ulaw": 1, "": 1}
    assert len(ticks) == 5 and not scan.warnings

    write_manifest(tmp_path / "m.tsv", scan.utterances)
    assert read_manifest(tmp_path / "m.tsv") == scan.utterances


def test_every_suffix_that_can_be_read_is_looked_for(tmp_path: Path) -> None:
    content = encoded(noise(0.5))  # what is in it does not depend on its name
    for suffix in audio.SUFFIXES:
        (tmp_path / f"clip{suffix}").write_bytes(content)
    scan = scan_folder(tmp_path)
    assert len(scan.utterances) == len(audio.SUFFIXES) and not scan.passed_over
    assert {".wav", ".sph", ".m4a", ".mkv", ".3gp", ".amr", ".spx", ".wma", ".caf", ".au"} <= audio.SUFFIXES


def test_what_is_damaged_is_kept_as_long_as_it_is_and_told(tmp_path: Path) -> None:
    whole = encoded(noise(4), kind="FLAC")
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.WAV").write_bytes(timit(noise(4))[:-64_000])
    scan = scan_folder(tmp_path)
    assert [utterance.duration_s for utterance in scan.utterances] == [2.0, pytest.approx(1.9, abs=0.2)]
    assert [warning.code for warning in scan.warnings] == ["truncated"] * 2
    assert [Path(warning.message.split(":")[0]).name for warning in scan.warnings] == ["cut.WAV", "cut.flac"]


def test_a_film_is_not_decoded_to_know_how_long_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    from speech_ssl.audio import ffmpeg
    from tests.sounds_av import FORMATS_AV, encoded_av

    for number, form in enumerate(FORMATS_AV):
        (tmp_path / f"{number:02}.m4a").write_bytes(encoded_av(noise(20), 16_000, *form))
    monkeypatch.setattr(ffmpeg.FFmpegReader, "read", None)
    scan = scan_folder(tmp_path)
    assert not scan.failures
    assert [utterance.duration_s for utterance in scan.utterances] == [pytest.approx(20, abs=0.15)] * len(
        FORMATS_AV
    )


def test_a_name_that_a_manifest_cannot_hold_is_a_failure(tmp_path: Path) -> None:
    sound(tmp_path / "tab\there.wav", 1.0)
    scan = scan_folder(tmp_path)
    assert not scan.utterances
    assert "rename" in scan.failures[0][1]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder"):
        scan_folder(tmp_path / "nowhere")


def test_the_command_says_what_it_passed_over_and_what_is_damaged(run: Run, tmp_path: Path) -> None:
    sound(tmp_path / "a.wav", 3.6)
    (tmp_path / "cut.wav").write_bytes(encoded(noise(4))[:64_044])
    for number in range(3):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "LICENCE").touch()
    status, out, err = run("manifest", tmp_path, tmp_path / "m.tsv")
    assert status == 0 and out.endswith(
        ": 2 clips, 0.002 h of audio; passed over: 3 .txt, 1 without a suffix\n"
    )
    assert (
        err == f"speech-ssl: {tmp_path / 'cut.wav'}: it is cut off after 2.00 s; what comes before is used\n"
    )
    for number in range(20):
        (tmp_path / f"clip.x{number}").touch()
    assert "1 .x13, 15 others" in run("manifest", tmp_path, tmp_path / "m.tsv")[1]
